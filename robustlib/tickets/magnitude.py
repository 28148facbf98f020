"""Tickets drawn by magnitude, at once (omp) or in rounds (imp); at random; or dense."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from robustlib import objectives, training
from robustlib.data import Split
from robustlib.specs import Pattern, Scope, Score, Ticket, n_of_m
from robustlib.tickets import patterns
from robustlib.tickets.mask import Mask, prunable


def omp(
    model: nn.Module,
    sparsity: float,
    pattern: Pattern = "unstructured",
    scope: Scope = "global",
    score: Score = "l1",
    min_channels: int = 1,
    before: Mask | None = None,
) -> Mask:
    """One-shot magnitude pruning (Han et al., 2015): the groups of the smallest weights go.

    model: any torch module; the weights of its convolutions are pruned. `patterns.score` ranks the
    groups of a pattern, `patterns.select` says which are kept. before: a mask of the same pattern,
    whose removed groups go first.

    Raises ValueError for what no `Ticket` takes, a model that has nothing to prune, weights that
    are not finite or no parameters (`prunable`), and as `must_fit` and `select` of `patterns`.
    """
    how = Ticket(
        sparsity=sparsity, pattern=pattern, scope=scope, score=score, min_channels=min_channels
    )
    scores = {}
    for name, p in prunable(model).items():
        if not torch.isfinite(p).all():
            raise ValueError(f"{name}: has weights that are not finite, magnitude cannot rank them")
        scores[name] = patterns.score(p, pattern, score)
        if before is not None:
            gone = ~patterns.grouped(before[name], pattern).to(p.device)
            scores[name] = scores[name].masked_fill(gone, -1.0)
    return _drawn(model, scores, how)


def imp_round(
    model: nn.Module,
    split: Split,
    spec: Ticket,
    before: Mask | None = None,
    checkpoint: Path | None = None,
) -> tuple[Mask, list[dict[str, float]]]:
    """One round of iterative magnitude pruning (Frankle and Carbin, 2019): trains what the round
    before kept, prunes the smallest of it to `spec.sparsity`, and forgets the training.

    model: at the weights that every round starts from, its head that of the split; left as it is.
    before: the mask of the round before; None: dense. Trained with the objective of the spec,
    adversarial for A-IMP. Returns the mask, nested in `before`, and the curve.
    """
    before = before or dense(model)
    trained = patterns.masked(copy.deepcopy(model), before, spec.pattern)
    label = f"imp {spec.objective} {before.sparsity:.3g} to {spec.sparsity:.3g}"
    objective = objectives.from_spec(spec)
    curve = training.fit(trained, split, objective, spec, checkpoint=checkpoint, label=label)
    pattern, scope, score = spec.pattern, spec.scope, spec.score
    return omp(trained, spec.sparsity, pattern, scope, score, spec.min_channels, before), curve


def random(
    model: nn.Module,
    sparsity: float,
    pattern: Pattern = "unstructured",
    scope: Scope = "global",
    seed: int = 0,
    min_channels: int = 1,
) -> Mask:
    """A control: groups removed at random, in the counts `omp` would remove. Raises as `omp`."""
    how = Ticket(sparsity=sparsity, pattern=pattern, scope=scope, min_channels=min_channels)
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: patterns.score(p, pattern).shape for name, p in prunable(model).items()}
    scores = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    return _drawn(model, scores, how)


def dense(model: nn.Module) -> Mask:
    """The mask that keeps everything."""
    return Mask({n: torch.ones(p.shape, dtype=torch.bool) for n, p in prunable(model).items()})


def _drawn(model: nn.Module, scores: dict[str, Tensor], how: Ticket) -> Mask:
    if not scores:
        raise ValueError(f"{type(model).__name__}: has no convolution, there is nothing to prune")
    patterns.must_fit(model, how.pattern)
    blocks = n_of_m(how.pattern)
    if blocks and len(patterns.left_dense(model, how.pattern)) == len(scores):
        raise ValueError(
            f"pattern={how.pattern!r}: no layer has a multiple of {blocks[1]} input channels"
        )
    shapes = {name: p.shape for name, p in prunable(model).items()}
    kept = patterns.select(scores, shapes, how)
    return Mask({name: patterns.expanded(k, shapes[name]).clone() for name, k in kept.items()})
