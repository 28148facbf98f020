"""Telling a task's images from others: against scikit-learn, and at the limits."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from robustlib import models
from robustlib.data import Split, load
from robustlib.metrics.ood import ood, separation


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("digits", [1, 8])
def test_separation_is_scikit_learns_with_and_without_ties(shift, digits):
    rng = np.random.default_rng(0)
    inside = (rng.normal(size=400) + shift).round(digits)
    outside = rng.normal(size=250).round(digits)
    labels = np.repeat([1, 0], [400, 250])
    scores = np.concatenate([inside, outside])
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    auroc, fpr95 = separation(inside, outside)
    assert auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert fpr95 == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-12)


def test_the_limits_and_a_case_by_hand():
    low, high = np.arange(20.0), np.arange(20.0) + 100
    assert separation(high, low) == (1.0, 0.0)
    assert separation(low, high) == (0.0, 1.0)
    assert separation(np.zeros(10), np.zeros(30)) == (0.5, 1.0)
    # 19 of 20 inside are at least 1, as are 2 of 4 outside; 1 beats none, of the others 19 beat 2.
    auroc, fpr95 = separation(low, np.array([-1.0, 0.5, 1.5, 50]))
    assert fpr95 == 0.5 and auroc == pytest.approx((20 + 19 + 18 + 0) / 80)


@pytest.mark.parametrize("bad", [np.array([np.nan, 1]), np.array([np.inf]), np.array([])])
def test_scores_that_are_none_are_refused(bad):
    for pair in ((bad, np.ones(3)), (np.ones(3), bad)):
        with pytest.raises(ValueError, match="scores"):
            separation(*pair)


def brightness(sign: float) -> nn.Module:
    """A network that is the surer, the brighter (or darker) the image."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0], [sign * 10.0]]).expand(2, 3))
    return model


def grey(levels: range, size: int = 4) -> Split:
    x = torch.tensor(list(levels)).to(torch.uint8)[:, None, None, None]
    return Split(x.expand(-1, size, size, 1), torch.zeros(len(levels)).long())


def test_images_of_the_task_are_the_positives_for_both_scores():
    bright, dark = grey(range(200, 250)), grey(range(0, 30))
    best = {"auroc": 1.0, "fpr95": 0.0}
    found = ood(brightness(1), bright, dark)
    assert found["n_inside"] == 50 and found["n_outside"] == 30
    assert all(found[f"{s}_{m}"] == v for s in ("msp", "energy") for m, v in best.items())
    found = ood(brightness(1), dark, bright)
    assert all(found[f"{s}_auroc"] == 0 and found[f"{s}_fpr95"] == 1 for s in ("msp", "energy"))
    # Dark is sure in softmax too when the sign turns, but the energy sees the size of the logits.
    found = ood(brightness(-1), bright, dark)
    assert found["msp_auroc"] == 1.0 and found["energy_auroc"] == 0.0


def test_the_same_images_on_both_sides_cannot_be_told_apart():
    test = load("digits", size=8).test
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("resnet10s", 10, 4)
    model.train()
    found = ood(model, test, test, limit=100)
    assert model.training and found["n_inside"] == found["n_outside"] == 100
    assert found["msp_auroc"] == found["energy_auroc"] == 0.5
    assert found["msp_fpr95"] >= 0.95


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="images of 4 and 5 px"):
        ood(brightness(1), grey(range(9)), grey(range(9), 5))
    with pytest.raises(ValueError, match="limit=0"):
        ood(brightness(1), grey(range(9)), grey(range(9)), limit=0)
