"""Tickets drawn at once: by magnitude (omp), at random, or not at all (dense)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robustlib.specs import PATTERNS, SCOPES, SCORES, integer, n_of_m, number, one_of
from robustlib.tickets import patterns
from robustlib.tickets.mask import Mask, prunable


def omp(
    model: nn.Module,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "global",
    score: str = "l1",
    min_channels: int = 1,
    within: Mask | None = None,
) -> Mask:
    """One-shot magnitude pruning (Han et al., 2015): the groups of the smallest weights go.

    model: any torch module; the weights of its convolutions are pruned, of one to three dimensions,
    transposed ones included. `patterns.score` ranks the groups of a pattern and `patterns.select`
    says which are kept, and what each pattern does where it does not fit. `within`: a mask of the
    same pattern, whose removed groups go first.

    Raises ValueError for a sparsity outside [0, 1) or other than that of n:m, an unknown pattern,
    scope or score, a model without convolutions, with weights that are not finite or no parameters
    (`prunable`), or to none of whose layers n:m fits, channel or n:m on transposed convolutions,
    and a min_channels that leaves too little to remove.
    """
    sparsity = _checked(model, sparsity, pattern, scope, min_channels)
    one_of("score", score, SCORES)
    scores = {}
    for name, p in prunable(model).items():
        scores[name] = patterns.score(p, pattern, score)
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: has weights that are not finite, magnitude cannot rank them")
        if within is not None:
            gone = ~patterns.grouped(within[name], pattern).to(p.device)
            scores[name] = scores[name].masked_fill(gone, -1.0)
    return _mask(model, scores, sparsity, pattern, scope, min_channels)


def random(
    model: nn.Module,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "global",
    seed: int = 0,
    min_channels: int = 1,
) -> Mask:
    """A control: groups removed at random, in the counts `omp` would remove. Raises as `omp`."""
    sparsity = _checked(model, sparsity, pattern, scope, min_channels)
    generator = torch.Generator().manual_seed(seed)
    scores = {
        name: torch.rand(patterns.score(p, pattern).shape, generator=generator)
        for name, p in prunable(model).items()
    }
    return _mask(model, scores, sparsity, pattern, scope, min_channels)


def dense(model: nn.Module) -> Mask:
    """The mask that keeps everything."""
    return Mask({n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(model).items()})


def _mask(model: nn.Module, scores: Mapping[str, Tensor], *how: object) -> Mask:
    shapes = {name: p.shape for name, p in prunable(model).items()}
    kept = patterns.select(scores, shapes, *how)
    return Mask({name: patterns.expanded(k, shapes[name]).clone() for name, k in kept.items()})


def _checked(
    model: nn.Module, sparsity: float, pattern: str, scope: str, min_channels: int
) -> float:
    sparsity = number("sparsity", sparsity, 0, 1, open_high=True)
    one_of("pattern", pattern, PATTERNS)
    one_of("scope", scope, SCOPES)
    integer("min_channels", min_channels, 1)
    if not (weights := prunable(model)):
        raise ValueError(f"{type(model).__name__}: has no convolution, there is nothing to prune")
    patterns.must_fit(model, pattern)
    if blocks := n_of_m(pattern):
        n, m = blocks
        if sparsity != 1 - n / m:
            raise ValueError(f"sparsity={sparsity:g}: pattern={pattern!r} has {1 - n / m}")
        if len(patterns.left_dense(model, pattern)) == len(weights):
            raise ValueError(
                f"pattern={pattern!r}: no layer has input channels that are a multiple of {m}"
            )
    return sparsity
