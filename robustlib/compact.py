"""Compaction: a channel ticket as a smaller dense network that computes the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from robustlib.specs import integer
from robustlib.tickets import Mask, patterns, prunable

TOLERANCE = 1e-4
"""How far outputs may be apart, in units of the largest of them (or of 1, if that is more)."""


@dataclass(frozen=True)
class Compacted:
    """A network without its dead channels; layers are named by their weight, as in a mask."""

    model: nn.Module
    """The small network, in eval mode; `held` is applied to it."""
    removed: dict[str, int]
    """How many output channels a convolution lost; those that lost none are not listed."""
    left: dict[str, int]
    """How many channels without a weight it had to keep, as they are tied to living ones or still
    put out a constant (a bias, or the shift of a norm); those that keep none are not listed."""
    held: Mask
    """What stays zero when the small network is trained. A copy of it needs this applied again."""


def compact(model: nn.Module, size: int, multiple: int = 1) -> Compacted:
    """Takes out of a copy of the model the channels through which nothing flows.

    A channel of a convolution is dead when all its weights are zero, its bias too, and scale and
    shift of the BatchNorm that follows: its output is zero in training as well. (The bias does not
    matter where the convolution feeds such norms alone.) A dead channel goes when every channel
    that it is added to is dead too, found by tracing an image of `size` px (Fang et al.,
    *DepGraph*, CVPR 2023, through torch-pruning). Every layer keeps one channel at least; grouped
    convolutions that are not depthwise, transposed ones and those of one or three dimensions keep
    all. With a `multiple`, a layer keeps dead channels until the number of its channels is one:
    onnxruntime's convolutions are slow on what is no multiple of 4 (measured on AVX-512; multiples
    of 8 and 16 gain no more).

    The dead channels that stay, and other channels without a weight, are held at zero by a mask;
    zeros of other patterns may be trained. Names of parameters stay, and the same network gives the
    same compact one, so a state_dict of one fits the other.

    Raises ValueError for a model without convolutions, that is wrapped, or whose weights are no
    parameters (`tickets.prunable`), and RuntimeError when outputs are not those of the model (an
    activation that does not keep zero at zero, say).
    """
    import torch_pruning

    size, multiple = integer("size", size, 1, 4096), integer("multiple", multiple, 1, 4096)
    if not prunable(model):
        raise ValueError(f"{type(model).__name__}: has no convolution to take channels from")
    small = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    like = next(small.parameters())
    images = torch.rand(2, 3, size, size, generator=generator).to(like)
    with torch.no_grad():
        expected = small(images)
    trained = {name: p.requires_grad for name, p in small.named_parameters()}
    small.requires_grad_(True)  # the trace follows gradients
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(small, images[:1])
    feeds = {
        m: [n.module for n in graph.module2node[m].outputs] if m in graph.module2node else []
        for m in small.modules()
        if isinstance(m, _ConvNd)
    }
    norms = {m: [n for n in fed if isinstance(n, _BatchNorm)] for m, fed in feeds.items()}
    dead: dict[nn.Module, Tensor] = {
        m: _dead(m, own, len(feeds[m]) > len(own)) for m, own in norms.items()
    }
    dead |= {m: _silent(m) for m in small.modules() if isinstance(m, _BatchNorm)}
    empty = {m: _empty(m) for m in norms}
    gone: dict[nn.Module, list[int]] = {m: [] for m in norms}
    # All before the first is cut, for a cut shifts the numbers of the channels after it.
    for root, channels in list(_groups(graph)):
        rows = [r for r, tied in channels.items() if all(bool(dead[m][i]) for m, i in tied)]
        alive = len(channels) - len(rows)
        stay = min(len(channels), max(1, math.ceil(alive / multiple)) * multiple)
        if not (rows := rows[stay - alive :]):
            continue
        for m, channel in (tied for r in rows for tied in channels[r]):
            if m in gone:
                gone[m].append(channel)
        prune = graph.get_pruner_of_module(root).prune_out_channels
        graph.get_pruning_group(root, prune, rows).prune(record_history=False)
    for name, p in small.named_parameters():
        p.requires_grad_(trained[name])
    names = {m: name for name, m in small.named_modules()}
    held: dict[str, Tensor] = {}
    left = {}
    for m in norms:
        stays = torch.ones_like(dead[m])
        stays[gone[m]] = False
        left[f"{names[m]}.weight"] = int(empty[m][stays].sum())
        if not isinstance(m, _ConvTransposeNd):  # no pattern removes its channels
            held |= _held(names, m, norms[m], empty[m][stays], dead[m][stays])
    mask = Mask(held)
    mask.apply(small)
    with torch.no_grad():
        found = small(images)
    apart = TOLERANCE * max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not torch.allclose(
        found, expected, rtol=0, atol=apart, equal_nan=True
    ):
        raise RuntimeError(
            "the compact network does not compute what the model does: a channel that is zero "
            "after its norm is not zero where it is used"
        )
    removed = {f"{names[m]}.weight": len(channels) for m, channels in gone.items() if channels}
    return Compacted(small, removed, {name: n for name, n in left.items() if n}, mask)


def _groups(graph: Any) -> Iterator[tuple[nn.Module, dict[int, list[tuple[nn.Module, int]]]]]:
    """Channels that can only go together, as a sum (a residual stream) or a norm ties them: a
    convolution, and from each of its channels to those, of convolutions and norms, that it is tied
    to. None of what has weights of another kind in it, or feeds no layer (an output)."""
    for group in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        root = group[0].dep.target.module
        rows: dict[int, list[tuple[nn.Module, int]]] = {i: [] for i in range(root.out_channels)}
        feeds, cut = False, True
        for item in group:
            m, handler = item.dep.target.module, item.dep.handler
            if isinstance(m, _ConvNd) and m.groups > 1:
                cut = cut and m.groups == m.in_channels == m.out_channels  # depthwise
            if not graph.is_out_channel_pruning_fn(handler):
                feeds = True
            elif isinstance(m, nn.Conv2d | _BatchNorm):
                for channel, row in zip(item.idxs, item.root_idxs, strict=True):
                    rows[row].append((m, channel))
            elif isinstance(m, nn.Parameter) or any(True for _ in m.parameters()):
                cut = False
        if feeds and cut:
            yield root, rows


def _empty(conv: _ConvNd) -> Tensor:
    """Which output channels have no weight that is not zero: bool [O]."""
    zero = conv.weight.detach() == 0
    if isinstance(conv, _ConvTransposeNd):  # [I, O / groups, ...]
        zero = zero.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    return zero.flatten(1).all(1)


def _silent(norm: _BatchNorm) -> Tensor:
    """Which channels of a norm give zero whatever comes in: bool [C]."""
    if norm.weight is None:
        return torch.zeros(norm.num_features, dtype=torch.bool)
    return (norm.weight.detach() == 0) & (norm.bias.detach() == 0)


def _dead(conv: _ConvNd, norms: list[_BatchNorm], feeds_more: bool) -> Tensor:
    dead = _empty(conv)
    if conv.bias is not None and (feeds_more or not norms):
        dead = dead & (conv.bias.detach() == 0)
    for norm in norms:
        dead = dead & _silent(norm).to(dead.device)
    return dead


def _held(
    names: dict[nn.Module, str],
    conv: _ConvNd,
    norms: list[_BatchNorm],
    empty: Tensor,
    dead: Tensor,
) -> dict[str, Tensor]:
    """What must stay zero of a convolution, already cut, and of the norms after it."""
    held = {}
    if empty.any():
        held[f"{names[conv]}.weight"] = patterns.expanded(~empty, conv.weight.shape).clone()
    if dead.any():
        held |= {f"{names[n]}.{part}": ~dead for n in norms for part in ("weight", "bias")}
        if conv.bias is not None:
            held[f"{names[conv]}.bias"] = ~dead
    return held
