"""Patterns: what is removed as one, how it is ranked, and which masks that allows.

A group is what a pattern removes as one: a weight (unstructured, n:m), a row of a kernel (its last
dimension), a kernel, an output channel. Scores and choices have one entry a group: for a
convolution's weight [O, I, KH, KW] they are shaped [O, I, KH, KW], [O, I, KH], [O, I] or [O].
"""

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from robustlib.specs import Ticket, n_of_m
from robustlib.tickets.mask import Mask, parameter, prunable
from robustlib.tickets.producers import producers

_GROUPED_BY = {"row": -1, "kernel": 2, "channel": 1}
"""At which of a weight's dimensions a group's members begin; else a group is one weight."""


def score(weight: Tensor, pattern: str, norm: str = "l1") -> Tensor:
    """The score of each group of a weight: the mean of its magnitudes (its L1 norm over its size),
    or with norm "l2" their root mean square; either is comparable between groups of any size."""
    magnitude = weight.detach().abs()
    if pattern not in _GROUPED_BY:
        return magnitude.contiguous()
    members = magnitude.flatten(_GROUPED_BY[pattern])
    return members.mean(-1) if norm == "l1" else members.square().mean(-1).sqrt()


def grouped(mask: Tensor, pattern: str) -> Tensor:
    """The mask of a weight as one entry a group; the inverse of `expanded`."""
    return mask.flatten(_GROUPED_BY[pattern])[..., 0] if pattern in _GROUPED_BY else mask


def expanded(groups: Tensor, shape: torch.Size) -> Tensor:
    """One entry a group as one entry a weight, for a weight of that shape."""
    return groups.reshape(*groups.shape, *[1] * (len(shape) - groups.dim())).expand(shape)


