"""Figures and tables of what tickets are like beyond accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures.ablations import beside, single, within
from robustlib.figures.style import OTHER, PAGE, labelled, legend, looks, panels, style
from robustlib.specs import Evaluation, columns

PROPERTIES = {
    "clean_accuracy": "accuracy",
    "pgd_accuracy": "accuracy under PGD-20",
    "autoattack_accuracy": "accuracy under AutoAttack",
    "corruption_accuracy": "accuracy on corruptions",
    "ece": "calibration error (ECE)",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "msp_auroc": "AUROC, softmax",
    "energy_auroc": "AUROC, energy",
    "smoothed_accuracy": "smoothed accuracy",
    "mean_radius": "certified radius, mean",
    "cka": "CKA",
}
"""The measures of evaluations that are drawn, by column."""
LOW_IS_GOOD = ("ece", "nll", "brier")
ACROSS = 3


def properties(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Each property of natural and robust tickets against sparsity, a panel each.

    frames: rows of evaluations by the name of what was asked (`study.evaluations`), of one task.
    Lines join means over seeds, small dots are the seeds, bars 95 % intervals of the mean.
    """
    cells = list(_cells(frames))
    for _, _, rows in cells:
        single(rows, "task", "mode", "arch", "scheme", "pattern")
    labels = pd.concat(labelled(rows) for _, _, rows in cells)
    colours = looks(labels.sort_values(["objective", "eps"]).label)
    down = -(-len(cells) // ACROSS)
    with style():
        fig, grid = panels(down, ACROSS, PAGE, 0.8 + 1.5 * down)
        for ax in grid.flat[len(cells) :]:
            ax.set_axis_off()
        for ax, (name, column, rows) in zip(grid.flat, cells, strict=False):
            means = labelled(stats.summary(rows, [*stats.PRETRAINING, "sparsity"], column))
            seeds = labelled(rows)
            for i, (label, look) in enumerate(colours.items()):
                shift = 1 + 0.06 * (i - (len(colours) - 1) / 2)
                dots = seeds[seeds.label == label]
                small = {"color": look["color"], "marker": look["marker"], "ms": 1.8, "mew": 0}
                at = shift / (1 - dots.sparsity)
                ax.plot(0.95 * at, dots[column], ls="", alpha=0.6, **small)
                line = means[means.label == label].sort_values("sparsity")
                half = (line.high - line["mean"]).fillna(0)
                bars = {"yerr": half, "capsize": 1.5, "elinewidth": 0.7}
                ax.errorbar(shift / (1 - line.sparsity), line["mean"], **bars, **look)
            within(ax, rows[column], scale=1)
            ax.set_xscale("log")
            values = sorted(rows.sparsity.unique())
            ax.set_xticks([1 / (1 - s) for s in values], [f"{s:g}" for s in values])
            ax.xaxis.set_minor_locator(NullLocator())
            arrow = "↓" if column in LOW_IS_GOOD else "↑"
            ax.set_title(f"{PROPERTIES[column]} {'' if column == 'cka' else arrow}\n{name}")
        fig.supxlabel("sparsity (fraction of convolution weights removed)", fontsize=8)
        note = "dots: seeds; bars: 95 % interval over seeds, cut off at the panel; arrows: better"
        legend(fig, colours, note)
    return fig


def property_table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Natural and robust by property and sparsity: means with 95 % intervals over seeds, and the
    difference paired by seed."""
    out = []
    for name, column, rows in _cells(frames):
        by = ["sparsity"]
        each = labelled(stats.summary(rows, [*stats.PRETRAINING, *by], column))
        natural = each[each.objective == "natural"].set_index("sparsity")
        paired = (rows.objective == "natural").any() and (rows.objective != "natural").any()
        added = labelled(stats.advantage(rows, by, column)) if paired else None
        for row in each.to_dict("records"):
            line = {"asked": name, "property": PROPERTIES[column], "sparsity": row["sparsity"]}
            line |= {"network": row["label"], "value": _cell(row), "seeds": row["seeds"]}
            if added is not None and row["label"] != "natural" and row["sparsity"] in natural.index:
                same = added[(added.label == row["label"]) & (added.sparsity == row["sparsity"])]
                line["difference"] = _cell(same.iloc[0], "+")
            out.append(line)
    return pd.DataFrame(out).fillna({"difference": ""})


def property_rows(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows behind `properties`, one a network and property: columns of the specs, asked,
    property and value."""
    return pd.concat(
        rows.assign(asked=name, property=column, value=rows[column])
        for name, column, rows in _cells(frames)
    )[["asked", "property", "value", "task", "sparsity", *stats.PRETRAINING, "seed", "n", "key"]]


def reliability(tables: Mapping[Evaluation, list[dict]]) -> Figure:
    """Reliability diagrams, a panel for each sparsity, seeds added up.

    tables: the table `reliability` of calibration evaluations, by spec.
    """
    rows = _long(tables)
    rows = rows[rows["count"] > 0]
    rows = rows.assign(sure=rows.confidence * rows["count"], right=rows.accuracy * rows["count"])
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    sparsities = sorted(rows.sparsity.unique())
    with style():
        size = PAGE, 0.8 + PAGE / max(3, len(sparsities))
        fig, grid = panels(1, max(3, len(sparsities)), *size, sharey=True)
        for ax in grid.flat[len(sparsities) :]:
            ax.set_axis_off()
        for ax, sparsity in zip(grid.flat, sparsities, strict=False):
            ax.plot([0, 1], [0, 1], color=OTHER, lw=0.8, zorder=0)
            for name, look in colours.items():
                own = rows[(rows.label == name) & (rows.sparsity == sparsity)]
                sums = own.groupby("bin")[["count", "sure", "right"]].sum()
                x, y = sums.sure / sums["count"], sums.right / sums["count"]
                ax.plot(x, y, **(look | {"marker": None}))
                area = 3 + 60 * sums["count"] / sums["count"].sum()
                ax.scatter(x, y, s=area, color=look["color"], marker=look["marker"])
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=f"sparsity {sparsity:g}")
        grid[0][0].set_ylabel("accuracy")
        legend(fig, colours, "area: share of the images")
    return fig


