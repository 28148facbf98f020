"""Figures that compare ways to draw a ticket: sparsity patterns and schemes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from robustlib import stats
from robustlib.figures.ablations import beside, once, single, within
from robustlib.figures.style import (
    COLUMN,
    NATURAL,
    PAGE,
    labelled,
    legend,
    looks,
    panels,
    shared,
    style,
)
from robustlib.specs import PATTERNS, SCHEMES, n_of_m


def drawing(row: Mapping[str, Any]) -> str:
    """How a ticket was drawn: "OMP", "A-IMP upstream", "LMP, channel", "OMP, 2:4".

    row: anything with the columns of a ticket. Unstructured goes without saying.
    """
    downstream = _downstream(row)
    name = row["scheme"].upper() if row["scheme"] in ("omp", "imp", "lmp") else row["scheme"]
    name = "A-" * (row["ticket_objective"] == "pgd") + name
    if row["scheme"] == "imp" or (row["scheme"] == "lmp" and not downstream):
        name += " downstream" if downstream else " upstream"
    control = {"shuffle": ", shuffled", "reinit": ", fresh weights"}.get(row["control"], "")
    return name + control + f", {row['pattern']}" * (row["pattern"] != "unstructured")


def by_drawing(frame: pd.DataFrame) -> Figure:
    """Accuracy of natural and robust tickets for each way to draw them, and their difference.

    frame: rows of `sweep` that differ in pattern or scheme, of one mode. Two rows of panels for
    each task, a column for each sparsity: above accuracies, below robust minus natural, paired by
    seed, with 95 % intervals over seeds. Small dots are the seeds. Patterns n:m share one place on
    the axis. Raises ValueError when a robust row has no natural partner.
    """
    single(frame, "mode", "arch", "recalibrate", "n_train", "scope")
    frame = labelled(_placed(frame))
    once(frame, "task", "sparsity", "place", "label")
    pairs = stats.differences(frame)
    places = sorted(frame.place.unique(), key=_order(frame).get)
    tasks, sparsities = list(dict.fromkeys(frame.task)), sorted(frame.sparsity.unique())
    colours = looks(frame.sort_values(["objective", "eps"]).label)
    width = PAGE if len(sparsities) > 1 else COLUMN
    size = width, 1.3 + 2.3 * len(tasks)
    with style():
        fig, grid = panels(2 * len(tasks), len(sparsities), *size, sharey="row", sharex=True)
        for t, task in enumerate(tasks):
            for ax, below, sparsity in zip(*grid[2 * t : 2 * t + 2], sparsities, strict=True):
                here, own = (r[(r.task == task) & (r.sparsity == sparsity)] for r in (frame, pairs))
                below.axhline(0, color=NATURAL, lw=1, zorder=0)
                beside(ax, here, "accuracy", colours, "place", places)
                beside(below, own, "difference", colours, "place", places, bar=True)
                ax.set_title(f"{task}, sparsity {sparsity:g}")
            within(grid[2 * t][0], frame[frame.task == task].accuracy)
            within(grid[2 * t + 1][0], pairs[pairs.task == task].difference, zero=True)
            grid[2 * t][0].set_ylabel("accuracy (%)")
            grid[2 * t + 1][0].set_ylabel("robust − natural\n(points)")
        fig.align_ylabels()
        note = "small dots: single seeds; bars: 95 % interval\nover seeds, cut off at the panel"
        legend(fig, colours, shared(frame, "mode", "n_train", "seed"), note)
    return fig


def _placed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with their place on the axis: by pattern, or by scheme, or both."""
    patterns = ["n:m" if n_of_m(p) else p for p in frame.pattern]
    if frame.pattern.nunique() == 1:
        return frame.assign(place=[drawing(r) for r in frame.to_dict("records")])
    if len({drawing(r | {"pattern": "unstructured"}) for r in frame.to_dict("records")}) == 1:
        return frame.assign(place=patterns)
    rows = [r | {"pattern": p} for r, p in zip(frame.to_dict("records"), patterns, strict=True)]
    return frame.assign(place=[drawing(r) for r in rows])


def _order(frame: pd.DataFrame) -> dict[str, tuple]:
    """From simple to elaborate, upstream before downstream, natural before adversarial."""
    return {
        row["place"]: (
            SCHEMES.index(row["scheme"]),
            row["control"] != "none",
            _downstream(row),
            row["ticket_objective"] == "pgd",
            PATTERNS.index(row["pattern"]),
        )
        for row in frame.to_dict("records")
    }


def _downstream(row: Mapping[str, Any]) -> bool:
    return row["dataset"] not in ("", None) and not pd.isna(row["dataset"])  # nan: from a file
