"""How far a task is from the source, and whether that goes with what robust pretraining adds."""

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from robustlib import training
from robustlib.data.splits import seed_for
from robustlib.metrics.sample import Measured, Row, sample
from robustlib.models import ResNet
from robustlib.specs import Evaluation

SIZES, DRAWS, LEVEL = 15, 200, 0.95
BLOCK = 32
"""Directions taken together, at most; and at most one for every eight images. With as many
directions as images neither the extrapolation nor the resampling holds what it says."""


def measure(model: ResNet, data: Any, spec: Evaluation, *, against: Any, **_: Any) -> Measured:
    """Frechet distance between source and task images in the features of one fixed network.

    The network must be the same for all tasks that are compared, and so must the limit: both sets
    give exactly so many images, those of `sample`. Few images do not hold the covariance of many
    features: features are turned (`turned`), and the distance is the sum of those in blocks of up
    to BLOCK directions (`blockwise`). The row:

    - frechet: the distance, too large by about 1 / n, more so in large blocks;
    - frechet_infinity: what it would be for endless images;
    - low, high: an interval of that, of reverse percentiles over DRAWS resamples of both sets: a
      resample is as far from its images as those from the truth, so the bias goes (low may be
      below 0);
    - n, and block, the directions of a block.
    """
    n = cast(int, spec.limit)  # a spec of this suite has one
    task, source = (turned(features(model, sample(split, n))) for split in (data.test, against))
    block = max(1, min(BLOCK, n // 8, task.shape[1]))
    found = blockwise(task, source, block)
    rng = np.random.default_rng(seed_for("bootstrap", spec.seed))
    resampled = [
        blockwise(task[rng.integers(0, n, n)], source[rng.integers(0, n, n)], block)
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    row: Row = {
        "frechet": found,
        "frechet_infinity": frechet_infinity(task, source, block, spec.seed),
        "low": float(2 * found - high),
        "high": float(2 * found - low),
    }
    return row | {"n": n, "block": block}, {}


def features(model: ResNet, split: Any) -> Tensor:
    """The features [N, D] of a split's images, in double precision, on the CPU."""
    found = training.outputs(model, split, model.features)[0].double()
    if not found.isfinite().all():
        raise training.NotFinite("features: not all are finite")
    return found


def turned(x: Tensor) -> Tensor:
    """Features [N, D] in D random orthogonal directions, the same ones for all features of D: every
    block of them has its share of channels that go together, so which they are hardly matters."""
    d = x.shape[1]
    directions = np.random.default_rng(seed_for("directions")).standard_normal((d, d))
    return x @ torch.linalg.qr(torch.from_numpy(directions))[0].to(x)


def blockwise(a: Tensor, b: Tensor, block: int) -> float:
    """The sum of `frechet` over blocks of so many columns of features [N, D] and [M, D]: the
    distance if the blocks did not covary, and at most that of all columns."""
    return sum(frechet(*pair) for pair in zip(a.split(block, 1), b.split(block, 1), strict=True))


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance (squared) between normal distributions fitted to features [N, D] and [M, D].

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), A and B the covariances (divided by N - 1):
    the FID of Heusel et al. (2017) where the features are those of Inception. The root is taken of
    A^(1/2) B A^(1/2), which is symmetric: with fewer images than features A B has no stable root.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (x.T.cov().reshape(x.shape[1], x.shape[1]) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean + cov_a.trace() + cov_b.trace() - 2 * cross)


def frechet_infinity(a: Tensor, b: Tensor, block: int = BLOCK, seed: int = 0) -> float:
    """The distance (`blockwise`) for endless images: the intercept of a line through distances of
    parts, drawn anew without replacement in 15 sizes from a half of the images to all, against
    1 / size (Chong and Forsyth, 2020)."""
    n = min(len(a), len(b))
    sizes = np.unique(np.linspace(n / 2, n, SIZES).round().astype(int))
    rng = np.random.default_rng(seed_for("parts", seed))
    found = [
        blockwise(a[rng.permutation(len(a))[:size]], b[rng.permutation(len(b))[:size]], block)
        for size in sizes
    ]
    return float(np.polyfit(1 / sizes, found, 1)[1])


def rank_correlation(
    gap: Sequence[float], advantage: Sequence[float]
) -> tuple[float, float, float, float]:
    """Spearman correlation of gap and advantage over tasks: (rho, low, high, p).

    p is of a permutation test, two-sided, exact up to 8 tasks. The interval is made for few tasks,
    where resampling fails (a resample of 4 in line is in line): it holds the rank correlations of
    normal pairs of which samples of this size are not more extreme, on either side, with a
    probability below (1 - LEVEL) / 2. All are nan for fewer than 3 tasks, and where one side is
    constant or not finite.
    """
    from scipy import stats

    x, y = np.asarray(gap, dtype=float), np.asarray(advantage, dtype=float)
    n = len(x)
    if n < 3 or not np.ptp(x) > 0 or not np.ptp(y) > 0:
        return (math.nan,) * 4
    first, ranks = stats.rankdata(x), stats.rankdata(y)
    rho = float(np.corrcoef(first, ranks)[0, 1])
    test = stats.permutation_test(
        (ranks,),
        lambda r, axis=-1: ((first - (n + 1) / 2) * r).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=9_999 if n > 8 else math.inf,
        rng=np.random.default_rng(seed_for("permutations", 0)),
    )
    return rho, _lowest(rho, n), -_lowest(-rho, n), float(test.pvalue)


def _lowest(rho: float, n: int) -> float:
    """The lowest rank correlation of normal pairs of which n are often enough as high as rho."""
    rng = np.random.default_rng(seed_for("pairs", 0))
    first, other = rng.standard_normal((2, 4_000, n))
    ranks = first.argsort(1).argsort(1) - (n - 1) / 2

    def as_high(r: float) -> bool:
        second = (r * first + math.sqrt(1 - r * r) * other).argsort(1).argsort(1)
        found = (ranks * second).sum(1) / (n * (n * n - 1) / 12)
        return (found >= rho - 1e-9).mean() >= (1 - LEVEL) / 2

    low, high = -1.0, 1.0
    if as_high(low):
        return low
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if as_high(middle) else (middle, high)
    return 6 / math.pi * math.asin(high / 2)  # Spearman's, of Pearson's for normal pairs
