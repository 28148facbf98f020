"""Sets larger than memory: folders of image files, decoded as they are needed by a DataLoader."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import current_process
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustlib import progress
from robustlib.data.images import class_files, read_image
from robustlib.data.sources import ensure
from robustlib.data.splits import Dataset, FileSplit, holdout, seed_for, take

CROP_FRACTION = 0.875  # of the shorter side that an evaluation crop sees: 224 of 256 px


def imagenet(folder: Path, size: int) -> Dataset:
    """ImageNet, or any set in its layout: folder/{train,val}/<class folders>/<image files>.

    val is cut from train, as for every set; folder/val (or valid, validation) is the test split.
    Every image is opened once before the set is used. ValueError: as `class_files` says, classes of
    one split only, or an image that cannot be read.
    """
    classes = class_files(folder, "train", "val")
    if odd := sorted(set(classes["train"]) ^ set(classes["val"])):
        raise ValueError(f"{folder}: {', '.join(odd[:5])}: a class of only one of train and val")
    parts = {}
    for split, files in classes.items():
        labelled = [(str(path), k) for k, paths in enumerate(files.values()) for path in paths]
        order = np.random.default_rng(seed_for("shuffle", split)).permutation(len(labelled))
        paths, y = zip(*(labelled[i] for i in order), strict=True)
        parts[split] = FileSplit(paths, torch.tensor(y), size)
    _check_images(folder, [*parts["train"].paths, *parts["val"].paths])
    train, val = (take(parts["train"], rows) for rows in holdout(parts["train"].y.numpy()))
    return Dataset(folder.name, train, val, parts["val"], tuple(classes["train"]), size)


def _check_images(folder: Path, paths: Sequence[str]) -> None:
    """Opens all images, unless this was done: an empty file beside the folder then says so, named
    after the files and when their folders were last changed (to ask a million files takes minutes
    on a network). ValueError names an image that cannot be read."""

    def check(path: str) -> None:
        read_image(path, quick=True)

    def check_all() -> None:
        with ThreadPool(min(16, torch.get_num_threads())) as pool:
            done = pool.imap(check, paths, 256)
            for _ in progress.bar(done, f"checking {folder.name}", len(paths)):
                pass

    folders = sorted({os.path.dirname(path) for path in paths})  # noqa: PTH120 - of a million files
    known = [*sorted(paths), *(str(Path(path).stat().st_mtime_ns) for path in folders)]
    digest = hashlib.blake2b(os.fsencode("\0".join(known)), digest_size=8).hexdigest()
    checked = folder.with_name(f".{folder.name}-{digest}.checked")

    def write() -> None:
        check_all()
        checked.touch()

    try:
        ensure(checked, write)
    except PermissionError:  # a data root for reading only: each process has to look
        check_all()


def stream(
    split: FileSplit,
    rows: Iterable[Tensor],
    augment: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (x uint8 [B, S, S, 3], y [B]) of the rows listed, decoded by worker processes, in
    memory from which the device is fed fast. augment None: the middle of the image, for evaluation.
    Otherwise each image is augmented from a seed of its own, (seed, epoch, row), whichever worker
    decodes it."""
    from torch.utils.data import DataLoader

    batches = [batch.tolist() for batch in rows]
    # None for a batch or two, nor where none may be started: a sweep's workers are daemons.
    n = 0 if current_process().daemon else min(16, torch.get_num_threads(), len(batches) // 2)
    yield from DataLoader(
        _Decoded(split, augment, seed, epoch),
        batch_sampler=batches,
        num_workers=n,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else the loader draws from the global one
    )


class _Decoded(torch.utils.data.Dataset):
    """Row -> (uint8 [S, S, 3], label)."""

    def __init__(self, split: FileSplit, augment: str | None, seed: int, epoch: int):
        from torchvision.transforms import v2

        size = split.size
        if augment in (None, "none"):
            steps = [v2.Resize(round(size / CROP_FRACTION), antialias=True), v2.CenterCrop(size)]
        else:
            steps = [v2.RandomResizedCrop(size, antialias=True)]
        if augment == "crop-flip":
            steps.append(v2.RandomHorizontalFlip())
        if split.detail:
            steps += [v2.Resize((side, side), antialias=True) for side in (split.detail, size)]
        if split.grey:
            steps.append(v2.Grayscale(num_output_channels=3))
        self.transform = v2.Compose(steps)
        self.split, self.parts = split, (seed, epoch)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(seed_for(*self.parts, row))
            image = read_image(self.split.paths[row]).convert("RGB")
            pixels = np.array(self.transform(image))
        return torch.from_numpy(pixels), self.split.y[row]
