"""The grammar of the figures: panels by columns of rows, and in each the marks of every network.

Small dots are seeds, large ones their means, joined by a line on an axis of numbers; bars are 95 %
intervals over seeds, of differences paired by seed where accuracies are compared. seaborn lays out
the panels; its estimators know no such intervals, so `marks` draws them.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures.names import shared
from robustlib.figures.style import NATURAL, OTHER, column_width, page_width

Looks = Mapping[Any, Mapping[str, Any]]
Cells = list[tuple[Axes, pd.DataFrame]]
Line = tuple[str, Any, Sequence[str]]
"""Of images, each [H, W, 3] in [0, 1] or numbers [H, W]: a name, they, what stands above each."""

DOTS = "small dots: single seeds"
OVER_SEEDS = "over seeds"
TO_NATURAL = "of the difference to natural, paired by seed"
MARGIN, LETTER, NOTE = 0.5, 0.056, 0.053
"""What a panel's labels take of its width, and a letter of a tick's name and one of a note take, in
inches."""
SPARSITY = "sparsity (fraction of convolution weights removed)"
DIFFERENCE = "robust − natural\n(points)"
MEASURES = {"miou": "mean IoU", "iou": "IoU"}


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
    there is no row, there is no panel. The columns `title` and `ylabel` of rows, where they have
    them, say what a panel is called and, of the first in a line, its y axis.

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
            continue
        cells.append((ax, own))
        if "title" in own:
            ax.set_title(own.title.iloc[0])
        if "ylabel" in own and j == 0:
            ax.set_ylabel(own.ylabel.iloc[0])
    return fig, cells


def by_sparsity(ax: Axes, rows: pd.DataFrame) -> None:
    """Log of density, of which `x` is the inverse: 0.9 to 0.95 is half the weights, and as far as
    0.8 to 0.9."""
    by_log(ax, rows, name=lambda x: f"{1 - 1 / x:g}")


def by_log(
    ax: Axes, rows: pd.DataFrame, rotation: float = 0, name: Callable[[float], str] = "{:g}".format
) -> None:
    """A log axis with a tick at each value of `x` and no others."""
    ticks = sorted(rows.x.unique())
    ax.set_xscale("log")
    small: dict[str, Any] = {"fontsize": 6} if _width(ax) < 1.5 else {}
    ax.set_xticks(ticks, list(map(name, ticks)), rotation=rotation, **small)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.8 * min(ticks), 1.2 * max(ticks))


def by_name(ax: Axes, rows: pd.DataFrame) -> None:
    """The categories of `x`: lying, a line for each part, where they have room; else upright."""
    places = list(rows.x.cat.categories)
    lying = [name.replace(", ", ",\n") for name in places]
    longest = max(len(part) for name in lying for part in name.split("\n"))
    fits = len(places) * longest * LETTER <= _width(ax) - MARGIN
    ax.set_xticks(range(len(places)), lying if fits else places, rotation=0 if fits else 90)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.6, len(places) - 0.4)


def _width(ax: Axes) -> float:
    """Of a panel with its labels, in inches."""
    figure: Any = ax.figure
    place: Any = ax.get_subplotspec()
    return figure.get_figwidth() / place.get_gridspec().ncols


def measured(
    rows: pd.DataFrame, value: str, spread: str = "", scale: float | pd.Series = 100, **more: Any
) -> pd.DataFrame:
    """The rows with what `panels` draws of them: the column `value` as `y`; the column `spread`,
    what is paired by seed, whose 95 % interval stands around the means; `scale`, which both are
    multiplied by; whether they are differences to natural; the label of the axis; the `line` of
    panels and the `place` in it; and more columns."""
    compared = value == "difference"
    ylabel = DIFFERENCE if compared else f"{MEASURES.get(value, value)} (%)"
    own = {"ylabel": rows.way + "\n" + ylabel if "way" in rows else ylabel, "line": 0, "place": 0}
    own |= {"y": rows[value], "spread": rows[spread] if spread else math.nan, "scale": scale}
    return rows.assign(**own | {"compared": compared} | more)


def panels(
    rows: pd.DataFrame,
    height: float,
    looks: Looks,
    common: Sequence[str],
    *,
    wide: bool = True,
    xlabel: str = "",
    axis: Callable[[Axes, pd.DataFrame], None] = by_name,
    of: str = OVER_SEEDS,
    also: str = "",
    apart: float | None = None,
    named: bool = True,
    **options: Any,
) -> Figure:
    """`facets` of rows that are `measured`, with their `marks`, a line for natural where they are
    differences to it, and a `legend` that says what the columns `common` are for all rows, what
    dots and bars are, and `also`.

    height: in inches; wide: as a page, else as a column; axis: makes the axis of a panel, of the
    column `x` of its rows; of: what the intervals are of; named: colours have a legend; else what
    it says stands below.
    """
    width = page_width() if wide else column_width()
    fig, cells = facets(rows, width, height, "line", "place", **options)
    kinds: dict[tuple[bool, float], list[Axes]] = {}
    for ax, own in cells:
        axis(ax, own)
        compared, scale = own.compared.iloc[0], own.scale.iloc[0]
        if compared:
            ax.axhline(0, color=NATURAL, lw=1, zorder=0)
        marks(ax, own, looks, apart)
        kinds.setdefault((compared, scale), []).append(ax)
    bars = [fit(axes, kind[0], 0.005 * kind[1], of) for kind, axes in kinds.items()]
    fig.align_ylabels()
    dots = f"{also}; {DOTS}" if also else DOTS
    notes = shared(rows, *common), dots, max(bars, key=len)
    if named:
        legend(fig, looks, *notes)
    if below := xlabel if named else "\n".join(filter(None, notes)):
        fig.supxlabel(below, fontsize=8 if named else 6.5)
    return fig


def wrapped(rows: pd.DataFrame, values: Sequence[Any], column: str, across: int) -> pd.DataFrame:
    """The rows with `line` and `place`: where the panel of a value of `column` is, several lines
    for each value of `way`."""
    at = rows[column].map(list(values).index)
    block = rows.way.map(list(dict.fromkeys(rows.way)).index) if "way" in rows else 0
    return rows.assign(line=block * -(-len(values) // across) + at // across, place=at % across)


def marks(ax: Axes, rows: pd.DataFrame, looks: Looks, apart: float | None = None) -> None:
    """Of each label the seeds as small dots and their means as large ones, with the interval of
    `spread` over seeds, at the column `x`: names of a categorical, or, joined by a line, numbers.

    rows: `measured`; names of one value of a column `joined` have a line through their means;
    apart: how far the labels stand from each other, in decades on a log axis.
    """
    log, n, scale = ax.get_xscale() == "log", len(looks), rows.scale.iloc[0]
    if isinstance(rows.x.dtype, pd.CategoricalDtype):
        rows = rows.assign(x=rows.x.cat.codes.astype(int))
    for _, own in rows.groupby("joined", sort=False) if "joined" in rows else ():
        means = scale * own.groupby("x").y.mean()
        ax.plot(means.index, means, color=OTHER, lw=0.8, zorder=1)
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
        ax.plot(moved(own.x, shift - (0.03 if log else 0.12)), scale * own.y, **dot)
        each = own.groupby(["x", "seed"])[["y", "spread"]].mean()
        means = each.y.groupby("x").mean()
        found = [stats.mean_interval(seeds) for _, seeds in each.spread.groupby("x")]
        half = scale * np.array([mean - low for mean, low, _ in found])
        line = dict(look) | ({} if log else {"ls": ""})
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


def pictures(
    lines: Sequence[Line], width: float, height: float, size: float | None = None, **shown: Any
) -> Figure:
    """A figure of images, a row of panels for each line, all as long as the first at most. size: of
    the letters above an image, in red where these say that a network errs; shown: how numbers
    become colours."""
    fig = plain(width, height)
    axes = fig.subplots(len(lines), len(lines[0][1]), squeeze=False)
    for row, (name, images, titles) in zip(axes, lines, strict=True):
        row[0].set_ylabel(name)
        for i, ax in enumerate(row):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            if i >= len(images):
                ax.set_axis_off()
                continue
            ax.imshow(images[i], **shown)
            red = "#B2182B" if "✗" in titles[i] else "black"
            ax.set_title(titles[i], fontsize=size, color=red)
    return fig


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
        lines = [line for ax in group for line in ax.lines]
        no_dots = ("None", "", None, "_")  # the last is the cap of a bar
        data = [line.get_ydata() for line in lines if line.get_marker() not in no_dots]
        values = np.concatenate([*data, [0.0] if zero else []])
        low, high = np.nanmin(values), np.nanmax(values)
        room = max(high - low, least)
        drawn = [(ax, c[2][-1]) for ax in group for c in ax.containers if c[2]]
        bars = [(ax, bar, ends) for ax, bar in drawn for ends in bar.get_segments()]
        bars = [bar for bar in bars if bar[2].size == 4 and np.isfinite(bar[2]).all()]
        ends = np.array([segment[:, 1] for _, _, segment in bars]).reshape(-1, 2)
        bottom = max(low - room, ends[:, 0].min(initial=low)) - 0.08 * room
        top = min(high + room, ends[:, 1].max(initial=high)) + 0.08 * room
        group[0].set_ylim(bottom, top)
        for ax, bar, ((x, down), (_, up)) in bars:
            for end, beyond, marker in ((bottom, down < bottom, "v"), (top, up > top, "^")):
                if beyond:
                    ax.scatter(x, end, s=6, marker=marker, color=bar.get_color(), clip_on=False)
                    cut = True
        some = some or bool(bars)
    return (f"bars: 95 % interval {of}" + ", cut off at an arrowhead" * cut) if some else ""


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
