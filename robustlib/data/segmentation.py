"""Sets for dense prediction: images and masks of one size, by name, as tensors.

A pack of such a set has x_train, x_test (and, if it has its own, x_val) uint8 [N, H, W, C], C 1 or
3; masks m_* uint8 [N, H, W]; class_names, text [K], of which the last may say `(ignore=K-1)`.
Pixels of that label, and those of label 255, have no class.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from robustlib.data import packs
from robustlib.data.packs import MAX_CLASSES, MAX_OVERLAP, SPLITS, _arrays, _error, _text, distinct
from robustlib.data.scenes import IGNORE, SCENES, Arrays, glyphs_seg, voc2012
from robustlib.data.sources import build_once, data_root
from robustlib.data.splits import RESIZE_CHUNK, VAL_CAP, VAL_FRACTION, MaskSplit, seed_for, take
from robustlib.files import whole
from robustlib.specs import integer, one_of, shown

VOC_SIZE = 480  # px: the crops that torchvision's own segmentation networks are trained on


@dataclass(frozen=True)
class Segmentation:
    """A set for dense prediction: three disjoint splits and the names of the classes, by label.

    Pixels whose label is `ignore` have no class: nothing is trained or measured on them.
    """

    name: str
    train: MaskSplit
    val: MaskSplit
    test: MaskSplit
    class_names: tuple[str, ...]
    ignore: int = IGNORE

    @property
    def n_classes(self) -> int:
        return len(self.class_names)


def load_segmentation(
    name: str,
    size: int | None = None,
    n_train: int | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> Segmentation:
    """The set `name` for dense prediction: a pack in the data root (see `sources.data_root`), the
    embedded `glyphs_seg`, or `voc2012_seg`, which is downloaded and becomes a pack.

    size: the shorter side is scaled to so many px (masks without interpolation), VOC's images are
    cut to a square of it; None: as stored, 480 for VOC. val is the set's own, or a tenth of its
    training images, the same for every seed. With `n_train`, train is a draw of that many images
    by `seed`, a smaller one part of every larger, and val a draw of max(n_train // 4, n_classes)
    (or all there are). test is always whole.

    ValueError: an unknown name, a bad pack, or n_train beyond what there is. FileNotFoundError: a
    set that is not here and cannot be fetched.
    """
    size = None if size is None else integer("size", size, 8, 4096)
    n_train = None if n_train is None else integer("n_train", n_train, 1)
    seed = integer("seed", seed, 0, 2**63 - 1)
    if not isinstance(name, str):
        raise ValueError(f"dataset={shown(name)}: must be text")
    folder = data_root(root)
    here = {p.stem for p in folder.glob("*.npz") if p.name[0] != "."}
    if name not in here:
        one_of("dataset", name, sorted({*SCENES, *(n for n in here if n[-4:] == "_seg")}))
    if name == "glyphs_seg" and name not in here:
        data = _embedded(name)
    else:
        path = folder / f"{name}.npz"
        if name not in here:
            path = folder / f"{name}@{size or VOC_SIZE}.npz"
            build_once(path, lambda: write(path, *voc2012(folder, size or VOC_SIZE)))
        stat = path.stat()
        data = _pack(name, path, stat.st_mtime_ns, stat.st_size)
    if n_train is not None:
        data = _few(data, n_train, seed)
    parts = (_scaled(split, size) for split in (data.train, data.val, data.test))
    return Segmentation(name, *parts, data.class_names)


def read(path: Path) -> tuple[Arrays, tuple[str, ...]]:
    """The arrays of a pack with masks, by key, and its class names, validated.

    Labels without a class are 255. ValueError, naming file, key and reason, as `packs.headers` and
    `validate` say.
    """
    path = Path(path)
    known = packs.headers(path)
    if "y_train" in known and "m_train" not in known:
        raise _error(path, "m_train", "missing: this pack has one label an image; `load` reads it")
    wanted = [f"{k}_{s}" for s in SPLITS for k in "xm" if s != "val" or f"{k}_{s}" in known]
    for key in [*wanted, "class_names"]:
        if key not in known:
            raise _error(path, key, f"missing; the file has {shown(sorted(known))}")
    shape, dtype = known["class_names"]
    if dtype.kind != "U" or len(shape) != 1 or not 2 <= shape[0] <= MAX_CLASSES:
        raise _error(path, "class_names", f"{dtype} {shape}, must be text [K], K 2 or more")
    arrays = _arrays(path, [*wanted, "class_names"])
    names = tuple(_text(path, "class_names", arrays.pop("class_names")))
    marked = [i for i, n in enumerate(names) if re.search(r"\(ignore=\d+\)$", n)]
    if marked:
        if marked != [len(names) - 1] or not names[-1].endswith(f"(ignore={marked[0]})"):
            raise _error(path, "class_names", f"{shown(names)}: only the last may say (ignore=K-1)")
        names = names[:-1]
        for s in SPLITS:
            mask = arrays.get(f"m_{s}")
            if mask is not None and mask.dtype == np.uint8:
                mask[mask == marked[0]] = IGNORE
    validate(path, arrays, names)
    return arrays, names


def write(path: Path, arrays: Arrays, names: tuple[str, ...]) -> None:
    """Write a pack, validated, in one piece: a reader sees the whole file or none."""
    validate(path, arrays, names)
    with whole(path) as file:
        np.savez_compressed(file, **arrays, class_names=np.array(names, dtype=np.str_))


def validate(path: Path, arrays: Arrays, names: tuple[str, ...]) -> None:
    """ValueError, naming file, key and reason, unless the arrays are what the module's head says,
    with 255 the only label that has no class. Splits must not overlap, as in `packs.validate`."""
    if len(names) < 2 or not distinct(names) or len(names) > IGNORE:
        why = f"{len(names)} names, must be 2 to {IGNORE}, all different"
        raise _error(path, "class_names", why)
    given = {key.partition("_")[2] for key in arrays} | {"train", "test"}
    seen: set[bytes] = set()
    for split in (s for s in SPLITS if s in given):
        for key in (f"x_{split}", f"m_{split}"):
            if key not in arrays:
                raise _error(path, key, "missing")
            if arrays[key].dtype != np.uint8:
                raise _error(path, key, f"{arrays[key].dtype}, must be uint8")
        x, mask = arrays[f"x_{split}"], arrays[f"m_{split}"]
        if x.ndim != 4 or x.shape[3] not in (1, 3) or 0 in x.shape:
            raise _error(path, f"x_{split}", f"shape {x.shape}, must be [N, H, W, C] with C 1 or 3")
        if x.shape[1:] != arrays["x_train"].shape[1:]:
            why = f"images {x.shape[1:]}, those of x_train are {arrays['x_train'].shape[1:]}"
            raise _error(path, f"x_{split}", why)
        if mask.shape != x.shape[:3]:
            why = f"shape {mask.shape}, must be {x.shape[:3]}, a label for each pixel of x_{split}"
            raise _error(path, f"m_{split}", why)
        labels = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=IGNORE + 1)[:IGNORE])
        if len(labels) == 0:
            raise _error(path, f"m_{split}", "no pixel has a class")
        if labels[-1] >= len(names):
            why = f"labels up to {labels[-1]}, must be 0 to {len(names) - 1} (class_names) or 255"
            raise _error(path, f"m_{split}", why)
        hashes = [hashlib.blake2b(np.ascontiguousarray(i), digest_size=16).digest() for i in x]
        copies = sum(h in seen for h in hashes)
        if copies > MAX_OVERLAP * len(hashes):
            why = f"{copies} of {len(hashes)} images are copies of images of another split"
            raise _error(path, f"x_{split}", f"{why}; at most {MAX_OVERLAP:.0%} may be")
        seen.update(hashes)


# Whole sets are kept for the process, as in `loading`.
@lru_cache(maxsize=4)
def _pack(name: str, path: Path, changed: int, size: int) -> Segmentation:
    return _dataset(name, *read(path))


@lru_cache(maxsize=1)
def _embedded(name: str) -> Segmentation:
    arrays, names = glyphs_seg()
    validate(Path(name), arrays, names)
    return _dataset(name, arrays, names)


def _dataset(name: str, arrays: Arrays, names: tuple[str, ...]) -> Segmentation:
    parts = {
        s: MaskSplit(torch.from_numpy(arrays[f"x_{s}"]), torch.from_numpy(arrays[f"m_{s}"]))
        for s in SPLITS
        if f"x_{s}" in arrays
    }
    if "val" not in parts:
        n = len(parts["train"])
        if n < 2:
            raise ValueError(f"{name}: 1 training image; 3 are needed, 1 of them for val")
        order = np.random.default_rng(seed_for("holdout")).permutation(n)
        cut = min(VAL_CAP, max(1, round(VAL_FRACTION * n)))
        parts["val"] = take(parts["train"], np.sort(order[:cut]))
        parts["train"] = take(parts["train"], np.sort(order[cut:]))
    return Segmentation(name, parts["train"], parts["val"], parts["test"], names)


def _few(data: Segmentation, n_train: int, seed: int) -> Segmentation:
    if n_train > len(data.train):
        raise ValueError(
            f"n_train={n_train}: {data.name} has {len(data.train)} training images available"
        )
    n_val = min(len(data.val), max(n_train // 4, data.n_classes))
    train, val = (
        take(
            split, np.sort(np.random.default_rng(seed_for("few", seed)).permutation(len(split))[:n])
        )
        for split, n in ((data.train, n_train), (data.val, n_val))
    )
    return Segmentation(data.name, train, val, data.test, data.class_names)


def _scaled(split: MaskSplit, size: int | None) -> MaskSplit:
    """The split with a shorter side of `size` px, its masks by the nearest pixel."""
    n, height, width, channels = split.x.shape
    if size is None or min(height, width) == size:
        return split
    shape = [round(side * size / min(height, width)) for side in (height, width)]
    x = torch.empty((n, *shape, channels), dtype=torch.uint8)
    for i in range(0, n, RESIZE_CHUNK):
        chunk = split.x[i : i + RESIZE_CHUNK].permute(0, 3, 1, 2).float()
        chunk = F.interpolate(chunk, shape, mode="bilinear", antialias=True)
        x[i : i + RESIZE_CHUNK] = chunk.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    # "nearest" alone takes the corner of each block of pixels, which shifts the masks.
    y = F.interpolate(split.y[:, None], shape, mode="nearest-exact")[:, 0]
    return MaskSplit(x, y)
