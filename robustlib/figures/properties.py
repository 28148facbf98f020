"""Figures and tables of what tickets are like beyond accuracy."""

import textwrap
from collections.abc import Mapping
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import alike, called, label, labelled, ordered, radius, shared
from robustlib.figures.style import OTHER, looks, page_width, style
from robustlib.figures.table import better, wide
from robustlib.specs import Evaluation, Ticket, columns, key

PROPERTIES = {
    "clean_accuracy": "clean accuracy (%)",
    "pgd_accuracy": "accuracy under PGD-20 (%)",
    "autoattack_accuracy": "accuracy under AutoAttack (%)",
    "corruption_accuracy": "accuracy on corruptions (%)",
    "ece": "calibration error, ECE (%)",
    "nll": "negative log-likelihood",
    "brier": "Brier score",
    "msp_auroc": "AUROC, softmax (%)",
    "energy_auroc": "AUROC, energy (%)",
    "msp_fpr95": "FPR at 95 %, softmax (%)",
    "energy_fpr95": "FPR at 95 %, energy (%)",
    "smoothed_accuracy": "smoothed accuracy (%)",
    "mean_radius": "certified radius, mean",
    "abstained": "images abstained on",
    "cka": "CKA (%)",
    "mask_overlap": "overlap of the masks (%)",
    "mask_chance": "overlap of random masks (%)",
}
"""The measures of evaluations, by column."""
IN_TABLE_ALONE = (
    *("pgd_accuracy", "msp_fpr95", "energy_fpr95"),
    *("abstained", "mask_overlap", "mask_chance"),
)
MINUS = "{} − natural"
"""The column of a difference, by the robust network's label."""
ACROSS = 3
FEW = 10
"""Images in a bin below which its accuracy says little."""

Frames: TypeAlias = Mapping[str, pd.DataFrame] | pd.DataFrame


@style()
def properties(frames: Frames) -> Figure:
    """Each property of natural and robust tickets against sparsity, a panel each.

    frames: rows of evaluations by the name of what was asked (`profiles.evaluations`), of one task,
    or their `property_rows`. Bars are intervals of the mean.
    """
    rows = labelled(_long(frames))
    rows = rows[~rows.property.isin(IN_TABLE_ALONE)].assign(x=1 / (1 - rows.sparsity))
    names, at = rows.property.map(PROPERTIES), rows.groupby(["asked", "property"], sort=False)
    rows = grid.measured(rows, "value", "value", rows.property.map(_scale), ylabel="")
    letters = int((page_width() / ACROSS - 0.4) / 0.046)
    said = [names + "_" + names.map(better), rows["where"] + rows.n.map(", {:,} images".format)]
    first, second = (text.map(lambda line: textwrap.fill(line, letters)) for text in said)
    rows["title"] = first.str.replace("_", " ") + "\n" + second
    rows["line"], rows["place"] = at.ngroup() // ACROSS, at.ngroup() % ACROSS
    with plt.rc_context({"axes.titlesize": 7 if page_width() > 6 else 6}):
        return grid.panels(
            rows,
            0.8 + 1.35 * (rows.line.max() + 1),
            looks(ordered(rows)),
            ("task", "seed"),
            also="arrows: better",
            xlabel=grid.SPARSITY,
            axis=grid.by_sparsity,
            sharex=False,
            sharey=False,
        )


def property_table(frames: Frames) -> pd.DataFrame:
    """Natural and robust networks beside each other, a row a property and sparsity.

    frames: as `properties` takes them. Columns: property, asked, images (measured on), sparsity,
    seeds; each network's mean with its 95 % interval over seeds; for each robust one what it has
    over the natural one, paired by seed. Empty where a property is of robust networks alone.
    """
    parts, labels = [], list[str]()
    for (_, column), rows in _long(frames).groupby(["asked", "property"], sort=False):
        scale = _scale(column)
        form = ".1f" if scale == 100 or column == "abstained" else ".3f"
        each = labelled(stats.summary(rows, [*stats.PRETRAINING, "sparsity"], "value"))
        part = wide(each, ["sparsity"], "label", form, scale)
        if (rows.objective == "natural").any() and (rows.objective != "natural").any():
            added = labelled(stats.advantage(rows, ["sparsity"], "value"))
            added["label"] = added.label.map(MINUS.format)
            added = wide(added, ["sparsity"], "label", f"+{form}", scale)
            part = part.merge(added, "left", "sparsity")
        named = {"property": PROPERTIES[column], "asked": rows["where"].iloc[0]}
        named |= {"images": int(rows.n.iloc[0]), "seeds": each.groupby("sparsity").seeds.min()}
        parts.append(part.set_index("sparsity").assign(**named).reset_index())
        labels += each.label.to_list()
    networks = list(looks(labels))
    differences = [MINUS.format(n) for n in networks if n != "natural"]
    order = ["property", "asked", "images", "sparsity", "seeds", *networks, *differences]
    table = pd.concat(parts, ignore_index=True).reindex(columns=order)
    return table.fillna(dict.fromkeys(order[5:], ""))


