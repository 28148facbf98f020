"""Tickets drawn at once: by magnitude (omp), at random, or not at all (dense)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustlib.specs import PATTERNS, SCOPES, number, one_of
from robustlib.tickets.mask import Mask, prunable


def omp(
    model: nn.Module, sparsity: float, pattern: str = "unstructured", scope: str = "global"
) -> Mask:
    """One-shot magnitude pruning (Han et al., 2015): the smallest weights go.

    model: any torch module; its convolution weights are pruned. Exactly round(sparsity * n) of
    the n weights are removed, ranked across layers (scope "global") or so in each layer (scope
    "layer"), though never the last one. Among equal magnitudes the one that
    comes first, by layer then by position, is removed first.

    Raises ValueError for a sparsity outside [0, 1), an unknown pattern or scope, a model without
    convolutions or with weights that are not finite.
    """
    sparsity = _checked(model, sparsity, pattern, scope)
    scores = {name: p.detach().abs() for name, p in prunable(model).items()}
    for name, s in scores.items():
        if not torch.isfinite(s).all():
            raise ValueError(f"{name}: has weights that are not finite, magnitude cannot rank them")
    return keep_largest(scores, sparsity, scope)


def random(
    model: nn.Module,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "global",
    seed: int = 0,
) -> Mask:
    """A control: weights removed at random, in the counts `omp` would remove. Raises as `omp`."""
    sparsity = _checked(model, sparsity, pattern, scope)
    generator = torch.Generator().manual_seed(seed)
    scores = {n: torch.rand(p.shape, generator=generator) for n, p in prunable(model).items()}
    return keep_largest(scores, sparsity, scope)


def dense(model: nn.Module) -> Mask:
    """The mask that keeps everything."""
    return Mask({n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(model).items()})


def keep_largest(scores: Mapping[str, Tensor], sparsity: float, scope: str = "global") -> Mask:
    """The mask that removes the round(sparsity * n) lowest of n scores, across layers or in each;
    at least one is kept."""
    if scope == "layer":
        kept = {}
        for name, s in scores.items():
            kept[name] = _kept(s.flatten(), sparsity).view(s.shape)
        return Mask(kept)
    flat = torch.cat([s.flatten() for s in scores.values()])
    parts = _kept(flat, sparsity).split([s.numel() for s in scores.values()])
    return Mask({n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)})


def _kept(scores: Tensor, sparsity: float) -> Tensor:
    """True for all but the lowest; of equal ones, the first are removed first."""
    n_removed = min(round(sparsity * len(scores)), len(scores) - 1)
    if n_removed == 0:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    # kthvalue is linear where a sort is not, and the ties are settled by position below.
    threshold = torch.kthvalue(scores, n_removed).values
    kept = scores > threshold
    ties = (scores == threshold).nonzero().flatten()
    n_below = len(scores) - int(kept.sum()) - len(ties)
    kept[ties[n_removed - n_below :]] = True
    return kept


def _checked(model: nn.Module, sparsity: float, pattern: str, scope: str) -> float:
    sparsity = number("sparsity", sparsity, 0, 1, open_high=True)
    one_of("pattern", pattern, PATTERNS)
    one_of("scope", scope, SCOPES)
    if not prunable(model):
        raise ValueError(f"{type(model).__name__}: has no convolution, there is nothing to prune")
    return sparsity
