"""Linear evaluation: a logistic regression on a ticket's frozen features."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustlib import training
from robustlib.data import Dataset
from robustlib.models import ResNet

STRENGTHS = tuple(10.0**e for e in (-4, -3, -2, -1, 0, 1))
"""The values of C, the inverse of the L2 penalty, from which val chooses."""


def linear(model: ResNet, data: Dataset) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fits scikit-learn's logistic regression on features extracted once.

    model: the ticket's network, its mask applied; nothing in it changes. Features are standardised
    by the training images; C is the value of STRENGTHS that is best on val, the smallest of equals.
    Returns the head (weight [K, D] and bias [K] on the raw features) and the measures: val_correct,
    test_correct (counts), C, and its table. A class that training lacks is never predicted.
    """
    # Here, since scikit-learn takes half a second to import.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (x_val, y_val), (x_test, y_test) = (
        [part.numpy() for part in training.outputs(model, split, model.features)]
        for split in (data.train, data.val, data.test)
    )
    scaler = StandardScaler().fit(x)
    x, x_val, x_test = (scaler.transform(part).astype(np.float64) for part in (x, x_val, x_test))
    fitted = {c: LogisticRegression(C=c, max_iter=1000, tol=1e-3).fit(x, y) for c in STRENGTHS}
    right = {c: int((own.predict(x_val) == y_val).sum()) for c, own in fitted.items()}
    best = fitted[max(right, key=lambda c: right[c])]  # of equals the first
    measures = {
        "val_correct": right[best.C],
        "test_correct": int((best.predict(x_test) == y_test).sum()),
        "C": best.C,
        "val_correct_by_C": {f"{c:g}": n for c, n in right.items()},
    }
    return _head(best, scaler, data.n_classes), measures


def _head(fitted: Any, scaler: Any, n_classes: int) -> dict[str, Tensor]:
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        coef, intercept = np.vstack([-coef / 2, coef / 2]), np.r_[-intercept / 2, intercept / 2]
    weight = np.zeros((n_classes, coef.shape[1]))
    bias = np.full(n_classes, -1e9)
    weight[fitted.classes_] = coef / scaler.scale_
    bias[fitted.classes_] = intercept - (coef / scaler.scale_) @ scaler.mean_
    return {"fc.weight": torch.tensor(weight).float(), "fc.bias": torch.tensor(bias).float()}
