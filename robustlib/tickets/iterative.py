"""Tickets drawn in rounds of training and pruning (imp, A-IMP)."""

import copy
from pathlib import Path

from torch import nn

from robustlib import objectives, training
from robustlib.data import Split
from robustlib.specs import Ticket
from robustlib.tickets.magnitude import dense, omp
from robustlib.tickets.mask import Mask
from robustlib.tickets.patterns import masked


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
    trained = masked(copy.deepcopy(model), before, spec.pattern)
    label = f"imp {spec.objective} {before.sparsity:.3g} to {spec.sparsity:.3g}"
    objective = objectives.from_spec(spec)
    curve = training.fit(trained, split, objective, spec, checkpoint=checkpoint, label=label)
    pattern, scope, score = spec.pattern, spec.scope, spec.score
    return omp(trained, spec.sparsity, pattern, scope, score, spec.min_channels, before), curve
