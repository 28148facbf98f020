"""The grammar of the figures: panels by columns of rows, and in each the marks of every network.

seaborn lays out the panels. Its estimators know no intervals paired by seed, so `marks` draws them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures.style import NATURAL

Looks = Mapping[Any, Mapping[str, Any]]
Cells = list[tuple[Axes, pd.DataFrame]]

DOTS = "small dots: single seeds"
OVER_SEEDS = "over seeds"
TO_NATURAL = "of the difference to natural, paired by seed"
MARGIN, LETTER, NOTE = 0.5, 0.056, 0.053
"""What a panel's labels take of its width, and a letter of a tick's name and one of a note take, in
inches."""
SPARSITY = "sparsity (fraction of convolution weights removed)"


def plain(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches."""
    with plt.ioff():
        fig = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(fig)  # The caller shows it; pyplot would show it a second time.
    return fig


def facets(
    rows: pd.DataFrame,
    width: float,
    height: float,
    down: str | None = None,
    across: str | None = None,
    **options: Any,
) -> tuple[Figure, Cells]:
    """A figure, and a panel with its rows for each value of the columns `down` and `across`; where
    there is no row, there is no panel.

    width, height: of the figure, in inches; options: of seaborn's FacetGrid, sharey for one.
    """
    # seaborn lays out on its own first, and warns where matplotlib did before it.
    with plt.ioff(), plt.rc_context({"figure.constrained_layout.use": False}):
        grid = sns.FacetGrid(rows, row=down, col=across, despine=False, **options)
    fig = grid.figure
    plt.close(fig)
    fig.set_layout_engine("constrained")
    fig.set_size_inches(width, height)
    cells = []
    for (i, j, _), own in grid.facet_data():
        ax = grid.facet_axis(i, j, modify_state=False)
        ax.set_title("")
        if own.empty:
            ax.set_axis_off()
        else:
            cells.append((ax, own))
    return fig, cells


