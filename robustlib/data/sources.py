"""The data sets by name: where each comes from, and the pack it is read from."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robustlib.data import packs, torchsets
from robustlib.data.images import class_files, opened, stack
from robustlib.data.packs import Pack
from robustlib.data.splits import divide
from robustlib.data.torchsets import KNOWN, PUBLISHED
from robustlib.specs import integer, number, one_of, shown


@dataclass(frozen=True)
class Row:
    """A line of `robustlib data list`; counts are 0 where they are not known. n_train counts the
    images that `load` cuts off as val too; here: `load` needs no network for it."""

    name: str
    origin: str
    here: bool
    n_train: int
    n_test: int
    classes: int
    licence: str
    note: str = ""
    masks: bool = False


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the packs: `root`, else $ROBUSTLIB_DATA, else ~/.cache/robustlib."""
    return home(root or os.environ.get("ROBUSTLIB_DATA") or "~/.cache/robustlib")


def home(path: str | Path) -> Path:
    """The path with ~ as a home. ValueError if there is no such user, or it is no path."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"path={shown(str(path))}: ~ names a user who has no home") from None
    except TypeError:
        raise ValueError(f"path={shown(path)}: must be text or a path") from None


def find(name: str, size: int, root: str | Path | None = None, masks: bool = False) -> Path | None:
    """The pack (or ImageNet's folder) to read `name` from; None if it is embedded.

    A pack in the data root comes first. A published set that is not there is built now, once, at
    `size` (no larger than its images are). masks: of the sets for segmentation, whose packs are of
    one size. Raises ValueError for an unknown name, FileNotFoundError if a set cannot be fetched.
    """
    if not isinstance(name, str):
        raise ValueError(f"dataset={shown(name)}: must be text")
    folder = data_root(root)
    packed = _packs(folder)
    sides = packed.get(name, {})
    path = sides.get(32) if masks else _best(sides, name, size)
    known = {n: k for n, k in KNOWN.items() if k.masks == masks}
    if path or (name in known and known[name].origin == "embedded"):
        return path
    others = {n for n, s in packed.items() if not masks or (n.endswith("_seg") and 32 in s)}
    one_of("dataset", name, sorted(known.keys() | others))
    if name == "imagenet":
        if not (path := folder / name).is_dir():
            raise FileNotFoundError(
                f"{name}: put its class folders into {path / 'train'} and {path / 'val'}; the "
                "images are handed out by https://image-net.org after its terms were accepted"
            )
        return path
    size = min(size, PUBLISHED[name].native)
    path = folder / (f"{name}@{size}.npz" if masks else _file(name, size))
    ensure(path, lambda: packs.write(path, torchsets.build(name, size, folder)))
    return path


def here(name: str) -> bool:
    """Whether a set is known or a pack in the data root: whether `find` takes its name."""
    return name in KNOWN or name in _packs(data_root())


def build_folder(
    name: str,
    folder: str | Path,
    size: int = 32,
    test_fraction: float = 0.2,
    seed: int = 0,
    root: str | Path | None = None,
    val_fraction: float = 0.0,
) -> Path:
    """A pack `name` from folder/<class>/<image files>, or from folder/{train,test[,val]}/<class>/.

    Without a split of its own, `test_fraction` of each class is test, drawn by `seed`, and without
    one `val_fraction` of what it trains on is val (0: `load` cuts it off). Images are scaled by
    their shorter side and cut to the middle. Returns the pack's path in the data root.
    ValueError: a name that is no plain file name or is taken, a folder that is not of that form
    (`images.class_files`), an image that cannot be read, or copies of training images in test.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise ValueError(f"name={shown(name)}: use letters, digits, _ and -, 64 at most")
    if name in KNOWN:
        raise ValueError(f"name={name!r}: is a set of robustlib's own; choose another name")
    size = integer("size", size, 8, 4096)
    test_fraction = number("test_fraction", test_fraction, 0.01, 0.99)
    val_fraction = number("val_fraction", val_fraction, 0, 0.99)
    path = data_root(root) / _file(name, size)
    if path.exists():
        raise ValueError(f"{path}: is there already; delete it to build it anew")
    found = class_files(home(folder), "train", "test", more=True)
    classes = sorted({c for own in found.values() for c in own})
    for split, own in found.items():
        if missing := set(classes) - own.keys():
            raise ValueError(f"{folder}: {split} has no folder {', '.join(sorted(missing)[:5])}")
    if lone := [c for c, files in found.get("all", {}).items() if len(files) < 2]:
        raise ValueError(f"{folder}: class {lone[0]!r} has 1 image; 2 are needed, 1 for test")
    splits = {}
    for split, own in found.items():
        files = [(file, k) for k, c in enumerate(classes) for file in own[c]]
        splits[split] = stack(opened(files), len(files), size, f"{name} {split}")
    if "all" in splits:
        splits = divide(*splits["all"], test_fraction, seed)
    if val_fraction and "val" not in splits:
        parts = divide(*splits["train"], val_fraction, seed)
        splits |= {"train": parts["train"], "val": parts["test"]}
    if len({x.shape[3] for x, _ in splits.values()}) > 1:  # one split is grey throughout
        splits = {s: (np.broadcast_to(x, (*x.shape[:3], 3)), y) for s, (x, y) in splits.items()}
    pack = Pack.of(splits, classes, "folder")
    # Before the data root is made: a refusal names the folder, and leaves nothing there.
    packs.validate(pack, home(folder))
    ensure(path, lambda: packs.write(path, pack))
    return path


def available(root: str | Path | None = None) -> list[Row]:
    """All sets, by name: packs in the data root (a bad one says why), embedded, published."""
    folder = data_root(root)
    rows = {}
    for name, k in KNOWN.items():
        here = k.origin == "embedded" or (bool(k.unpacked) and (folder / k.unpacked).exists())
        rows[name] = Row(name, k.origin, here, *k.counts, k.licence, k.note, k.masks)
    rows |= {name: _pack_row(name, sides) for name, sides in _packs(folder).items()}
    return [rows[name] for name in sorted(rows)]


def _pack_row(name: str, sides: dict[int, Path]) -> Row:
    licence = KNOWN[name].licence if name in PUBLISHED else "that of its source"
    try:
        path = sides.get(32) or sides[max(sides)]
        heads = packs.headers(path)
        n_train, n_test = (heads[f"x_{split}"][0][0] for split in ("train", "test"))
        classes, masks = heads["class_names"][0][0], "m_train" in heads
        if masks:  # the last name may be of the pixels that have no class
            classes -= "(ignore=" in packs.class_names(path, heads)[-1]
        return Row(name, "pack", True, n_train, n_test, classes, licence, masks=masks)
    except (ValueError, KeyError, IndexError, OSError) as e:
        return Row(name, "pack", False, 0, 0, 0, licence, f"bad pack: {e}")


def _file(name: str, size: int) -> str:
    # "@" cannot be part of a name, so the size cannot be mistaken for one.
    return f"{name}.npz" if size == 32 else f"{name}@{size}.npz"


def _packs(folder: Path) -> dict[str, dict[int, Path]]:
    """The packs in a folder by the names of their sets and the sizes of their images, as their
    file's names say; 0 if that is no number."""
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*.npz"), key=lambda p: "@" not in p.stem):
        name, at, size = path.stem.partition("@")
        if path.name[0] != ".":
            side = int(size) if size.isdecimal() else 0
            found.setdefault(name, {})[side if at else 32] = path
    return found


def _best(sides: dict[int, Path], name: str, size: int) -> Path | None:
    """The best of a set's packs for `size`, or None if a published set should be built for it."""
    known = KNOWN.get(name)
    if known is None or known.masks or known.origin != "download":
        return sides.get(size) or sides.get(32) or (sides[max(sides)] if sides else None)
    exact, plain = sides.get(min(size, known.native)), sides.get(32)
    # One that was built here for another size is no reason to scale: the originals are better.
    return exact or (plain if plain and not packs.origin(plain) else None)


def ensure(path: Path, write: Callable[[], None]) -> None:
    """Calls what writes the pack `path`, unless it is there, or another process does so meanwhile.

    Raises PermissionError where the data root cannot be written.
    """
    from filelock import FileLock

    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path.with_name(f".{path.name}.lock")).acquire()
    except OSError as e:
        raise PermissionError(
            f"{path} cannot be written ({e.strerror}); set ROBUSTLIB_DATA to a folder of yours"
        ) from e
    with held:
        if not path.exists():
            write()
