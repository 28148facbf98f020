"""Writes the tables of README.md and docs/ from the rows in figures/: no number is typed.

    python docs/tables.py        # tests/unit/test_docs.py holds the pages to it

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`.
"""

import re
from functools import partial
from pathlib import Path

import pandas as pd

from robustlib.figures import paper, table
from robustlib.figures.names import called

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "figures",
    "docs/results.md": "figures",
    "docs/larger.md": "figures/larger",
    "docs/control.md": "figures/control",
}
"""The pages, and the folder of rows that each is filled from."""


def rows(folder: str, name: str) -> pd.DataFrame:
    """The rows behind a figure, text as the specs have it."""
    return paper.read(ROOT / folder / f"{name}.csv")


def markdown(frame: pd.DataFrame) -> str:
    """A table of text as Markdown, data sets called as in the figures."""
    named = [[called(str(value)) for value in line] for line in frame.to_numpy().tolist()]
    lines = [list(frame.columns), ["---"] * len(frame.columns), *named]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


TOO_MUCH = "FPR|Brier|log-likelihood|overlap|energy|PGD|abstained|CKA"
"""Properties that only the whole table has."""
TABLES = {
    "verdicts": ("claims", table.verdicts),
    "verdicts in full": ("claims", partial(table.verdicts, whole=True)),
    "accuracy": ("accuracy_vs_sparsity", table.table),
    "tasks": ("accuracy_vs_sparsity", table.by_task),
    "detail": ("detail", table.by_detail),
    "colour": ("grey", table.by_colour),
    "properties": (
        "property_table",
        lambda frame: table.properties(frame[~frame.property.str.contains(TOO_MUCH)]),
    ),
    "rates": (
        "rates",
        lambda frame: table.rates(frame).set_index("network").T.rename_axis("rate").reset_index(),
    ),
}


def filled(page: str, folder: str) -> str:
    """A page with its tables as the rows of a folder have them now."""

    def fill(found: re.Match) -> str:
        name, made = TABLES[found[1]]
        return f"<!-- {found[1]} -->\n{markdown(made(rows(folder, name)))}\n<!-- /{found[1]} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->", fill, page, flags=re.DOTALL)


if __name__ == "__main__":
    for name, folder in PAGES.items():
        path = ROOT / name
        path.write_text(filled(path.read_text("utf-8"), folder), "utf-8")
