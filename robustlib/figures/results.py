"""Figures of a study's results: what tickets are worth, by task and sparsity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures.ablations import within
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
    told,
)
from robustlib.specs import Transfer, columns

ACROSS = 4
"""Panels side by side, at most: more would be too small on a page."""

AXES = {
    "sparsity": "sparsity (fraction of convolution weights removed)",
    "n_train": "training images of the task",
}
MEASURES = {"accuracy": "accuracy", "miou": "mean IoU"}

Looks = Mapping[str, dict[str, Any]]


def accuracy_vs_sparsity(
    frame: pd.DataFrame, value: str = "accuracy", against: str = "sparsity"
) -> Figure:
    """Accuracy of natural and robust tickets against sparsity, a panel for each task and way.

    frame: rows of `sweep` or `store.frame(Transfer)`. value: another measure in [0, 1], `miou` for
    one; against: `n_train` draws it against the number of training images. Lines join means over
    seeds, small dots are the seeds. A bar is the 95 % interval of the difference to natural, paired
    by seed, around the robust mean: where it does not reach the natural line, robust and natural
    differ. Raises ValueError when a robust row has no natural partner.
    """
    frame = _all_images(frame, against)
    ways = panel_columns(frame, against)
    cells = [*ways, "task", against]
    lines = stats.summary(frame, [*stats.PRETRAINING, *cells], value).drop(columns=["low", "high"])
    paired = stats.advantage(frame, cells, value)
    bars = paired.assign(half=(paired.high - paired.low) / 2)
    on = [*stats.PRETRAINING, *cells]
    lines = labelled(lines.merge(bars[[*on, "half"]], on=on, how="left"))
    seeds = labelled(frame)

    def draw(ax: Axes, cell: Mapping[str, Any], looks: Looks) -> None:
        _lines(ax, _of(lines, cell), _of(seeds, cell), value, against, looks)

    note = "dots: single seeds; bars: 95 % interval of the difference\n"
    note += "to natural, paired by seed (cut off at the panel)"
    ylabel = f"{MEASURES.get(value, value)} (%)"
    return _blocks(seeds, ways, draw, ylabel, looks(_ordered(seeds)), note, against)


def accuracy_vs_labels(frame: pd.DataFrame) -> Figure:
    """`accuracy_vs_sparsity` against the number of training images instead."""
    return accuracy_vs_sparsity(frame, against="n_train")


def advantage_vs_labels(frame: pd.DataFrame) -> Figure:
    """`advantage` against the number of training images instead."""
    return advantage(frame, against="n_train")


def advantage(frame: pd.DataFrame, value: str = "accuracy", against: str = "sparsity") -> Figure:
    """Robust minus natural accuracy against sparsity, paired by seed, with 95 % intervals.

    frame, value and against as for `accuracy_vs_sparsity`; small dots are the seeds. Raises
    ValueError when a robust row has no natural partner, or there is no robust row.
    """
    frame = _all_images(frame, against)
    ways = panel_columns(frame, against)
    seeds = labelled(stats.differences(frame, value))
    lines = labelled(stats.advantage(frame, [*ways, "task", against], value))
    lines = lines.assign(half=(lines.high - lines.low) / 2)
    colours = {k: v for k, v in looks(_ordered(labelled(frame))).items() if k != "natural"}

    def draw(ax: Axes, cell: Mapping[str, Any], looks: Looks) -> None:
        ax.axhline(0, color=NATURAL, lw=1, zorder=0)
        _lines(ax, _of(lines, cell), _of(seeds, cell), "difference", against, looks)

    note = "dots: single seeds; bars: 95 % interval over seeds"
    ylabel = "robust − natural\n(points)"
    return _blocks(seeds, ways, draw, ylabel, colours, note, against, sharey=True)


def _all_images(frame: pd.DataFrame, against: str) -> pd.DataFrame:
    """With `n_train` the axis, all images are as many as there were."""
    if against != "n_train":
        return frame
    return frame.assign(n_train=frame.n_train.fillna(frame.n_train_measured))


def _lines(
    ax: Axes, means: pd.DataFrame, seeds: pd.DataFrame, value: str, against: str, looks: Looks
) -> None:
    # Beside each other, else the bars of the lines cover each other; the dots left of their bar.
    step = min(0.04, 0.12 / len(looks))
    for i, (name, look) in enumerate(looks.items()):
        shift = 10 ** (step * (i - (len(looks) - 1) / 2))
        dots = seeds[seeds.label == name]
        small = {"color": look["color"], "marker": look["marker"], "ms": 1.8, "mew": 0}
        at = _x(dots, against) * shift * 10**-0.03
        ax.plot(at, 100 * dots[value], ls="", alpha=0.6, **small)
        line = means[means.label == name].sort_values(against)
        bars = {"yerr": 100 * line.half, "capsize": 1.5, "elinewidth": 0.7}
        ax.errorbar(_x(line, against) * shift, 100 * line["mean"], **bars, **look)
    if seeds.seed.nunique() == 2:  # intervals of two are a dozen times as long as they are apart
        within(ax, seeds[value])


def _blocks(
    frame: pd.DataFrame,
    ways: Sequence[str],
    draw: Callable[[Axes, Mapping[str, Any], Looks], None],
    ylabel: str,
    looks: Looks,
    note: str,
    against: str,
    sharey: bool = False,
) -> Figure:
    """A block of rows for each way to transfer, a panel for each task in it."""
    tasks = list(dict.fromkeys(frame.task))
    blocks = frame[[*ways]].drop_duplicates().to_dict("records")
    across = min(ACROSS, len(tasks))
    down = -(-len(tasks) // across)
    width = COLUMN if across <= 2 else PAGE
    height = 0.75 + len(blocks) * down * (width / across * (0.45 if across == 1 else 0.68) + 0.2)
    with style():
        rows = len(blocks) * down
        # Ways to transfer alike, such as two rankings, are there to be compared: on one scale.
        alike = "col" if down == 1 and frame["mode"].nunique() == 1 else False
        fig, grid = panels(rows, across, width, height, sharey="row" if sharey else alike)
        for b, way in enumerate(blocks):
            for t, ax in enumerate(grid[b * down : (b + 1) * down].flat):
                if t >= len(tasks):
                    ax.set_axis_off()
                    continue
                draw(ax, {**way, "task": tasks[t]}, looks)
                _axis(ax, against, frame[frame.task == tasks[t]])
                ax.set_title(tasks[t])
                if t % across == 0:
                    ax.set_ylabel(f"{told(way)}\n{ylabel}")
        fig.align_ylabels()
        fig.supxlabel(AXES[against], fontsize=8)
        whose = shared(frame, *(c for c in AXES if c not in (against, *ways)), "seed")
        legend(fig, looks, whose, note)
    return fig


def panel_columns(frame: pd.DataFrame, against: str = "sparsity") -> list[str]:
    """The columns, beside task, axis, seed and pretraining, that are needed to tell rows apart: a
    panel must not average over two ways to transfer. Statistics that were re-estimated are always
    told: a linear evaluation depends on it."""
    if frame.empty:
        raise ValueError("there are no rows to draw")
    given = [*stats.RECIPE, against, "task", "seed", "pretrain_seed", "ticket_seed"]
    rest = [c for c in columns(Transfer()) if c in frame and c not in given]
    first = ["mode", "recalibrate", "arch", "scheme", "pattern", "scope", "n_train", "sparsity"]
    chosen: list[str] = []
    for column in [*(c for c in first if c in rest), *(c for c in rest if c not in first)]:
        cell = [*chosen, "task", against, "seed", *stats.PRETRAINING]
        told = column == "mode" or (column == "recalibrate" and frame[column].any())
        if told or frame.groupby(cell, dropna=False)[column].nunique(False).max() > 1:
            chosen.append(column)
    return chosen


def _ordered(labelled: pd.DataFrame) -> list[str]:
    return list(labelled.sort_values(["objective", "norm", "eps", "sigma"]).label.unique())


def _of(rows: pd.DataFrame, cell: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a cell; None and nan are one value."""
    keep = np.ones(len(rows), dtype=bool)
    for name, value in cell.items():
        keep &= (rows[name].isna() if pd.isna(value) else rows[name] == value).to_numpy()
    return rows[keep]


def _axis(ax: Axes, against: str, frame: pd.DataFrame) -> None:
    """Log of density: 0.9 to 0.95 is half the weights, and as far as 0.8 to 0.9; log of images."""
    values = frame[[against]].drop_duplicates().sort_values(against)
    ax.set_xscale("log")
    names = [f"{v:g}" for v in values[against]]
    ax.set_xticks(_x(values, against), names, rotation=90 if against == "n_train" else 0)
    ax.xaxis.set_minor_locator(NullLocator())


def _x(rows: pd.DataFrame, against: str) -> Any:
    return 1 / (1 - rows.sparsity) if against == "sparsity" else rows[against]
