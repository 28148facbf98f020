"""Figures of what tickets cost where they are deployed."""

from __future__ import annotations

import re
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import alike, labelled, ordered, shared
from robustlib.figures.style import COLUMN, OTHER, PAGE, looks, style
from robustlib.specs import n_of_m

_MARKERS = {
    "dense": "*",
    "unstructured": "o",
    "row": "s",
    "kernel": "^",
    "channel": "D",
    "n:m": "X",
}
_ACROSS = 3
_LATENCY = re.compile(r"latency_(\d+)_ratio")


@style()
def edge(frame: pd.DataFrame) -> Figure:
    """Accuracy against each cost, as a fraction of the dense network's, on one log scale.

    frame: rows of `deployment.measure`, of one task. Markers are patterns, colours the ways to
    pretrain; lines join the sparsities of a pattern, and seeds are averaged. What is hollow is
    int8, for which parameters and multiply-adds are those of fp32. Raises ValueError for no rows
    or several tasks.
    """
    frame = _kinds(frame)
    colours, costs = looks(ordered(frame)), _costs(frame)
    kept = ["label", "kind", "form", "sparsity", "accuracy"]
    rows = frame.melt(kept, list(costs), "cost", "x")
    timed = rows.cost.str.startswith(("bytes", "latency"))
    rows = rows[timed | (rows.form == "fp32")]
    rows = grid.wrapped(rows, list(costs), "cost", _ACROSS)
    lines = -(-(len(costs) + 1) // _ACROSS)
    rows["line"] = pd.Categorical(rows.line, range(lines))
    fig, cells = grid.facets(
        rows, PAGE, 0.3 + 1.9 * lines, "line", "place", sharex=True, sharey=True
    )
    for ax, own in cells:
        _points(ax, own, colours)
        ax.set_title(costs[own.cost.iloc[0]])
        ax.tick_params(labelbottom=True)
        plt.setp(ax.get_xticklabels(), visible=True)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2))
    ax.xaxis.set_major_formatter(FuncFormatter(_fraction))
    ax.xaxis.set_minor_formatter(NullFormatter())
    own = [
        plt.Line2D([], [], color=look["color"], ls=look["ls"], lw=2, label=name)
        for name, look in colours.items()
    ]
    black: dict[str, Any] = {"color": "black", "ls": "", "mew": 0}
    for kind in (k for k in _MARKERS if k in set(frame.kind)):
        dot: dict[str, Any] = {"marker": _MARKERS[kind], "ms": 6.5 if kind == "dense" else 4}
        own.append(plt.Line2D([], [], label=kind, **dot, **black))
    if "int8" in set(frame.form):
        hollow = black | {"mfc": "none", "mew": 0.8, "marker": "o", "ms": 4}
        own.append(plt.Line2D([], [], label="hollow: int8", **hollow))
    said = shared(frame, "task", "seed")
    fig.axes[len(costs)].legend(handles=own, loc="center", title=said)
    fig.supxlabel("fraction of the dense network's (log scale)", fontsize=8)
    fig.supylabel("accuracy (%)", fontsize=8)
    return fig


def saved(frame: pd.DataFrame) -> str:
    """What each pattern and form saves, from the least to the most, and what robust pretraining
    adds to accuracy there. frame: as `edge` takes it."""
    frame = _kinds(frame)
    lines = []
    for (kind, form), rows in frame.groupby(["kind", "form"], sort=False):
        if kind == "dense" and form == "fp32":
            continue
        own = ", ".join(f"{title} {_range(rows[cost])}" for cost, title in _costs(frame).items())
        lines.append(f"{kind}, {form}, as fractions of dense: {own}")
        lines += _advantages(rows)
    half = max(
        (high - low) / 2
        for low, high in (
            stats.accuracy_interval(a, n) for a, n in zip(frame.accuracy, frame.n, strict=True)
        )
    )
    lines.append(
        f"One accuracy, of {frame.n.max():,} test images, is known to ± {100 * half:.1f} points."
    )
    return "\n".join(lines)


