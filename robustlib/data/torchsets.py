"""The published sets: what torchvision downloads and verifies, and Tiny-ImageNet's archive.

Nothing is downloaded before a set is asked for; each then becomes a pack.
"""

from __future__ import annotations

import hashlib
import io
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.data.images import opened, read_image, read_labels, stack
from robustlib.data.packs import Pack
from robustlib.data.splits import divide

TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
OMNIGLOT_TRAIN_DRAWERS = 15  # of the 20 people who drew each character

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


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
    """Its class in torchvision; none for an archive that is read here."""
    splits: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"train": {"train": True}, "test": {"train": False}}
    )
    """What that class is called with, by split; of a set without a test split, a fifth is that."""
    files: tuple[str, ...] = ()
    """Its attributes that list the files, with their labels: torchvision would open them without
    their transparency and rotation. The images of a set without files are taken from the class."""


KNOWN = {
    name: Known(**fields)
    for name, fields in tomllib.loads(
        Path(__file__).with_name("sets.toml").read_text(encoding="utf-8")
    ).items()
}
PUBLISHED = {name: known for name, known in KNOWN.items() if known.origin == "download"}


def build(name: str, size: int, root: Path) -> Pack:
    """The published set as a pack at `size`, downloaded under `root` if it is not there yet.

    FileNotFoundError says what to download and where to put it; ValueError if files are damaged.
    """
    entry = PUBLISHED[name]
    try:
        splits, names = READERS.get(name, _torchvision)(name, size, root)
    except (OSError, HTTPException, RuntimeError) as e:  # RuntimeError: torchvision, bad checksum
        wanted = "\n  ".join(entry.urls)
        raise FileNotFoundError(
            f"{name} could not be fetched ({e}).\nDownload\n  {wanted}\nand {entry.put} into "
            f"{root / entry.place}"
        ) from e
    if "test" not in splits:
        splits = divide(*splits["train"], 0.2, 0)
    for split, n in zip(("train", "test"), entry.counts, strict=False):
        _complete(name, split, len(splits[split][1]), n, root)
    keys = "xm" if entry.masks else "xy"
    arrays = {f"{k}_{s}": a for s, pair in splits.items() for k, a in zip(keys, pair, strict=True)}
    return Pack(arrays, names, "torchvision" if entry.cls else "archive")


def _complete(name: str, split: str, found: int, n: int, root: Path) -> None:
    if found != n:  # an extraction that was killed leaves a part behind
        where = root / (PUBLISHED[name].unpacked or PUBLISHED[name].place)
        raise ValueError(
            f"{name}: {found} {split} images, {n} are published; delete what was extracted below "
            f"{where} and try again"
        )


def _torchvision(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    from torchvision import datasets

    entry = PUBLISHED[name]
    splits: Splits = {}
    for split, arguments in entry.splits.items():
        data = getattr(datasets, entry.cls)(root / "downloads", download=True, **arguments)
        pairs: Iterable[tuple[Any, Any]] = (data[i] for i in range(len(data)))
        if entry.files:
            lists = [getattr(data, attribute) for attribute in entry.files]
            pairs = opened(zip(*lists, strict=True) if len(lists) > 1 else lists[0])
        splits[split] = stack(pairs, len(data), size, f"{name} {split}", entry.border)
    names = getattr(data, "classes", None) or range(entry.counts[2])
    return splits, tuple(map(str, names))


def _voc(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    """Its train, and its val as test, with their masks; 21 classes, background among them."""
    from torchvision.datasets import VOCSegmentation
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    entry, splits = PUBLISHED[name], {}
    here = (root / entry.unpacked / "ImageSets" / "Segmentation").is_dir()
    for split, image_set, n in zip(("train", "test"), ("train", "val"), entry.counts, strict=False):
        # Not asked to download what is there, torchvision does not unpack it once more.
        download = not here and split == "train"
        data = VOCSegmentation(root / "downloads", image_set=image_set, download=download)
        _complete(name, image_set, len(data), n, root)
        pairs = _masked(zip(data.images, data.masks, strict=True))
        splits[split] = stack(pairs, len(data), size, f"{name} {image_set}", masks=True)
    return splits, tuple(FCN_ResNet50_Weights.DEFAULT.meta["categories"])


def _masked(files: Iterable[tuple[str, str]]) -> Iterator[tuple[Any, Any]]:
    """(image file, mask file) -> (image, mask)."""
    for file, mask_file in files:
        image, mask = read_image(file), read_labels(mask_file)
        if image.size != mask.size:
            raise ValueError(f"{mask_file}: {mask.size} px, its image has {image.size}")
        yield image, mask


def _omniglot(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    from torchvision.datasets import Omniglot

    path = _archive(name, root, Omniglot.zips_md5["images_background"])
    with zipfile.ZipFile(path) as members:
        # images_background/<alphabet>/<character>/<character's number>_<drawer>.png
        files = sorted(n for n in members.namelist() if n.endswith(".png") and n.count("/") == 3)
        folders = sorted({file.rpartition("/")[0] for file in files})
        label = {folder: k for k, folder in enumerate(folders)}
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
        for file in files:
            split = "test" if int(file[-6:-4]) > OMNIGLOT_TRAIN_DRAWERS else "train"
            parts[split].append((file, label[file.rpartition("/")[0]]))
        splits = _stacked(members, parts, size, name)
    return splits, tuple(folder.partition("/")[2] for folder in folders)


def _tiny_imagenet(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    path = _archive(name, root, TINY_MD5)
    with zipfile.ZipFile(path) as members:

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
        splits = _stacked(members, parts, size, name)
    # Two classes may have the same first word, so the WordNet id stays in the name.
    return splits, tuple(f"{words.get(w, '').split(',')[0]} ({w})".strip() for w in wnids)


def _archive(name: str, root: Path, md5: str) -> Path:
    """The archive of a set, downloaded if it is not there, its checksum verified."""
    from torchvision.datasets.utils import download_url

    folder, url = root / PUBLISHED[name].place, PUBLISHED[name].urls[0]
    path = folder / url.rpartition("/")[2]
    if not path.exists():
        download_url(url, str(folder), path.name, md5)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        raise ValueError(f"{path}: md5 {found}, published is {md5}: delete it and download it anew")
    return path


def _stacked(
    members: zipfile.ZipFile, parts: dict[str, list[tuple[str, int]]], size: int, name: str
) -> Splits:
    """(member, label) by split -> arrays; read in memory: a member's name is never a path here."""
    splits = {}
    for split, files in parts.items():
        pairs = ((read_image(io.BytesIO(members.read(f)), f), label) for f, label in files)
        splits[split] = stack(pairs, len(files), size, f"{name} {split}")
    return splits


READERS: dict[str, Callable[[str, int, Path], tuple[Splits, tuple[str, ...]]]] = {
    "omniglot": _omniglot,
    "tiny_imagenet": _tiny_imagenet,
    "voc2012_seg": _voc,
}