def property_rows(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows behind `properties`, one a network and property: columns of the specs, n (images),
    asked, the same in words (where), property and value."""
    long, clean = [], False
    for name, rows in frames.items():
        alike(rows, "task", "mode", "arch", "scheme", "pattern")
        # How many images of the task: suites name it in their ways.
        n = rows[next(c for c in ("n", "n_images", "n_inside") if c in rows)]
        for column in (c for c in PROPERTIES if c in rows):
            # Accuracy is measured by every attack and by corruption; once is enough.
            if column == "clean_accuracy":
                if clean or "corruption" in name:
                    continue
                clean = True
            own = rows.assign(asked=name, property=column, value=rows[column], n=n)
            own = own.dropna(subset=[column])
            long.append(own.assign(where=_asked(name, column, own), n=own.n.astype(int)))
    kept = ["asked", "where", "property", "value", "task", "sparsity", *stats.PRETRAINING]
    return pd.concat(long, ignore_index=True)[[*kept, "seed", "n", "key"]]


def table_rows(tables: Mapping[Evaluation, list[dict]]) -> pd.DataFrame:
    """The rows of the tables of evaluations, each with what tells its network and its key.

    Of certified ones also evaluation_sigma, the noise; of similarity `against`, how the other
    network was pretrained, or "dense" where it is the one that the ticket was drawn from.
    """
    kept = ["task", "sparsity", *stats.PRETRAINING, "seed"]
    lines = []
    for spec, table in tables.items():
        values = columns(spec)
        own = {c: values[c] for c in kept}
        if spec.suite == "certified":
            own["evaluation_sigma"] = spec.sigma
        if spec.suite == "similarity":
            of: Any = spec.of
            other: Any = spec.other
            dense = other.ticket == Ticket(of.ticket.pretrain)
            own["against"] = "dense" if dense else label(columns(other))
        lines += [own | line | {"key": key(spec)} for line in table]
    return labelled(pd.DataFrame(lines))


@style()
def certified(rows: pd.DataFrame) -> Figure:
    """Certified accuracy against radius, the mean over seeds: a panel for each sparsity, a row of
    panels for each noise.

    rows: `table_rows` of the table `radii` of certified evaluations.
    """
    colours = {name: look | {"marker": None} for name, look in looks(ordered(rows)).items()}
    fig, cells = _by_sparsity(rows, 0.8, "certified accuracy (%)", "evaluation_sigma")
    for ax, own in cells:
        grid.curves(ax, own, "radius", "certified_accuracy", colours, scale=100)
        ax.set(ylim=(0, 100), xlabel="L2 radius")
        noise = f"{ax.get_title()}, noise σ = {own.evaluation_sigma.iloc[0]:g}"
        ax.set_title(noise, fontsize=7)
    grid.legend(fig, colours, f"{shared(rows, 'task', 'seed')}; thin lines: single seeds")
    return fig


@style()
def layers(rows: pd.DataFrame) -> Figure:
    """CKA by layer, a panel for each sparsity: a full line for tickets beside their dense networks,
    a dashed one for those beside another pretraining's. Means over seeds.

    rows: `table_rows` of the table `layers` of similarity evaluations.
    """
    colours = looks(ordered(rows))
    pairs = rows.drop_duplicates(["label", "against"])[["label", "against"]]
    pairs = pairs.sort_values("against", key=lambda column: column != "dense", kind="stable")
    lines = {
        f"{name} and {other}": colours[name]
        | {"label": f"{name} and {other}", "ls": "-" if other == "dense" else "--"}
        for name, other in pairs.itertuples(index=False)
    }
    names = list(dict.fromkeys(rows.layer))
    rows = rows.assign(label=rows.label + " and " + rows.against, x=rows.layer.map(names.index))
    fig, cells = _by_sparsity(rows, 0.8, "CKA (%)")
    for ax, own in cells:
        grid.curves(ax, own, "x", "cka", lines, 100)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    cells[0][0].set_ylim(None, 100)
    grid.legend(fig, lines, f"{shared(rows, 'task', 'seed')}; thin lines: single seeds")
    return fig


@style()
def reliability(rows: pd.DataFrame) -> Figure:
    """Reliability diagrams, a panel for each sparsity, seeds added up.

    Bins of fewer than FEW images have a dot and no line, which would run wherever one image lies.

    rows: `table_rows` of the table `reliability` of calibration evaluations.
    """
    rows = rows[rows["count"] > 0]
    rows = rows.assign(sure=rows.confidence * rows["count"], right=rows.accuracy * rows["count"])
    colours = looks(ordered(rows))
    fig, cells = _by_sparsity(rows, 1, "accuracy (%)")
    for ax, here in cells:
        ax.plot([0, 100], [0, 100], color=OTHER, lw=0.8, zorder=0)
        for name, look in colours.items():
            sums = here[here.label == name].groupby("bin")[["count", "sure", "right"]].sum()
            x, y = (100 * sums[part] / sums["count"] for part in ("sure", "right"))
            many = sums["count"] >= FEW
            ax.plot(x[many], y[many], **(look | {"marker": None}))
            area = 3 + 60 * sums["count"] / sums["count"].sum()
            dots = {"color": look["color"], "marker": look["marker"], "clip_on": False}
            ax.scatter(x, y, s=area, **dots)
        ax.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)")
    note = f"area: share of the images; no line to bins of fewer than {FEW}"
    grid.legend(fig, colours, f"{shared(rows, 'task', 'seed')}; {note}")
    return fig


@style()
def corruptions(rows: pd.DataFrame) -> Figure:
    """Accuracy on each corruption at the highest sparsity, severities averaged.

    rows: `table_rows` of the table `corruptions` of corruption evaluations.
    """
    alike(rows, "task")
    rows = rows[rows.sparsity == rows.sparsity.max()]
    colours, own = looks(ordered(rows)), ["label", "corruption", "seed"]
    each = rows.groupby(own, sort=False).accuracy.mean().reset_index()
    each["ahead"] = stats.beside(each, each.label == "natural", own[1:], "accuracy")
    names = each.corruption.str.replace("_", " ")
    each = grid.measured(each, "accuracy", "ahead", x=pd.Categorical(names, names.unique()))
    each = each.assign(task=rows.task.iloc[0], sparsity=rows.sparsity.iloc[0])
    return grid.panels(each, 2.6, colours, ("task", "sparsity", "seed"), of=grid.TO_NATURAL)


def _by_sparsity(
    rows: pd.DataFrame, shape: float, ylabel: str, down: str = "task"
) -> tuple[Figure, grid.Cells]:
    """A panel for each sparsity, `shape` as high as it is wide, of rows of one task; a row of
    panels for each value of the column `down`."""
    alike(rows, "task")
    across = max(3, rows.sparsity.nunique())
    size = page_width(), 0.6 + (0.2 + shape * page_width() / across) * rows[down].nunique()
    rows = rows.assign(title="sparsity " + rows.sparsity.map("{:g}".format), ylabel=ylabel)
    return grid.facets(rows, *size, down, "sparsity", sharex=False, sharey=True)


def _long(frames: Frames) -> pd.DataFrame:
    return frames if isinstance(frames, pd.DataFrame) else property_rows(frames)


def _asked(name: str, column: str, rows: pd.DataFrame) -> str:
    """What was asked; of attacks and noise how strong they were, of calibration whether scaled."""
    row = rows.iloc[0]
    if column == "clean_accuracy":
        return "not attacked"
    if row.evaluation_eps:
        part = "cheap, " if (column, row.attack) == ("autoattack_accuracy", "cheap") else ""
        return part + radius(row.evaluation_norm, row.evaluation_eps)
    if row.against:
        return f"against {called(row.against)}"
    if row.suite == "calibration":
        return "scaled on val" if row.scaled else "not scaled"
    return f"σ = {row.evaluation_sigma:g}" if row.evaluation_sigma else name


def _scale(column: str) -> int:
    return 100 if "%" in PROPERTIES[column] else 1
