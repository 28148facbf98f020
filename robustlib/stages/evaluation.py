"""Evaluations: a measure beyond accuracy, of the network that another spec ends with."""

from importlib import import_module
from typing import Any

from robustlib import specs
from robustlib.data import load
from robustlib.specs import Evaluation
from robustlib.stages.shared import Inputs, Result, stage


def data(spec: Evaluation) -> tuple[Any, Any]:
    """The set that the network is measured on, and the images of `against`, which are none of its
    test images, or None. Raises ValueError for fewer images than the suite needs."""
    own, against, row = stage(spec.of).images(spec.of), None, specs.columns(spec.of)
    name = "task" if "task" in row else "source"
    sets = {f"{name}={row[name]!r}": own.test}
    if spec.suite == "domain_gap" and spec.against == row["source"]:
        against = own.train  # from the source to itself, by images of two splits
    elif spec.against:
        against = load(spec.against, size=row["size"]).test
    if against is not None:
        sets[f"against={spec.against!r}"] = against
    least = specs.LEAST_MEASURED.get(spec.suite, 1)
    for name, split in sets.items():
        if len(split) < least:
            raise ValueError(
                f"{name}: {len(split)} images to measure on, suite={spec.suite!r} needs {least}"
            )
    n = min(map(len, sets.values()))
    if spec.suite == "domain_gap" and (spec.limit or 0) > n:
        raise ValueError(f"limit={spec.limit}: only {n} images of each set are there")
    return own, against


def compute(spec: Evaluation, inputs: Inputs) -> Result:
    """What the suite's module in `metrics` measures: its row, and its tables as extra."""
    own, against = data(spec)
    model, mask = stage(spec.of).network(spec.of, inputs)
    other = other_mask = None
    if spec.other is not None:
        other, other_mask = stage(spec.other).network(spec.other, inputs)
    suite = import_module(f"robustlib.metrics.{spec.suite}")
    row, tables = suite.measure(model, own, spec, other=other, against=against)
    masks = [m for m in (mask, other_mask) if m and m.sparsity > 0]
    shapes = [{name: kept.shape for name, kept in m.items()} for m in masks]
    if len(masks) == 2 and shapes[0] == shapes[1]:
        row |= {"mask_overlap": mask.overlap(other_mask), "mask_chance": mask.chance(other_mask)}
    return row, {}, tables
