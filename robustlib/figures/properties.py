"""Figures and tables of what tickets are like beyond accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from robustlib import stats
from robustlib.figures.ablations import beside, single, within
from robustlib.figures.style import (
    OTHER,
    PAGE,
    label,
    labelled,
    legend,
    looks,
    panels,
    radius,
    shared,
    style,
)
from robustlib.specs import Evaluation, Ticket, columns, key

PROPERTIES = {
    "clean_accuracy": "clean accuracy",
    "pgd_accuracy": "accuracy under PGD-20",
    "autoattack_accuracy": "accuracy under AutoAttack",
    "corruption_accuracy": "accuracy on corruptions",
    "ece": "calibration error (ECE)",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "msp_auroc": "AUROC, softmax",
    "energy_auroc": "AUROC, energy",
    "msp_fpr95": "FPR at 95 %, softmax",
    "energy_fpr95": "FPR at 95 %, energy",
    "smoothed_accuracy": "smoothed accuracy",
    "mean_radius": "certified radius, mean",
    "abstained": "images abstained on",
    "cka": "CKA",
    "mask_overlap": "overlap of the masks",
    "mask_chance": "overlap of random masks",
}
"""The measures of evaluations, by column."""
IN_TABLE_ALONE = (
    *("pgd_accuracy", "msp_fpr95", "energy_fpr95"),
    *("abstained", "mask_overlap", "mask_chance"),
)
LOW_IS_GOOD = ("ece", "nll", "brier")
MINUS = "{} − natural"
"""The column of a difference, by the robust network's label."""
ACROSS = 3
FEW = 10
"""Images in a bin below which its accuracy says little."""


