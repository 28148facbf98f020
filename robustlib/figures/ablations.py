"""Figures that change one thing of the pipeline: the pretraining, the mask, the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustlib import stats
from robustlib.figures.style import (
    COLUMN,
    NATURAL,
    PAGE,
    label,
    labelled,
    legend,
    looks,
    panels,
    plain,
    shared,
    style,
    with_way,
)
from robustlib.specs import Transfer, columns

_OBJECTIVES = ("pgd", "trades", "free", "smoothing")
"""From left to right."""
_KIND = ["objective", "steps", "norm"]
"""What a line holds fixed."""
_OF_GAP = ["mode", "sparsity", "n_train"]
"""What all points of the gap's figure have in common."""
MARGIN, LETTER = 0.5, 0.056
"""What a panel's labels take of its width, and a letter of a tick's name takes, in inches."""


def by_pretraining(frame: pd.DataFrame) -> Figure:
    """What each way to pretrain adds to natural pretraining, in points, by task and mode.

    frame: rows of `sweep` of one sparsity. A line joins the radii (or the sigmas) of one way. Small
    dots are the seeds, paired with the natural network of the seed; bars their 95 % interval, cut
    off at the panel (see `within`). Raises ValueError when a robust row has no natural partner.
    """
    single(frame, "arch", "n_train", "sparsity", "scheme", "pattern")
    pairs = with_way(labelled(stats.differences(frame)))
    once(pairs, "task", "way", "label")
    pairs = pairs.assign(place=pairs.objective.map(_OBJECTIVES.index))
    pairs = pairs.sort_values(["place", *_KIND[1:], "eps", "sigma"])
    pairs = pairs.assign(kind=pairs[_KIND].astype(str).agg(" ".join, axis=1))
    # None of them is natural: that they are robust goes without saying.
    pairs = pairs.assign(label=pairs.label.str.removeprefix("robust, "))
    places = list(dict.fromkeys(pairs.label))
    colours = looks(pairs.kind)
    ways, tasks = list(dict.fromkeys(pairs.way)), list(dict.fromkeys(pairs.task))
    size = PAGE if len(tasks) > 1 else COLUMN, 1.6 + 1.5 * len(ways)
    with style():
        fig, grid = panels(len(ways), len(tasks), *size, sharex=True, sharey="row")
        for row, way in zip(grid, ways, strict=True):
            row[0].set_ylabel(f"{way}\nrobust − natural (points)")
            for ax, task in zip(row, tasks, strict=True):
                ax.axhline(0, color=NATURAL, lw=1, zorder=0)
                own = pairs[(pairs.way == way) & (pairs.task == task)]
                for kind, rows in own.groupby("kind", sort=False):
                    means = rows.groupby("label", sort=False).difference.mean()
                    at = [places.index(name) for name in means.index]
                    ax.plot(at, 100 * means, color=colours[kind]["color"], lw=0.8)
                    for x, name in zip(at, means.index, strict=True):
                        here = rows[rows.label == name]
                        spots(ax, here, "difference", x, colours[kind], bar=True)
                ticks(ax, places)
                ax.set_title(task)
            within(row[0], pairs[pairs.way == way].difference, zero=True)
        fig.align_ylabels()
        note = "small dots: single seeds; bars: 95 % interval\nover seeds, cut off at the panel"
        fig.supxlabel(f"{shared(frame, 'sparsity', 'n_train', 'seed')}\n{note}", fontsize=6.5)
    return fig


