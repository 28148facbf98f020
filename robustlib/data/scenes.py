"""The sets for dense prediction that are not found as packs: rendered `glyphs_seg`, and VOC."""

from __future__ import annotations

from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path

import numpy as np

from robustlib.data.embedded import TEST_FACES, TRAIN_FACES, _draw
from robustlib.data.images import read_image, read_labels
from robustlib.data.packs import MAX_BYTES
from robustlib.data.splits import seed_for

Arrays = dict[str, np.ndarray]

IGNORE = 255
LETTERS = "AESX"  # few and large, so that a small network tells them apart within a minute
CANVAS = (48, 64)  # height and width, px
N_CANVAS = {"train": 600, "test": 200}
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
N_VOC = {"train": 1_464, "val": 1_449}
VOC_CLASSES = 21
VOC_FOLDER = Path("downloads", "VOCdevkit", "VOC2012")
"""Where torchvision unpacks VOC, below the data root."""
SCENES = ("glyphs_seg", "voc2012_seg")


def glyphs_seg() -> tuple[Arrays, tuple[str, ...]]:
    """One to three printed letters on a textured background, [N, 48, 64, 3]: background and 4
    letters, a class each.

    600 train images in 17 faces and 200 test images in 5 others. Pixels that ink covers by a
    quarter to three quarters have no class. The same on every call.
    """
    rng = np.random.default_rng(seed_for("glyphs_seg"))
    arrays: Arrays = {}
    for split, faces in (("train", TRAIN_FACES), ("test", TEST_FACES)):
        scenes = [_scene(rng, faces) for _ in range(N_CANVAS[split])]
        arrays[f"x_{split}"] = np.stack([x for x, _ in scenes])
        arrays[f"m_{split}"] = np.stack([m for _, m in scenes])
    return arrays, ("background", *LETTERS)


def _scene(rng: np.random.Generator, faces: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    height, width = CANVAS
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255 - 0.5
    shade = rng.uniform(60, 195)
    x = shade + rng.uniform(20, 100) * texture
    # Lighter or darker than the background, whichever there is more room for.
    ink = shade + (1 if shade < 128 else -1) * rng.uniform(60, 120) + rng.uniform(-20, 20, 3)
    mask = np.zeros(CANVAS, np.uint8)
    for _ in range(rng.integers(1, 4)):
        label, side = rng.integers(len(LETTERS)), int(rng.integers(36, 49))
        face = faces[rng.integers(len(faces))]
        covered = _draw(face, LETTERS[label], side, rng.random(4)) / 255
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        area = slice(top, top + side), slice(left, left + side)
        x[area] += covered[..., None] * (ink - x[area])
        mask[area][covered >= 0.25] = IGNORE
        mask[area][covered > 0.75] = label + 1
    return x.round().clip(0, 255).astype(np.uint8), mask


def voc2012(root: Path, size: int) -> tuple[Arrays, tuple[str, ...]]:
    """PASCAL VOC 2012's segmentation set, downloaded under `root` if it is not there yet, scaled
    and cut to size x size px: its train, and its val as test. 21 classes, background among them.

    FileNotFoundError says what to download and where to put it; ValueError if files are damaged.
    """
    from torchvision.datasets import VOCSegmentation
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    folder = root / VOC_FOLDER.parts[0]
    here = (root / VOC_FOLDER / "ImageSets" / "Segmentation").is_dir()
    parts = {}
    try:
        for split in N_VOC:
            # Not asked to download what is there, torchvision does not unpack it once more.
            parts[split] = VOCSegmentation(
                folder, image_set=split, download=not here and split == "train"
            )
    except (OSError, HTTPException, RuntimeError) as e:  # RuntimeError: torchvision, bad checksum
        raise FileNotFoundError(
            f"voc2012_seg could not be fetched ({e}).\nDownload\n  {VOC_URL}\nand unpack it into "
            f"{folder}"
        ) from e
    arrays: Arrays = {}
    for split, target in (("train", "train"), ("val", "test")):
        files = list(zip(parts[split].images, parts[split].masks, strict=True))
        if len(files) != N_VOC[split]:
            raise ValueError(
                f"voc2012_seg: {len(files)} {split} images, {N_VOC[split]} are published; delete "
                f"what was extracted below {folder / 'VOCdevkit'} and try again"
            )
        arrays[f"x_{target}"], arrays[f"m_{target}"] = stack(files, size, f"voc2012_seg {split}")
    return arrays, tuple(FCN_ResNet50_Weights.DEFAULT.meta["categories"])


def stack(files: Iterable[tuple[str, str]], size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(image, mask) files as x uint8 [n, size, size, 3] and masks uint8 [n, size, size].

    The shorter side is scaled to `size` and the middle cut out, masks by the nearest pixel. A
    mask's labels are the indices of its palette. ValueError names a file that is not readable.
    """
    from PIL import Image, ImageOps
    from tqdm.auto import tqdm

    files = list(files)
    n = len(files)
    if n * size * size * 4 > MAX_BYTES:
        raise ValueError(f"{name}: {n} images of {size} px are over 16 GiB; choose a smaller size")
    x, masks = np.empty((n, size, size, 3), np.uint8), np.empty((n, size, size), np.uint8)
    for i, pair in enumerate(tqdm(files, desc=name, unit="image", mininterval=0.5)):
        image, mask = read_image(pair[0]).convert("RGB"), read_labels(pair[1])
        if image.size != mask.size:
            raise ValueError(f"{pair[1]}: {mask.size} px, its image has {image.size}")
        x[i] = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        masks[i] = ImageOps.fit(mask, (size, size), Image.Resampling.NEAREST)
    return x, masks
