"""Images from outside: opened in one way, gathered into arrays, found in folders."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from robustlib import progress
from robustlib.data.packs import MAX_BYTES
from robustlib.data.splits import seed_for
from robustlib.specs import printable, reason

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
BACKGROUND = "white"
"""What shows through transparent pixels: the paper that most cut-outs and drawings are made for."""
# What systems leave in folders, beside all that is hidden; in lower case.
FOREIGN = {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
FOREIGN |= {"$recycle.bin", "system volume information", "lost+found"}
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys(("val", "valid", "validation"), "val")
_RAW_BITS = {"L;2": 2, "L;4": 4}


def read_image(file: str | Path | BinaryIO, name: str = "", quick: bool = False) -> Image:
    """The image in a file, as every set reads it: "L" or "RGB", 8 bits a channel, upright (EXIF),
    opaque (on BACKGROUND).

    Of 16 bits the upper 8 are kept; 32 bits and floats have no known range and are refused. Of
    several frames the first is read. Colour profiles are not applied. quick: JPEGs may come at an
    eighth of their size, but are read to the end. ValueError names the file, or else `name`.
    """
    with _open(file, name) as image:
        raw = image.tile[0][3] if image.format == "PNG" and image.tile else ""
        if quick:
            image.draft(None, (1, 1))
        return _opaque(_upright(image), raw)


def image_size(file: str | Path) -> tuple[int, int]:
    """Width and height of the image in a file, by its header. ValueError names the file."""
    with _open(file) as image:
        return image.size


def read_labels(file: str | Path) -> Image:
    """A mask, upright: "P" or "L", a pixel's label its index. ValueError names the file."""
    with _open(file) as image:
        if image.mode not in ("P", "L"):
            raise OSError(f"{image.mode} pixels; a mask has a palette, or is grey")
        return _upright(image)


@contextmanager
def _open(file: str | Path | BinaryIO, name: str = "") -> Iterator[ImageFile]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except Exception as e:  # bytes from outside can raise anything
        what = printable(name or str(file))
        raise ValueError(f"{what}: not a readable image ({reason(e)})") from e


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return image


def _opaque(image: Image, raw: Any) -> Image:
    """raw: how a PNG stores its pixels, in Pillow's words."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        pixels = np.asarray(image)
        upper = (pixels >> 8).astype(np.uint8)  # as Pillow does with 16-bit colour
        image = Image.fromarray(upper)
        if clear is not None:
            image.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    elif image.mode in ("I", "F"):
        raise OSError(f"{image.mode}: 32 bits a pixel, of no known range; 8 and 16 are read")
    elif clear is not None and raw == "RGB;16B":
        raise OSError("16-bit colour with a transparent colour; an alpha channel is read")
    elif clear is not None and raw in _RAW_BITS and clear < 2 ** _RAW_BITS[raw]:
        # Pillow scales these pixels to 8 bits, but not the grey that is transparent.
        image.info["transparency"] = clear * 255 // (2 ** _RAW_BITS[raw] - 1)
    grey = image.mode in ("1", "L", "LA") or raw == "LA;16B"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    if not grey:
        return image.convert("RGB")  # a palette cannot be interpolated
    return image.getchannel("R") if image.mode == "RGBA" else image.convert("L")


def stack(
    images: Iterable[tuple[Image, Any]],
    n: int,
    size: int,
    name: str,
    border: int = 0,
    masks: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`n` (PIL image, label) pairs as x uint8 [n, size, size, C] and y int64 [n], rows shuffled.

    The shorter side is scaled to `size` and the middle cut out, after `border` black px were added
    on every side. C is 1 if all images are grey. Shows a progress bar. masks: labels are PIL
    images, cut likewise, by the nearest pixel: y uint8 [n, size, size]; C is 3, rows as they come.
    """
    from PIL import Image, ImageOps

    if n * size * size * (4 if masks else 3) > MAX_BYTES:
        raise ValueError(f"{name}: {n} images of {size} px are over 16 GiB; choose a smaller size")
    x = np.empty((n, size, size, 3), dtype=np.uint8)
    y = np.empty((n, size, size), dtype=np.uint8) if masks else np.empty(n, dtype=np.int64)
    grey, side = not masks, (size, size)
    pairs = progress.bar(images, total=n, desc=name, unit="image", mininterval=0.5)
    for i, (image, label) in enumerate(pairs):
        grey = grey and image.mode in ("1", "L")
        framed = ImageOps.expand(image, border) if border else image
        x[i] = np.asarray(ImageOps.fit(framed.convert("RGB"), side, Image.Resampling.BILINEAR))
        y[i] = np.asarray(ImageOps.fit(label, side, Image.Resampling.NEAREST)) if masks else label
    if masks:
        return x, y
    # Rows of a pack are shuffled: its first N images are a fair draw.
    order = np.random.default_rng(seed_for("shuffle")).permutation(n)
    return np.ascontiguousarray(x[order, ..., :1] if grey else x[order]), y[order]


