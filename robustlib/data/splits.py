"""What a data set is in memory, and how parts of it are drawn: by class and by seed."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VAL_FRACTION, VAL_CAP = 0.1, 5_000
LEAST_FOR_VAL = 6
"""Images from which `holdout` cuts one, if a class has two of them; from fewer it cuts none."""
RESIZE_CHUNK = 512  # images at a time: the floats of a whole set may not fit memory


def seed_for(*parts: object) -> int:
    """A 63-bit seed from the parts: the same in every process, machine and release. Numpy and torch
    scalars count as the Python number they hold."""
    plain = tuple(p.item() if hasattr(p, "item") else p for p in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Split:
    """Images in memory: x uint8 [N, H, W, C], C 1 or 3; y, a label for each image, int64 [N], or
    for each pixel, uint8 [N, H, W]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class FileSplit:
    """Images too many for memory: N file paths, y int64 [N]; decoded to `size` px when read, with
    `detail` reduced to that side before, with `grey` without colour."""

    paths: tuple[str, ...]
    y: Tensor
    size: int
    detail: int | None = None
    grey: bool = False

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, all of `Split` or all of `FileSplit`, and the names of the classes, by
    label."""

    name: str
    train: Split | FileSplit
    val: Split | FileSplit
    test: Split | FileSplit
    class_names: tuple[str, ...]
    native: int
    """Side, in pixels, of the images as they are stored, before they were scaled: their detail."""
    ignore: int = -1
    """Label of the pixels that have no class: nothing is trained or measured on them."""

    @property
    def n_classes(self) -> int:
        """How many classes there are, whether images of them are or not."""
        return len(self.class_names)


def take(split: Any, rows: np.ndarray) -> Any:
    """The images of a `Split` or `FileSplit` at `rows` (integers), in that order: one likewise."""
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    if isinstance(split, FileSplit):
        return replace(split, paths=tuple(split.paths[i] for i in rows), y=split.y[index])
    return Split(split.x[index], split.y[index])


def holdout(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows for (train, val): val is a class-stratified tenth of y, at most 5,000, the same for
    every seed. A class keeps at least one image in train. Images with masks [N, H, W] are of no
    class: val is a tenth of them all, at least one."""
    rng = np.random.default_rng(seed_for("holdout"))
    n_val = min(VAL_CAP, round(VAL_FRACTION * len(y)))
    if y.ndim > 1:
        order, n_val = rng.permutation(len(y)), max(1, n_val)
        return np.sort(order[n_val:]), np.sort(order[:n_val])
    counts = np.bincount(y)
    share = counts * (n_val / len(y))
    take_n = np.floor(share).astype(int)
    # Largest remainder: the classes that were rounded down most get the images that are left over;
    # the tiny random part breaks ties, so that equal classes are not served in order of their name.
    rest = share - take_n + rng.random(len(counts)) * 1e-9
    take_n[np.argsort(-rest)[: n_val - take_n.sum()]] += 1
    take_n = np.minimum(take_n, np.maximum(counts - 1, 0))
    in_val = rank_in_class(y, rng) < take_n[y]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def balanced(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` sorted rows of y, as even over the classes as can be, drawn by `seed`.

    Counts differ by at most one while every class has images left; then the larger classes fill up.
    With fewer rows than classes, n different classes get one each. For one seed a smaller draw is
    part of every larger one, so label budgets are comparable. Of masks [N, H, W], any n.
    """
    rng = np.random.default_rng(seed_for("balanced" if y.ndim == 1 else "few", seed))
    if y.ndim == 1:
        rank, turn = rank_in_class(y, rng), rng.permutation(np.max(y, initial=-1) + 1)
        order = np.lexsort((turn[y], rank))
    else:
        order = rng.permutation(len(y))
    return np.sort(order[:n])


def divide(
    x: np.ndarray, y: np.ndarray, fraction: float, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels as those of train and of test: `fraction` of every class is test, at least
    one image of each. Every class has two images or more."""
    rng = np.random.default_rng(seed_for("divide", seed))
    test = np.zeros(len(y), bool)
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        test[rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)]] = True
    return {"train": (x[~test], y[~test]), "test": (x[test], y[test])}


def rank_in_class(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image its place (0, 1, ...) in a random order of the images of its class."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(y), dtype=np.int64)
    rank[order] = np.arange(len(y)) - starts
    return rank


def greyed(split: Split) -> Split:
    """The split's images with their luminance (ITU-R 601-2) in every channel they have."""
    from torchvision.transforms.functional import rgb_to_grayscale  # slow to import

    if split.x.shape[3] == 1:
        return split
    x = torch.empty_like(split.x)
    for own, out in zip(split.x.split(RESIZE_CHUNK), x.split(RESIZE_CHUNK), strict=True):
        out.copy_(rgb_to_grayscale(own.permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1))
    return replace(split, x=x)


def resized(split: Split, height: int, width: int) -> Split:
    """The split at height x width px (bilinear, antialiased; masks by the nearest pixel); itself
    if it has that size already."""
    if split.x.shape[1:3] == (height, width):
        return split
    x = torch.empty((len(split), height, width, split.x.shape[3]), dtype=torch.uint8)
    for i in range(0, len(x), RESIZE_CHUNK):
        chunk = split.x[i : i + RESIZE_CHUNK].permute(0, 3, 1, 2).float()
        chunk = F.interpolate(chunk, (height, width), mode="bilinear", antialias=True)
        x[i : i + RESIZE_CHUNK] = chunk.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    if split.y.ndim == 1:
        return Split(x, split.y)
    # "nearest" alone takes the corner of each block of pixels, which shifts the masks.
    return Split(x, F.interpolate(split.y[:, None], (height, width), mode="nearest-exact")[:, 0])
