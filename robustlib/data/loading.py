"""`load`: a data set by name, as tensors."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from robustlib.data import packs, sources
from robustlib.data.embedded import EMBEDDED
from robustlib.data.files import imagenet
from robustlib.data.packs import Pack
from robustlib.data.splits import Dataset, FileSplit, Split, balanced, holdout, resized, take
from robustlib.specs import integer


def load(
    name: str,
    size: int = 32,
    n_train: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    detail: int | None = None,
) -> Dataset:
    """The data set `name` at size x size px, from the data root (see `sources.data_root`).

    val is the pack's own, or a class-stratified tenth of its training images (at most 5,000), the
    same for every seed; train is the rest. With `n_train`, train is a class-balanced draw of that
    many images by `seed`, and val a draw of max(n_train // 4, n_classes) (or all there are), so
    that choosing on val does not smuggle labels into a small budget. n_train may be below the
    number of classes: some classes then have no image. test is always whole. Images of another
    size are scaled. With `detail`, images of more are reduced to that side first (antialiased), so
    that they are as large and show less. Splits are of `Split`, ImageNet's of `FileSplit`.

    ValueError: an unknown name (the near ones are named), a bad pack, or n_train beyond what
    there is. FileNotFoundError: a set that is not here and cannot be fetched.
    """
    size = integer("size", size, 8, 4096)
    n_train = None if n_train is None else integer("n_train", n_train, 1)
    seed = integer("seed", seed, 0, 2**63 - 1)
    detail = None if detail is None else integer("detail", detail, 4, size)
    path = sources.find(name, size, root)
    if path is None:
        data = _embedded(name, size)
    elif path.suffix != ".npz":
        data = _folder(path, size)
    else:
        stat = path.stat()
        data = _pack(name, path, stat.st_mtime_ns, stat.st_size)
    if n_train is not None:
        data = few(data, n_train, seed)
    if isinstance(data.train, FileSplit):
        splits = {s: replace(getattr(data, s), detail=detail) for s in packs.SPLITS}
        return replace(data, **splits) if detail else data
    sides = [detail, size] if detail and detail < data.native else [size]
    parts = [data.train, data.val, data.test]
    for side in sides:
        parts = [resized(split, side) for split in parts]
    return Dataset(name, *parts, data.class_names, data.native)


def few(data: Dataset, n_train: int, seed: int) -> Dataset:
    """The set cut to a label budget of n_train training images, as `load` says."""
    if n_train > len(data.train):
        raise ValueError(
            f"n_train={n_train}: {data.name} has {len(data.train)} training images available"
        )
    n_val = min(len(data.val), max(n_train // 4, data.n_classes))
    train = take(data.train, balanced(data.train.y.numpy(), n_train, seed))
    val = take(data.val, balanced(data.val.y.numpy(), n_val, seed))
    return replace(data, train=train, val=val)


# Whole sets are kept for the process, at the size they are stored in: a study asks for the same few
# sets again and again, at other seeds. The time and size of the file are part of the key.
@lru_cache(maxsize=8)
def _pack(name: str, path: Path, changed: int, size: int) -> Dataset:
    return _dataset(name, packs.read(path))


@lru_cache(maxsize=8)
def _embedded(name: str, size: int) -> Dataset:
    return _dataset(name, EMBEDDED[name](size))


@lru_cache(maxsize=2)
def _folder(path: Path, size: int) -> Dataset:
    return imagenet(path, size)


def _dataset(name: str, pack: Pack) -> Dataset:
    parts = {
        s: Split(torch.from_numpy(pack.arrays[f"x_{s}"]), torch.from_numpy(pack.arrays[f"y_{s}"]))
        for s in packs.SPLITS
        if f"x_{s}" in pack.arrays
    }
    if "val" not in parts:
        train, val = holdout(parts["train"].y.numpy())
        parts["val"], parts["train"] = take(parts["train"], val), take(parts["train"], train)
    native = max(parts["train"].x.shape[1:3])
    return Dataset(name, parts["train"], parts["val"], parts["test"], pack.class_names, native)
