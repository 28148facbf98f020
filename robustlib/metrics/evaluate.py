"""What an Evaluation spec names, measured: the one place where a suite meets its measure."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustlib.metrics.sample import sample
from robustlib.specs import Evaluation


def evaluate(
    spec: Evaluation, model: nn.Module, data: Any, other: nn.Module | None, against: Any
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """The measures of a suite as a row of numbers, and its tables by name.

    model: the network of `spec.of`, for whose images `data` is; other: the network of `spec.other`;
    against: the test images of `spec.against`. Raises what the measures raise.
    """
    # Here, since a suite should not import what only another needs.
    if spec.suite == "adversarial":
        from robustlib.metrics.robustness import adversarial

        return adversarial(
            model, data.test, spec.norm, spec.eps, spec.attack, spec.seed, spec.limit
        ), {}
    if spec.suite == "calibration":
        from robustlib.metrics.calibration import calibration

        row, table = calibration(model, data, spec.scaled, spec.limit)
        return row, {"reliability": table}
    if spec.suite == "certified":
        from robustlib.metrics.certify import certify

        row, table = certify(
            model, data.test, spec.sigma, n=spec.draws, seed=spec.seed, limit=spec.limit
        )
        return row, {"radii": table}
    if spec.suite == "corruption":
        from robustlib.metrics.corruption import corruption

        row, table = corruption(model, data.test, spec.seed, spec.limit)
        return row, {"corruptions": table}
    if spec.suite == "domain_gap":
        from robustlib.metrics.domain_gap import domain_gap

        return domain_gap(model, data.test, against, spec.limit, spec.seed), {}
    if spec.suite == "ood":
        from robustlib.metrics.ood import ood

        return ood(model, data.test, against, spec.limit), {}
    from robustlib.metrics.similarity import cka

    row, table = cka(model, other, sample(data.test, spec.limit))
    return row, {"layers": table}
