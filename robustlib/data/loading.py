"""`load` and `load_segmentation`: a data set by name, as tensors."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch

from robustlib.data import packs, sources
from robustlib.data.embedded import EMBEDDED
from robustlib.data.files import imagenet
from robustlib.data.packs import IGNORE, SPLITS
from robustlib.data.splits import (
    Dataset,
    FileSplit,
    Split,
    balanced,
    greyed,
    holdout,
    resized,
    take,
)
from robustlib.specs import integer

Stored = tuple[str, Path | None, bool, Any]
"""Of a set: its name, the path of its pack or folder, whether it is of masks; and the size that is
wanted, or of a pack, which has its own, the time and size of its file."""
VOC_SIZE = 480  # px: the crops that torchvision's own segmentation networks are trained on


def load(
    name: str,
    size: int = 32,
    n_train: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
    detail: int | None = None,
    grey: bool = False,
) -> Dataset:
    """The data set `name` at size x size px, from the data root (see `sources.data_root`).

    val is the pack's own, else what `holdout` cuts from train. With `n_train`, train is a
    class-balanced draw of that many images by `seed`, and val one of max(n_train // 4, n_classes)
    (or all there are): choosing on val smuggles no labels into a small budget. test is always
    whole. Images are scaled; with `detail`, those of more are reduced to that side first
    (antialiased), so that they show less; with `grey`, their colour is taken. Splits are of
    `Split`, ImageNet's of `FileSplit`. They are kept for the next call: clone what you change.

    ValueError: an unknown name (the near ones are named), a bad pack, or n_train beyond what
    there is. FileNotFoundError: a set that is not here and cannot be fetched.
    """
    size = integer("size", size, 8, 4096)
    return _sized(*_asked(name, size, n_train, seed, root, masks=False), size, detail, grey)


# A stage asks for its set twice or thrice, and tickets of one network that are transferred one
# after the other for the same: to scale it takes as long as to read its features.
@lru_cache(maxsize=2)
def _sized(
    stored: Stored, n_train: int | None, seed: int, size: int, detail: int | None, grey: bool
) -> Dataset:
    data = _drawn(stored, n_train, seed)
    if isinstance(data.train, FileSplit):
        return _each(data, lambda split: replace(split, detail=detail, grey=grey))
    if detail and detail < data.native:
        data = _each(data, lambda split: resized(split, detail, detail))
    if grey:
        data = _each(data, greyed)
    return _each(data, lambda split: resized(split, size, size))


def load_segmentation(
    name: str,
    size: int | None = None,
    n_train: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> Dataset:
    """The set `name` for dense prediction: a pack, `glyphs_seg` or `voc2012_seg`.

    size: the shorter side is scaled to so many px (masks without interpolation), VOC's images are
    cut to a square of it; None: as stored, 480 for VOC. Splits are drawn as by `load`, but of
    images, not of classes. Labels are masks, `ignore` is 255. Raises as `load`.
    """
    size = None if size is None else integer("size", size, 8, 4096)
    data = _drawn(*_asked(name, size or VOC_SIZE, n_train, seed, root, masks=True))
    if size is None:
        return data
    shape = cast(Split, data.train).x.shape[1:3]
    height, width = (round(side * size / min(shape)) for side in shape)
    return _each(data, lambda split: resized(split, height, width))


def _asked(
    name: str, size: int, n_train: int | None, seed: int, root: str | Path | None, masks: bool
) -> tuple[Stored, int | None, int]:
    """What `_drawn` takes; the same where a seed draws nothing."""
    n_train = None if n_train is None else integer("n_train", n_train, 1)
    path, at = sources.find(name, size, root, masks), cast(Any, size)
    if path is not None and path.suffix == ".npz":
        at = path.stat().st_mtime_ns, path.stat().st_size
    return (name, path, masks, at), n_train, seed if n_train else 0


def _drawn(stored: Stored, n_train: int | None, seed: int) -> Dataset:
    """The set as it is stored, cut to a label budget of n_train training images, as `load` says."""
    data = _whole(*stored)
    if n_train is None:
        return data
    if n_train > (n := len(data.train)):
        raise ValueError(f"n_train={n_train}: {data.name} has {n} training images available")
    n_val = max(n_train // 4, data.n_classes)
    train = take(data.train, balanced(data.train.y.numpy(), n_train, seed))
    val = take(data.val, balanced(data.val.y.numpy(), n_val, seed))
    return replace(data, train=train, val=val)


def _each(data: Dataset, change: Callable[[Any], Split | FileSplit]) -> Dataset:
    train, val, test = (change(split) for split in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test)


# Whole sets are kept for the process, at the size they are stored in: a study asks for the same few
# sets again and again, at other seeds.
@lru_cache(maxsize=8)
def _whole(name: str, path: Path | None, masks: bool, at: Any) -> Dataset:
    if path is not None and path.suffix != ".npz":
        return imagenet(path, at)
    pack = packs.read(path, masks) if path else EMBEDDED[name](at)
    label = "m" if pack.masks else "y"
    own = {key: torch.from_numpy(a) for key, a in pack.arrays.items()}
    parts = {s: Split(own[f"x_{s}"], own[f"{label}_{s}"]) for s in SPLITS if f"x_{s}" in own}
    if "val" not in parts:
        train = parts["train"]
        if pack.masks and len(train) < 2:
            raise ValueError(f"{name}: 1 training image; 3 are needed, 1 of them for val")
        parts["train"], parts["val"] = (take(train, r) for r in holdout(train.y.numpy()))
    train, val, test = (parts[s] for s in SPLITS)
    native, ignore = max(train.x.shape[1:3]), IGNORE if pack.masks else -1
    return Dataset(name, train, val, test, pack.class_names, native, ignore)
