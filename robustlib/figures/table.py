"""Tables of a study as text, in percent and points, and as LaTeX."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from robustlib import stats
from robustlib.figures.names import called, label, labelled

_TEX = {c: f"\\{c}" for c in "%&_#${}"} | {"−": "$-$", "±": r"$\pm$", "×": r"$\times$"}
_TEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_TEX |= {"ε": r"$\varepsilon$", "σ": r"$\sigma$", "∞": r"$_\infty$", "→": r"$\to$"}
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


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Natural against robust by mode and sparsity, averaged over tasks, in percent.

    Intervals are Student's 95 % over seeds; the difference is paired by seed.
    """
    by = ["mode", "recalibrate", "sparsity"]
    cells = [*stats.PRETRAINING, *by]
    each = stats.summary(frame, cells)
    natural = each[each.objective == "natural"].set_index(by)
    own = each.set_index(cells)
    rows = []
    for robust in stats.advantage(frame, by).to_dict("records"):
        place = tuple(robust[c] for c in by)
        rows.append(
            dict(zip(by, place, strict=True))
            | {
                "robust": label(robust),
                "natural %": cell(natural.loc[place]),
                "robust %": cell(own.loc[tuple(robust[c] for c in cells)]),
                "difference, points": cell(robust, form="+.1f"),
                "seeds": robust["seeds"],
            }
        )
    out = pd.DataFrame(rows).sort_values([*by[:2], "robust", "sparsity"], ignore_index=True)
    return out if out.recalibrate.nunique() > 1 else out.drop(columns="recalibrate")


def by_detail(frame: pd.DataFrame) -> pd.DataFrame:
    """Robust minus natural in points, by detail of the task's images."""
    frame = frame.assign(detail=frame.detail.fillna(frame["size"]).astype(int))
    found = stats.advantage(frame, ["mode", "task", "sparsity", "detail"])
    wide = _wide(found, ["mode", "task", "sparsity"], "detail")
    return wide.rename(columns=lambda d: d if isinstance(d, str) else f"{d} px")


def by_task(frame: pd.DataFrame) -> pd.DataFrame:
    """Robust minus natural in points by task, mean over the sparsities above 0."""
    cells = ["mode", "native_detail", "task"]
    frame = frame[frame.sparsity > 0].assign(native_detail=_native(frame))
    found = labelled(stats.advantage(frame, cells))
    found = found.assign(detail=found.native_detail.astype(int)).rename(columns={"label": "robust"})
    index = ["detail", "task", *(["robust"] if found.robust.nunique() > 1 else [])]
    return _wide(found, index, "mode").sort_values(["detail", "task"], ascending=[False, True])


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy in percent by rate of finetuning, a mean over tasks."""
    network = {"natural": "natural", "pgd": "robust"}
    both = [frame.assign(network=frame.objective.map(network)), frame.assign(network="both")]
    found = stats.summary(pd.concat(both), ["network", "lr"], "val_accuracy")
    wide = _wide(found, ["network"], "lr", ".1f")
    order = [*network.values(), "both"]
    return wide.sort_values("network", key=lambda names: names.map(order.index))


def gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Fréchet distance of each task to the source, in the features of each network."""
    frame = labelled(frame.assign(**{"distance of": frame.against.map(called)}))
    found = stats.summary(frame, ["distance of", "label"], "frechet_infinity")
    return _wide(found, ["distance of"], "label", ".0f", 1)


def mask_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """What a network's own mask is worth on its weights, over another mask, in points."""
    named = frame.assign(task=frame.task.map(called), way=frame["mode"])
    return _wide(named, ["task", "weights", "mask"], "way")


def properties(frame: pd.DataFrame) -> pd.DataFrame:
    """Each property of natural and robust tickets, and what robust ones have over natural ones."""
    return frame.drop(columns=["images", "seeds"])


