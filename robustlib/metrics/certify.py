"""Randomized smoothing (Cohen et al., 2019): a radius within which no attack changes the answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.data import batches
from robustlib.data.splits import seed_for
from robustlib.metrics.sample import sample
from robustlib.specs import integer, number

ABSTAIN = -1
RADII = 25


def certify(
    model: nn.Module,
    split: Any,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 500,
) -> tuple[dict[str, float | int], list[dict[str, float | int]]]:
    """Certified accuracy of the smoothed network on a split: (row, table).

    CERTIFY of Cohen et al. (2019): the class is guessed from n0 draws of Gaussian noise of standard
    deviation sigma (pixel units of [0, 1] images; images are not clipped), its probability bounded
    from below with n fresh ones. Each image's radius holds with probability 1 - alpha, in L2 and
    pixel units. The noise of an image follows from the seed, its place in the split and batch_size.

    The row: n_images, abstained (count), smoothed_accuracy (right and not abstained: certified at
    radius 0), mean_radius (of the right ones, 0 for the others: Zhai et al., 2020) and max_radius
    (the largest that n draws can certify). The table: `certified_accuracy` and `count` of images
    that are right with at least `radius`, for 25 radii from 0 to max_radius.

    Raises ValueError for a sigma, n0, n, alpha or limit that is none, for an n with which nothing
    can be certified at alpha, and NotFinite for outputs that
    are not finite.
    """
    split = sample(split, limit)
    classes, radii, labels = [], [], []
    draws = certified(model, split, sigma, n0, n, alpha, seed, batch_size)
    for (found, radius), y in zip(draws, split.y.tolist(), strict=True):
        classes.append(found)
        radii.append(radius)
        labels.append(y)
    right = np.array(classes) == np.array(labels)
    held = np.where(right, radii, -1.0)
    largest = radius_of(n, n, sigma, alpha)
    row = {
        "n_images": len(split),
        "abstained": classes.count(ABSTAIN),
        "smoothed_accuracy": float(right.mean()),
        "mean_radius": float(held.clip(min=0).mean()),
        "max_radius": largest,
    }
    table = []
    for radius in np.linspace(0, largest, RADII).tolist():
        # The last radius is met by images of which every draw agrees: rounding must not lose them.
        count = int((held >= radius * (1 - 1e-9)).sum())
        table.append({"radius": radius, "certified_accuracy": count / len(split), "count": count})
    return row, table


def certified(
    model: nn.Module,
    split: Any,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 500,
) -> list[tuple[int, float]]:
    """(class, radius) of each image of a split; (ABSTAIN, 0.0) where none can be certified."""
    sigma, alpha, sizes = _checked(sigma, alpha, n0=n0, n=n, batch_size=batch_size)
    if radius_of(n, n, sigma, alpha) == 0:
        least = math.floor(math.log(alpha) / math.log(0.5)) + 1
        raise ValueError(f"n={n}: alpha={alpha:g} needs {least} draws at least to certify anything")
    out = []
    with torch.random.fork_rng(), training.inference(model) as where:
        for x, generator in _images(split, where, seed):
            first, second = (
                _counts(model, x, sigma, sizes[k], sizes["batch_size"], generator)
                for k in ("n0", "n")
            )
            guess = int(first.argmax())
            radius = radius_of(int(second[guess]), sizes["n"], sigma, alpha)
            out.append((guess, radius) if radius > 0 else (ABSTAIN, 0.0))
    return out


def predict(
    model: nn.Module,
    split: Any,
    sigma: float,
    n: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 500,
) -> list[int]:
    """The smoothed network's class of each image, or ABSTAIN: PREDICT of Cohen et al. (2019).

    A class that is returned is the likeliest under noise with probability 1 - alpha: a two-sided
    binomial test of the two that were met most often. Raises ValueError as `certify`.
    """
    from scipy.stats import binomtest

    sigma, alpha, sizes = _checked(sigma, alpha, n=n, batch_size=batch_size)
    out = []
    with torch.random.fork_rng(), training.inference(model) as where:
        for x, generator in _images(split, where, seed):
            met = _counts(model, x, sigma, sizes["n"], sizes["batch_size"], generator)
            top, classes = met.topk(2)
            p = binomtest(int(top[0]), int(top.sum()), 0.5).pvalue
            out.append(int(classes[0]) if p <= alpha else ABSTAIN)
    return out


def lower_bound(k: int, n: int, alpha: float) -> float:
    """Exact one-sided Clopper-Pearson lower bound, at level 1 - alpha, of a probability that gave k
    of n."""
    from scipy.stats import beta

    return float(beta.ppf(alpha, k, n - k + 1)) if k else 0.0


def radius_of(k: int, n: int, sigma: float, alpha: float) -> float:
    """sigma * Phi^-1(lower bound): the radius of a class met k of n times; 0 if none is certain."""
    from scipy.stats import norm

    bound = lower_bound(k, n, alpha)
    return sigma * float(norm.ppf(bound)) if bound > 0.5 else 0.0


def _checked(sigma: float, alpha: float, **sizes: int) -> tuple[float, float, dict[str, int]]:
    sigma, alpha = number("sigma", sigma, 0, 10), number("alpha", alpha, 0, 1, open_high=True)
    for name, value in {"sigma": sigma, "alpha": alpha}.items():
        if value == 0:
            raise ValueError(f"{name}=0.0: must be above 0")
    return sigma, alpha, {k: integer(k, v, 1) for k, v in sizes.items()}


def _images(split: Any, where: torch.device, seed: int):
    """Each image [1, 3, H, W] with the generator of its noise."""
    integer("seed", seed, 0)
    i = 0
    for x, _ in batches.ordered(split, device=where):
        for image in x:
            generator = torch.Generator(where).manual_seed(seed_for("smoothing", seed, i))
            yield image[None], generator
            i += 1


def _counts(
    model: nn.Module, x: Tensor, sigma: float, n: int, batch_size: int, generator: torch.Generator
) -> Tensor:
    """How often each class [K] is met in n draws of noise on one image [1, C, H, W]."""
    total = torch.zeros(())
    for start in range(0, n, batch_size):
        shape = (min(batch_size, n - start), *x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=x.device)
        out = model(x + sigma * noise)
        if not out.isfinite().all():
            raise training.NotFinite("logits under noise: not all are finite")
        total = total + torch.bincount(out.argmax(1), minlength=out.shape[1]).cpu()
    return total
