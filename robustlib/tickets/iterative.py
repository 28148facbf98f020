"""Tickets drawn in rounds of training and pruning (imp, A-IMP)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn

from robustlib import objectives, training
from robustlib.specs import Ticket
from robustlib.tickets.magnitude import dense, omp
from robustlib.tickets.mask import Mask
from robustlib.tickets.patterns import masked


def imp_round(
    model: nn.Module,
    split: Any,
    spec: Ticket,
    before: Mask | None = None,
    checkpoint: Path | None = None,
) -> tuple[Mask, list[dict[str, float]]]:
    """One round of iterative magnitude pruning (Frankle and Carbin, 2019): trains what the round
    before kept, prunes the smallest of it to `spec.sparsity`, and forgets the training.

    model: the network at the weights that every round starts from, its head that of the split;
    left as it is. before: the mask of the round before; None: dense. Trained with the objective of
    the spec, adversarial for A-IMP. Returns the mask, nested in `before`, and the curve.
    """
    before = before or dense(model)
    trained = masked(copy.deepcopy(model), before, spec.pattern)
    label = f"imp {spec.objective} {before.sparsity:.3g} to {spec.sparsity:.3g}"
    curve = training.fit(
        trained,
        split,
        objectives.from_spec(spec),
        training.Recipe.of(spec),
        checkpoint=checkpoint,
        label=label,
    )
    how = spec.sparsity, spec.pattern, spec.scope, spec.score, spec.min_channels
    return omp(trained, *how, within=before), curve
