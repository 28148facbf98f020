"""Images from outside: scaled and cut to a square, gathered into arrays, split and shuffled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.data.packs import MAX_BYTES
from robustlib.data.splits import seed_for

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def stack(
    images: Iterable[tuple[Any, int]], n: int, size: int, name: str, border: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`n` (PIL image, label) pairs as x uint8 [n, size, size, C] and y int64 [n], rows shuffled.

    The shorter side is scaled to `size` and the middle cut out, after `border` black px were added
    on every side. C is 1 if all images are grey. Shows a progress bar.
    """
    from PIL import Image, ImageOps
    from tqdm.auto import tqdm

    if n * size * size * 3 > MAX_BYTES:
        raise ValueError(f"{name}: {n} images of {size} px are over 16 GiB; choose a smaller size")
    x = np.empty((n, size, size, 3), dtype=np.uint8)
    y = np.empty(n, dtype=np.int64)
    grey = True
    pairs = tqdm(images, total=n, desc=name, unit="image", mininterval=0.5)
    for i, (image, label) in enumerate(pairs):
        grey = grey and image.mode in ("1", "L")
        image = ImageOps.expand(image, border) if border else image
        image = image.convert("RGB")  # before scaling: a palette cannot be interpolated
        x[i] = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
        y[i] = label
    # Rows of a pack are shuffled: its first N images are a fair draw.
    order = np.random.default_rng(seed_for("shuffle")).permutation(n)
    return np.ascontiguousarray(x[order, ..., :1] if grey else x[order]), y[order]


def opened(paths: Iterable[tuple[Path, int]]) -> Iterable[tuple[Any, int]]:
    """(path, label) -> (PIL image, label), upright. ValueError names a file that is no image."""
    from PIL import Image, ImageOps

    for path, label in paths:
        try:
            with Image.open(path) as image:
                # Pillow clips what is above 255 when it converts these, to plain white.
                if image.mode[0] in "IF":
                    raise OSError(f"{image.mode} pixels; only 8 bits a channel are read")
                yield ImageOps.exif_transpose(image), label
        except (OSError, SyntaxError, Image.DecompressionBombError) as e:
            raise ValueError(f"{path}: not a readable image ({e})") from e


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted; hidden folders are left out.

    ValueError: no such folder, fewer than two class folders, or one without an image.
    """
    if not os.path.isdir(folder):  # Path's own raises for a name that is too long
        raise ValueError(f"{folder}: no such folder")
    found = {}
    for child in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
        found[child.name] = sorted(p for p in child.iterdir() if p.suffix.lower() in SUFFIXES)
        if not found[child.name]:
            raise ValueError(f"{child}: no images in it ({', '.join(SUFFIXES)})")
    if len(found) < 2:
        raise ValueError(f"{folder}: {len(found)} folders in it; one per class, 2 or more, needed")
    return found


def divide(y: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for (train, test): `fraction` of every class is test, at least one image of each.

    ValueError if a class has a single image.
    """
    rng = np.random.default_rng(seed_for("divide", seed))
    test: list[int] = []
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        if len(rows) < 2:
            raise ValueError(
                f"class {label} has 1 image, 2 are needed: one each for train and test"
            )
        test.extend(rows[: min(max(1, round(fraction * len(rows))), len(rows) - 1)])
    return np.setdiff1d(np.arange(len(y)), test), np.array(sorted(test))
