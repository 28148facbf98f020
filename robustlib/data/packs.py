"""Packs: a data set as one `.npz` without pickles, checked before it is believed.

Keys: x_train, x_test (and, if the set has its own, x_val) uint8 [N, S, S, C], C 1 or 3; y_* int64
[N]; class_names, text [K]; optionally `origin`, text, by whom the pack was built.

A pack for dense prediction has, in place of y_*, masks m_* uint8 [N, H, W] of images [N, H, W, C],
which need not be square. Pixels of label 255 have no class, nor have those of the last label where
its name ends in `(ignore=K-1)`.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from robustlib.files import whole
from robustlib.specs import plain, reason, shown

MAX_BYTES = 16 * 2**30  # of all arrays of a pack together; larger sets belong in a folder
MAX_OVERLAP = 0.02  # of the test images: a handful of exact copies is found in published sets
MAX_CLASSES = 1_000_000  # names of no length take no bytes, and could be any number
MAX_RATIO = 1_032  # to which deflate can compress; a header that claims more is a lie
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that numpy writes
SPLITS = ("train", "val", "test")
IGNORE = 255
"""The label, in a mask, of pixels that have no class."""

Header = tuple[tuple[int, ...], np.dtype]
Splits = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pack:
    """The arrays of a pack: `arrays` maps x_train, y_train, x_test, ... to numpy arrays."""

    arrays: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    origin: str = ""

    @classmethod
    def of(cls, splits: Splits, class_names: Iterable[str], origin: str) -> Pack:
        """The pack of images and labels, or masks, by split."""
        arrays: dict[str, np.ndarray] = {}
        for split, (x, y) in splits.items():
            arrays |= {f"x_{split}": x, f"{'y' if y.ndim == 1 else 'm'}_{split}": y}
        return cls(arrays, tuple(class_names), origin)

    @property
    def masks(self) -> bool:
        """Every pixel has a label: m_* in place of y_*."""
        return "m_train" in self.arrays


def headers(path: Path) -> dict[str, Header]:
    """Key -> (shape, dtype) of every array of a pack, without reading the arrays.

    ValueError, naming file, key and reason, if the file is not a zip of plain arrays, an array
    would be pickled objects, or the sizes announced do not fit the file or the memory allowed.
    """
    found: dict[str, Header] = {}
    total = 0
    try:
        with path.open("rb") as file:
            # zipfile finds an archive behind anything, numpy then reads that which is before it.
            if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
                raise ValueError("it does not begin as a zip file does")
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in found:
                    raise _error(path, key, "is there twice")
                if info.compress_type not in METHODS:
                    raise _error(path, key, "packed as numpy does not; stored or deflated is read")
                # Before numpy allocates what the directory of the archive claims.
                if info.file_size > MAX_RATIO * min(info.compress_size, size) + 1024:
                    raise _error(path, key, f"says {info.file_size} bytes, the file holds less")
                with archive.open(info) as member:
                    shape, dtype = _array_header(path, key, member)
                    start = member.tell()
                if dtype.hasobject:
                    raise _error(path, key, "holds Python objects; packs hold plain arrays only")
                # A header may announce far more than the file holds: numpy would allocate it first.
                if math.prod(shape) * dtype.itemsize != info.file_size - start:
                    raise _error(path, key, f"header says {shape} {dtype}, the data do not fit it")
                total += info.file_size
                found[key] = (shape, dtype)
    except Refused:
        raise
    except Exception as e:  # bytes from outside can raise anything
        raise ValueError(f"{path}: not a readable .npz, or truncated ({reason(e)})") from e
    if total > MAX_BYTES:
        raise ValueError(f"{path}: {total / 2**30:.1f} GiB of arrays, at most 16 GiB are read")
    return found


def read(path: Path, masks: bool = False) -> Pack:
    """The pack at `path`, of labels or of masks, validated; in masks, labels without a class are
    IGNORE. ValueError as `headers` and `validate` say, and for a pack of the other kind."""
    known = headers(path)
    label, other = ("m", "y") if masks else ("y", "m")
    if f"{other}_train" in known and f"{label}_train" not in known:
        has = "one label an image; `load` reads it" if masks else "masks, it is for segmentation"
        raise _error(path, f"{label}_train", f"missing: this pack has {has}")
    keys = [f"{k}_{s}" for s in SPLITS for k in ("x", label) if s != "val" or f"{k}_{s}" in known]
    for key in [*keys, "class_names"]:
        if key not in known:
            has = ", ".join(map(plain, sorted(known))) or "nothing"
            raise _error(path, key, f"missing; the file has {has}")
    names, arrays = class_names(path, known), _arrays(path, keys)
    if masks and (ignored := _ignored(path, names)):
        names = names[:-1]
        for key in keys:
            if key[0] == "m" and arrays[key].dtype == np.uint8:
                arrays[key][arrays[key] == ignored] = IGNORE
    pack = Pack(arrays, names, origin(path, known))
    validate(pack, path)
    return pack


def class_names(path: Path, known: dict[str, Header]) -> tuple[str, ...]:
    """The names in a pack, of which the last may be that of the pixels without a class."""
    return tuple(_text(path, known, "class_names", "text [K]"))


def origin(path: Path, known: dict[str, Header] | None = None) -> str:
    """By whom the pack was built: torchvision, archive, folder; empty for one from outside."""
    known = known or headers(path)
    return _text(path, known, "origin", "one text") if "origin" in known else ""


def write(path: Path, pack: Pack) -> None:
    """Write the pack, validated, in one piece: a reader sees the whole file or none."""
    validate(pack, path)
    text = {"class_names": pack.class_names, "origin": pack.origin}
    arrays: dict[str, Any] = pack.arrays | {k: np.array(v, dtype=np.str_) for k, v in text.items()}
    with whole(path) as file:
        np.savez_compressed(file, **arrays)


def validate(pack: Pack, path: Path) -> None:
    """ValueError, naming file, key and reason, unless the arrays are what the module's head says,
    in masks with IGNORE the only label that has no class.

    Splits must not overlap: at most 2 % of a split's images may be byte-identical to one of an
    earlier split. Not zero, because published sets do hold a few exact copies.
    """
    names, most = pack.class_names, IGNORE if pack.masks else MAX_CLASSES
    composed = {unicodedata.normalize("NFC", name) for name in names}
    if not 2 <= len(names) <= most or len(composed) < len(names):
        allowed = f"2 to {most}" if pack.masks else "2 or more"
        raise _error(path, "class_names", f"{len(names)} names, must be {allowed}, all different")
    given = {key.partition("_")[2] for key in pack.arrays} | {"train", "test"}
    seen: set[bytes] = set()
    for split in (s for s in SPLITS if s in given):
        _check_split(path, split, pack)
        images = np.ascontiguousarray(pack.arrays[f"x_{split}"])
        hashes = [hashlib.blake2b(image, digest_size=16).digest() for image in images]
        copies = [i for i, h in enumerate(hashes) if h in seen]
        if len(copies) > MAX_OVERLAP * len(hashes):
            why = f"{len(copies)} of {len(hashes)} images are copies of images of another split"
            if not pack.masks:
                of = np.unique(pack.arrays[f"y_{split}"][copies])[:5]
                why += f" (in {', '.join(plain(names[k]) for k in of)})"
            raise _error(path, f"x_{split}", f"{why}; at most {MAX_OVERLAP:.0%} may be")
        seen.update(hashes)


def _check_split(path: Path, split: str, pack: Pack) -> None:
    image, label = f"x_{split}", f"{'m' if pack.masks else 'y'}_{split}"
    for key, wanted in ((image, np.uint8), (label, np.uint8 if pack.masks else np.int64)):
        if key not in pack.arrays:
            raise _error(path, key, "missing")
        if pack.arrays[key].dtype != wanted:
            raise _error(path, key, f"{pack.arrays[key].dtype}, must be {np.dtype(wanted)}")
    x, y, like = pack.arrays[image], pack.arrays[label], pack.arrays["x_train"]
    each, sides = (x.shape[:3], "H, W") if pack.masks else (x.shape[:1], "S, S")
    formed = x.ndim == 4 and x.shape[3] in (1, 3) and 0 not in x.shape[0 if pack.masks else 1 :]
    if not formed or not (pack.masks or x.shape[1] == x.shape[2]):
        raise _error(path, image, f"shape {x.shape}, must be [N, {sides}, C] with C 1 or 3")
    if x.shape[1:] != like.shape[1:]:
        raise _error(path, image, f"images {x.shape[1:]}, those of x_train are {like.shape[1:]}")
    if y.shape != each:
        raise _error(path, label, f"shape {y.shape}, must be {each}, for {image} is {x.shape}")
    if len(x) == 0:
        raise _error(path, image, "empty")
    if pack.masks and not len(y := y[y != IGNORE]):
        raise _error(path, label, "no pixel has a class")
    if y.min() < 0 or y.max() >= len(pack.class_names):
        lowest, or_none = ("up", f" or {IGNORE}") if pack.masks else (y.min(), "")
        allowed = f"must be 0 to {len(pack.class_names) - 1} (class_names){or_none}"
        raise _error(path, label, f"labels {lowest} to {y.max()}, {allowed}")


def _ignored(path: Path, names: tuple[str, ...]) -> int:
    """The label that is of no class by its name; 0 if there is none."""
    marked = [k for k, name in enumerate(names) if re.search(r"\(ignore=\d+\)$", name)]
    last = len(names) - 1
    if marked and (marked != [last] or not names[-1].endswith(f"(ignore={last})")):
        raise _error(path, "class_names", f"{shown(names)}: only the last may say (ignore=K-1)")
    return last if marked else 0


def _arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in keys:
            try:
                arrays[key] = archive[key]
            except Exception as e:  # bytes from outside can raise anything
                raise _error(path, key, f"cannot be read, the file is damaged ({reason(e)})") from e
    return arrays


def _text(path: Path, known: dict[str, Header], key: str, form: str) -> Any:
    """The str ("one text"), or the list of them ("text [K]"), of an array of text."""
    shape, dtype = known[key]
    if dtype.kind != "U" or len(shape) != ("[K]" in form) or math.prod(shape) > MAX_CLASSES:
        raise _error(path, key, f"{dtype} {shape}, must be {form}")
    array = _arrays(path, [key])[key]
    code = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    codes = np.frombuffer(array.tobytes(), code)
    # Beyond Unicode: Python itself trips over such a str. Half a pair: it cannot be printed.
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise _error(path, key, "holds what is no text")
    return array.tolist()


def _array_header(path: Path, key: str, member: IO[bytes]) -> Header:
    lib = np.lib.format
    try:
        old = lib.read_magic(member) == (1, 0)
        shape, _, dtype = (lib.read_array_header_1_0 if old else lib.read_array_header_2_0)(member)
    except Exception as e:  # bytes from outside can raise anything
        raise _error(path, key, f"not a numpy array ({reason(e)})") from e
    return shape, dtype


class Refused(ValueError):
    """A ValueError that names the file already."""


def _error(path: Path, key: str, why: str) -> ValueError:
    return Refused(f"{path}: {plain(key)}: {why[:400]}")
