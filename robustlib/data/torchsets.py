"""The published sets: what torchvision downloads and verifies, and Tiny-ImageNet's archive.

Nothing is downloaded before a set is asked for; each then becomes a pack.
"""

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from robustlib.data.images import opened, read_image, stack
from robustlib.data.packs import Pack, Splits
from robustlib.data.splits import divide

TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
OMNIGLOT_TRAIN_DRAWERS = 15  # of the 20 people who drew each character

Members = dict[str, list[tuple[str, int]]]
"""Names of an archive's members and their labels, by split."""


@dataclass(frozen=True)
class Known:
    """A set that is known by name: its counts, its terms, how it is fetched and read."""

    counts: tuple[int, int, int]
    """Images of train and test, as published, and classes."""
    origin: str = "download"
    """Or embedded, or a folder."""
    licence: str = "none stated"
    note: str = ""
    masks: bool = False
    """Every pixel is labelled: for segmentation, read by `load_segmentation`."""
    unpacked: str = ""
    """What is below the data root where the set is: no network is needed then."""
    urls: tuple[str, ...] = ()
    place: str = "downloads"
    """Folder below the data root where the files of `urls` are put by hand."""
    put: str = "put it, as it is,"
    native: int = 4096
    """Size of its images where one is known; a pack is never built larger than that."""
    border: int = 0
    """Black px to add on every side, which makes 28 px images 32 px."""
    cls: str = ""
    """Its class in torchvision."""
    classes: tuple[str, ...] = ()
    """Their names, where that class has none."""
    splits: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"train": {"train": True}, "test": {"train": False}}
    )
    """What that class is called with, by split; without a test split a fifth of train is that."""
    files: tuple[str, ...] = ()
    """Its attributes that list the files, with their labels: torchvision would open them without
    their transparency and rotation. The images of a set without files are taken from the class."""


_SETS = tomllib.loads(Path(__file__).with_name("sets.toml").read_text("utf-8"))
KNOWN = {name: Known(**own) for name, own in _SETS.items()}
PUBLISHED = {name: known for name, known in KNOWN.items() if known.origin == "download"}


def build(name: str, size: int, root: Path) -> Pack:
    """The published set as a pack at `size`, downloaded under `root` if it is not there yet.

    FileNotFoundError says what to download and where to put it; ValueError if files are damaged.
    """
    entry = PUBLISHED[name]
    try:
        splits, names = (_archived if name in LISTED else _torchvision)(name, size, root)
    except (OSError, HTTPException, RuntimeError) as e:  # RuntimeError: torchvision, bad checksum
        wanted = "\n  ".join(entry.urls)
        raise FileNotFoundError(
            f"{name} could not be fetched ({e}).\nDownload\n  {wanted}\nand {entry.put} into "
            f"{root / entry.place}"
        ) from e
    if "test" not in splits:
        splits = divide(*splits["train"], 0.2, 0)
    for split, n in zip(("train", "test"), entry.counts[:2], strict=True):
        if (found := len(splits[split][1])) != n:  # a killed extraction leaves a part behind
            published = entry.splits.get(split, {}).get("image_set", split)
            raise ValueError(
                f"{name}: {found} {published} images, {n} are published; delete what was extracted "
                f"below {root / (entry.unpacked or entry.place)} and try again"
            )
    return Pack.of(splits, names, "torchvision" if entry.cls else "archive")


def _torchvision(name: str, size: int, root: Path) -> tuple[Splits, Iterable[str]]:
    from torchvision import datasets

    entry = PUBLISHED[name]
    splits = {}
    for split, arguments in entry.splits.items():
        # Not asked to download what is there, torchvision does not unpack VOC once more.
        here = entry.masks and (root / entry.unpacked / "ImageSets").is_dir()
        data = getattr(datasets, entry.cls)(root / "downloads", download=not here, **arguments)
        pairs: Iterable[tuple[Any, Any]] = (data[i] for i in range(len(data)))
        if entry.files:
            lists = [getattr(data, attribute) for attribute in entry.files]
            files = zip(*lists, strict=True) if len(lists) > 1 else lists[0]
            pairs = opened(files, entry.masks)
        splits[split] = stack(pairs, len(data), size, f"{name} {split}", entry.border, entry.masks)
    names = entry.classes or getattr(data, "classes", None) or range(entry.counts[2])
    return splits, map(str, names)


def _archived(name: str, size: int, root: Path) -> tuple[Splits, Iterable[str]]:
    """A set in one archive, downloaded if it is not there, its checksum verified; read in memory: a
    member's name is never a path here."""
    from torchvision.datasets import Omniglot
    from torchvision.datasets.utils import download_url

    md5 = Omniglot.zips_md5["images_background"] if name == "omniglot" else TINY_MD5
    folder, url = root / PUBLISHED[name].place, PUBLISHED[name].urls[0]
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        download_url(url, str(folder), path.name, md5)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise ValueError(f"{path}: md5 {found}, published is {md5}: delete it and download it anew")
    splits = {}
    with zipfile.ZipFile(path) as members:
        parts, names = LISTED[name](members)
        for split, files in parts.items():
            pairs = ((read_image(io.BytesIO(members.read(f)), f), label) for f, label in files)
            splits[split] = stack(pairs, len(files), size, f"{name} {split}")
    return splits, names


def _omniglot(members: zipfile.ZipFile) -> tuple[Members, tuple[str, ...]]:
    # images_background/<alphabet>/<character>/<character's number>_<drawer>.png
    files = sorted(n for n in members.namelist() if n.endswith(".png") and n.count("/") == 3)
    folders = sorted({file.rpartition("/")[0] for file in files})
    label = {folder: k for k, folder in enumerate(folders)}
    parts: Members = {"train": [], "test": []}
    for file in files:
        split = "test" if int(file[-6:-4]) > OMNIGLOT_TRAIN_DRAWERS else "train"
        parts[split].append((file, label[file.rpartition("/")[0]]))
    return parts, tuple(folder.partition("/")[2] for folder in folders)


def _tiny_imagenet(members: zipfile.ZipFile) -> tuple[Members, tuple[str, ...]]:
    def lines(file: str) -> list[str]:
        return members.read(f"tiny-imagenet-200/{file}").decode().splitlines()

    wnids = sorted(filter(None, map(str.strip, lines("wnids.txt"))))
    label = {wnid: k for k, wnid in enumerate(wnids)}
    words = dict(line.split("\t", 1) for line in lines("words.txt") if "\t" in line)
    val = [line.split("\t")[:2] for line in lines("val/val_annotations.txt") if line.strip()]
    train = sorted(n for n in members.namelist() if "/train/" in n and n.endswith(".JPEG"))
    parts = {
        "train": [(n, label[n.split("/")[2]]) for n in train],
        "test": [(f"tiny-imagenet-200/val/images/{file}", label[wnid]) for file, wnid in val],
    }
    # Two classes may have the same first word, so the WordNet id stays in the name.
    return parts, tuple(f"{words.get(w, '').split(',')[0]} ({w})".strip() for w in wnids)


LISTED = {"omniglot": _omniglot, "tiny_imagenet": _tiny_imagenet}
"""How the members of those archives are listed that are read here."""
