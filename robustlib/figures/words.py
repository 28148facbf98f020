"""What a table says, in a sentence: computed, so that it is true of whatever was run."""

import pandas as pd

from robustlib import stats
from robustlib.figures.names import labelled, radius
from robustlib.figures.results import panel_columns
from robustlib.metrics.domain_gap import rank_correlation


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