def by_mask(frame: pd.DataFrame) -> Figure:
    """Accuracy by whose mask (places on the axis) and whose weights (colours).

    frame: rows of `sweep` that differ in mask_from and control, of one sparsity; a panel for each
    task and mode. Small dots are the seeds, large ones their means.
    """
    single(frame, "arch", "n_train", "sparsity", "scheme", "pattern")
    if (frame.control == "reinit").any():
        raise ValueError("control='reinit': its weights are nobody's, draw it by `by_drawing`")
    rows = with_way(labelled(frame))
    rows = rows.assign(mask=[mask_label(r) for r in rows.to_dict("records")])
    once(rows, "task", "way", "label", "mask")
    order = rows.sort_values(["control", "mask_objective", "mask_eps"])
    places = list(dict.fromkeys(order["mask"]))
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    ways, tasks = list(dict.fromkeys(rows.way)), list(dict.fromkeys(rows.task))
    size = PAGE if len(tasks) > 1 else COLUMN, 1.4 + 1.5 * len(ways)
    with style():
        fig, grid = panels(len(ways), len(tasks), *size, sharex=True)
        for line, way in zip(grid, ways, strict=True):
            line[0].set_ylabel(f"{way}\naccuracy (%)")
            for ax, task in zip(line, tasks, strict=True):
                own = rows[(rows.way == way) & (rows.task == task)]
                beside(ax, own, "accuracy", colours, "mask", places)
                within(ax, own.accuracy)
                ax.set_title(task)
        fig.supxlabel("mask", fontsize=8)
        whose = shared(frame, "sparsity", "n_train", "seed")
        legend(fig, colours, whose, "colour: whose weights; small dots: seeds")
    return fig


def gap(rows: pd.DataFrame) -> Figure:
    """What robust pretraining adds, against how far the task is from the source.

    rows: those of `gap_rows`. Points are tasks; bars their 95 % intervals: over resampled images to
    the side, over seeds upwards.
    """
    rows = labelled(rows)
    colours = looks(rows.label)
    with style():
        fig = plain(COLUMN * 1.5, COLUMN)
        ax = fig.subplots()
        ax.axhline(0, color=NATURAL, lw=1, zorder=0)
        for name, look in colours.items():
            own = rows[rows.label == name]
            # The interval is not made from the point, and might leave it out.
            side = np.stack([own.gap - own.gap_low, own.gap_high - own.gap]).clip(min=0)
            up = 100 * np.abs(own[["low", "high"]].to_numpy().T - own["mean"].to_numpy())
            bars = {"elinewidth": 0.6, "capsize": 1.5}
            look = look | {"ls": ""}
            ax.errorbar(
                own.gap, 100 * own["mean"], xerr=side, yerr=np.nan_to_num(up), **bars, **look
            )
            for i, row in enumerate(own.sort_values("gap").to_dict("records")):
                at = (row["gap"], 100 * row["mean"])
                # In turn to the right and to the left, for near tasks stand close.
                side = {"xytext": (3, 4)} if i % 2 else {"xytext": (-3, -8), "ha": "right"}
                ax.annotate(row["task"], at, fontsize=6, textcoords="offset points", **side)
        within(ax, rows["mean"], zero=True)
        ax.margins(x=0.1)  # room for the names
        ax.set_xlabel("Fréchet distance of the task to the source")
        ax.set_ylabel("robust − natural (points)")
        whose = f"{shared(rows, *_OF_GAP)}, {rows.seeds.min()} seeds"
        note = "bars: 95 % intervals, over images and over seeds, cut off at the panel"
        legend(fig, colours, whose, note)
    return fig