def wrapped(rows: pd.DataFrame, values: Sequence[Any], column: str, across: int) -> pd.DataFrame:
    """The rows with `line` and `place`: where the panel of a value of `column` is, several lines
    for each value of `way`."""
    at = rows[column].map(list(values).index)
    block = rows.way.map(list(dict.fromkeys(rows.way)).index) if "way" in rows else 0
    return rows.assign(line=block * -(-len(values) // across) + at // across, place=at % across)


def marks(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    looks: Looks,
    spread: str = "",
    *,
    joined: bool = False,
    apart: float | None = None,
    scale: float = 100,
) -> None:
    """Of each label the seeds as small dots and their means as large ones, at the column `x`.

    spread: the column whose 95 % interval over seeds is drawn around the means: what is paired by
    seed. joined: a line joins the means. apart: how far the labels stand from each other, in
    decades on a log axis.
    """
    log, n = ax.get_xscale() == "log", len(looks)
    if apart is None:
        apart = min(0.04, 0.12 / n) if log else 0.3 / max(1, n - 1)

    def moved(x: Any, by: float) -> Any:
        return x * 10**by if log else x + by

    for i, (name, look) in enumerate(looks.items()):
        own = rows[rows.label == name].sort_values("x", kind="stable")
        if own.empty:
            continue
        shift = apart * (i - (n - 1) / 2)
        dot = dict(look) | {"ls": "", "ms": 1.8, "mew": 0, "alpha": 0.6, "label": None}
        ax.plot(moved(own.x, shift - (0.03 if log else 0.12)), scale * own[value], **dot)
        each = own.groupby(["x", "seed"])[list({value, spread or value})].mean()
        means = each[value].groupby("x").mean()
        half = np.full(len(means), np.nan)
        if spread:
            found = [stats.mean_interval(seeds) for _, seeds in each[spread].groupby("x")]
            half = scale * np.array([mean - low for mean, low, _ in found])
        line = dict(look) | ({} if joined else {"ls": ""})
        bars: dict[str, Any] = {"yerr": half, "capsize": 1.5, "elinewidth": 0.7}
        ax.errorbar(moved(means.index.to_numpy(), shift), scale * means, **bars, **line)


def curves(ax: Axes, rows: pd.DataFrame, x: str, y: str, looks: Looks, scale: float = 1) -> None:
    """Of each label the mean of `y` over seeds as a line, and the seeds as thin ones. What is not a
    number is a gap."""
    for name, look in looks.items():
        own = rows[rows.label == name]
        if own.empty:
            continue
        if "seed" in own and own.seed.nunique() > 1:
            for _, seed in own.groupby("seed"):
                ax.plot(seed[x], scale * seed[y], "-", color=look["color"], lw=0.4)
        means = own.groupby(x)[y].mean()
        ax.plot(means.index, scale * means, **look)


def pictures(down: int, across: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of down x across panels for images, without ticks."""
    fig = plain(width, height)
    axes = fig.subplots(down, across, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
    return fig, axes


def fit(axes: Iterable[Axes], zero: bool = False, least: float = 0.5, of: str = OVER_SEEDS) -> str:
    """Limits by the data, those of panels that share a scale together: bars reach out of them as
    far as the data are apart, and no further, an arrowhead says that they go on.

    zero: it is in the panel too; least: what the data are apart at least; of: what the intervals
    are of. Returns what the note must say of bars: nothing where there is none.
    """
    axes, some, cut = list(axes), False, False
    while axes:
        group = [ax for ax in axes if ax in axes[0].get_shared_y_axes().get_siblings(axes[0])]
        axes = [ax for ax in axes if ax not in group]
        containers = [(ax, c) for ax in group for c in ax.containers]
        caps = {id(cap) for _, c in containers for cap in c[1]}
        dots = [line for ax in group for line in ax.lines if id(line) not in caps]
        data = [line.get_ydata() for line in dots if line.get_marker() not in ("None", "", None)]
        values = np.concatenate([*data, [0.0] * zero])
        low, high = np.nanmin(values), np.nanmax(values)
        room = max(high - low, least)
        bars = [(ax, c[2][-1], s) for ax, c in containers if c[2] for s in c[2][-1].get_segments()]
        bars = [bar for bar in bars if bar[2].size == 4 and np.isfinite(bar[2]).all()]
        ends = np.array([segment[:, 1] for _, _, segment in bars]).reshape(-1, 2)
        bottom = max(low - room, min(ends[:, 0].min(initial=low), low)) - 0.08 * room
        top = min(high + room, max(ends[:, 1].max(initial=high), high)) + 0.08 * room
        group[0].set_ylim(bottom, top)
        for ax, bar, ((x, down), (_, up)) in bars:
            for end, beyond, marker in ((bottom, down < bottom, "v"), (top, up > top, "^")):
                if beyond:
                    ax.scatter(x, end, s=6, marker=marker, color=bar.get_color(), clip_on=False)
                    cut = True
        some = some or bool(bars)
    return (f"bars: 95 % interval {of}" + ", cut off at an arrowhead" * cut) if some else ""


def by_sparsity(ax: Axes, values: pd.Series) -> None:
    """Log of density: 0.9 to 0.95 is half the weights, and as far as 0.8 to 0.9."""
    by_log(ax, {1 / (1 - s): f"{s:g}" for s in sorted(values.unique())})


def by_log(ax: Axes, ticks: Mapping[float, str], rotation: float = 0) -> None:
    """A log axis with these ticks and no others."""
    ax.set_xscale("log")
    figure: Any = ax.figure
    narrow = figure.get_figwidth() / place(ax).get_gridspec().ncols < 1.5
    small: dict[str, Any] = {"fontsize": 6} if narrow else {}
    ax.set_xticks(list(ticks), list(ticks.values()), rotation=rotation, **small)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.8 * min(ticks), 1.2 * max(ticks))


def by_name(ax: Axes, places: Sequence[str]) -> None:
    """Names on the axis: lying, a line for each part, where they have room; else upright."""
    lying = [name.replace(", ", ",\n") for name in places]
    longest = max(len(part) for name in lying for part in name.split("\n"))
    figure: Any = ax.figure
    room = figure.get_figwidth() / place(ax).get_gridspec().ncols - MARGIN
    fits = len(places) * longest * LETTER <= room
    ax.set_xticks(range(len(places)), lying if fits else places, rotation=0 if fits else 90)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.6, len(places) - 0.4)


def place(ax: Axes) -> SubplotSpec:
    """Where a panel is: the first of its line has the label of the axis."""
    spec = ax.get_subplotspec()
    assert spec is not None  # all panels are of a grid
    return spec


def no_difference(ax: Axes) -> None:
    """The line of natural pretraining, where differences to it are drawn."""
    ax.axhline(0, color=NATURAL, lw=1, zorder=0)


def legend(fig: Figure, looks: Looks, *notes: str) -> None:
    """One legend above all panels, where it covers no data; the notes, a line each and empty ones
    left out, say what the rows are of and explain dots and bars."""
    if not looks:
        return
    handles = [plt.Line2D([], [], **look) for look in looks.values()]
    longest = max(len(str(look["label"])) for look in looks.values())
    fits = int(fig.get_figwidth() / (longest * LETTER + MARGIN)) or 1
    said = [textwrap.fill(note, int(fig.get_figwidth() / NOTE)) for note in notes if note]
    box = fig.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(fits, 4, len(handles)),
        title="\n".join(said) or None,
        title_fontsize=6.5,
    )
    box.get_title().set_multialignment("center")
