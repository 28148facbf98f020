"""Telling a task's images from others: against scikit-learn, and at the limits."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from robustlib import models
from robustlib.data import Split, load
from robustlib.metrics.ood import measure, separation
from robustlib.specs import Evaluation


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


def ood(model: nn.Module, task: Split, against: Split, **fields) -> dict:
    spec = Evaluation(suite="ood", against="another", **fields)
    return measure(model, SimpleNamespace(test=task), spec, against=against)[0]


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


class Given(nn.Module):
    """A network that reads its five logits off the image."""

    def forward(self, x):
        return (x[:, 0, 0] - 0.5) * 2 * self.scale

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale


def logits_as_images(n: int, seed: int, spread: int) -> Split:
    rng = np.random.default_rng(seed)
    levels = rng.normal(128, spread, (n, 1, 5, 1)).round().clip(0, 255).astype(np.uint8)
    return Split(torch.from_numpy(levels).expand(-1, 5, -1, -1), torch.zeros(n).long())


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_the_scores_are_softmax_and_energy_of_many_classes_as_scipy_has_them(scale):
    sides = logits_as_images(200, 0, 40), logits_as_images(150, 1, 30)
    found = ood(Given(scale), *sides)
    z = [2 * scale * (s.x[:, 0, :, 0].double().numpy() / 255 - 0.5) for s in sides]
    for name, score in (
        ("msp", lambda z: special.softmax(z, 1).max(1)),
        ("energy", lambda z: special.logsumexp(z, 1)),
    ):
        inside, outside = (score(side) for side in z)
        labels, scores = np.repeat([1, 0], [200, 150]), np.concatenate([inside, outside])
        assert found[f"{name}_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
        fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
        assert found[f"{name}_fpr95"] == pytest.approx(fpr[tpr >= 0.95].min(), abs=0.02)


def test_a_network_that_is_surer_than_a_double_can_hold_is_still_ranked():
    """Margins of 50 and more: all softmax probabilities are 1, and would tie."""
    inside, outside = logits_as_images(80, 0, 60), logits_as_images(80, 0, 30)
    low, high = ood(Given(1.0), inside, outside), ood(Given(2000.0), inside, outside)
    assert high["msp_auroc"] > 0.6
    # At large scales the log-odds are the margin of the two largest logits.
    top = [np.sort(s.x[:, 0, :, 0].numpy().astype(float), 1)[:, -2:] for s in (inside, outside)]
    margins = np.concatenate([t[:, 1] - t[:, 0] for t in top])
    assert high["msp_auroc"] == pytest.approx(
        roc_auc_score(np.repeat([1, 0], 80), margins), abs=0.01
    )
    assert low["msp_auroc"] != high["msp_auroc"]


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