def gap_rows(frame: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """A row a task: its gap (gap, gap_low, gap_high), on how many images and under which key it is
    stored (gap_n, gap_key), and what robust pretraining adds there, as of `stats.advantage`.

    frame: rows of `sweep`, of one mode and sparsity; gaps: rows of domain_gap evaluations, of one
    extractor and one number of images, with columns `against` (task), frechet_infinity, low, high,
    n and key. Raises ValueError for a task without a gap, or rows that differ in what has no place.
    """
    single(frame, *_OF_GAP, "recalibrate", "arch", "scheme", "pattern", "scope")
    single(gaps, "n")
    if gaps.against.duplicated().any():
        raise ValueError("gaps: several are given for one task, of one network they are one")
    once(labelled(frame), "task", "label")
    own = gaps.rename(columns={"against": "task", "frechet_infinity": "gap"})
    own = own.rename(columns={name: f"gap_{name}" for name in ("low", "high", "n", "key")})
    if missing := sorted(set(frame.task) - set(own.task)):
        raise ValueError(f"gaps: none is given for {', '.join(missing)}")
    added = stats.advantage(frame, ["task", *_OF_GAP])
    return added.merge(
        own[["task", "gap", "gap_low", "gap_high", "gap_n", "gap_key"]], on="task"
    ).sort_values("gap")


def mask_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """`stats.mask_effects` of the rows of `by_mask`, and in words whose weights (`weights`) and
    which other mask (`mask`)."""
    effects = stats.mask_effects(frame)
    rows = effects.to_dict("records")
    return effects.assign(
        weights=[label(r) for r in rows],
        mask=[mask_label(r) for r in rows],
    )


def mask_label(row: Mapping[str, Any]) -> str:
    """Whose mask a ticket has: "natural", "robust, L2 ε = 0.15, shuffled".

    row: anything with the columns of a ticket.
    """
    named = {name: row[f"mask_{name}"] for name in stats.PRETRAINING}
    return label(named) + ", shuffled" * (row["control"] == "shuffle")


def beside(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    looks: Mapping[str, Mapping[str, Any]],
    column: str,
    places: Sequence[str],
    bar: bool = False,
) -> None:
    """`spots` of every label beside each other at each place: the values of `column`."""
    for i, (name, look) in enumerate(looks.items()):
        shift = 0.3 * (i - (len(looks) - 1) / 2) / max(1, len(looks) - 1)
        for at, place in enumerate(places):
            own = rows[(rows.label == name) & (rows[column] == place)]
            spots(ax, own, value, at + shift, look, bar)
    ticks(ax, places)


def spots(
    ax: Axes,
    rows: pd.DataFrame,
    value: str,
    at: float,
    look: Mapping[str, Any],
    bar: bool = False,
) -> None:
    """Seeds as small dots and their mean as a large one, at one place; with its 95 % interval where
    seeds are independent: for differences that are paired by seed."""
    if rows.empty:
        return
    look = {k: v for k, v in look.items() if k not in ("ls", "label")}
    dots = np.full(len(rows), at - 0.12)
    ax.plot(dots, 100 * rows[value], **(look | {"ms": 1.8, "mew": 0}), ls="", alpha=0.6)
    mean, low, _ = stats.mean_interval(rows.groupby("seed")[value].mean())
    half = 100 * (mean - low) if bar and not np.isnan(low) else None
    ax.errorbar(at, 100 * mean, half, lw=0.8, capsize=1.5, **look)


def single(frame: pd.DataFrame, *columns: str) -> None:
    """Refuses rows that differ in what a figure has no place for: it would average over it."""
    for column in columns:
        if frame[column].nunique(dropna=False) > 1:
            values = ", ".join(map(str, frame[column].unique()))
            raise ValueError(f"{column}: the rows have {values}; this figure draws one at a time")


def once(rows: pd.DataFrame, *place: str) -> None:
    """Refuses several rows of one seed in one place: a figure would average over what they differ
    in, and nothing would show it."""
    cells = [*place, "seed"]
    twice = rows[rows.duplicated(cells, keep=False)]
    if len(twice):
        same = twice[(twice[cells] == twice[cells].iloc[0]).all(axis=1)]
        names = [c for c in columns(Transfer()) if c in same and same[c].nunique(False) > 1]
        where = ", ".join(f"{c}={same[c].iloc[0]}" for c in cells)
        values = "; ".join(f"{c} {', '.join(map(str, same[c].unique()))}" for c in names)
        raise ValueError(f"{len(same)} rows at {where}, of {values or 'one spec'}: must be one")


def within(ax: Axes, values: pd.Series, zero: bool = False, scale: float = 100) -> None:
    """Limits by the seeds, so that they can be told apart: bars may run out of the panel, with two
    seeds they are a dozen times as long as the seeds are apart. zero: it is shown too; scale: what
    the values are multiplied by in the panel."""
    found = scale * values.dropna()
    low, high = (min(found.min(), 0), max(found.max(), 0)) if zero else (found.min(), found.max())
    margin = max(0.005 * scale, 0.3 * (high - low))
    ax.set_ylim(low - margin, high + margin)


def ticks(ax: Axes, places: Sequence[str]) -> None:
    """Names on the axis: lying, a line for each part, where they have room; else upright."""
    lying = [name.replace(", ", ",\n") for name in places]
    longest = max(len(part) for name in lying for part in name.split("\n"))
    room = ax.figure.get_figwidth() / ax.get_subplotspec().get_gridspec().ncols - MARGIN
    fits = len(places) * longest * LETTER <= room
    ax.set_xticks(range(len(places)), lying if fits else places, rotation=0 if fits else 90)
    ax.grid(axis="x", visible=False)
    ax.set_xlim(-0.6, len(places) - 0.4)
