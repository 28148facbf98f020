"""Tables of a study as text, in percent and points, and as LaTeX."""

import math
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd

from robustlib import stats
from robustlib.figures.names import called, labelled, native

_TEX = {c: f"\\{c}" for c in "%&_#${}"} | {"−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"ε": r"$\varepsilon$", "σ": r"$\sigma$", "∞": r"$_\infty$", "→": r"$\to$"}
_ESCAPES = str.maketrans(_TEX)
LONG = 25
"""Letters beyond which a column of text is broken into lines, in LaTeX."""
LOW_IS_GOOD = ("ECE", "log-likelihood", "Brier", "FPR", "abstained")
NEITHER = ("CKA", "overlap", "distance")
"""Parts of the names of what is measured, where the highest is not the best."""
_NUMBER = re.compile(r"^([+-]?\d+(?:\.\d+)?)(?: \[([+-]?)[\d.]+, ([+-]?)[\d.]+\])?$")


def cell(row: Any, scale: float = 100, form: str = ".1f") -> str:
    """The mean of a row with its interval, both low and high; without one where there is none."""
    if row["mean"] != row["mean"]:
        return ""
    mean, low, high = (f"{scale * row[c]:{form}}" for c in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if row["low"] == row["low"] else mean


def better(what: str) -> str:
    """Where the better values of what is so called lie, as an arrow; "" for neither."""
    if any(word in what for word in NEITHER):
        return ""
    return "↓" if any(word in what for word in LOW_IS_GOOD) else "↑"


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Natural against robust by mode and sparsity, averaged over tasks, in percent.

    Intervals are Student's 95 % over seeds; the difference is paired by seed.
    """
    by = ["mode", "recalibrate", "sparsity"]
    cells = [*stats.PRETRAINING, *by]
    each = stats.summary(frame, cells)
    each = each.assign(**{"robust %": [cell(row) for row in each.to_dict("records")]})
    natural = each[each.objective == "natural"].rename(columns={"robust %": "natural %"})
    out = labelled(stats.advantage(frame, by)).rename(columns={"label": "robust"})
    out["difference, points"] = [cell(row, form="+.1f") for row in out.to_dict("records")]
    out = out.merge(natural[[*by, "natural %"]], on=by).merge(each[[*cells, "robust %"]], on=cells)
    out = out.sort_values([*by[:2], "robust", "sparsity"], ignore_index=True)
    shown = by if out.recalibrate.nunique() > 1 else ["mode", "sparsity"]
    return out[[*shown, "robust", "natural %", "robust %", "difference, points", "seeds"]]


def by_detail(frame: pd.DataFrame) -> pd.DataFrame:
    """Robust minus natural in points, by detail of the task's images."""
    frame = frame.assign(detail=frame.detail.fillna(frame["size"]).astype(int))
    found = stats.advantage(frame, ["mode", "task", "sparsity", "detail"])
    table = wide(found, ["mode", "task", "sparsity"], "detail")
    return table.rename(columns=lambda d: d if isinstance(d, str) else f"{d} px")


def by_colour(frame: pd.DataFrame) -> pd.DataFrame:
    """Robust minus natural in points, with the task's images in colour and in grey.

    The last column is the second less the first, paired by seed.
    """
    cells, named = ["mode", "task", "sparsity"], {False: "in colour", True: "in grey"}
    pairs = stats.differences(frame).assign(grey=lambda d: d.grey.map(named))
    each = pairs.pivot(index=[*cells, "seed"], columns="grey", values="difference")
    each["grey − colour"] = each["in grey"] - each["in colour"]
    long = each.reset_index().melt([*cells, "seed"], var_name="what", value_name="gained")
    return wide(stats.summary(long, [*cells, "what"], "gained"), cells, "what")[
        [*cells, *named.values(), "grey − colour"]
    ]


def by_task(frame: pd.DataFrame) -> pd.DataFrame:
    """Robust minus natural in points by task, mean over the sparsities above 0."""
    cells = ["mode", "native_detail", "task"]
    frame = frame[frame.sparsity > 0].assign(native_detail=native(frame))
    found = labelled(stats.advantage(frame, cells))
    found = found.assign(detail=found.native_detail.astype(int)).rename(columns={"label": "robust"})
    index = ["detail", "task", *(["robust"] if found.robust.nunique() > 1 else [])]
    return wide(found, index, "mode").sort_values(["detail", "task"], ascending=[False, True])


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy in percent by rate of finetuning, a mean over tasks."""
    network = {"natural": "natural", "pgd": "robust"}
    both = [frame.assign(network=frame.objective.map(network)), frame.assign(network="both")]
    found = stats.summary(pd.concat(both), ["network", "lr"], "val_accuracy")
    table = wide(found, ["network"], "lr", ".1f")
    order = [*network.values(), "both"]
    return table.sort_values("network", key=lambda names: names.map(order.index))


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Fréchet distance of each task to the source, in the features of each network."""
    frame = labelled(frame.assign(**{"distance of": frame.against.map(called)}))
    found = stats.summary(frame, ["distance of", "label"], "frechet_infinity")
    return wide(found, ["distance of"], "label", ".0f", 1)


def mask_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """What a network's own mask is worth on its weights, over another mask, in points."""
    named = frame.assign(task=frame.task.map(called), way=frame["mode"])
    return wide(named, ["task", "weights", "mask"], "way")


def properties(frame: pd.DataFrame) -> pd.DataFrame:
    """Each property of natural and robust tickets, and what robust ones have over natural ones."""
    return frame.drop(columns=["images", "seeds"])


def verdicts(frame: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
    """The verdict on each claim, with the effect in points (of C7, a correlation).

    frame: rows of `claims.table`; whole: with what is measured, on how many seeds and tasks, and
    with the sentence of a claim in each of its lines, not in the first alone.
    """
    rows, named = frame.to_dict("records"), ~frame.claim.duplicated() | whole
    out: dict[str, Any] = {"": frame.claim.where(named, "")}
    out |= {"claim": frame.sentence.where(named, ""), "of": frame.part, "verdict": frame.verdict}
    if whole:
        out["what is measured"] = frame.estimand
    out["mean [95 %]"] = [cell(r, 1, ".2f" if r["claim"] == "C7" else "+.1f") for r in rows]
    if whole:
        these = zip(frame.these_tasks, frame.these_low, frame.these_high, strict=True)
        out["of these very tasks"] = [
            f"{verdict} [{low:+.1f}, {high:+.1f}]" if low == low else verdict
            for verdict, low, high in these
        ]
        out |= {c: ["" if n != n else int(n) for n in frame[c]] for c in ("seeds", "tasks")}
    return pd.DataFrame(out)


def latex(frame: pd.DataFrame) -> str:
    """A table of text as LaTeX, for the packages booktabs and inputenc.

    Bold are the best of the networks' means in a line, and differences whose interval leaves out
    zero. Long text is broken into lines.
    """
    names = list(map(str, frame.columns))
    lines = []
    for row in frame.astype(object).to_numpy():
        texts = [_escaped(f"{v:.4g}" if isinstance(v, float) else called(str(v))) for v in row]
        bold = zip(texts, _bold(row, names), strict=True)
        lines.append(" & ".join(rf"\textbf{{{t}}}" if b else t for t, b in bold) + r" \\")
    plain = frame.map(lambda v: 0 if _NUMBER.match(str(v)) else len(str(v))).max()
    broken = [n for n in frame if plain[n] > LONG]
    widths = {n: min(0.5, 0.013 * plain[n]) / len(broken) for n in broken}
    form = "".join(rf"p{{{widths[n]:.2f}\linewidth}}" if n in widths else "l" for n in frame)
    head = " & ".join(map(_escaped, names)) + r" \\"
    body = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", head, r"\midrule", *lines]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", ""])


def _bold(row: Iterable[Any], names: list[str]) -> list[bool]:
    """Which cells of a line stand out."""
    found = [_NUMBER.match(v) if isinstance(v, str) else None for v in row]
    means = [float(m[1]) if m and m[1][0] not in "+-" else math.nan for m in found]
    about = " ".join([*names, *(str(v) for v, m in zip(row, found, strict=True) if not m)])
    choose = {"↑": max, "↓": min}.get(better(about))
    known = [m for m in means if m == m]
    best = choose(known) if choose and len(known) > 1 else math.nan
    decided = [m and m[1][0] in "+-" and m[2] and m[2][0] == m[3][0] for m in found]
    return [bool(d) or m == best for d, m in zip(decided, means, strict=True)]


def _escaped(text: str) -> str:
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return text.translate(_ESCAPES)


def wide(
    found: pd.DataFrame, index: list[str], across: str, form: str = "+.1f", scale: float = 100
) -> pd.DataFrame:
    """Means with their intervals as text: lines by `index`, columns by `across`."""
    text = [cell(row, scale, form) for row in found.to_dict("records")]
    table = found.assign(text=text).pivot(index=index, columns=across, values="text")
    return table.fillna("").rename_axis(columns=None).reset_index()
