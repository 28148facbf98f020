"""Intervals, and differences between robust and natural paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from robustlib.specs import Transfer, columns

if TYPE_CHECKING:
    import pandas as pd

    from robustlib.tickets import Mask

PRETRAINING = ["objective", "norm", "eps", "sigma", "steps"]
"""The columns that name a way to pretrain."""

RECIPE = [
    *PRETRAINING,
    *"step_size beta replays checkpoint schedule momentum decay_norms".split(),
    *(f"pretrain_{name}" for name in "epochs lr batch_size weight_decay augment precision".split()),
    *(f"mask_{name}" for name in PRETRAINING),
]
"""All the columns in which a robust network may differ from its natural partner."""


def arranged(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns first that tell what they are of, and what was found."""
    first = ["task", "mode", "scheme", "pattern", "sparsity", *PRETRAINING, "n_train", "seed"]
    first = [c for c in [*first, "accuracy", "n"] if c in frame]
    return frame[[*first, *(c for c in frame if c not in first)]]


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's t interval of independent values: (mean, low, high).

    With one value the interval is unknown: low and high are nan. With none, all three are.
    """
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else math.nan
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def accuracy_interval(accuracy: float, n: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % interval of an accuracy measured on n images."""
    ci = stats.binomtest(round(accuracy * n), n).proportion_ci(0.95, method="exact")
    return float(ci.low), float(ci.high)


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Accuracy of the first minus that of the second, of bools [N] that say which of the same
    images each has right: (difference, low, high), the adjusted Wald interval (95 %) of Bonett and
    Price (2012), which holds for few images and where the two never differ."""
    ahead, behind, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    p, q = (ahead + 1) / (n + 2), (behind + 1) / (n + 2)
    half = float(stats.norm.ppf(0.975)) * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return (ahead - behind) / n, max(-1.0, p - q - half), min(1.0, p - q + half)


def summary(frame: pd.DataFrame, by: Sequence[str], value: str = "accuracy") -> pd.DataFrame:
    """Mean of `value` and its interval over seeds, in each cell of `by`.

    What is neither in `by` nor the seed (tasks, say) is averaged within a seed first, so that the
    seeds are the independent repetitions. Columns: by, mean, low, high, seeds. Raises ValueError
    where a seed lacks rows that another has: its mean would be one over other things.
    """
    by = list(by)
    cells = frame.groupby([*by, "seed"], dropna=False)[value]
    per_seed = cells.agg(["mean", "count", "size"]).reset_index()
    for _, own in per_seed.groupby(by, dropna=False) if per_seed["size"].max() > 1 else ():
        if own["count"].nunique() > 1:
            where = ", ".join(f"{name}={own[name].iloc[0]}" for name in by)
            raise ValueError(f"{where}: a seed lacks rows that another has")
    return _intervals(per_seed, by, "mean")


def differences(frame: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """The robust rows of `frame`, each paired with the natural row that differs from it in nothing
    but RECIPE. Columns: as given, the natural `value` as {value}_natural, and `difference`.

    Rows that have a `difference` are returned as they are. Raises ValueError when there is no
    robust row, or one without a natural partner: averages over the two sides would then be averages
    over different things.
    """
    if "difference" in frame:
        return frame
    twin = [c for c in columns(Transfer()) if c in frame and c not in RECIPE]
    natural = frame[frame.objective == "natural"]
    if natural.duplicated(twin).any():
        raise ValueError("several natural rows differ in none of " + ", ".join(twin))
    robust = frame[frame.objective != "natural"]
    if robust.empty:
        raise ValueError("there is no robust row to compare with natural ones")
    if robust.duplicated([*twin, *(c for c in RECIPE if c in frame)]).any():
        raise ValueError("several robust rows differ in no field")
    pairs = robust.merge(natural[[*twin, value]], on=twin, how="left", suffixes=("", "_natural"))
    lonely = pairs[pairs[f"{value}_natural"].isna()]
    if len(lonely):
        raise ValueError(
            f"{len(lonely)} robust rows have no natural partner, the first: "
            + ", ".join(f"{c}={lonely.iloc[0][c]}" for c in twin)
        )
    return pairs.assign(difference=pairs[value] - pairs[f"{value}_natural"])


def beside(frame: pd.DataFrame, reference: pd.Series, on: Sequence[str], value: str) -> pd.Series:
    """`value` of each row minus that of the row of `reference` (true there) with the same `on`; nan
    where there is none, and of those rows themselves. Raises ValueError for two such rows."""
    own = frame.loc[reference, [*on, value]].rename(columns={value: "_own"})
    found = frame[[*on, value]].merge(own, "left", list(on), validate="many_to_one")
    return (frame[value] - found["_own"].to_numpy()).mask(reference)


def advantage(
    frame: pd.DataFrame, by: Sequence[str] = ("task", "mode", "sparsity"), value: str = "accuracy"
) -> pd.DataFrame:
    """What robust pretraining adds: robust minus natural, paired by seed as in `differences`.

    Pairs are averaged within a seed and cell of `by`, and the interval is Student's over seeds.
    Columns: PRETRAINING, by, mean, low, high, seeds, pairs. Raises as `differences`.
    """
    cells = [*(c for c in PRETRAINING if c in frame), *by]
    pairs = differences(frame, value)
    counts = pairs.groupby(cells, dropna=False).size().reset_index(name="pairs")
    return summary(pairs, cells, "difference").merge(counts, on=cells)


def mask_effects(frame: pd.DataFrame) -> pd.DataFrame:
    """What a network's own mask is worth on its weights: own minus another mask, paired by seed.

    frame: rows that differ in whose mask and in `control`, as `figures.by_mask` takes them. A row
    for each other mask: PRETRAINING (whose weights), task, mode, recalibrate, n_train, sparsity;
    mask_objective, ... and control (which other mask); mean, low, high (Student's 95 % interval)
    and seeds. Raises ValueError for a row whose network has no row with its own mask, or several.
    """
    other = [f"mask_{name}" for name in PRETRAINING]
    cell = [*PRETRAINING, "task", "mode", "recalibrate", "n_train", "sparsity"]
    same = frame[other].to_numpy() == frame[PRETRAINING].to_numpy()
    own = (frame.control == "none") & same.all(axis=1)
    on = [*cell, "seed"]
    if frame[own].duplicated(on).any():
        raise ValueError("several rows of an own mask differ in none of " + ", ".join(on))
    worth = -beside(frame, own, on, "accuracy")
    if worth[~own].isna().any():
        raise ValueError("a mask stands alone: there is no row of its network's own mask")
    return _intervals(frame.assign(worth=worth)[~own], [*cell, *other, "control"], "worth")


def mask_overlap(first: Mask, second: Mask) -> pd.DataFrame:
    """How far two masks of one network keep the same weights, by layer.

    Columns: layer, weights, density_first, density_second, overlap (Jaccard index of the kept
    weights; nan where neither keeps any) and chance, what two random masks of these densities
    would have. Raises ValueError when the masks are of different networks.
    """
    import pandas as pd

    from robustlib.tickets import Mask

    first.overlap(second)  # refuses masks that do not match
    rows = []
    for layer, a in first.items():
        one, other = Mask({layer: a}), Mask({layer: second[layer]})
        kept, of = (int(a.sum()), int(second[layer].sum())), a.numel()
        alike = (one.overlap(other), one.chance(other)) if sum(kept) else (math.nan, math.nan)
        rows.append([layer, of, kept[0] / of, kept[1] / of, *alike])
    names = ["layer", "weights", "density_first", "density_second", "overlap", "chance"]
    return pd.DataFrame(rows, columns=names)


def _intervals(per_seed: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    import pandas as pd

    cells = per_seed.groupby(by, dropna=False)[value]
    rows = [[*cell, *mean_interval(seeds), len(seeds)] for cell, seeds in cells]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "seeds"])