def verdicts(frame: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
    """The verdict on each claim, with the effect in points (of C7, a correlation).

    frame: rows of `claims.table`; whole: with what is measured, on how many seeds and tasks, and
    with the sentence of a claim in each of its lines, not in the first alone.
    """
    out: list[dict[str, Any]] = []
    said = ""
    for row in frame.to_dict("records"):
        scale, form = (1, ".2f") if row["claim"] == "C7" else (1, "+.1f")
        told = whole or row["claim"] != said
        said = row["claim"]
        line = {"": said if told else "", "claim": row["sentence"] if told else ""}
        line |= {"of": row["part"], "verdict": row["verdict"]}
        these = row["these_tasks"]
        if these and row["these_low"] == row["these_low"]:
            these += f" [{row['these_low']:+.1f}, {row['these_high']:+.1f}]"
        if whole:
            line |= {"what is measured": row["estimand"]}
        line |= {"mean [95 %]": cell(row, scale, form)}
        if whole:
            line |= {"of these very tasks": these}
            line |= {c: "" if row[c] != row[c] else int(row[c]) for c in ("seeds", "tasks")}
        out.append(line)
    return pd.DataFrame(out)


def latex(frame: pd.DataFrame) -> str:
    """A table of text as LaTeX, for the packages booktabs and inputenc.

    Bold are the best of the networks' means in a line, and differences whose interval leaves out
    zero. Long text is broken into lines.
    """
    names = list(map(str, frame.columns))
    lines = []
    for row in frame.astype(object).to_numpy():
        texts = [f"{v:.4g}" if isinstance(v, float) else called(str(v)) for v in row]
        bold = _bold(texts, [isinstance(v, str) for v in row], names)
        cells = (
            rf"\textbf{{{_escaped(t)}}}" if b else _escaped(t)
            for t, b in zip(texts, bold, strict=True)
        )
        lines.append(" & ".join(cells) + r" \\")
    plain = frame.map(lambda v: 0 if _NUMBER.match(str(v)) else len(str(v))).max()
    broken = [n for n in frame if plain[n] > LONG]
    wide = {n: min(0.5, 0.013 * plain[n]) / len(broken) for n in broken}
    form = "".join(rf"p{{{wide[n]:.2f}\linewidth}}" if n in wide else "l" for n in frame)
    head = " & ".join(map(_escaped, names)) + r" \\"
    body = [rf"\begin{{tabular}}{{{form}}}", r"\toprule", head, r"\midrule", *lines]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}", ""])


def _bold(texts: list[str], is_text: list[bool], names: list[str]) -> list[bool]:
    """Which cells of a line stand out."""
    found = [_NUMBER.match(text) if own else None for text, own in zip(texts, is_text, strict=True)]
    means = [float(m[1]) if m and m[1][0] not in "+-" else math.nan for m in found]
    about = " ".join([*names, *(t for t, m in zip(texts, found, strict=True) if not m)])
    best = math.nan
    if sum(m == m for m in means) > 1 and not any(word in about for word in NEITHER):
        low = any(word in about for word in LOW_IS_GOOD)
        best = (min if low else max)(m for m in means if m == m)
    decided = [m and m[1][0] in "+-" and m[2] and m[2][0] == m[3][0] for m in found]
    return [bool(d) or m == best for d, m in zip(decided, means, strict=True)]


def _escaped(text: str) -> str:
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return "".join(_TEX.get(c, c) for c in text)


def _native(frame: pd.DataFrame) -> pd.Series:
    return frame.native_detail if "native_detail" in frame else frame["size"]


def _wide(
    found: pd.DataFrame, index: list[str], across: str, form: str = "+.1f", scale: float = 100
) -> pd.DataFrame:
    """Means with their intervals as text: lines by `index`, columns by `across`."""
    text = [cell(row, scale, form) for row in found.to_dict("records")]
    wide = found.assign(text=text).pivot(index=index, columns=across, values="text")
    return wide.fillna("").rename_axis(columns=None).reset_index()
