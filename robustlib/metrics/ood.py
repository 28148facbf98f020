"""Whether a network knows what it was not made for: telling a task's images from others."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.metrics.sample import Measured, Row, sample
from robustlib.specs import Evaluation

TPR = 0.95


def measure(model: nn.Module, data: Any, spec: Evaluation, *, against: Any, **_: Any) -> Measured:
    """How well a network's own scores tell the test images of its task from those of `against`.

    Two scores, higher for images of the task: the largest softmax probability (Hendrycks and
    Gimpel, 2017) and minus the energy, logsumexp of the logits (Liu et al., 2020). The row:
    msp_auroc, msp_fpr95, energy_auroc, energy_fpr95 (see `separation`; images of the task are the
    positives), n_inside (images of the task) and n_outside.
    """
    splits = [sample(s, spec.limit) for s in (data.test, against)]
    out = [training.logits(model, s)[0].double() for s in splits]
    row: Row = {}
    for name, score in (("msp", _log_odds), ("energy", lambda z: z.logsumexp(1))):
        auroc, fpr95 = separation(*(score(z).numpy() for z in out))
        row |= {f"{name}_auroc": auroc, f"{name}_fpr95": fpr95}
    return row | {"n_inside": len(splits[0]), "n_outside": len(splits[1])}, {}


def _log_odds(z: Tensor) -> Tensor:
    """Of the largest softmax probability: in its order, but where that is 1 in floating point."""
    top, at = z.max(1, keepdim=True)
    return top[:, 0] - z.scatter(1, at, -torch.inf).logsumexp(1)


def separation(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """AUROC and FPR at 95 % TPR of scores [N], [M] that should be higher for the positives.

    AUROC: the chance that a positive scores above a negative, ties counted half; 0.5 says nothing,
    1 all. FPR: the share of the negatives that a threshold lets in which lets in at least 95 % of
    the positives; 0.95 says nothing, 0 all.
    """
    from scipy.stats import mannwhitneyu

    n, m = len(positives), len(negatives)
    # A count of pairs, exact: scikit-learn's area adds up rounded steps.
    wins = mannwhitneyu(positives, negatives, method="asymptotic").statistic
    threshold = np.sort(positives)[n - int(np.ceil(TPR * n))]
    return float(wins / (n * m)), float((negatives >= threshold).mean())
