"""Figures that change one thing of the pipeline: pretraining, ticket, mask, or task."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlib import stats
from robustlib.figures import grid, names
from robustlib.figures.style import NATURAL, column_width, looks, page_width, style
from robustlib.specs import PATTERNS, SCHEMES, n_of_m

_OBJECTIVES = ("pgd", "trades", "free", "smoothing")
"""From left to right."""
_CONTROL = {"shuffle": ", shuffled", "reinit": ", fresh weights"}
_OF_GAP = ["mode", "sparsity", "n_train"]
"""What all points of the gap's figure have in common."""


@style()
def by_pretraining(frame: pd.DataFrame) -> Figure:
    """What each way to pretrain adds to natural pretraining, in points, by task and mode.

    frame: rows of `sweep` of one sparsity. A line joins the radii (or the sigmas) of one way.
    Raises ValueError when a robust row has no natural partner.
    """
    names.alike(frame, "arch", "n_train", "sparsity", "scheme", "pattern")
    pairs = names.with_way(names.labelled(stats.differences(frame)), ["mode", "recalibrate"])
    names.distinct(pairs, "task", "way", "label")
    pairs = pairs.assign(order=pairs.objective.map(_OBJECTIVES.index))
    pairs = pairs.sort_values(["order", "steps", "norm", "eps", "sigma"], kind="stable")
    # None of them is natural: that they are robust goes without saying.
    short, colours = pairs.label.str.removeprefix("robust, "), looks(pairs.label)
    pairs["x"] = pd.Categorical(short, short.unique())
    joined = pairs.groupby(["objective", "steps", "norm"], sort=False).ngroup()
    rows = grid.measured(pairs, "difference", "difference", joined=joined)
    rows["ylabel"] = rows.way + "\nrobust − natural (points)"
    return _by_task_and_way(rows, frame, 1.6, colours, apart=0, sharey="row", named=False)


@style()
def by_mask(frame: pd.DataFrame) -> Figure:
    """Accuracy by whose mask (places on the axis) and whose weights (colours).

    frame: rows of `sweep` that differ in mask_from and control, of one sparsity; a panel for each
    task and mode. Bars are of the difference to the network's own mask.
    """
    names.alike(frame, "arch", "n_train", "sparsity", "scheme", "pattern")
    if (frame.control == "reinit").any():
        raise names.NotDrawn("control='reinit': its weights are nobody's, draw it by `by_drawing`")
    rows = names.with_way(names.labelled(frame), ["mode", "recalibrate"])
    rows["mask"] = [mask_label(row) for row in rows.to_dict("records")]
    names.distinct(rows, "task", "way", "label", "mask")
    own = rows["mask"] == rows.label
    rows["worth"] = stats.beside(rows, own, ["task", "way", "label", "seed"], "accuracy")
    places = rows.sort_values(["control", "mask_objective", "mask_eps"])["mask"].unique()
    rows["x"] = pd.Categorical(rows["mask"], places)
    rows, colours = grid.measured(rows, "accuracy", "worth"), looks(names.ordered(rows))
    of = "of the difference to the own mask, paired by seed"
    words = {"xlabel": "mask", "of": of, "also": "colour: whose weights"}
    return _by_task_and_way(rows, frame, 1.4, colours, sharey=False, **words)


@style()
def by_drawing(frame: pd.DataFrame) -> Figure:
    """Accuracy of natural and robust tickets for each way to draw them, and their difference.

    frame: rows of `sweep` that differ in pattern or scheme, of one mode. Two rows of panels for
    each task, a column for each sparsity: above accuracies, below robust minus natural. Patterns
    n:m share one place on the axis. Raises ValueError when a robust row has no natural partner.
    """
    names.alike(frame, "mode", "arch", "recalibrate", "n_train", "scope")
    frame = names.labelled(_placed(frame))
    names.distinct(frame, "task", "sparsity", "place", "label")
    # From simple to elaborate, upstream before downstream, natural before adversarial.
    order = {
        row["place"]: (
            SCHEMES.index(row["scheme"]),
            row["control"] != "none",
            _downstream(row),
            row["ticket_objective"] == "pgd",
            PATTERNS.index(row["pattern"]),
        )
        for row in frame.to_dict("records")
    }
    frame["x"] = pd.Categorical(frame.place, sorted(order, key=order.__getitem__))
    tasks, colours = names.titles(frame), looks(names.ordered(frame))
    pairs = grid.measured(stats.differences(frame), "difference", "difference", title="")
    title = frame.task.map(tasks) + ", sparsity " + frame.sparsity.map("{:g}".format)
    rows = pd.concat([grid.measured(frame, "accuracy", title=title), pairs])
    rows["line"] = 2 * rows.task.map(list(tasks).index) + rows.compared
    rows["place"] = rows.sparsity
    height, wide = 1.3 + 2.3 * len(tasks), rows.sparsity.nunique() > 1
    common = ("mode", "n_train", "seed")
    return grid.panels(rows, height, colours, common, wide=wide, sharey="row")