def corruptions(tables: Mapping[Evaluation, list[dict]]) -> Figure:
    """Accuracy on each corruption at the highest sparsity, severities averaged.

    tables: the table `corruptions` of corruption evaluations, by spec. Small dots are the seeds,
    large ones their means.
    """
    rows = _long(tables)
    rows = rows[rows.sparsity == rows.sparsity.max()]
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    rows = rows.assign(corruption=rows.corruption.str.replace("_", " "))
    each = rows.groupby(["label", "corruption", "seed"], sort=False).accuracy.mean().reset_index()
    places = list(dict.fromkeys(each.corruption))
    with style():
        fig, ((ax,),) = panels(1, 1, PAGE, 2.6)
        beside(ax, each, "accuracy", colours, "corruption", places)
        within(ax, each.accuracy)
        ax.set_ylabel("accuracy (%)")
        legend(fig, colours, f"sparsity {rows.sparsity.max():g}; small dots: single seeds")
    return fig


def _long(tables: Mapping[Evaluation, list[dict]]) -> pd.DataFrame:
    lines = (columns(spec) | line for spec, table in tables.items() for line in table)
    return labelled(pd.DataFrame(lines))


def _cells(frames: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for name, rows in frames.items():
        for column in PROPERTIES:
            # Accuracy is measured by two suites; one is enough.
            if column in rows and not (column == "clean_accuracy" and "corruption" in name):
                yield name, column, rows


def _cell(row: Mapping, sign: str = "") -> str:
    mean, low, high = (row[c] for c in ("mean", "low", "high"))
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
