"""Tickets whose mask is learned on a task while the weights stay as they are (lmp)."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustlib import objectives, training
from robustlib.data import Split
from robustlib.specs import Ticket
from robustlib.tickets import patterns
from robustlib.tickets.mask import Mask, parameter, prunable
from robustlib.tickets.producers import Producers, producers

UNIT = 0.005
"""The mean of the scores at the start: small enough that steps of the head's rate reorder them.
Chosen on the validation images of one natural ticket."""


class Scored(nn.Module):
    """A parametrization that multiplies a weight (of channels: a bias or that of a norm too) by
    the mask that scores decide. scores: one a group of the pattern, trained. kept: which groups
    are kept. The gradient passes to the scores as if they were the mask (straight through: Bengio
    et al., 2013; Ramanujan et al., 2020): the sum over a group of weight times the gradient of the
    masked weight."""

    kept: Tensor

    def __init__(self, scores: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.scores = nn.Parameter(scores)
        self.register_buffer("kept", torch.ones_like(scores, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight where its group is kept, else zero."""
        straight = self.kept.to(weight) + (self.scores - self.scores.detach())
        return weight * patterns.expanded(straight, weight.shape)


def lmp(
    model: nn.Module, split: Split, spec: Ticket, checkpoint: Path | None = None
) -> tuple[Mask, list[dict[str, float]]]:
    """Learned mask pruning: the mask is trained on a split's images, the weights are frozen.

    model: the pretrained network, its head that of the split; left as it is. The scores start from
    the magnitude that omp ranks by, divided by its mean (of all layers, or of each with scope
    layer): the first step has omp's mask. Every forward pass keeps the groups of the highest
    scores; the head is trained along. Returns the mask and the curve.
    """
    scored, scores = score(copy.deepcopy(model), spec)
    objective, label = objectives.from_spec(spec), f"lmp {spec.sparsity:.3g}"
    curve = training.fit(scored, split, objective, spec, checkpoint=checkpoint, label=label)
    rank(scores, spec)
    kept = {n: patterns.expanded(s.kept, s.shape).clone() for n, s in scores.items()}
    return Mask(kept), curve


def score(model: nn.Module, spec: Ticket) -> tuple[nn.Module, dict[str, Scored]]:
    """Freezes all but the head `fc` and gives every convolution a `Scored`, in place; returns the
    model and these, by name of the weight. Its masks are drawn anew before each forward pass.
    Raises as `patterns.must_fit`."""
    patterns.must_fit(model, spec.pattern)
    weights = prunable(model)
    start = {n: patterns.score(p, spec.pattern, spec.score) for n, p in weights.items()}
    means: dict[str, Tensor | float] = {n: s.mean() for n, s in start.items()}
    if spec.scope == "global":
        total = sum(s.sum() for s in start.values()) / sum(s.numel() for s in start.values())
        means = dict.fromkeys(start, total)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    scores = {n: Scored(UNIT * s / means[n], weights[n].shape) for n, s in start.items()}
    found = producers(model) if spec.pattern == "channel" else Producers()
    for name, module in list(model.named_modules()):
        if (own := f"{name}.weight") not in weights:
            continue
        norms = map(model.get_submodule, found.norms.get(own, ()))
        masked = [(norm, part) for norm in norms for part in ("weight", "bias")]
        # A convolution that feeds its norms alone is silent with them. Where a ReLU follows, a
        # removed channel has no gradient: it comes back only when the scores of kept ones fall
        # below its own.
        if own not in found.alone:
            masked.append((module, "weight"))
            if spec.pattern == "channel" and module.bias is not None:
                parameter(module, "bias", name)  # or it is refused
                masked.append((module, "bias"))
        for m, part in masked:
            parametrize.register_parametrization(m, part, scores[own])
    rank(scores, spec)
    model.register_forward_pre_hook(lambda *_: rank(scores, spec))
    return model, scores


@torch.no_grad()
def rank(scores: Mapping[str, Scored], spec: Ticket) -> None:
    """Sets what each `Scored` keeps, from all their scores, as omp would."""
    own = {name: s.scores for name, s in scores.items()}
    shapes = {name: s.shape for name, s in scores.items()}
    kept = patterns.select(own, shapes, spec)
    for name, s in scores.items():
        s.kept.copy_(kept[name])
