"""Randomized smoothing (Cohen et al., 2019): a radius within which no attack changes the answer."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.data import batches
from robustlib.data.splits import seed_for
from robustlib.metrics.sample import Measured, Row, Table, sample
from robustlib.specs import Evaluation

ABSTAIN = -1
RADII, ALPHA = 25, 0.001


def measure(model: nn.Module, data: Any, spec: Evaluation, **_: Any) -> Measured:
    """Certified accuracy of the smoothed network on the test images, as of `certified`.

    The row: n_images, abstained (count), smoothed_accuracy (right, at radius 0), mean_radius (0 for
    those that are not right: Zhai et al., 2020) and max_radius (the largest that the draws can
    certify). The table `radii`: `certified_accuracy` and `count` of images that are right with at
    least `radius`, for 25 radii from 0 to max_radius.
    """
    split = sample(data.test, spec.limit)
    found = certified(model, split, spec.sigma, n=spec.draws, seed=spec.seed)
    classes, radii = zip(*found, strict=True)
    right = np.array(classes) == split.y.numpy()
    held = np.where(right, radii, -1.0)
    largest = radius_of(spec.draws, spec.draws, spec.sigma, ALPHA)
    row: Row = {
        "n_images": len(split),
        "abstained": classes.count(ABSTAIN),
        "smoothed_accuracy": float(right.mean()),
        "mean_radius": float(held.clip(min=0).mean()),
        "max_radius": largest,
    }
    table: Table = []
    for radius in np.linspace(0, largest, RADII).tolist():
        # The last radius is met by images of which every draw agrees: rounding must not lose them.
        count = int((held >= radius * (1 - 1e-9)).sum())
        table.append({"radius": radius, "certified_accuracy": count / len(split), "count": count})
    return row, {"radii": table}


def certified(
    model: nn.Module,
    split: Any,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = ALPHA,
    seed: int = 0,
    batch_size: int = 500,
) -> list[tuple[int, float]]:
    """(class, radius) of each image of a split; (ABSTAIN, 0.0) where none can be certified.

    CERTIFY of Cohen et al. (2019): the class is guessed from n0 draws of Gaussian noise of standard
    deviation sigma (pixel units of [0, 1] images; images are not clipped), its probability bounded
    from below with n fresh ones. Each image's radius holds with probability 1 - alpha, in L2 and
    pixel units. The noise of an image follows from the seed, its place in the split and batch_size,
    the draws that are made at once.
    Raises NotFinite for outputs that are not finite.
    """
    with torch.random.fork_rng(), training.inference(model) as where:
        images = (image for x, _ in batches.ordered(split, device=where) for image in x)
        noisy = _noisy(images, sigma, (n0, n), batch_size, seed)
        passes = _regrouped(noisy, batches.of_pass(where))
        answers = torch.cat([_answers(model, x) for x in passes])
    found = []
    for guesses, drawn in (a.split([n0, n]) for a in answers.view(-1, n0 + n)):
        guess = int(torch.bincount(guesses).argmax())
        radius = radius_of(int((drawn == guess).sum()), n, sigma, alpha)
        found.append((guess, radius) if radius > 0 else (ABSTAIN, 0.0))
    return found


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


def _noisy(
    images: Iterator[Tensor], sigma: float, sizes: tuple[int, int], most: int, seed: int
) -> Iterator[Tensor]:
    """`sizes` noisy copies of each image [C, H, W], at most `most` at once; the noise of an image
    has a generator of its own."""
    for i, image in enumerate(images):
        draws = torch.Generator(image.device).manual_seed(seed_for("smoothing", seed, i))
        for n in (min(most, size - done) for size in sizes for done in range(0, size, most)):
            noise = torch.randn((n, *image.shape), generator=draws, device=image.device)
            yield image + sigma * noise


def _regrouped(parts: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows in the same order, `size` together; the last are fewer. A pass of the network
    has a price of its own, which few draws share."""
    rows: list[Tensor] = []
    for part in parts:
        rows.append(part)
        if sum(map(len, rows)) >= size:
            *full, rest = torch.cat(rows).split(size)
            yield from full
            rows = [rest]
    yield torch.cat(rows)


def _answers(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each image, on the CPU."""
    out = model(x)
    if not out.isfinite().all():
        raise training.NotFinite("logits under noise: not all are finite")
    return out.argmax(1).cpu()
