"""The published sets: what torchvision downloads and verifies, and Tiny-ImageNet's archive.

Nothing is downloaded before a set is asked for; each then becomes a pack.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from robustlib.data.images import divide, opened, read_image, stack
from robustlib.data.packs import Pack

TINY = "tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
TINY_URL = f"http://cs231n.stanford.edu/{TINY}"
OMNIGLOT_TRAIN_DRAWERS = 15  # of the 20 people who drew each character

Splits = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Published:
    """A published set: its counts, terms, where its files are and where they are put by hand.

    `native`: its images' size where one is known; a pack is never built larger than that.
    `place`: the folder under the data root for the files of `urls`. `border`: black px to add on
    every side, which makes 28 px images 32 px.
    """

    cls: str
    n_train: int
    n_test: int
    classes: int
    licence: str
    urls: tuple[str, ...]
    place: str = "downloads"
    native: int = 4096
    border: int = 0
    note: str = ""


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_SIGNS = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_MNIST_FILES = tuple(
    f"{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


def _mnist_like(cls: str, licence: str, url: str) -> Published:
    urls = tuple(f"{url}/{file}" for file in _MNIST_FILES)
    return Published(cls, 60_000, 10_000, 10, licence, urls, f"downloads/{cls}/raw", 32, 2)


PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        *("CIFAR10", 50_000, 10_000, 10, "none stated"),
        (f"{_TORONTO}/cifar-10-python.tar.gz",),
        native=32,
    ),
    "cifar100": Published(
        *("CIFAR100", 50_000, 10_000, 100, "none stated"),
        (f"{_TORONTO}/cifar-100-python.tar.gz",),
        native=32,
    ),
    "svhn": Published(
        *("SVHN", 73_257, 26_032, 10, "non-commercial use"),
        (f"{_SVHN}/train_32x32.mat", f"{_SVHN}/test_32x32.mat"),
        native=32,
    ),
    "mnist": _mnist_like("MNIST", "CC BY-SA 3.0", "https://ossci-datasets.s3.amazonaws.com/mnist"),
    "kmnist": _mnist_like("KMNIST", "CC BY-SA 4.0", "http://codh.rois.ac.jp/kmnist/dataset/kmnist"),
    "fashion_mnist": _mnist_like(
        *("FashionMNIST", "MIT"),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    "eurosat": Published(
        *("EuroSAT", 21_600, 5_400, 10, "MIT"),
        (
            "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        ),
        "downloads/eurosat",
        native=64,
        note="no published split: a fixed fifth of each class is test",
    ),
    "gtsrb": Published(
        *("GTSRB", 26_640, 12_630, 43, "none stated, made for research"),
        tuple(
            f"{_SIGNS}/GTSRB{file}.zip"
            for file in ("-Training_fixed", "_Final_Test_Images", "_Final_Test_GT")
        ),
        "downloads/gtsrb",
        native=64,
        note="frames of one sign look alike",
    ),
    "dtd": Published(
        *("DTD", 1_880, 1_880, 47, "research only"),
        (f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
        "downloads/dtd",
        note="first of the ten published partitions, with its own val (1,880)",
    ),
    "flowers102": Published(
        *("Flowers102", 1_020, 6_149, 102, "none stated"),
        tuple(
            f"{_VGG}/flowers/102/{f}" for f in ("102flowers.tgz", "imagelabels.mat", "setid.mat")
        ),
        "downloads/flowers-102",
        note="with its own val (1,020)",
    ),
    "oxford_iiit_pet": Published(
        *("OxfordIIITPet", 3_680, 3_669, 37, "CC BY-SA 4.0"),
        (f"{_VGG}/pets/data/images.tar.gz", f"{_VGG}/pets/data/annotations.tar.gz"),
        "downloads/oxford-iiit-pet",
    ),
    "omniglot": Published(
        *("Omniglot", 14_460, 4_820, 964, "MIT"),
        (f"{_OMNIGLOT}/images_background.zip",),
        "downloads/omniglot-py",
        native=105,
        note="background alphabets; 15 drawers train, 5 others test",
    ),
    "tiny_imagenet": Published(
        *("", 100_000, 10_000, 200, "ImageNet terms, research only"),
        (TINY_URL,),
        "",
        native=64,
        note="test is the published val: the published test has no labels",
    ),
}


def build(name: str, size: int, root: Path) -> Pack:
    """The published set as a pack at `size`, downloaded under `root` if it is not there yet.

    FileNotFoundError says what to download and where to put it; ValueError if files are damaged.
    """
    entry = PUBLISHED[name]
    try:
        splits, names = BUILDERS.get(name, _torchvision)(name, size, root)
    except (OSError, HTTPException, RuntimeError) as e:  # RuntimeError: torchvision, bad checksum
        wanted = "\n  ".join(entry.urls)
        raise FileNotFoundError(
            f"{name} could not be fetched ({e}).\nDownload\n  {wanted}\nand put it, as it is, into "
            f"{root / entry.place}"
        ) from e
    for split, n in (("train", entry.n_train), ("test", entry.n_test)):
        if len(splits[split][1]) != n:  # an extraction that was killed leaves a part behind
            raise ValueError(
                f"{name}: {len(splits[split][1])} {split} images, {n} are published; delete what "
                f"was extracted below {root / entry.place} and try again"
            )
    arrays = {f"{k}_{s}": a for s, pair in splits.items() for k, a in zip("xy", pair, strict=True)}
    return Pack(arrays, names, "torchvision" if entry.cls else "archive")


def _torchvision(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    from torchvision import datasets

    entry = PUBLISHED[name]
    cls = getattr(datasets, entry.cls)
    splits, names = {}, ()
    for split, arguments in _ARGUMENTS.get(name, _BY_TRAIN).items():
        data = cls(root / "downloads", download=True, **arguments)
        pairs = (
            opened(_FILES[name](data)) if name in _FILES else (data[i] for i in range(len(data)))
        )
        splits[split] = stack(pairs, len(data), size, f"{name} {split}", entry.border)
        names = tuple(map(str, getattr(data, "classes", None) or range(entry.classes)))
    return splits, names


def _eurosat(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    splits, names = _torchvision(name, size, root)
    x, y = splits["train"]
    return {
        s: (x[r], y[r]) for s, r in zip(("train", "test"), divide(y, 0.2, 0), strict=True)
    }, names


def _omniglot(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    from torchvision.datasets import Omniglot

    path = _archive(
        root / PUBLISHED[name].place,
        PUBLISHED[name].urls[0],
        Omniglot.zips_md5["images_background"],
    )
    with zipfile.ZipFile(path) as members:
        # images_background/<alphabet>/<character>/<character's number>_<drawer>.png
        files = sorted(n for n in members.namelist() if n.endswith(".png") and n.count("/") == 3)
        folders = sorted({file.rpartition("/")[0] for file in files})
        label = {folder: k for k, folder in enumerate(folders)}
        parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
        for file in files:
            drawer = int(file[-6:-4])
            split = "test" if drawer > OMNIGLOT_TRAIN_DRAWERS else "train"
            parts[split].append((file, label[file.rpartition("/")[0]]))
        splits = _stacked(members, parts, size, name)
    return splits, tuple(folder.partition("/")[2] for folder in folders)


def _tiny_imagenet(name: str, size: int, root: Path) -> tuple[Splits, tuple[str, ...]]:
    path = _archive(root / PUBLISHED[name].place, TINY_URL, TINY_MD5)
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


def _archive(folder: Path, url: str, md5: str) -> Path:
    """The archive of `url` in `folder`, downloaded if it is not there, its checksum verified."""
    from torchvision.datasets.utils import download_url

    path = folder / url.rpartition("/")[2]
    if not path.exists():
        download_url(url, str(folder), path.name, md5)
    with open(path, "rb") as file:
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


_BY_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_BY_SPLIT = {"train": {"split": "train"}, "test": {"split": "test"}}
_WITH_VAL = {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}
_ARGUMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "svhn": _BY_SPLIT,
    "gtsrb": _BY_SPLIT,
    "dtd": _WITH_VAL,
    "flowers102": _WITH_VAL,
    "oxford_iiit_pet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "eurosat": {"train": {}},
}
# Sets of files, which torchvision would open without their transparency and rotation.
_FILES: dict[str, Callable[[Any], Iterable[tuple[Any, int]]]] = {
    "dtd": lambda data: zip(data._image_files, data._labels, strict=True),
    "eurosat": lambda data: data.samples,
    "flowers102": lambda data: zip(data._image_files, data._labels, strict=True),
    "gtsrb": lambda data: data._samples,
    "oxford_iiit_pet": lambda data: zip(data._images, data._labels, strict=True),
}
BUILDERS: dict[str, Callable[[str, int, Path], tuple[Splits, tuple[str, ...]]]] = {
    "eurosat": _eurosat,
    "omniglot": _omniglot,
    "tiny_imagenet": _tiny_imagenet,
}
