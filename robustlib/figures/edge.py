"""Figures of what tickets cost where they are deployed."""

import re
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import alike, labelled, ordered, shared
from robustlib.figures.style import OTHER, column_width, looks, page_width, style
from robustlib.specs import n_of_m

_PATTERNS = ("dense", "unstructured", "row", "kernel", "channel", "n:m")
_MARKERS = dict(zip(_PATTERNS, "*os^DX", strict=True))
_LATENCY = re.compile(r"latency_(\d+)_ratio")


@style()
def edge(frame: pd.DataFrame) -> Figure:
    """Accuracy against each cost, in percent of the dense network's, on one log scale: a column of
    panels for each pattern, a line of them for each cost.

    frame: rows of `deployment.measure`, of one task. Means stand with their sparsity. Hollow is
    int8, for which parameters and multiply-adds are those of fp32. Raises ValueError for no rows or
    several tasks.
    """
    frame = _with_advantage(frame)
    colours, costs = looks(ordered(frame)), _costs(frame)
    patterns = [kind for kind in frame.kind.unique() if kind != "dense"] or ["dense"]
    dense = frame.kind == "dense"  # every pattern begins there
    rows = pd.concat([frame[~dense], *(frame[dense].assign(kind=kind) for kind in patterns)])
    kept = ["label", "kind", "form", "sparsity", "seed", "accuracy", "ahead"]
    rows = rows.melt(kept, list(costs), "cost", "x").dropna(subset=["x"])
    rows = rows[rows.cost.str.startswith(("bytes", "latency")) | (rows.form == "fp32")]
    title = rows.kind.where(rows.cost == next(iter(costs)), "")
    rows = rows.assign(title=title, ylabel=rows.cost.map(costs) + "\naccuracy (%)")
    fig, cells = grid.facets(rows, page_width(), 1.0 + 1.2 * len(costs), "cost", "kind")
    for ax, own in cells:
        _points(ax, own, colours)
    bars = grid.fit((ax for ax, _ in cells), of=grid.TO_NATURAL)
    low = min(50.0, 100 * rows.x.min())
    ax.set(xscale="log", xlim=(0.7 * low, 100 * max(1, rows.x.max()) / 0.7))
    ticks = [100 / 4**i for i in range(8) if 100 / 4**i > 0.7 * low]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    fig.supxlabel("cost (% of the dense network's, log scale)", fontsize=8)
    fig.align_ylabels()
    hollow = "; hollow: int8" * ("int8" in set(rows.form))
    said = f"{shared(frame, 'task', 'seed')}; numbers: sparsity{hollow}"
    grid.legend(fig, colours, said, bars)
    return fig


def saved(frame: pd.DataFrame) -> str:
    """What each pattern and form saves, from the least to the most, and what robust pretraining
    adds to accuracy there. frame: as `edge` takes it."""
    frame = _with_advantage(frame)
    costs, lines = _costs(frame).items(), []
    for (kind, form), rows in frame.groupby(["kind", "form"], sort=False):
        if kind == "dense" and form == "fp32":
            continue
        own = ", ".join(f"{title} {_range(100 * rows[cost], '.0f')}" for cost, title in costs)
        lines.append(f"{kind}, {form}, in % of dense: {own}")
        for name, ahead in rows.dropna(subset=["ahead"]).groupby("label", sort=False).ahead:
            lines.append(f"  {name}: {_range(100 * ahead, '+.1f')} points over natural")
    known = zip(frame.accuracy, frame.n, strict=True)
    half = max(high - low for low, high in (stats.accuracy_interval(a, n) for a, n in known)) / 2
    lines.append(
        f"One accuracy, of {frame.n.max():,} test images, is known to ± {100 * half:.1f} points."
    )
    return "\n".join(lines)


def _range(values: pd.Series, form: str) -> str:
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


