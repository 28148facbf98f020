"""What a data set is in memory, and how parts of it are drawn: by class and by seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

VAL_FRACTION, VAL_CAP = 0.1, 5_000
LEAST_FOR_VAL = 6
"""Images from which `holdout` cuts one, if a class has two of them; from fewer it cuts none."""
RESIZE_CHUNK = 512


def seed_for(*parts: object) -> int:
    """A 63-bit seed from the parts: the same in every process, machine and release.

    Numpy and torch scalars count as the Python number they hold.
    """
    plain = tuple(p.item() if hasattr(p, "item") else p for p in parts)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Split:
    """Images in memory: x uint8 [N, H, W, C], C 1 or 3; y int64 [N]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class FileSplit:
    """Images too many for memory: N file paths, y int64 [N]; decoded to `size` px when read."""

    paths: tuple[str, ...]
    y: Tensor
    size: int
    detail: int | None = None
    """Side that the images are reduced to before they get that size; None: they are not."""

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class MaskSplit:
    """Images in memory, each pixel with a label: x uint8 [N, H, W, C], C 1 or 3; y [N, H, W]
    uint8."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Dataset:
    """A classification set: three disjoint splits and the names of the classes, by label."""

    name: str
    train: Split | FileSplit
    val: Split | FileSplit
    test: Split | FileSplit
    class_names: tuple[str, ...]
    native: int
    """Side, in pixels, of the images as they are stored, before they were scaled: their detail."""

    @property
    def n_classes(self) -> int:
        return len(self.class_names)


def take(split: Split | FileSplit | MaskSplit, rows: np.ndarray) -> Split | FileSplit | MaskSplit:
    """The split's images at `rows` (integers), in that order."""
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    if isinstance(split, FileSplit):
        return replace(split, paths=tuple(split.paths[i] for i in rows), y=split.y[index])
    return type(split)(split.x[index], split.y[index])


def holdout(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows for (train, val): val is a class-stratified tenth of y, at most 5,000, always the same.

    The seed is fixed so that every run of every seed is selected on the same images. A class keeps
    at least one image in train.
    """
    counts = np.bincount(y)
    share = counts * (min(VAL_CAP, round(VAL_FRACTION * len(y))) / len(y))
    rng = np.random.default_rng(seed_for("holdout"))
    take_n = np.floor(share).astype(int)
    # Largest remainder: the classes that were rounded down most get the images that are left over;
    # the tiny random part breaks ties, so that equal classes are not served in order of their name.
    rest = share - take_n + rng.random(len(counts)) * 1e-9
    take_n[np.argsort(-rest)[: round(share.sum()) - take_n.sum()]] += 1
    take_n = np.minimum(take_n, np.maximum(counts - 1, 0))
    in_val = rank_in_class(y, rng) < take_n[y]
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)


def balanced(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """`n` sorted rows of y, as even over the classes as can be, drawn by `seed`.

    Counts differ by at most one while every class has images left; then the larger classes fill up.
    With fewer rows than classes, n different classes get one each. For one seed a smaller draw is
    part of every larger one, so label budgets are comparable. ValueError if y has fewer than n.
    """
    if n > len(y):
        raise ValueError(f"n_train={n}: only {len(y)} images are available")
    rng = np.random.default_rng(seed_for("balanced", seed))
    rank = rank_in_class(y, rng)
    turn = rng.permutation(int(y.max()) + 1 if len(y) else 0)
    return np.sort(np.lexsort((turn[y], rank))[:n])


def rank_in_class(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each image its place (0, 1, ...) in a random order of the images of its class."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    counts = np.bincount(y)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(y), dtype=np.int64)
    rank[order] = np.arange(len(y)) - starts
    return rank


def resized(split: Split, size: int) -> Split:
    """The split at size x size px (bilinear, antialiased); itself if it has that size already."""
    n, height, width, channels = split.x.shape
    if (height, width) == (size, size):
        return split
    x = torch.empty((n, size, size, channels), dtype=torch.uint8)
    for i in range(0, n, RESIZE_CHUNK):  # in chunks: the floats of a whole set may not fit memory
        chunk = split.x[i : i + RESIZE_CHUNK].permute(0, 3, 1, 2).float()
        chunk = F.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        x[i : i + RESIZE_CHUNK] = chunk.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return Split(x, split.y)
