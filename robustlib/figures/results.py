"""Figures of a study's results: what tickets are worth, by task, sparsity, labels and detail.

`robustness`, `overlap`, `correlation` and `verdict` say in a sentence what rows hold: computed, so
that it is true of whatever was run."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import NotDrawn, labelled, native, ordered, radius, titles, with_way
from robustlib.figures.style import column_width, looks, page_width, paler, style
from robustlib.metrics.domain_gap import rank_correlation
from robustlib.specs import Transfer, columns

AXES = {"sparsity": grid.SPARSITY, "n_train": "training images of the task"}


def accuracy_vs_sparsity(
    frame: pd.DataFrame, value: str = "accuracy", against: str = "sparsity"
) -> Figure:
    """Accuracy of natural and robust tickets against sparsity, a panel for each task and way.

    frame: rows of `sweep` or `store.frame(Transfer)`. value: another measure in [0, 1], `miou` for
    one; against: `n_train` draws it against the number of training images. A bar, of the difference
    to natural, stands around the robust mean: where it does not reach the natural line, robust and
    natural differ. Raises ValueError when a robust row has no natural partner.
    """
    ways = panel_columns(frame, against)
    rows = pd.concat([frame[frame.objective == "natural"], stats.differences(frame, value)])
    # Ways to transfer alike, such as two rankings, are there to be compared: on one scale.
    same = "col" if rows["mode"].nunique() == 1 else False
    return _panels(rows, value, against, ways, same, grid.TO_NATURAL)


def accuracy_vs_labels(frame: pd.DataFrame) -> Figure:
    """Accuracy of natural and robust tickets against the number of training images, a panel for
    each task and way.

    frame: as for `accuracy_vs_sparsity`, whose marks it has.
    """
    return accuracy_vs_sparsity(frame, against="n_train")


def miou_vs_sparsity(frame: pd.DataFrame) -> Figure:
    """Mean IoU of natural and robust tickets against sparsity, a panel for each task.

    frame: as for `accuracy_vs_sparsity`, whose marks it has.
    """
    return accuracy_vs_sparsity(frame, "miou")


def advantage_vs_labels(frame: pd.DataFrame) -> Figure:
    """`advantage` against the number of training images instead."""
    return advantage(frame, against="n_train")


def advantage(frame: pd.DataFrame, value: str = "accuracy", against: str = "sparsity") -> Figure:
    """Robust minus natural accuracy against sparsity, paired by seed, with 95 % intervals.

    frame, value and against as for `accuracy_vs_sparsity`, or the rows with their `difference`.
    Raises ValueError when a robust row has no natural partner, or there is no robust row.
    """
    ways = panel_columns(frame, against)
    rows = stats.differences(frame, value)
    return _panels(rows, "difference", against, ways, "row", grid.OVER_SEEDS)


@style()
def _panels(
    rows: pd.DataFrame, value: str, against: str, ways: list[str], sharey: str | bool, of: str
) -> Figure:
    """A block of lines of panels for each way to transfer, a panel for each task in it."""
    axis: Any = grid.by_sparsity
    if against == "n_train":  # all images are as many as there were
        rows = rows.assign(n_train=rows.n_train.fillna(rows.n_train_measured))
        axis = partial(grid.by_log, rotation=90)
    rows = with_way(labelled(rows), ways).sort_values(ways, kind="stable")
    names = titles(rows)
    # A panel of an inch and a quarter has room for the names of its ticks.
    across = min(len(names), 5 if len(names) > 8 else 4, int(page_width() / 1.25))
    if sharey == "col" and across < len(names):
        sharey = False
    x = 1 / (1 - rows.sparsity) if against == "sparsity" else rows[against]
    rows = grid.measured(rows, value, "difference", x=x, title=rows.task.map(names))
    rows = grid.wrapped(rows, list(names), "task", across)
    width = column_width() if across <= 2 else page_width()
    taller = 0.1 * any("\n" in name for name in names.values())
    longest = 0.068 * rows.way.str.len().max()  # it stands upright
    each = max(width / across * (0.45 if across == 1 else 0.68), longest) + 0.2 + taller
    height, colours = 0.75 + (rows.line.max() + 1) * each, looks(ordered(rows))
    common = [c for c in (*AXES, "seed") if c not in (against, *ways)]
    options: dict[str, Any] = {"axis": axis, "sharex": False, "sharey": sharey, "wide": across > 2}
    return grid.panels(rows, height, colours, common, xlabel=AXES[against], of=of, **options)


@style()
def detail(frame: pd.DataFrame, value: str = "accuracy") -> Figure:
    """Robust minus natural against the detail of the task's images, and both accuracies below.

    frame: rows of `sweep` that differ in `detail`, of one robust pretraining; where there is but
    one, they are left out. A column for each task, two lines of panels for each way to transfer;
    the darker a line, the sparser. Images as they are have the detail `native_detail`. Raises
    ValueError for no task with several details, several robust pretrainings, or a robust row
    without its partner.
    """
    ways = [column for column in panel_columns(frame, "detail") if column != "sparsity"]
    rows = pd.concat([frame[frame.objective == "natural"], stats.differences(frame, value)])
    own = native(rows)
    rows = with_way(labelled(rows.assign(x=rows.detail.fillna(own).clip(upper=own))), ways)
    rows = rows[rows.groupby(["task", "way", "sparsity"]).x.transform("nunique") > 1]
    rows = rows.sort_values(ways, kind="stable")
    if rows.empty:
        raise NotDrawn("detail: no task has rows of several; this figure draws against it")
    if len(networks := ordered(rows)) != 2:
        raise NotDrawn(f"rows of {'; '.join(networks)}: must be natural and one robust")
    shades, sparsities = {}, sorted(rows.sparsity.unique())
    for i, s in enumerate(sparsities, 1):
        for name, look in looks(networks).items():
            # The sparsest as everywhere, the others paler and hollow: the colour says who it is.
            white, label = 0.6 * (1 - i / len(sparsities)), f"{name}, sparsity {s:g}"
            shade = look | {"color": paler(look["color"], white), "label": label}
            shades[label] = shade | ({"mfc": "white"} if white else {})
    rows["label"] += ", sparsity " + rows.sparsity.map("{:g}".format)
    robust = grid.measured(rows[rows.objective != "natural"], "difference", "difference")
    both, names = pd.concat([robust, grid.measured(rows, value)]), titles(rows)
    both = grid.wrapped(both, list(names), "task", len(names))
    both["line"] = 2 * both.line + ~both.compared
    both["title"] = both.task.map(names).where(both.line == 0, "")
    return grid.panels(
        both,
        1.0 + 1.25 * both.line.nunique(),
        shades,
        ("n_train", "seed"),
        wide=len(names) > 1,
        xlabel="detail of the task's images (px, log scale)",
        axis=lambda ax, _: grid.by_log(ax, rows),
        sharey=False,
    )


def panel_columns(frame: pd.DataFrame, against: str = "sparsity") -> list[str]:
    """The columns, beside task, axis, seed and pretraining, that are needed to tell rows apart: a
    panel must not average over two ways to transfer. Statistics that were re-estimated are always
    named: a linear evaluation depends on it."""
    if frame.empty:
        raise ValueError("there are no rows to draw")
    given = [*stats.RECIPE, against, "task", "seed", "pretrain_seed", "ticket_seed"]
    rest = [c for c in columns(Transfer()) if c in frame and c not in given]
    first = ["mode", "recalibrate", "arch", "scheme", "pattern", "scope", "n_train", "sparsity"]
    chosen: list[str] = []
    for column in [*(c for c in first if c in rest), *(c for c in rest if c not in first)]:
        cell = [*chosen, "task", against, "seed", *stats.PRETRAINING]
        needed = column == "mode" or (column == "recalibrate" and frame[column].any())
        if needed or frame.groupby(cell, dropna=False)[column].nunique(False).max() > 1:
            chosen.append(column)
    return chosen


def robustness(frame: pd.DataFrame) -> str:
    """The accuracy that each network keeps under each attack, at the largest radius measured with
    all attacks. frame: as `robust_accuracy` takes it."""
    frame = labelled(frame)
    radii = frame.groupby("attack_eps").attack.nunique()
    eps = radii[radii == radii.max()].index.max()
    lines = []
    for attack, rows in frame[frame.attack_eps == eps].groupby("attack", sort=False):
        kept = []
        for name, right, n in rows[["label", "correct", "n"]].itertuples(index=False):
            low, high = (100 * end for end in stats.accuracy_interval(right / n, n))
            kept.append(f"{name} {100 * right / n:.1f} % [{low:.1f}, {high:.1f}]")
        where = radius(rows.attack_norm.iloc[0], eps)
        lines.append(f"{attack} at {where} leaves right: " + "; ".join(kept) + ".")
    return "\n".join([*lines, f"Of {frame.n.max():,} test images; exact 95 % intervals."])


def overlap(frame: pd.DataFrame) -> str:
    """How far pairs of masks agree in the whole network. frame: as `mask_overlap` takes it."""
    lines = []
    for (sparsity, name), rows in labelled(frame).groupby(["sparsity", "label"], sort=False):
        a, b = (rows.weights * rows[f"density_{side}"] for side in ("first", "second"))
        # Of a Jaccard index j of sets of a and b weights, j (a + b) / (1 + j) are in both.
        both, chance = (
            (j * (a + b) / (1 + j)).fillna(0).sum() for j in (rows.overlap, rows.chance)
        )
        kept = a.sum() + b.sum()
        both, chance = (100 * common / (kept - common) for common in (both, chance))
        lines.append(
            f"sparsity {sparsity:g}, natural with {name}: overlap {both:.1f} %, "
            f"{chance:.1f} % by chance with these densities by layer"
        )
    return "\n".join(lines)


def correlation(rows: pd.DataFrame) -> str:
    """How the gap and what robust pretraining adds go together over tasks, for each way to
    pretrain. rows: those of `gap_rows`."""
    lines = []
    for name, own in labelled(rows).groupby("label", sort=False):
        rho, low, high, p = rank_correlation(own.gap, own["mean"])
        said = "too few for a correlation, or all alike"
        if rho == rho:
            said = f"rank correlation {rho:.2f}"
            said += f" [{low:.2f}, {high:.2f}]" * (low == low) + f", p = {p:.2g}" * (p == p)
        lines.append(f"{name}, {len(own)} tasks: {said}")
    return "\n".join(lines)


def verdict(frame: pd.DataFrame) -> str:
    """In how many cells of task, way and sparsity robust tickets are ahead, behind, or neither.

    frame: rows of `sweep`. A cell is decided when the 95 % interval over seeds of the paired
    difference leaves out zero; with one seed there is no interval.
    """
    cells = [*panel_columns(frame), "task", "sparsity"]
    lines = []
    for name, rows in labelled(stats.advantage(frame, cells)).groupby("label", sort=False):
        ahead, behind = int((rows.low > 0).sum()), int((rows.high < 0).sum())
        open_ = len(rows) - ahead - behind
        lines.append(
            f"{name}: of {len(rows)} comparisons ahead of natural in {ahead}, behind in {behind}, "
            f"undecided in {open_} (seeds: {rows.seeds.min()}); "
            f"mean difference {100 * rows['mean'].mean():+.1f} points, "
            f"from {100 * rows['mean'].min():+.1f} to {100 * rows['mean'].max():+.1f}"
        )
    return "\n".join(lines)
