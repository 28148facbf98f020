"""Calibration: against torchmetrics and cases by hand, at the limits of what it measures."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from robustlib import training
from robustlib.data import Dataset, Split
from robustlib.metrics.calibration import TEMPERATURES, calibrated, measure, temperature
from robustlib.specs import Evaluation


def noisy(n: int, scale: float, seed: int = 0, k: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax at temperature `scale` is the true distribution of the labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return torch.from_numpy(z * scale), torch.from_numpy(y)


def test_a_case_by_hand():
    # Probabilities 0.8/0.2 right, 0.8/0.2 wrong, 0.6/0.4 right: bins 12 (0.8) and 9 (0.6).
    p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    row, table = calibrated(p.log(), torch.tensor([0, 1, 1]))
    assert row["n"] == 3 and row["accuracy"] == pytest.approx(2 / 3)
    assert row["confidence"] == pytest.approx(2.2 / 3)
    assert row["ece"] == pytest.approx((2 * abs(0.8 - 0.5) + abs(0.6 - 1)) / 3)
    assert row["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.6)) / 3)
    assert row["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.8**2 + 2 * 0.4**2) / 3)
    filled = {i: r for i, r in enumerate(table) if r["count"]}
    assert sum(r["count"] for r in table) == 3 and len(table) == 15
    assert {r["accuracy"] for r in filled.values()} == {0.5, 1.0}
    assert all(i / 15 == pytest.approx(r["bin"]) for i, r in enumerate(table))
    assert all(r["bin"] <= r["confidence"] < r["bin"] + 1 / 15 for r in filled.values())
    assert math.isnan(table[0]["accuracy"]) and math.isnan(table[0]["confidence"])


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_ece_is_torchmetrics(scale):
    z, y = noisy(2000, scale)
    theirs = float(multiclass_calibration_error(z.softmax(1), y, 5, n_bins=15))
    assert calibrated(z, y)[0]["ece"] == pytest.approx(theirs, abs=1e-6)


def test_the_limits_perfect_uniform_and_certain_but_wrong():
    y = torch.arange(60) % 3
    sure = 200 * torch.nn.functional.one_hot(y, 3).double()
    row, table = calibrated(sure, y)
    assert (row["accuracy"], row["ece"]) == (1, 0) and row["nll"] + row["brier"] < 1e-80
    assert table[-1]["count"] == 60 and table[-1]["confidence"] == 1
    row, _ = calibrated(sure, (y + 1) % 3)
    assert (row["accuracy"], row["ece"], row["brier"]) == (0, 1, 2) and row["nll"] == 200
    row, _ = calibrated(torch.zeros(60, 3), y)
    assert row["ece"] == pytest.approx(0) and row["nll"] == pytest.approx(math.log(3))
    assert row["brier"] == pytest.approx(2 / 3)


def test_the_true_probabilities_are_calibrated_and_sharper_ones_are_not():
    true, sharp, flat = (calibrated(*noisy(20_000, s))[0] for s in (1.0, 3.0, 0.3))
    # A bin of 20,000 / 15 images is off by some hundredths / sqrt(15) by chance.
    assert true["ece"] < 0.015 and min(sharp["ece"], flat["ece"]) > 0.1
    for name in ("nll", "brier"):
        assert true[name] < min(sharp[name], flat[name])
    assert sharp["confidence"] > true["confidence"] > flat["confidence"]


@pytest.mark.parametrize("scale", [0.4, 1.0, 5.0])
def test_temperature_finds_the_scale_that_was_made_and_a_grid_finds_none_better(scale):
    z, y = noisy(20_000, scale)
    t = temperature(z, y)
    assert t == pytest.approx(scale, rel=0.05)
    best = calibrated(z, y, t)[0]["nll"]
    assert all(calibrated(z, y, t * f)[0]["nll"] >= best for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    assert calibrated(z, y, t)[0]["accuracy"] == calibrated(z, y)[0]["accuracy"]
    assert temperature(z.float() + 1000, y) == pytest.approx(t, rel=1e-3)  # a shift says nothing


def test_temperature_at_its_limits():
    y = torch.arange(30) % 3
    right = torch.nn.functional.one_hot(y, 3).double()
    with pytest.warns(UserWarning, match="30 images do not tell it"):
        assert temperature(right, y) == pytest.approx(TEMPERATURES[0])
    with pytest.warns(UserWarning, match="temperature 20"):
        assert temperature(10 * right, (y + 1) % 3) == pytest.approx(TEMPERATURES[1])


def test_scaling_uses_val_and_reports_test_and_leaves_the_model_alone():
    """A model that reads its logits off the image: red, green and blue, times 25."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.Dropout(0.5))
    with torch.no_grad():
        model[2].weight.copy_(25 * torch.eye(3))
        model[2].bias.zero_()
    splits = []
    for seed in (1, 2, 3):
        z, y = noisy(3000, 1.0, seed, 3)
        x = (40 * z + 128).round().clamp(0, 255).to(torch.uint8)
        splits.append(Split(x[:, None, None, :].expand(-1, 2, 2, -1), y))
    data = Dataset("made", *splits, ("r", "g", "b"), 8)
    model.train()
    plain, _ = measure(model, data, Evaluation())
    scaled, tables = measure(model, data, Evaluation(scaled=True))
    assert model.training and plain["temperature"] == 1 and plain["n"] == scaled["n"] == 3000
    found = {s: temperature(*training.logits(model, getattr(data, s))) for s in ("val", "test")}
    assert scaled["temperature"] == found["val"] != found["test"]
    # 25 / 255 a level and 40 levels a unit: the logits are 3.9 times too large.
    assert scaled["temperature"] == pytest.approx(25 * 40 / 255, rel=0.1)
    assert plain["ece"] > 0.1 > 0.03 > scaled["ece"] and scaled["nll"] < plain["nll"]
    assert (
        scaled["accuracy"] == plain["accuracy"]
        and sum(r["count"] for r in tables["reliability"]) == 3000
    )
    assert measure(model, data, Evaluation(limit=100))[0]["n"] == 100