def _advantages(rows: pd.DataFrame) -> list[str]:
    """A line for each way to pretrain robustly: its accuracy over that of natural, each sparsity
    and seed with its own partner."""
    on = ["sparsity", "pattern", "seed"]
    natural = rows[rows.label == "natural"][[*on, "accuracy"]]
    both = rows[rows.label != "natural"].merge(natural, on=on, suffixes=("", "_natural"))
    both["ahead"] = 100 * (both.accuracy - both.accuracy_natural)
    return [
        f"  {name}: {_range(own.ahead, '+.1f')} points over natural"
        for name, own in both.groupby("label", sort=False)
    ]


def _range(values: pd.Series, form: str = ".2f") -> str:
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
    order = {k: i for i, k in enumerate(_MARKERS)}
    return frame.sort_values(
        ["kind", "sparsity"], key=lambda c: c.map(order) if c.name == "kind" else c
    )


def _costs(frame: pd.DataFrame) -> dict[str, str]:
    """The columns of costs, and what they are called."""
    batches = sorted(int(m[1]) for m in map(_LATENCY.fullmatch, frame.columns) if m)
    return {
        "parameters_ratio": "parameters",
        "multiply_adds_ratio": "multiply-adds",
        "bytes_ratio": "bytes of the file",
        **{f"latency_{b}_ratio": f"latency at batch {b}" for b in batches},
    }


def _points(ax: Axes, rows: pd.DataFrame, colours: grid.Looks) -> None:
    ax.axvline(1, color=OTHER, lw=0.8, zorder=0)
    for (label, kind, form), own in rows.groupby(["label", "kind", "form"], sort=False):
        look = colours[label]
        at = own.groupby("sparsity")[["x", "accuracy"]].mean()
        line = {"color": look["color"], "ls": look["ls"], "lw": 0.5, "mec": "white", "mew": 0.3}
        if form == "int8":
            line |= {"mfc": "none", "mec": look["color"], "mew": 0.8, "ls": ""}
        size = 6.5 if kind == "dense" else 4
        ax.plot(at.x, 100 * at.accuracy, marker=_MARKERS[kind], ms=size, **line)


def _fraction(x: float, _place: object) -> str:
    return f"{x:g}" if x >= 1 else f"1/{1 / x:g}"


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
    fig = grid.plain(1.4 * COLUMN, COLUMN)
    ax = fig.subplots()
    for row in frame.itertuples():
        fill = "none" if row.form == "int8" else colours[row.label]["color"]
        low, high = stats.accuracy_interval(row.val_accuracy, row.n_val)
        at = row.bytes / 1000, 100 * row.val_accuracy
        pale: dict[str, Any] = {"alpha": 1.0 if row.met else 0.3}
        pale["color"] = colours[row.label]["color"]
        ax.vlines(at[0], 100 * low, 100 * high, lw=0.6, **pale)
        ax.plot(*at, marker=_MARKERS[row.kind], ms=5, ls="", mfc=fill, **pale)
        if row.chosen:
            ax.plot(*at, marker="o", ms=12, mfc="none", mec="black", mew=0.8, ls="")
    ax.set_xscale("log")
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(FuncFormatter(lambda x, _: f"{x:g}"))
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
    times = {
        column: f"latency at batch {column.removeprefix('latency_')}"
        for column in table
        if column.startswith("latency_")
    }
    times |= {"training_step": "training step"} if "training_step" in table else {}
    rows = table.melt(["label", "scope", "multiply_adds"], list(times), "column", "time")
    fig, cells = grid.facets(rows, PAGE, 2.9, None, "column", sharey=True)
    for ax, own in cells:
        ax.plot([0, 1], [0, 1], color=OTHER, lw=0.8, zorder=0)
        for (name, scope), dots in own.groupby(["label", "scope"], sort=False):
            look = (
                colours[name] | {"ls": "", "ms": 4} | ({"mfc": "none"} if scope == "layer" else {})
            )
            ax.plot(dots.multiply_adds, dots.time, **look)
        top = max(1.1, 1.05 * rows.time.max())
        ax.set(title=times[own.column.iloc[0]], xlim=(0, 1.1), ylim=(0, top))
    cells[0][0].set_ylabel("time over dense")
    fig.supxlabel("multiply-adds over dense", fontsize=8)
    note = "filled: ranked across layers; hollow: within each; line: time is arithmetic"
    grid.legend(fig, colours, f"channel tickets, {shared(table, 'task', 'seed')}", note)
    return fig
