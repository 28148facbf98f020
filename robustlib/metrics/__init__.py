"""Measures of a network on data, beyond accuracy on clean images: one module a suite of Evaluation.

Each module has `measure(model, data, spec, *, other, against)`: the network of `spec.of`, the set
that it was made for, the network of `spec.other`, and the images of `spec.against`. It returns a
row, a flat dict of numbers, and tables by name, each a list of dicts. With a `limit` all networks
are measured on the same images (`sample`). A model is left as it was, and so is the caller's random
generator. What needs a large library imports it when it is called.
"""

from robustlib.metrics.adversarial import adversarial, apgd_accuracy
from robustlib.metrics.calibration import calibrated, calibration, temperature
from robustlib.metrics.certified import certify
from robustlib.metrics.corruption import corrupted, corruption
from robustlib.metrics.domain_gap import domain_gap, rank_correlation
from robustlib.metrics.ood import ood
from robustlib.metrics.sample import sample
from robustlib.metrics.similarity import cka, linear_cka

__all__ = [
    "adversarial",
    "apgd_accuracy",
    "calibrated",
    "calibration",
    "certify",
    "cka",
    "corrupted",
    "corruption",
    "domain_gap",
    "linear_cka",
    "ood",
    "rank_correlation",
    "sample",
    "temperature",
]
