"""Compaction: a channel ticket as a smaller dense network that computes the same."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

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

    A channel of a convolution is dead when its weights, its bias, and scale and shift of the
    BatchNorm that follows are zero: its output is zero in training as well. (The bias does not
    matter where the convolution feeds such norms alone.) It goes when every channel that it is
    added to is dead too, found by tracing an image of `size` px (Fang et al., *DepGraph*, CVPR
    2023, through torch-pruning). Every layer keeps one channel; transposed convolutions, those of
    one or three dimensions, and grouped ones that are not depthwise keep all. With a `multiple`, a
    layer keeps dead channels until the number of its channels is one: onnxruntime's convolutions
    are slow on what is no multiple of 4 (measured on AVX-512; 8 and 16 gain no more).

    Channels that stay without a weight are held at zero by a mask; zeros of other patterns may be
    trained. Names of parameters stay, and the same network gives the same compact one, so a
    state_dict of one fits the other.

    Raises ValueError for a model without convolutions, that is wrapped, or whose weights are no
    parameters (`tickets.prunable`), and RuntimeError when outputs are not those of the model (an
    activation that does not keep zero at zero, say).
    """
    import torch_pruning

    if not prunable(model):
        raise ValueError(f"{type(model).__name__}: has no convolution to take channels from")
    small = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator).to(next(small.parameters()))
    with torch.no_grad():
        expected = small(images)
    trained = {name: p.requires_grad for name, p in small.named_parameters()}
    small.requires_grad_(True)  # the trace follows gradients
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(small, images[:1])
    nodes = graph.module2node
    feeds: dict[_ConvNd, list[nn.Module]] = {
        m: [n.module for n in nodes[m].outputs] if m in nodes else []
        for m in small.modules()
        if isinstance(m, _ConvNd)
    }
    channels = {m: m.out_channels for m in feeds}
    dead: dict[nn.Module, Tensor] = {m: _dead(m, fed) for m, fed in feeds.items()}
    dead |= {m: _silent(m) for m in small.modules() if isinstance(m, _BatchNorm)}
    # All before the first is cut, for a cut shifts the numbers of the channels after it.
    for root, tied in list(_groups(graph)):
        rows = [r for r, own in tied.items() if all(bool(dead[m][i]) for m, i in own)]
        alive = len(tied) - len(rows)
        stay = min(len(tied), max(1, math.ceil(alive / multiple)) * multiple)
        if rows := rows[stay - alive :]:
            prune = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, prune, rows).prune(record_history=False)
    for name, p in small.named_parameters():
        p.requires_grad_(trained[name])
    names = {m: name for name, m in small.named_modules()}
    mask = _held(names, feeds)
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
    removed = {f"{names[m]}.weight": n - m.out_channels for m, n in channels.items()}
    left = {f"{names[m]}.weight": int(_empty(m).sum()) for m in feeds}
    removed, left = ({name: n for name, n in own.items() if n} for own in (removed, left))
    return Compacted(small, removed, left, mask)


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


def _dead(conv: _ConvNd, fed: list[nn.Module]) -> Tensor:
    """Which output channels of a convolution, and of the norms that it feeds, put out zero."""
    dead, norms = _empty(conv), [m for m in fed if isinstance(m, _BatchNorm)]
    if conv.bias is not None and (len(fed) > len(norms) or not norms):
        dead &= conv.bias.detach() == 0
    for norm in norms:
        dead &= _silent(norm).to(dead.device)
    return dead


def _held(names: dict[nn.Module, str], feeds: dict[_ConvNd, list[nn.Module]]) -> Mask:
    """What must stay zero of convolutions, already cut, and of the norms that they feed."""
    held = {}
    for conv, fed in feeds.items():
        if isinstance(conv, _ConvTransposeNd):  # no pattern removes its channels
            continue
        if (empty := _empty(conv)).any():
            held[f"{names[conv]}.weight"] = patterns.expanded(~empty, conv.weight.shape).clone()
        if (dead := _dead(conv, fed)).any():
            norms = [m for m in fed if isinstance(m, _BatchNorm)]
            held |= {f"{names[m]}.{part}": ~dead for m in norms for part in ("weight", "bias")}
            if conv.bias is not None:
                held[f"{names[conv]}.bias"] = ~dead
    return Mask(held)
