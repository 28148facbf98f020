"""Batches: from a split to (x, y) on a device, cut, flipped and converted a batch at a time.

Every step draws its augmentation from a seed of its own, so that a resumed epoch goes on from any
step with the batches of the uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from robustlib.data import files
from robustlib.data.splits import FileSplit, MaskSplit, Split, seed_for
from robustlib.specs import AUGMENTS, integer, one_of


def to_float(x_u8: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """[B, H, W, C] uint8 -> [B, 3, H, W] float in [0, 1], channels_last, grey repeated to 3.

    Moved before it is converted: bytes are a quarter of the floats' traffic.
    """
    x = x_u8.to(device, non_blocking=True)
    if x.shape[3] == 1:
        x = x.expand(-1, -1, -1, 3).contiguous()
    return x.to(torch.float32).div_(255).permute(0, 3, 1, 2)


def steps(split: Split | FileSplit | MaskSplit, batch_size: int) -> int:
    """Steps per epoch: full batches only, but one short batch where there is no full one."""
    return max(1, len(split) // integer("batch_size", batch_size, 1))


def epoch(
    split: Split | FileSplit | MaskSplit,
    batch_size: int,
    *,
    augment: str,
    seed: int,
    epoch: int,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of (x [B, 3, H, W] in [0, 1], y [B]), from step `start` on; masks are
    y uint8 [B, H, W], moved with their images.

    The order follows from (seed, epoch), the augmentation of a step from (seed, epoch, step).
    The remainder of the last batch is dropped; the next epoch shuffles it back in. Images from
    files are augmented by (seed, epoch, row), and a crop is a RandomResizedCrop.
    """
    one_of("augment", augment, AUGMENTS)
    n_steps = steps(split, batch_size)
    integer("start", start, 0, n_steps)
    if not len(split):
        raise ValueError("the split is empty: there is nothing to train on")
    return _epoch(split, batch_size, n_steps, augment, seed, epoch, start, device)


def _epoch(split, batch_size, n_steps, augment, seed, epoch, start, device):
    order = torch.randperm(len(split), generator=_generator(seed, epoch))
    if isinstance(split, FileSplit):
        rows = order[start * batch_size : n_steps * batch_size].split(batch_size)
        yield from _files(split, [r.tolist() for r in rows], augment, seed, epoch, device)
        return
    for step in range(start, n_steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        generator = _generator(seed, epoch, step)
        if isinstance(split, MaskSplit):
            x, y = gather_masked(split, rows, augment, generator)
        else:
            x, y = gather(split.x, rows, augment, generator), split.y[rows]
        yield to_float(x, device), y.to(device, non_blocking=True)


def ordered(
    split: Split | FileSplit | MaskSplit, batch_size: int = 500, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """All of the split in its own order, nothing dropped or augmented, for evaluation."""
    integer("batch_size", batch_size, 1)
    if isinstance(split, FileSplit):
        rows = torch.arange(len(split)).split(batch_size)
        yield from _files(split, [r.tolist() for r in rows], None, 0, 0, device)
        return
    for i in range(0, len(split), batch_size):
        x, y = split.x[i : i + batch_size], split.y[i : i + batch_size]
        yield to_float(x, device), y.to(device, non_blocking=True)


def _files(split, rows, augment, seed, epoch, device):
    pin = torch.device(device).type == "cuda"
    for x, y in files.stream(split, rows, augment, seed, epoch, pin):
        yield to_float(x, device), y.to(device, non_blocking=True)


def gather(x: Tensor, rows: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """The images `rows` of x [N, H, W, C] uint8, each cropped and flipped at random: [B, H, W, C].

    A crop shifts by up to S // 8 px each way, S the shorter side (4 at 32 px, as is usual). What a
    shift uncovers is reflected, not black: a black bar is an edge that no test image has.
    """
    if augment == "none":
        return x[rows.to(x.device, non_blocking=True)]
    return _pick(x, _pixels(x, rows, augment, generator))


def gather_masked(
    split: MaskSplit, rows: Tensor, augment: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The images `rows` as `gather` draws them, and their masks [B, H, W] moved as they are."""
    if augment == "none":
        return split.x[rows], split.y[rows]
    pixels = _pixels(split.x, rows, augment, generator)
    return _pick(split.x, pixels), _pick(split.y, pixels)


def _pixels(x: Tensor, rows: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Which pixel of x [N, H, W, ...] comes where: indices [B, H, W] into its N * H * W pixels.

    Padding, crop and flip are all in the index, so that an epoch copies each pixel once. The draws
    are those of the CPU's generator, the index is made where x is; a GPU is not waited for.
    """
    height, width = x.shape[1:3]
    n, pad, where = len(rows), min(height, width) // 8, x.device
    shifts = torch.randint(-pad, pad + 1, (2, n, 1), generator=generator).to(
        where, non_blocking=True
    )
    flips = (torch.rand((n, 1), generator=generator) < 0.5).to(where, non_blocking=True)
    down = _reflect(shifts[0] + torch.arange(height, device=where), height)
    right = _reflect(shifts[1] + torch.arange(width, device=where), width)
    if augment == "crop-flip":
        right = torch.where(flips, right.flip(1), right)
    lines = rows.to(where, non_blocking=True)[:, None] * height + down
    return lines[:, :, None] * width + right[:, None, :]


def _pick(x: Tensor, pixels: Tensor) -> Tensor:
    # index_select copies whole pixels: twice as fast as indexing with three tensors.
    flat = x.reshape(-1, *x.shape[3:]).index_select(0, pixels.reshape(-1))
    return flat.view(len(pixels), *x.shape[1:])


def _reflect(index: Tensor, size: int) -> Tensor:
    """Indices mirrored into [0, size), the border pixel not repeated."""
    return size - 1 - (size - 1 - index.abs()).abs()


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*parts))
