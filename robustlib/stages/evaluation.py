"""Evaluations: a measure beyond accuracy, of the network that another spec ends with."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from robustlib import specs
from robustlib.data import load
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer
from robustlib.stages import pretrain, ticket, transfer
from robustlib.stages.shared import Inputs, Result

_KINDS: dict[type, Any] = {Pretrain: pretrain, Ticket: ticket, Transfer: transfer}


def data(spec: Evaluation) -> tuple[Any, Any]:
    """(the set that the network was made for, the images of `against` or None). Raises ValueError
    for fewer images than the suite needs."""
    name, own = _KINDS[type(spec.of)].tested(spec.of)
    sets, against = {name: own.test}, None
    if spec.against:
        sets[f"against={spec.against!r}"] = against = _against(spec, own)
    least = specs.LEAST_MEASURED.get(spec.suite, 1)
    for name, split in sets.items():
        if len(split) < least:
            raise ValueError(
                f"{name}: {len(split)} images to measure on, suite={spec.suite!r} needs {least}"
            )
    n = min(map(len, sets.values()))
    if spec.suite == "domain_gap" and spec.limit > n:
        raise ValueError(f"limit={spec.limit}: only {n} images of each set are there")
    return own, against


def _against(spec: Evaluation, own: Any) -> Any:
    """The images of `spec.against`, none of which are among the test images of the own set."""
    if spec.suite == "domain_gap" and spec.against == spec.of.source:
        return own.train  # from the source to itself, by images of two splits
    return load(spec.against, size=specs.columns(spec.of)["size"]).test


def compute(spec: Evaluation, inputs: Inputs) -> Result:
    """What `measure` of the suite's module in `metrics` says: its row, and its tables as extra."""
    own, against = data(spec)
    model, mask = _KINDS[type(spec.of)].network(spec.of, inputs)
    other = other_mask = None
    if spec.other is not None:
        other, other_mask = _KINDS[type(spec.other)].network(spec.other, inputs)
    suite = import_module(f"robustlib.metrics.{spec.suite}")
    row, tables = suite.measure(model, own, spec, other=other, against=against)
    if mask and other_mask and mask.sparsity > 0 and other_mask.sparsity > 0:
        if {n: m.shape for n, m in mask.items()} == {n: m.shape for n, m in other_mask.items()}:
            row |= {"mask_overlap": mask.overlap(other_mask)}
            row |= {"mask_chance": mask.chance(other_mask)}
    return row, {}, tables
