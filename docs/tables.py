"""Writes the tables of README.md and docs/results.md from the rows in figures/: no number is typed.

    python docs/tables.py        # tests/unit/test_docs.py holds both pages to it

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from robustlib import stats
from robustlib.figures.table import table

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md")


def rows(name: str) -> pd.DataFrame:
    """The rows behind a figure, text as the specs have it."""
    frame = pd.read_csv(ROOT / "figures" / f"{name}.csv")
    texts = frame.select_dtypes(["object", "string"]).columns
    return frame.assign(**{c: frame[c].fillna("") for c in texts})


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def interval(mean: float, low: float, high: float, sign: str = "+") -> str:
    """The mean with its interval; a dash where there is none."""
    return "" if pd.isna(mean) else f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def verdicts(whole: bool) -> pd.DataFrame:
    """The claims with their verdicts: all that is known of them, or a line each part."""
    found = rows("claims")
    out = []
    for row in found.itertuples():
        number = interval(row.mean, row.low, row.high)
        if row.claim == "C7" and number:
            number = f"{row.mean:.2f} [{row.low:.2f}, {row.high:.2f}]"
        line = {"": row.claim, "claim": row.sentence, "of": row.part, "verdict": row.verdict}
        if whole:
            line |= {"what is measured": row.estimand}
        line["mean [95 %]"] = number
        if whole:
            these = row.these_tasks
            if these and not pd.isna(row.these_low):
                these += f" [{row.these_low:+.1f}, {row.these_high:+.1f}]"
            line["of these very tasks"] = these
            line |= {n: "" if pd.isna(v) else int(v) for n, v in zip(
                ("seeds", "tasks"), (row.seeds, row.tasks), strict=True)}  # fmt: skip
        out.append(line)
    return pd.DataFrame(out)


def by_detail() -> pd.DataFrame:
    """Robust minus natural in points, by detail of the task's images."""
    frame = rows("detail")
    frame = frame.assign(detail=frame.detail.fillna(frame["size"]).astype(int))
    found = stats.advantage(frame, ["mode", "task", "sparsity", "detail"])
    text = [interval(100 * r.mean, 100 * r.low, 100 * r.high) for r in found.itertuples()]
    wide = found.assign(text=text).pivot(
        index=["mode", "task", "sparsity"], columns="detail", values="text"
    )
    return wide.rename(columns=lambda d: f"{d} px").reset_index()


def by_task() -> pd.DataFrame:
    """Robust minus natural in points by task, mean over the sparsities above 0."""
    frame = rows("accuracy_vs_sparsity")
    found = stats.advantage(frame[frame.sparsity > 0], ["mode", "native_detail", "task"])
    text = [interval(100 * r.mean, 100 * r.low, 100 * r.high) for r in found.itertuples()]
    wide = found.assign(text=text, detail=found.native_detail.astype(int)).pivot(
        index=["detail", "task"], columns="mode", values="text"
    )
    return wide.reset_index().sort_values(["detail", "task"], ascending=[False, True])


def rates() -> pd.DataFrame:
    """Validation accuracy in percent by rate of finetuning, a mean over tasks."""
    found = rows("rates").pivot_table("val_accuracy", "lr", "objective")
    found["both"] = found.mean(axis=1)
    return (100 * found).round(1).reset_index().rename(columns={"pgd": "robust", "lr": "rate"})


TABLES = {
    "verdicts": lambda: verdicts(whole=False),
    "verdicts in full": lambda: verdicts(whole=True),
    "accuracy": lambda: table(rows("accuracy_vs_sparsity")),
    "tasks": by_task,
    "detail": by_detail,
    "rates": rates,
}


def filled(page: str) -> str:
    """A page with its tables as the rows have them now."""
    return re.sub(
        r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->",
        lambda m: f"<!-- {m[1]} -->\n{markdown(TABLES[m[1]]())}\n<!-- /{m[1]} -->",
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for name in PAGES:
        path = ROOT / name
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
