"""Whether a network is right as often as it says: calibration error and temperature scaling."""

import math
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib import training
from robustlib.metrics.sample import Measured, Row, Table, sample
from robustlib.specs import Evaluation

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Between which a temperature is sought: a network that is right on all of val has none."""


def measure(model: nn.Module, data: Any, spec: Evaluation, **_: Any) -> Measured:
    """Calibration on the test images, as `calibrated`; if `spec.scaled`, with the temperature that
    fits all validation images, else with 1. The table: `reliability`."""
    t = temperature(*training.logits(model, data.val)) if spec.scaled else 1.0
    row, table = calibrated(*training.logits(model, sample(data.test, spec.limit)), t)
    return row | {"temperature": t}, {"reliability": table}


def calibrated(logits: Tensor, y: Tensor, temperature: float = 1.0) -> tuple[Row, Table]:
    """Calibration of logits [N, K] divided by a temperature, against labels [N]: (row, table).

    The row: n, accuracy, confidence (mean of the largest probability), ece (expected calibration
    error in 15 bins of equal width, Guo et al., 2017), nll (mean negative log-likelihood, in nats)
    and brier (mean squared distance of the probabilities to the one-hot label, in [0, 2]). The
    table: for each of the 15 bins `bin` (its lower edge), `count`, and mean `confidence` and
    `accuracy` (nan in an empty bin).
    """
    z = logits.double() / temperature
    p = z.softmax(1)
    confidence, predicted = p.max(1)
    right = (predicted == y).double()
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    # torchmetrics' ECE puts a confidence of exactly 1 in a bin of its own, after the last.
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1)
    table: Table = []
    gap = 0.0
    for i in range(BINS):
        within = bins == i
        count = int(within.sum())
        sure, true = (float(v[within].mean()) if count else math.nan for v in (confidence, right))
        table.append({"bin": float(edges[i]), "count": count, "confidence": sure, "accuracy": true})
        gap += count * abs(sure - true) if count else 0.0
    row: Row = {
        "n": len(y),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": gap / len(y),
        "nll": float(F.cross_entropy(z, y)),
        "brier": float((p - F.one_hot(y, z.shape[1])).square().sum(1).mean()),
    }
    return row, table


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature by which logits [N, K] must be divided for the least NLL of labels [N].

    For validation images (Guo et al., 2017). NLL is convex in 1/T, so there is one minimum; where
    it lies outside TEMPERATURES, as it does when every image is right, the end of that range is
    returned, with a warning: that many images cannot tell a temperature.
    """
    from scipy.optimize import minimize_scalar

    z = logits.double()

    def nll(log_t: float) -> float:
        return float(F.cross_entropy(z / math.exp(log_t), y))

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # The search never touches its bounds: where the minimum is at one, it must be looked at.
    best = math.exp(min((low, float(found.x), high), key=nll))
    if not TEMPERATURES[0] * 1.001 < best < TEMPERATURES[1] / 1.001:
        warnings.warn(f"temperature {best:g}: {len(y)} images do not tell it", stacklevel=2)
    return best