def opened(files: Iterable[tuple[Any, Any]], masks: bool = False) -> Iterator[tuple[Image, Any]]:
    """(path, label) -> (image, label); of `masks`, (path, path of the mask) -> (image, mask)."""
    for file, label in files:
        image = read_image(file)
        own: Any = read_labels(label) if masks else int(label)
        if masks and image.size != own.size:
            raise ValueError(f"{label}: {own.size} px, its image has {image.size}")
        yield image, own


def class_files(folder: Path, *needed: str, more: bool = False) -> dict[str, dict[str, list[Path]]]:
    """Split -> class name -> its image files, both sorted, of folder/<split>/<class>/<files>.

    Splits are called as in SPLIT_NAMES. more: others than those needed are read too, and as "all"
    the classes of a folder that is not divided. Names are in composed Unicode (NFC). What is hidden
    or a system's own is passed over; a warning says on one line what else is not read.

    ValueError: no such folder, a split that is missing or there twice, fewer than two class
    folders, one without an image, a name that is no Unicode, or two folders of one name.
    """
    found = _split_folders(folder)
    if more and not found:
        used = {"all": folder}
    elif missing := [split for split in needed if split not in found]:
        has = ", ".join(p.name for p in found.values()) or "neither"
        raise ValueError(
            f"{folder}: no {' and '.join(missing)} folder; {' and '.join(needed)} are needed, "
            f"there is {has}"
        )
    else:
        used = {split: found[split] for split in (*needed, *(found if more else ()))}
    skipped: Counter[str] = Counter()
    out = {split: _classes(path, skipped) for split, path in used.items()}
    parts = [_counted(skipped)] if skipped else []
    if found:
        parts += [f"folder {p.name}" for p in _listing(folder)[0] if p not in used.values()]
    if parts:
        warnings.warn(printable(f"{folder}: not read: {', '.join(parts)}"), stacklevel=3)
    return out


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder; empty if the folder holds the classes of a set that is not divided. A
    class may itself be called "train": a folder of a split holds folders."""
    children = _listing(folder)[0]
    named = [p for p in children if p.name.lower() in SPLIT_NAMES]
    holding = (folders and not images for folders, images, _ in map(_listing, named))
    if len(named) < len(children) and not any(holding):
        return {}
    found: dict[str, Path] = {}
    for child in named:
        if found.setdefault(split := SPLIT_NAMES[child.name.lower()], child) != child:
            raise ValueError(f"{folder}: {found[split].name} and {child.name} are both {split}")
    return found


def _classes(folder: Path, skipped: Counter[str]) -> dict[str, list[Path]]:
    """Class name -> its image files; counts what is not read, by its kind."""
    found: dict[str, list[Path]] = {}
    children, loose, _ = _listing(folder)
    if loose:
        skipped["images outside of class folders"] += len(loose)
    for child in children:
        name = unicodedata.normalize("NFC", child.name)
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise ValueError(f"{printable(str(child))}: the name is no Unicode (UTF-8); rename it")
        if name in found:
            why = "is there twice, in composed and in decomposed Unicode; keep one folder"
            raise ValueError(f"{folder}: class {name!r} {why}")
        folders, found[name], others = _listing(child)
        kinds = Counter(p.suffix.lower() or "without suffix" for p in others)
        if folders:
            kinds["folders in class folders"] = len(folders)
        if not found[name]:
            has = f"; there is {_counted(kinds)}" if kinds else ""
            raise ValueError(f"{child}: no images in it ({', '.join(SUFFIXES)}{has})")
        skipped.update(kinds)
    if len(found) < 2:
        raise ValueError(f"{folder}: {len(found)} folders in it; one per class, 2 or more, needed")
    return dict(sorted(found.items()))


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{printable(kind)} ({n:,})" for kind, n in sorted(kinds.items()))


def _listing(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """A folder's folders, images and other files, sorted, without what is hidden or in FOREIGN."""
    if not os.path.isdir(folder):  # noqa: PTH112 - Path's own raises for a name too long
        raise ValueError(f"{folder}: no such folder")
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if e.name[0] != "." and e.name.lower() not in FOREIGN]
    except OSError as e:
        raise ValueError(f"{folder}: cannot be listed ({e.strerror})") from e
    kept.sort(key=lambda e: e.name)
    folders = [Path(e.path) for e in kept if e.is_dir()]
    files = [Path(e.path) for e in kept if not e.is_dir()]
    images = [p for p in files if p.suffix.lower() in SUFFIXES]
    return folders, images, [p for p in files if p.suffix.lower() not in SUFFIXES]
