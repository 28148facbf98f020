"""Tickets drawn at once: by magnitude (omp), at random, or not at all (dense)."""

from __future__ import annotations

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
    before: Mask | None = None,
) -> Mask:
    """One-shot magnitude pruning (Han et al., 2015): the groups of the smallest weights go.

    model: any torch module; the weights of its convolutions are pruned. `patterns.score` ranks the
    groups of a pattern, `patterns.select` says which are kept. before: a mask of the same pattern,
    whose removed groups go first.

    Raises ValueError for an argument out of its range, a model that has nothing to prune, weights
    that are not finite or no parameters (`prunable`), layers that the pattern does not fit, and a
    min_channels that leaves too little to remove.
    """
    one_of("score", score, SCORES)
    scores = {}
    for name, p in prunable(model).items():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: has weights that are not finite, magnitude cannot rank them")
        scores[name] = patterns.score(p, pattern, score)
        if before is not None:
            gone = ~patterns.grouped(before[name], pattern).to(p.device)
            scores[name] = scores[name].masked_fill(gone, -1.0)
    return _drawn(model, scores, sparsity, pattern, scope, min_channels)


def random(
    model: nn.Module,
    sparsity: float,
    pattern: str = "unstructured",
    scope: str = "global",
    seed: int = 0,
    min_channels: int = 1,
) -> Mask:
    """A control: groups removed at random, in the counts `omp` would remove. Raises as `omp`."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: patterns.score(p, pattern).shape for name, p in prunable(model).items()}
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return _drawn(model, scores, sparsity, pattern, scope, min_channels)


def dense(model: nn.Module) -> Mask:
    """The mask that keeps everything."""
    return Mask({n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(model).items()})


def _drawn(
    model: nn.Module,
    scores: dict[str, Tensor],
    sparsity: float,
    pattern: str,
    scope: str,
    min_channels: int,
) -> Mask:
    sparsity = number("sparsity", sparsity, 0, 1, open_high=True)
    one_of("pattern", pattern, PATTERNS)
    one_of("scope", scope, SCOPES)
    integer("min_channels", min_channels, 1)
    if not scores:
        raise ValueError(f"{type(model).__name__}: has no convolution, there is nothing to prune")
    patterns.must_fit(model, pattern)
    if blocks := n_of_m(pattern):
        n, m = blocks
        if sparsity != 1 - n / m:
            raise ValueError(f"sparsity={sparsity:g}: pattern={pattern!r} has {1 - n / m}")
        if len(patterns.left_dense(model, pattern)) == len(scores):
            raise ValueError(f"pattern={pattern!r}: no layer has a multiple of {m} input channels")
    shapes = {name: p.shape for name, p in prunable(model).items()}
    kept = patterns.select(scores, shapes, sparsity, pattern, scope, min_channels)
    return Mask({name: patterns.expanded(k, shapes[name]).clone() for name, k in kept.items()})
