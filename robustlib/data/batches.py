"""Batches: from a split to (x, y) on a device, cut, flipped and converted a batch at a time.

Every step draws its augmentation from a seed of its own, so that a resumed epoch goes on from any
step with the batches of the uninterrupted one.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from robustlib.data import files
from robustlib.data.splits import FileSplit, Split, seed_for


def to_float(x_u8: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """[B, H, W, C] uint8 -> [B, 3, H, W] float in [0, 1], channels_last, grey repeated to 3."""
    # Moved before it is converted: bytes are a quarter of the floats' traffic.
    x = x_u8.to(device, non_blocking=True)
    if x.shape[3] == 1:
        x = x.expand(-1, -1, -1, 3).contiguous()
    return x.to(torch.float32).div_(255).permute(0, 3, 1, 2)


def steps(split: Split | FileSplit, batch_size: int) -> int:
    """Steps per epoch: full batches only, but one short batch where there is no full one."""
    return max(1, len(split) // batch_size)


def epoch(
    split: Split | FileSplit,
    batch_size: int,
    *,
    augment: str,
    seed: int,
    epoch: int,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of (x [B, 3, H, W] in [0, 1], y [B], of masks uint8 [B, H, W]), from step
    `start` on, the remainder of the last batch dropped.

    The order follows from (seed, epoch), the augmentation of a step from (seed, epoch, step).
    Images from files are augmented by (seed, epoch, row), and a crop is a RandomResizedCrop.
    """
    order = torch.randperm(len(split), generator=_generator(seed, epoch))
    left = range(start, steps(split, batch_size))
    rows = [order[step * batch_size : (step + 1) * batch_size] for step in left]
    if isinstance(split, FileSplit):
        pairs = files.stream(split, rows, augment, seed, epoch, device)
    else:
        draws = (_generator(seed, epoch, step) for step in left)
        pairs = (gather(split, r, augment, d) for r, d in zip(rows, draws, strict=True))
    yield from _moved(pairs, device)


def of_pass(device: torch.device | str) -> int:
    """Images of a pass without gradients. On a CPU more do not fit its caches: with 500 an image
    takes 1.4 to 1.6 times as long, to the same bits."""
    return 500 if torch.device(device).type == "cuda" else 100


def ordered(
    split: Split | FileSplit, batch_size: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of the split in its own order, nothing dropped or augmented, for evaluation; batch_size
    None: `of_pass`."""
    batch_size = batch_size or of_pass(device)
    if isinstance(split, FileSplit):
        rows = torch.arange(len(split)).split(batch_size)
        yield from _moved(files.stream(split, rows, device=device), device)
    else:
        pairs = zip(split.x.split(batch_size), split.y.split(batch_size), strict=True)
        yield from _moved(pairs, device)


def _moved(
    pairs: Iterable[tuple[Tensor, Tensor]], device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in pairs:
        yield to_float(x, device), y.to(device, non_blocking=True)


def gather(
    split: Split, rows: Tensor, augment: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The images `rows`, each cropped and flipped at random: uint8 [B, H, W, C], and their labels
    [B], or their masks [B, H, W], moved as they are.

    A crop shifts by up to S // 8 px each way, S the shorter side (4 at 32 px, as is usual). What a
    shift uncovers is reflected, not black: a black bar is an edge that no test image has.
    """
    where = split.x.device
    own = rows.to(where, non_blocking=True)
    if augment == "none":
        return split.x[own], split.y[rows]
    # Padding, crop and flip are all in indices [B, H, W] of pixels, so that an epoch copies each
    # once. The draws are those of the CPU's generator; a GPU is not waited for.
    height, width = split.x.shape[1:3]
    n, pad = len(rows), min(height, width) // 8
    shifts = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator)
    flips = (torch.rand((n, 1), generator=generator) < 0.5).to(where, non_blocking=True)
    moved = zip(shifts.to(where, non_blocking=True), (height, width), strict=True)
    places = [(shift + torch.arange(size, device=where), size - 1) for shift, size in moved]
    # Mirrored at the border pixel, which is not repeated.
    down, right = (last - (last - place.abs()).abs() for place, last in places)
    if augment == "crop-flip":
        right = torch.where(flips, right.flip(1), right)
    pixels = (own[:, None] * height + down)[:, :, None] * width + right[:, None, :]
    return _pick(split.x, pixels), split.y[rows] if split.y.ndim == 1 else _pick(split.y, pixels)


def _pick(x: Tensor, pixels: Tensor) -> Tensor:
    # index_select copies whole pixels: twice as fast as indexing with three tensors.
    flat = x.reshape(-1, *x.shape[3:]).index_select(0, pixels.reshape(-1))
    return flat.view(len(pixels), *x.shape[1:])


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*parts))
