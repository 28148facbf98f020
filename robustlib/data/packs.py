"""Packs: a data set as one `.npz` without pickles, checked before it is believed.

Keys: x_train, x_test (and, if the set has its own, x_val) uint8 [N, S, S, C], C 1 or 3; y_* int64
[N]; class_names, text [K]; optionally `origin`, text, by whom the pack was built.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.files import whole
from robustlib.specs import reason, shown

MAX_BYTES = 16 * 2**30  # of all arrays of a pack together; larger sets belong in a folder
MAX_OVERLAP = 0.02  # of the test images: a handful of exact copies is found in published sets
MAX_CLASSES = 1_000_000  # names of no length take no bytes, and could be any number
MAX_RATIO = 1_032  # to which deflate can compress; a header that claims more is a lie
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that numpy writes
SPLITS = ("train", "val", "test")

Header = tuple[tuple[int, ...], np.dtype]


@dataclass(frozen=True)
class Pack:
    """The arrays of a pack: `arrays` maps x_train, y_train, x_test, ... to numpy arrays."""

    arrays: dict[str, np.ndarray]
    class_names: tuple[str, ...]
    origin: str = ""


def headers(path: Path) -> dict[str, Header]:
    """Key -> (shape, dtype) of every array of a pack, without reading the arrays.

    ValueError, naming file, key and reason, if the file is not a zip of plain arrays, an array
    would be pickled objects, or the sizes announced do not fit the file or the memory allowed.
    """
    path = Path(path)
    found: dict[str, Header] = {}
    total = 0
    try:
        with open(path, "rb") as file:
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


def read(path: Path) -> Pack:
    """The pack at `path`, validated. ValueError as `headers` and `validate` say."""
    path = Path(path)
    known = headers(path)
    segmentation = "m_train" in known and "y_train" not in known
    if segmentation:
        raise _error(path, "y_train", "missing: this pack has masks, it is for segmentation")
    wanted = [f"{k}_{s}" for s in SPLITS for k in "xy" if s != "val" or f"{k}_{s}" in known]
    for key in [*wanted, "class_names"]:
        if key not in known:
            has = ", ".join(map(_plain, sorted(known))) or "nothing"
            raise _error(path, key, f"missing; the file has {has}")
    shape, dtype = known["class_names"]
    if dtype.kind != "U" or len(shape) != 1 or shape[0] > MAX_CLASSES:
        raise _error(path, "class_names", f"{dtype} {shape}, must be text [K]")
    arrays = _arrays(path, [*wanted, "class_names"])
    names = tuple(_text(path, "class_names", arrays.pop("class_names")))
    pack = Pack(arrays, names, origin(path))
    validate(pack, path)
    return pack


def origin(path: Path) -> str:
    """By whom the pack was built: torchvision, archive, folder; empty for one from outside."""
    path, known = Path(path), headers(path)
    if "origin" not in known:
        return ""
    shape, dtype = known["origin"]
    if dtype.kind != "U" or shape != ():
        raise _error(path, "origin", f"{dtype} {shape}, must be one text")
    return _text(path, "origin", _arrays(path, ["origin"])["origin"])


def write(path: Path, pack: Pack) -> None:
    """Write the pack, validated, in one piece: a reader sees the whole file or none."""
    path = Path(path)
    validate(pack, path)
    with whole(path) as file:
        np.savez_compressed(
            file,
            **pack.arrays,
            class_names=np.array(pack.class_names, dtype=np.str_),
            origin=np.array(pack.origin, dtype=np.str_),
        )


def validate(pack: Pack, path: Path) -> None:
    """ValueError, naming file, key and reason, unless the arrays are what the module's head says.

    Splits must not overlap: at most 2 % of a split's images may be byte-identical to one of an
    earlier split. Not zero, because published sets do hold a few exact copies.
    """
    n_classes = len(pack.class_names)
    if n_classes < 2 or not distinct(pack.class_names):
        raise _error(path, "class_names", f"{n_classes} names, must be 2 or more, all different")
    given = {key.partition("_")[2] for key in pack.arrays} | {"train", "test"}
    present = [split for split in SPLITS if split in given]
    for split in present:
        for key in (f"x_{split}", f"y_{split}"):
            if key not in pack.arrays:
                raise _error(path, key, "missing")
        _check_split(path, split, pack.arrays, n_classes)
    seen: set[bytes] = set()
    for split in present:
        hashes = [hashlib.blake2b(image, digest_size=16).digest() for image in _rows(pack, split)]
        copies = sum(h in seen for h in hashes)
        if copies > MAX_OVERLAP * len(hashes):
            raise _error(
                path,
                f"x_{split}",
                f"{copies} of {len(hashes)} images are copies of images of another split; "
                f"at most {MAX_OVERLAP:.0%} may be",
            )
        seen.update(hashes)


def distinct(names: Iterable[str]) -> bool:
    """No two are one name, composed and decomposed Unicode being the same."""
    names = [unicodedata.normalize("NFC", name) for name in names]
    return len(set(names)) == len(names)


def _check_split(path: Path, split: str, arrays: dict[str, np.ndarray], n_classes: int) -> None:
    x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if x.dtype != np.uint8:
        raise _error(path, f"x_{split}", f"{x.dtype}, must be uint8")
    if y.dtype != np.int64:
        raise _error(path, f"y_{split}", f"{y.dtype}, must be int64")
    if x.ndim != 4 or x.shape[1] != x.shape[2] or x.shape[3] not in (1, 3) or x.shape[1] < 1:
        raise _error(path, f"x_{split}", f"shape {x.shape}, must be [N, S, S, C] with C 1 or 3")
    if x.shape[1:] != arrays["x_train"].shape[1:]:
        why = f"images {x.shape[1:]}, those of x_train are {arrays['x_train'].shape[1:]}"
        raise _error(path, f"x_{split}", why)
    if y.shape != x.shape[:1]:
        raise _error(path, f"y_{split}", f"shape {y.shape}, x_{split} has {len(x)} images")
    if len(x) == 0:
        raise _error(path, f"x_{split}", "empty")
    if y.min() < 0 or y.max() >= n_classes:
        why = f"labels {y.min()} to {y.max()}, must be 0 to {n_classes - 1} (class_names)"
        raise _error(path, f"y_{split}", why)


def _arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    arrays = {}
    with np.load(path, allow_pickle=False) as archive:
        for key in keys:
            try:
                arrays[key] = archive[key]
            except Exception as e:  # bytes from outside can raise anything
                raise _error(path, key, f"cannot be read, the file is damaged ({reason(e)})") from e
    return arrays


def _text(path: Path, key: str, array: np.ndarray) -> Any:
    """The str, or the list of them, of an array of text."""
    code = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
    codes = np.frombuffer(array.tobytes(), code)
    # Beyond Unicode: Python itself trips over such a str. Half a pair: it cannot be printed.
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise _error(path, key, "holds what is no text")
    return array.tolist()


def _rows(pack: Pack, split: str) -> np.ndarray:
    x = np.ascontiguousarray(pack.arrays[f"x_{split}"])
    return x.reshape(len(x), -1)


def _array_header(path: Path, key: str, member: zipfile.ZipExtFile) -> Header:
    try:
        version = np.lib.format.read_magic(member)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(member)
    except Exception as e:  # bytes from outside can raise anything
        raise _error(path, key, f"not a numpy array ({reason(e)})") from e
    return shape, dtype


class Refused(ValueError):
    """A ValueError that names the file already."""


def _error(path: Path, key: str, why: str) -> ValueError:
    return Refused(f"{path}: {_plain(key)}: {why[:400]}")


def _plain(key: str) -> str:
    # Names inside a file are anybody's: they may hold line breaks, or go on for pages.
    return key if re.fullmatch(r"[ -~]{1,80}", key) else shown(key, 80)
