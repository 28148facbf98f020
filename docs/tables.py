"""Writes the tables of README.md and docs/results.md from the rows in figures/: no number is typed.

    python docs/tables.py        # tests/unit/test_docs.py holds both pages to it

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from robustlib.figures import paper, table

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/results.md")


def rows(name: str) -> pd.DataFrame:
    """The rows behind a figure, text as the specs have it."""
    return paper.read(ROOT / "figures" / f"{name}.csv")


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown."""
    lines = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


TABLES = {
    "verdicts": lambda: table.verdicts(rows("claims")),
    "verdicts in full": lambda: table.verdicts(rows("claims"), whole=True),
    "accuracy": lambda: table.table(rows("accuracy_vs_sparsity")),
    "tasks": lambda: table.by_task(rows("accuracy_vs_sparsity")),
    "detail": lambda: table.by_detail(rows("detail")),
    "rates": lambda: (
        table.rates(rows("rates")).set_index("network").T.rename_axis("rate").reset_index()
    ),
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