def _by_task_and_way(
    rows: pd.DataFrame, frame: pd.DataFrame, above: float, colours: grid.Looks, **options: Any
) -> Figure:
    """Tasks, in the order of the frame, beside each other as far as the names on the axis have
    room, ways to transfer below each other."""
    tasks = names.titles(frame)
    fit = int(page_width() / (grid.MARGIN + 0.1 * rows.x.nunique())) or 1
    lines = -(-len(tasks) // fit)
    across = -(-len(tasks) // lines)
    rows = grid.wrapped(rows.assign(title=rows.task.map(tasks)), list(tasks), "task", across)
    height, common = above + 1.5 * rows.line.nunique(), ("sparsity", "n_train", "seed")
    return grid.panels(rows, height, colours, common, wide=len(tasks) > 1, **options)


def drawing(row: Mapping[str, Any]) -> str:
    """How a ticket was drawn: "OMP", "A-IMP upstream", "LMP, channel", "OMP, 2:4".

    row: anything with the columns of a ticket. Unstructured goes without saying.
    """
    downstream = _downstream(row)
    name = row["scheme"].upper() if row["scheme"] in ("omp", "imp", "lmp") else row["scheme"]
    name = "A-" * (row["ticket_objective"] == "pgd") + name
    if row["scheme"] == "imp" or (row["scheme"] == "lmp" and not downstream):
        name += " downstream" if downstream else " upstream"
    name += _CONTROL.get(row["control"], "")
    return name + f", {row['pattern']}" * (row["pattern"] != "unstructured")


def _placed(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with their place on the axis: by pattern, or by scheme, or both."""
    rows, several = frame.to_dict("records"), frame.pattern.nunique() > 1
    if several:
        rows = [row | {"pattern": "n:m"} if n_of_m(row["pattern"]) else row for row in rows]
    alone = several and len({drawing(row | {"pattern": "unstructured"}) for row in rows}) == 1
    return frame.assign(place=[row["pattern"] if alone else drawing(row) for row in rows])


def _downstream(row: Mapping[str, Any]) -> bool:
    return row["dataset"] not in ("", None) and not pd.isna(row["dataset"])  # nan: from a file


@style()
def gap(rows: pd.DataFrame) -> Figure:
    """What robust pretraining adds, against how far the task is from the source.

    rows: those of `gap_rows`. Points are tasks; bars their 95 % intervals: over resampled images to
    the side, over seeds upwards.
    """
    rows = names.labelled(rows)
    colours = looks(rows.label)
    fig = grid.plain(page_width(), column_width())
    ax = fig.subplots()
    ax.axhline(0, color=NATURAL, lw=1, zorder=0)
    for name, look in colours.items():
        own = rows[rows.label == name].sort_values("gap")
        # The interval is not made from the point, and might leave it out.
        side = np.stack([own.gap - own.gap_low, own.gap_high - own.gap]).clip(min=0)
        up = 100 * (own.high - own["mean"])
        bars = {"xerr": side, "yerr": up, "elinewidth": 0.6, "capsize": 1.5}
        ax.errorbar(own.gap, 100 * own["mean"], **bars, **(look | {"ls": ""}))
        # Names stand at the ends of the bars, in turn above and below: near tasks are close.
        ends = 100 * own[["high", "low"]].T.fillna(own["mean"]).T
        for i, task in enumerate(own.task.map(names.called)):
            up = 1 - 2 * (i % 2)
            place: Any = {"xytext": (0, 2 * up), "textcoords": "offset points", "fontsize": 6}
            place |= {"rotation": 40 * up, "va": "bottom" if up > 0 else "top"}
            ax.annotate(task, (own.gap.iloc[i], ends.iloc[i, i % 2]), **place)
    over = grid.fit([ax], zero=True, of="over images to the side, over seeds upwards")
    seeds = f"{rows.seeds.min()} seed{'s' * bool(rows.seeds.min() > 1)}"
    note = over or "bars: 95 % interval over images"  # of one seed there is none upwards
    ax.margins(x=0.1)  # room for the names, also above and below
    low, top = ax.get_ylim()
    room = 0.25 * (top - low)
    ax.set_ylim(low - room, top + room)
    ax.set_xlabel("Fréchet distance of the task to the source")
    ax.set_ylabel("robust − natural (points)")
    grid.legend(fig, colours, f"{names.shared(rows, *_OF_GAP)}, {seeds}", note)
    return fig


def gap_rows(frame: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """A row a task: its gap (gap, gap_low, gap_high), on how many images and under which key it is
    stored (gap_n, gap_key), and what robust pretraining adds there, as of `stats.advantage`.

    frame: rows of `sweep`, of one mode and sparsity; gaps: rows of domain_gap evaluations, of one
    extractor and one number of images, with columns `against` (task), frechet_infinity, low, high,
    n and key. Raises ValueError for a task without a gap, or rows that differ in what has no place.
    """
    names.alike(frame, *_OF_GAP, "recalibrate", "arch", "scheme", "pattern", "scope")
    names.alike(gaps, "n")
    if gaps.against.duplicated().any():
        raise ValueError("gaps: several are given for one task, of one network they are one")
    names.distinct(names.labelled(frame), "task", "label")
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
        weights=[names.label(r) for r in rows], mask=[mask_label(r) for r in rows]
    )


def mask_label(row: Mapping[str, Any]) -> str:
    """Whose mask a ticket has: "natural", "robust, L2 ε = 0.15, shuffled".

    row: anything with the columns of a ticket.
    """
    named = {name: row[f"mask_{name}"] for name in stats.PRETRAINING}
    return names.label(named) + _CONTROL.get(row["control"], "")
