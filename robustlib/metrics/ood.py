"""Whether a network knows what it was not made for: telling a task's images from others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.metrics.sample import sample

TPR = 0.95


def ood(
    model: nn.Module, inside: Any, outside: Any, limit: int | None = None
) -> dict[str, float | int]:
    """How well a network's own scores tell the images of its task from those of another set.

    Two scores, higher for images of the task: the largest softmax probability (Hendrycks and
    Gimpel, 2017) and minus the energy, logsumexp of the logits (Liu et al., 2020). The row:
    msp_auroc, msp_fpr95, energy_auroc, energy_fpr95 (see `separation`; images of the task are the
    positives), n_inside and n_outside, each at most `limit`.

    Raises ValueError for an empty split, a bad limit, or images of two sizes.
    """
    inside, outside = (sample(s, limit) for s in (inside, outside))
    sizes = [s.x.shape[1] if hasattr(s, "x") else s.size for s in (inside, outside)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"images of {sizes[0]} and {sizes[1]} px: must be of one size")
    out = [training.logits(model, s)[0].double() for s in (inside, outside)]
    row: dict[str, float | int] = {}
    scores = {"msp": _log_odds, "energy": lambda z: z.logsumexp(1)}
    for name, score in scores.items():
        auroc, fpr95 = separation(*(score(z).numpy() for z in out))
        row |= {f"{name}_auroc": auroc, f"{name}_fpr95": fpr95}
    return row | {"n_inside": len(inside), "n_outside": len(outside)}


def _log_odds(z: Tensor) -> Tensor:
    """Of the largest softmax probability: in its order, but where that is 1 in floating point."""
    top, at = z.max(1, keepdim=True)
    return top[:, 0] - z.scatter(1, at, -torch.inf).logsumexp(1)


def separation(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """AUROC and FPR at 95 % TPR of scores [N], [M] that should be higher inside, the positives.

    AUROC: the chance that an image inside scores above one outside, ties counted half; 0.5 says
    nothing, 1 all. FPR: the share of images outside that a threshold lets in which lets in at least
    95 % of those inside; 0.95 says nothing, 0 all. Raises ValueError for a score that is not finite
    or a side that has none.
    """
    from scipy.stats import rankdata

    scores = np.concatenate([inside, outside])
    if not len(inside) or not len(outside) or not np.isfinite(scores).all():
        raise ValueError("scores: some must be given on both sides, and all must be finite")
    n, m = len(inside), len(outside)
    auroc = (rankdata(scores)[:n].sum() - n * (n + 1) / 2) / (n * m)
    threshold = np.sort(inside)[n - int(np.ceil(TPR * n))]
    return float(auroc), float((outside >= threshold).mean())
