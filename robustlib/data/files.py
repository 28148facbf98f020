"""Sets larger than memory: folders of image files, decoded as they are needed by a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib.data.images import class_folders
from robustlib.data.splits import Dataset, FileSplit, holdout, seed_for, take

CROP_FRACTION = 0.875  # of the shorter side that an evaluation crop sees: 224 of 256 px


def imagenet(folder: Path, size: int) -> Dataset:
    """ImageNet, or any set in its layout: folder/{train,val}/<class folders>/<image files>.

    val is cut from train, as for every set; folder/val is the test split.
    """
    parts = {}
    for split in ("train", "val"):
        classes = class_folders(folder / split)
        paths = [str(p) for files in classes.values() for p in files]
        y = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
        order = np.random.default_rng(seed_for("shuffle", split)).permutation(len(y))
        shuffled = tuple(paths[i] for i in order)
        parts[split] = FileSplit(shuffled, torch.from_numpy(y[order]), size), tuple(classes)
    (train, names), (test, test_names) = parts["train"], parts["val"]
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        raise ValueError(f"{folder}: {', '.join(odd[:5])}: a class of only one of train and val")
    rows, val = holdout(train.y.numpy())
    return Dataset(folder.name, take(train, rows), take(train, val), test, names, size)


def stream(
    split: FileSplit,
    batches: Sequence[Sequence[int]],
    augment: str | None,
    seed: int,
    epoch: int,
    pin: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (x uint8 [B, S, S, 3], y [B]) of the rows listed, decoded by worker processes.

    augment None: the middle of the image, for evaluation. Otherwise each image is augmented from a
    seed of its own, (seed, epoch, row), whichever worker decodes it.
    """
    from torch.utils.data import DataLoader

    workers = min(16, torch.get_num_threads(), len(batches) // 2)  # none for a batch or two
    yield from DataLoader(
        _Decoded(split, augment, seed, epoch),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin,
        generator=torch.Generator(),  # else the loader draws from the global one
    )


class _Decoded(torch.utils.data.Dataset):
    """Row -> (uint8 [S, S, 3], label)."""

    def __init__(self, split: FileSplit, augment: str | None, seed: int, epoch: int):
        from torchvision.transforms import v2

        size = split.size
        if augment in (None, "none"):
            self.transform = v2.Compose(
                [v2.Resize(round(size / CROP_FRACTION), antialias=True), v2.CenterCrop(size)]
            )
        else:
            flip = [v2.RandomHorizontalFlip()] if augment == "crop-flip" else []
            self.transform = v2.Compose([v2.RandomResizedCrop(size, antialias=True), *flip])
        if split.detail:
            sides = (split.detail, split.detail), (size, size)
            coarse = [v2.Resize(side, antialias=True) for side in sides]
            self.transform = v2.Compose([self.transform, *coarse])
        self.split, self.parts = split, (seed, epoch)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        from PIL import Image

        path = self.split.paths[row]
        state = torch.get_rng_state()  # torchvision draws from the global generator
        torch.default_generator.manual_seed(seed_for(*self.parts, row))
        try:
            with Image.open(path) as image:
                pixels = np.array(self.transform(image.convert("RGB")))
        except (OSError, SyntaxError, Image.DecompressionBombError) as e:
            raise ValueError(f"{path}: not a readable image ({e})") from e
        finally:
            torch.set_rng_state(state)
        return torch.from_numpy(pixels), self.split.y[row]