def _kinds(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with their `kind`: dense, a pattern, or n:m."""
    if frame.empty:
        raise ValueError("no rows to draw")
    if frame.task.nunique() > 1:
        raise ValueError(f"task={', '.join(sorted(frame.task.unique()))}: one at a time")
    kinds = ["n:m" if n_of_m(p) else p for p in frame.pattern]
    frame = labelled(frame).assign(kind=kinds)
    frame.loc[frame.sparsity == 0, "kind"] = "dense"
    return frame.sort_values(
        ["kind", "sparsity"], key=lambda c: c.map(_PATTERNS.index) if c.name == "kind" else c
    )


def _with_advantage(frame: pd.DataFrame) -> pd.DataFrame:
    """The `_kinds` of rows, and `ahead`: their accuracy over that of natural in the same seed."""
    frame = _kinds(frame)
    natural, on = frame.label == "natural", ["kind", "form", "sparsity", "pattern", "seed"]
    return frame.assign(ahead=stats.beside(frame, natural, on, "accuracy"))


def _costs(frame: pd.DataFrame) -> dict[str, str]:
    """The columns of costs, and what they are called."""
    batches = sorted(int(m[1]) for m in map(_LATENCY.fullmatch, frame.columns) if m)
    return {
        "parameters_ratio": "parameters",
        "multiply_adds_ratio": "multiply-adds",
        "bytes_ratio": "bytes of the file",
        **{f"latency_{b}_ratio": f"latency, batch {b}" for b in batches},
    }


def _points(ax: Axes, rows: pd.DataFrame, colours: grid.Looks) -> None:
    """Of each network and form a line through its sparsities; in the first line of panels with
    their numbers, for what is as high below it is the same ticket."""
    ax.axvline(100, color=OTHER, lw=0.8, zorder=0)
    for (label, form), own in rows.groupby(["label", "form"], sort=False):
        at = 100 * own.groupby("sparsity")[["x", "accuracy"]].mean()
        each = [stats.mean_interval(seeds) for _, seeds in own.groupby("sparsity").ahead]
        half = [100 * (mean - low) for mean, low, _ in each]
        look = dict(colours[label]) | ({"mfc": "none", "ls": ""} if form == "int8" else {"lw": 0.7})
        if own.seed.nunique() > 1:
            dot = look | {"ls": "", "ms": 1.8, "mew": 0, "alpha": 0.6, "label": None}
            ax.plot(100 * own.x, 100 * own.accuracy, **dot)
        ax.errorbar(at.x, at.accuracy, yerr=half, capsize=1.5, elinewidth=0.7, **look)
        if ax.get_title() and label == rows.label.iloc[0]:
            for sparsity, x, y in at.itertuples():
                place: Any = {"xytext": (0, 3), "ha": "center", "textcoords": "offset points"}
                ax.annotate(f"{sparsity:g}", (x, y), fontsize=6, **place)


@style()
def choice(options: pd.DataFrame, most: float | None = None) -> Figure:
    """Validation accuracy of finetuned tickets against the bytes of their file, the chosen one
    ringed.

    options: `fit.Fitted.options`. Colours are the ways to pretrain, markers patterns; hollow: int8;
    pale: not within the budget. most: the budget's bytes, a line. Bars are 95 % intervals of each
    accuracy alone (Clopper and Pearson); what is compared has the same images, so differences are
    surer than these say.
    """
    frame = _kinds(options)
    colours = looks(ordered(frame))
    fig = grid.plain(1.4 * column_width(), column_width())
    ax = fig.subplots()
    for row in frame.itertuples():
        colour = colours[row.label]["color"]
        fill = "none" if row.form == "int8" else colour
        pale: dict[str, Any] = {"alpha": 1.0 if row.met else 0.3, "color": colour}
        low, high = stats.accuracy_interval(row.val_accuracy, row.n_val)
        at = row.bytes / 1000, 100 * row.val_accuracy
        ax.vlines(at[0], 100 * low, 100 * high, lw=0.6, **pale)
        ax.plot(*at, marker=_MARKERS[row.kind], ms=5, ls="", mfc=fill, **pale)
        if row.chosen:
            ax.plot(*at, marker="o", ms=12, mfc="none", mec="black", mew=0.8, ls="")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.set(xlabel="file through gzip (kB, log scale)", ylabel="validation accuracy (%)")
    black: dict[str, Any] = {"color": "black", "ls": "", "ms": 4}
    handles = [
        *(plt.Line2D([], [], color=v["color"], lw=2, label=name) for name, v in colours.items()),
        *(plt.Line2D([], [], label=k, marker=_MARKERS[k], **black) for k in frame.kind.unique()),
        plt.Line2D([], [], label="int8", marker="o", mfc="none", **black),
        plt.Line2D([], [], label="chosen", marker="o", mfc="none", **black | {"ms": 9}),
    ]
    if most is not None:
        handles.append(ax.axvline(most / 1000, color=OTHER, lw=0.8, zorder=0, label="budget"))
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.set_title(f"{shared(frame, 'task')}: {frame.n_val.iloc[0]} validation images")
    return fig


@style()
def channels(table: pd.DataFrame) -> Figure:
    """Time against arithmetic of channel tickets, as fractions of dense, with the diagonal on which
    time follows arithmetic.

    table: as `deployment.channels` gives it, of one task. Colours are networks; filled: channels
    ranked across layers, hollow: within each, so that all layers lose the same fraction. Raises
    ValueError for several tasks.
    """
    alike(table, "task")
    table = labelled(table)
    colours = looks(ordered(table))
    times = [c for c in table if c.startswith(("latency_", "training_step"))]
    rows = table.melt(["label", "scope", "multiply_adds"], times, "title", "time")
    rows["title"] = rows.title.str.replace("latency_", "latency at batch ").str.replace("_", " ")
    rows["ylabel"] = "time (% of dense)"
    fig, cells = grid.facets(rows, page_width(), 2.9, None, "title")
    for ax, own in cells:
        ax.plot([0, 100], [0, 100], color=OTHER, lw=0.8, zorder=0)
        for (name, scope), dots in own.groupby(["label", "scope"], sort=False):
            fill = {"mfc": "none"} if scope == "layer" else {}
            look = colours[name] | {"ls": "", "ms": 4} | fill
            ax.plot(100 * dots.multiply_adds, 100 * dots.time, **look)
        ax.set(xlim=(0, 110), ylim=(0, max(110, 105 * rows.time.max())))
    fig.supxlabel("multiply-adds (% of dense)", fontsize=8)
    note = "filled: ranked across layers; hollow: within each; line: time is arithmetic"
    grid.legend(fig, colours, f"channel tickets, {shared(table, 'task', 'seed')}", note)
    return fig
