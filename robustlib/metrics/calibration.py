"""Whether a network is right as often as it says: calibration error and temperature scaling."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib import training
from robustlib.metrics.sample import sample

BINS = 15
TEMPERATURES = (0.05, 20.0)
"""Between which a temperature is sought: a network that is right on all of val has none."""

Table = list[dict[str, Any]]


def calibration(
    model: nn.Module, data: Any, scaled: bool = False, limit: int | None = None
) -> tuple[dict[str, float | int], Table]:
    """Calibration on the test images of a Dataset: (row, reliability table), as `calibrated`.

    `scaled`: after temperature scaling on all of its validation images; else the temperature is 1.
    Raises ValueError for a bad limit, and when scaled without validation images.
    """
    test = sample(data.test, limit)
    if scaled and not len(data.val):
        raise ValueError("scaled=True: there are no validation images to fit a temperature on")
    t = temperature(*training.logits(model, data.val)) if scaled else 1.0
    row, table = calibrated(*training.logits(model, test), t)
    return row | {"temperature": t}, table


def calibrated(
    logits: Tensor, y: Tensor, temperature: float = 1.0
) -> tuple[dict[str, float | int], Table]:
    """Calibration of logits [N, K] divided by a temperature, against labels [N]: (row, table).

    The row: n, accuracy, confidence (mean of the largest probability), ece (expected calibration
    error in 15 bins of equal width, Guo et al., 2017), nll (mean negative log-likelihood, in nats)
    and brier (mean squared distance of the probabilities to the one-hot label, in [0, 2]). The
    table: for each of the 15 bins `bin` (its lower edge), `count`, and mean `confidence` and
    `accuracy` (nan in an empty bin). Raises ValueError for shapes or labels that do not fit, for
    logits that are not finite, and for a temperature that is not above 0.
    """
    _check(logits, y)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature={temperature}: must be a number above 0")
    logits, y = logits.cpu(), y.cpu()
    n_classes = logits.shape[1]
    p = (logits.double() / temperature).softmax(1)
    confidence, predicted = p.max(1)
    right = (predicted == y).double()
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    # torchmetrics' ECE puts a confidence of exactly 1 in a bin of its own, after the last.
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1)
    table, gap = [], 0.0
    for i in range(BINS):
        inside = bins == i
        count = int(inside.sum())
        means = [float(v[inside].mean()) if count else math.nan for v in (confidence, right)]
        table.append({"bin": float(edges[i]), "count": count})
        table[-1] |= {"confidence": means[0], "accuracy": means[1]}
        gap += count * abs(means[0] - means[1]) if count else 0.0
    row = {
        "n": len(y),
        "accuracy": float(right.mean()),
        "confidence": float(confidence.mean()),
        "ece": gap / len(y),
        "nll": float(F.cross_entropy(logits.double() / temperature, y)),
        "brier": float((p - F.one_hot(y, n_classes)).square().sum(1).mean()),
    }
    return row, table


def temperature(logits: Tensor, y: Tensor) -> float:
    """The temperature by which logits [N, K] must be divided for the least NLL of labels [N].

    For validation images (Guo et al., 2017). NLL is convex in 1/T, so there is one minimum; where
    it lies outside TEMPERATURES, as it does when every image is right, the end of that range is
    returned, with a warning: that many images cannot tell a temperature. Raises ValueError as
    `calibrated`.
    """
    from scipy.optimize import minimize_scalar

    _check(logits, y)
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


def _check(logits: Tensor, y: Tensor) -> None:
    if logits.dim() != 2 or logits.shape[:1] != y.shape or not len(y):
        shapes = f"{tuple(logits.shape)} and {tuple(y.shape)}"
        raise ValueError(f"logits and labels of shapes {shapes}: must be [N, K] and [N], N > 0")
    if not logits.isfinite().all():
        raise ValueError("logits: not all are finite")
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        bad = f"{int(y.min())} to {int(y.max())}"
        raise ValueError(f"labels {bad}: must be 0 to {logits.shape[1] - 1}, for so many logits")