def properties(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Each property of natural and robust tickets against sparsity, a panel each.

    frames: rows of evaluations by the name of what was asked (`profiles.evaluations`), of one task.
    Lines join means over seeds, small dots are the seeds, bars 95 % intervals of the mean.
    """
    cells = [cell for cell in _cells(frames) if cell[1] not in IN_TABLE_ALONE]
    for _, _, rows in cells:
        single(rows, "task", "mode", "arch", "scheme", "pattern")
    labels = pd.concat(labelled(rows) for _, _, rows in cells)
    colours = looks(labels.sort_values(["objective", "eps"]).label)
    down = -(-len(cells) // ACROSS)
    with style():
        fig, grid = panels(down, ACROSS, PAGE, 0.8 + 1.35 * down)
        for ax in grid.flat[len(cells) :]:
            ax.set_axis_off()
        for ax, (name, column, rows) in zip(grid.flat, cells, strict=False):
            means = labelled(stats.summary(rows, [*stats.PRETRAINING, "sparsity"], column))
            seeds = labelled(rows)
            for i, (network, look) in enumerate(colours.items()):
                shift = 1 + 0.06 * (i - (len(colours) - 1) / 2)
                dots = seeds[seeds.label == network]
                small = {"color": look["color"], "marker": look["marker"], "ms": 1.8, "mew": 0}
                at = shift / (1 - dots.sparsity)
                ax.plot(0.95 * at, dots[column], ls="", alpha=0.6, **small)
                line = means[means.label == network].sort_values("sparsity")
                half = (line.high - line["mean"]).fillna(0)
                bars = {"yerr": half, "capsize": 1.5, "elinewidth": 0.7}
                ax.errorbar(shift / (1 - line.sparsity), line["mean"], **bars, **look)
            within(ax, rows[column], scale=1)
            ax.set_xscale("log")
            values = sorted(rows.sparsity.unique())
            ax.set_xticks([1 / (1 - s) for s in values], [f"{s:g}" for s in values])
            ax.set_xlim(0.8 / (1 - values[0]), 1.25 / (1 - values[-1]))
            ax.xaxis.set_minor_locator(NullLocator())
            arrow = "↓" if column in LOW_IS_GOOD else "↑"
            what = f"{PROPERTIES[column]} {'' if column == 'cka' else arrow}"
            where = f"{_asked(name, column, rows)}, {_images(rows).iloc[0]:,} images"
            ax.set_title(f"{what}\n{where}", fontsize=7)
        fig.supxlabel("sparsity (fraction of convolution weights removed)", fontsize=8)
        note = "dots: seeds; bars: 95 % interval over seeds, cut off at the panel; arrows: better"
        legend(fig, colours, shared(cells[0][2], "task", "mode", "seed"), note)
    return fig


def property_table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Natural and robust networks beside each other, a row a property and sparsity.

    Columns: property, asked, images (measured on), sparsity, seeds; each network's mean with its
    95 % interval over seeds; for each robust one what it has over the natural one, paired by seed.
    Empty where a property is of robust networks alone.
    """
    lines = []
    labels: list[str] = []
    for name, column, rows in _cells(frames):
        each = labelled(stats.summary(rows, [*stats.PRETRAINING, "sparsity"], column))
        labels += each.label.to_list()
        added = each[:0]
        if (rows.objective == "natural").any() and (rows.objective != "natural").any():
            added = labelled(stats.advantage(rows, ["sparsity"], column))
        images = int(_images(rows).iloc[0])
        for sparsity, own in each.groupby("sparsity"):
            line = {"property": PROPERTIES[column], "asked": _asked(name, column, rows)}
            line |= {"images": images, "sparsity": sparsity, "seeds": own.seeds.min()}
            line |= {row["label"]: _cell(row) for row in own.to_dict("records")}
            more = added[added.sparsity == sparsity].to_dict("records")
            lines.append(line | {MINUS.format(row["label"]): _cell(row, "+") for row in more})
    networks = list(looks(labels))
    differences = [MINUS.format(n) for n in networks if n != "natural"]
    order = ["property", "asked", "images", "sparsity", "seeds", *networks, *differences]
    return pd.DataFrame(lines).reindex(columns=order).fillna(dict.fromkeys(order[5:], ""))


def property_rows(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows behind `properties`, one a network and property: columns of the specs, n (images),
    asked, property and value."""
    return pd.concat(
        rows.assign(asked=name, property=column, value=rows[column], n=_images(rows))
        for name, column, rows in _cells(frames)
    )[["asked", "property", "value", "task", "sparsity", *stats.PRETRAINING, "seed", "n", "key"]]


def table_rows(tables: Mapping[Evaluation, list[dict]]) -> pd.DataFrame:
    """The rows of the tables of evaluations, each with what tells its network and its key.

    Of certified ones also evaluation_sigma, the noise; of similarity `against`, how the other
    network was pretrained, or "dense" where it is the one that the ticket was drawn from.
    """
    kept = ["task", "sparsity", *stats.PRETRAINING, "seed"]
    lines = []
    for spec, table in tables.items():
        told = columns(spec)
        own = {c: told[c] for c in kept}
        if spec.suite == "certified":
            own["evaluation_sigma"] = spec.sigma
        if spec.suite == "similarity":
            dense = spec.other.ticket == Ticket(spec.of.ticket.pretrain)
            own["against"] = "dense" if dense else label(columns(spec.other))
        lines += [own | line | {"key": key(spec)} for line in table]
    return labelled(pd.DataFrame(lines))


def certified(rows: pd.DataFrame) -> Figure:
    """Certified accuracy against radius, the mean over seeds: a panel for each sparsity, a row of
    panels for each noise.

    rows: `table_rows` of the table `radii` of certified evaluations.
    """
    single(rows, "task")
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    colours = {name: look | {"marker": None} for name, look in colours.items()}
    with style():
        fig, cells = _by_sparsity(rows, 0.8, "evaluation_sigma")
        for ax, here in cells:
            for name, look in colours.items():
                own = here[here.label == name]
                for _, seed in own.groupby("seed"):
                    ax.plot(seed.radius, seed.certified_accuracy, **_thin(look))
                means = own.groupby("radius").certified_accuracy.mean()
                ax.plot(means.index, means, **look)
            ax.set(ylim=(0, 1), xlabel="L2 radius")
            ax.set_title(f"{ax.get_title()}, noise σ = {here.evaluation_sigma.iloc[0]:g}")
        cells[0][0].set_ylabel("certified accuracy")
        legend(fig, colours, f"{shared(rows, 'task', 'seed')}; thin lines: single seeds")
    return fig


def layers(rows: pd.DataFrame) -> Figure:
    """CKA by layer, a panel for each sparsity: a full line for tickets beside their dense networks,
    a dashed one for those beside another pretraining's. Means over seeds.

    rows: `table_rows` of the table `layers` of similarity evaluations.
    """
    single(rows, "task")
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    pairs = rows.drop_duplicates(["label", "against"])[["label", "against"]]
    pairs = pairs.sort_values("against", key=lambda column: column != "dense", kind="stable")
    curves = {
        (name, other): colours[name]
        | {"label": f"{name} and {other}", "ls": "-" if other == "dense" else "--"}
        for name, other in pairs.itertuples(index=False)
    }
    names = list(dict.fromkeys(rows.layer))
    with style():
        fig, cells = _by_sparsity(rows, 0.8)
        for ax, here in cells:
            for (name, other), look in curves.items():
                own = here[(here.label == name) & (here.against == other)]
                if own.empty:  # A dense network beside itself.
                    continue
                for _, seed in own.groupby("seed"):
                    ax.plot([names.index(n) for n in seed.layer], seed.cka, "-", **_thin(look))
                means = own.groupby("layer").cka.mean().reindex(names).dropna()
                ax.plot([names.index(n) for n in means.index], means, **look)
            turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
            ax.set_xticks(range(len(names)), names, **turned)
        cells[0][0].set(ylim=(None, 1), ylabel="CKA")
        legend(fig, curves, f"{shared(rows, 'task', 'seed')}; thin lines: single seeds")
    return fig


def reliability(rows: pd.DataFrame) -> Figure:
    """Reliability diagrams, a panel for each sparsity, seeds added up.

    Bins of fewer than FEW images have a dot and no line, which would run wherever one image lies.

    rows: `table_rows` of the table `reliability` of calibration evaluations.
    """
    single(rows, "task")
    rows = rows[rows["count"] > 0]
    rows = rows.assign(sure=rows.confidence * rows["count"], right=rows.accuracy * rows["count"])
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    with style():
        fig, cells = _by_sparsity(rows, 1)
        for ax, here in cells:
            ax.plot([0, 1], [0, 1], color=OTHER, lw=0.8, zorder=0)
            for name, look in colours.items():
                own = here[here.label == name]
                sums = own.groupby("bin")[["count", "sure", "right"]].sum()
                x, y = sums.sure / sums["count"], sums.right / sums["count"]
                many = sums["count"] >= FEW
                ax.plot(x[many], y[many], **(look | {"marker": None}))
                area = 3 + 60 * sums["count"] / sums["count"].sum()
                ax.scatter(x, y, s=area, color=look["color"], marker=look["marker"])
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence")
        cells[0][0].set_ylabel("accuracy")
        note = f"area: share of the images; no line to bins of fewer than {FEW}"
        legend(fig, colours, f"{shared(rows, 'task', 'seed')}; {note}")
    return fig


def corruptions(rows: pd.DataFrame) -> Figure:
    """Accuracy on each corruption at the highest sparsity, severities averaged.

    rows: `table_rows` of the table `corruptions` of corruption evaluations. Small dots are the
    seeds, large ones their means.
    """
    single(rows, "task")
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
        legend(
            fig, colours, f"{shared(rows, 'task', 'sparsity', 'seed')}; small dots: single seeds"
        )
    return fig


def _by_sparsity(
    rows: pd.DataFrame, shape: float, down: str = "task"
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel for each sparsity, `shape` as high as it is wide, and its rows; a row
    of panels for each value of the column `down`."""
    sparsities = sorted(rows.sparsity.unique())
    across = max(3, len(sparsities))
    values = sorted(rows[down].unique())
    size = PAGE, 0.6 + (0.2 + shape * PAGE / across) * len(values)
    fig, grid = panels(len(values), across, *size, sharey=True)
    cells = []
    for line, value in zip(grid, values, strict=True):
        for ax in line[len(sparsities) :]:
            ax.set_axis_off()
        for ax, s in zip(line, sparsities, strict=False):
            ax.set_title(f"sparsity {s:g}")
            cells.append((ax, rows[(rows.sparsity == s) & (rows[down] == value)]))
    return fig, cells


def _thin(look: Mapping) -> dict:
    """How a single seed's line is drawn beside the mean's."""
    return {"color": look["color"], "lw": 0.4}


def _cells(frames: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    clean = False
    for name, rows in frames.items():
        for column in (c for c in PROPERTIES if c in rows):
            # Accuracy is measured by every attack and by corruption; once is enough.
            if column != "clean_accuracy" or not (clean or "corruption" in name):
                clean |= column == "clean_accuracy"
                yield name, column, rows.dropna(subset=[column])


def _asked(name: str, column: str, rows: pd.DataFrame) -> str:
    """What was asked; of attacks and noise how strong they were, of calibration whether scaled."""
    row = rows.iloc[0]
    if column == "clean_accuracy":
        return "not attacked"
    if row.evaluation_eps:
        part = "cheap, " if (column, row.attack) == ("autoattack_accuracy", "cheap") else ""
        return part + radius(row.evaluation_norm, row.evaluation_eps)
    if row.against:
        return f"against {row.against}"
    if row.suite == "calibration":
        return "scaled on val" if row.scaled else "not scaled"
    return f"σ = {row.evaluation_sigma:g}" if row.evaluation_sigma else name


def _images(rows: pd.DataFrame) -> pd.Series:
    """How many images of the task each row was measured on: suites name it in their ways."""
    return rows[next(c for c in ("n", "n_images", "n_inside") if c in rows)].astype(int)


def _cell(row: Mapping, sign: str = "") -> str:
    mean, low, high = (row[c] for c in ("mean", "low", "high"))
    return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