def select(
    scores: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], how: Ticket
) -> dict[str, Tensor]:
    """Which groups are kept: booleans shaped as the scores, by layer. how: the ticket whose
    sparsity, pattern, scope and min_channels they have; shapes: of the weights.

    The groups with the lowest scores go, across all layers or in each: the most that remove no more
    than round(sparsity * n) of the n weights. Among equal scores the first, by layer then by
    position, goes first, so masks of growing sparsity are nested. The last group of a layer (with
    scope global: of all) never goes; with channel every layer keeps its `min_channels` channels of
    the highest scores. n:m keeps the n highest of every m, whatever the sparsity and scope.

    Raises ValueError when min_channels leaves too few channels to remove.
    """
    if blocks := n_of_m(how.pattern):
        return {name: _of_blocks(s, *blocks) for name, s in scores.items()}
    if how.pattern == "channel":
        best = {name: s.argsort(stable=True)[-how.min_channels :] for name, s in scores.items()}
        scores = {name: s.index_fill(0, best[name], math.inf) for name, s in scores.items()}
    kept: dict[str, Tensor] = {}
    for lot in [[name] for name in scores] if how.scope == "layer" else [list(scores)]:
        flat = torch.cat([scores[name].flatten() for name in lot])
        counts = torch.tensor([scores[name].numel() for name in lot], device=flat.device)
        weights = torch.tensor([math.prod(shapes[name]) for name in lot], device=flat.device)
        sizes, budget = weights // counts, round(how.sparsity * int(weights.sum()))
        if bool((sizes == sizes[0]).all()):
            keeps = _without_lowest(flat, budget // int(sizes[0]))
        else:
            keeps = _without_lightest(flat, torch.repeat_interleave(sizes, counts), budget)
        if bool((~keeps & (flat == math.inf)).any()):
            raise ValueError(
                f"sparsity={how.sparsity:g}: min_channels={how.min_channels} keeps so many "
                f"channels that pattern={how.pattern!r} cannot reach it"
            )
        parts = keeps.split(counts.tolist())
        kept |= {n: part.view_as(scores[n]) for n, part in zip(lot, parts, strict=True)}
    return kept


def _without_lowest(scores: Tensor, n_removed: int) -> Tensor:
    """True for all but the lowest, and for the highest; of equal ones, the first go first."""
    n_removed = min(n_removed, len(scores) - 1)
    if n_removed == 0:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    # Linear where a sort is not, and the ties are settled by position below. numpy's takes a tenth
    # of torch's time, and a slider waits for it.
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        lowest = np.partition(scores.numpy(), n_removed - 1)
        threshold = torch.from_numpy(lowest[n_removed - 1 : n_removed])
    else:
        threshold = torch.kthvalue(scores, n_removed).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    n_below = len(scores) - int(kept.sum()) - len(ties)
    kept[ties[n_removed - n_below :]] = True
    return kept


def _without_lightest(scores: Tensor, sizes: Tensor, budget: int) -> Tensor:
    """As `_without_lowest`, for groups of several sizes: those that go add up to the budget."""
    low, high = scores.new_tensor([-math.inf, math.inf])
    own, size = scores, sizes
    # Halved at about the median until few are left: a sort of millions takes seconds.
    while len(own) > 10_000:
        middle = own[:: len(own) // 1000].median()
        lower = own <= middle
        if bool(lower.all()):
            break
        light = size[lower]
        if (weight := int(light.sum())) <= budget:
            low, budget = middle, budget - weight
            own, size = own[~lower], size[~lower]
        else:
            high, own, size = middle, own[lower], light
    kept = scores > low
    left = (kept & (scores <= high)).nonzero().flatten()
    order = left[torch.argsort(own, stable=True)]
    removed = sizes[order].cumsum(0) <= budget
    removed[-1] = False
    kept[order[removed]] = False
    return kept


def _of_blocks(scores: Tensor, n: int, m: int) -> Tensor:
    if scores.shape[1] % m:
        return torch.ones_like(scores, dtype=torch.bool)
    blocks = scores.movedim(1, -1).unflatten(-1, (-1, m))
    # Of equal ones the first go first, as everywhere.
    place = blocks.argsort(dim=-1, stable=True).argsort(dim=-1)
    return (place >= m - n).flatten(-2).movedim(-1, 1).contiguous()


def must_fit(model: nn.Module, pattern: str) -> None:
    """Raises ValueError for a transposed convolution, whose weight channel and n:m would read the
    wrong way round."""
    for name, m in model.named_modules():
        if isinstance(m, _ConvTransposeNd) and (pattern == "channel" or n_of_m(pattern)):
            raise ValueError(
                f"{name}.weight: pattern={pattern!r} cannot prune a {type(m).__name__}; "
                "unstructured, row and kernel can"
            )


def left_dense(model: nn.Module, pattern: str) -> list[str]:
    """The weights, by name, whose input channels are no multiple of the m of n:m."""
    blocks = n_of_m(pattern)
    return [n for n, p in prunable(model).items() if blocks and p.shape[1] % blocks[1]]


def shuffled(mask: Mask, pattern: str, seed: int) -> Mask:
    """A control: as many groups kept in each layer, at random places; n of every m for n:m."""
    generator = torch.Generator().manual_seed(seed)
    blocks = n_of_m(pattern)

    def moved(kept: Tensor) -> Tensor:
        if blocks:
            return _of_blocks(torch.rand(kept.shape, generator=generator), *blocks)
        groups = grouped(kept, pattern)
        order = torch.randperm(groups.numel(), generator=generator)
        return expanded(groups.flatten()[order].view_as(groups), kept.shape).clone()

    return Mask({name: moved(kept) for name, kept in mask.items()})


def with_norms(mask: Mask, model: nn.Module) -> Mask:
    """The mask with entries more, for what a channel that is removed whole would still add to the
    next layer: biases, and scale and shift of the norms that a convolution alone feeds. Warns of
    norms that are left (`producers`) where a channel is removed.

    Raises ValueError for a bias that is computed from other tensors, and as `must_fit`.
    """
    must_fit(model, "channel")
    found = producers(model)
    channels = {n: mask[n].flatten(1).any(1) for n in prunable(model) if n in mask}
    out = dict(mask)
    names = {id(p): name for name, p in model.named_parameters()}
    for name, m in model.named_modules():
        if isinstance(m, _ConvNd) and m.bias is not None and names[id(m.weight)] in channels:
            kept, bias = channels[names[id(m.weight)]], names[id(parameter(m, "bias", name))]
            # Layers that share a bias need what either keeps.
            out[bias] = kept | out.get(bias, torch.zeros_like(kept))
    for layer, norms in found.norms.items():
        if layer in channels:
            out |= {f"{n}.{part}": channels[layer] for n in norms for part in ("weight", "bias")}
    if found.left and not all(kept.all() for kept in channels.values()):
        warnings.warn(
            f"{type(model).__name__}: channels are removed, but these norms, whose shift goes on, "
            f"are left as they are: {', '.join(found.left)} ({found.why})",
            stacklevel=3,
        )
    return Mask(out)


def masked(model: nn.Module, mask: Mask, pattern: str) -> nn.Module:
    """The model with a mask of that pattern applied, in place: with channel, biases and norms
    included (`with_norms`)."""
    return (with_norms(mask, model) if pattern == "channel" else mask).apply(model)
