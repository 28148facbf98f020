"""Randomized smoothing: on a linear network the certified radius is known in closed form."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, norm
from torch import nn

from robustlib import training
from robustlib.data import Split, batches
from robustlib.data.splits import seed_for
from robustlib.metrics.certified import (
    ABSTAIN,
    certified,
    lower_bound,
    measure,
    radius_of,
)
from robustlib.specs import Evaluation

SIGMA = 0.25


def certify(model: nn.Module, split: Split, draws: int) -> tuple[dict, list[dict]]:
    spec = Evaluation(suite="certified", sigma=SIGMA, draws=draws)
    row, tables = measure(model, SimpleNamespace(test=split), spec)
    return row, tables["radii"]


def linear_case(levels: list[float], plane: float = 0.5) -> tuple[nn.Module, Split, np.ndarray]:
    """Grey 4x4 images on both sides of a plane, and their distances from it.

    Noise turns the answer with probability Phi(-distance / sigma): the smoothed network is the
    network, and its true certified radius is the distance.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 48))
        model[1].bias.copy_(torch.tensor([0.0, -48 * plane]))
    x = torch.tensor(levels).to(torch.uint8)
    distance = (x.double() / 255 - plane).abs().numpy() * math.sqrt(48)
    split = Split(x[:, None, None, None].expand(-1, 4, 4, 1), (x / 255 > plane).long())
    return model, split, distance


def test_the_bound_is_below_the_true_radius_and_close_to_it():
    model, split, true = linear_case([100, 110, 116, 122, 134, 140, 146, 150, 155])
    alpha, n = 0.001, 2000
    found = certified(model, split, SIGMA, 50, n, alpha)
    assert [c for c, _ in found] == split.y.tolist()
    for (_, radius), exact in zip(found, true, strict=True):
        assert 0 < radius < exact
        # Four standard errors of the share that is met below the truth, and then the bound.
        p = norm.cdf(exact / SIGMA)
        low = lower_bound(int(n * p - 4 * math.sqrt(n * p * (1 - p))), n, alpha)
        assert radius > SIGMA * norm.ppf(low)
    radii = np.array([r for _, r in found])
    assert np.corrcoef(radii, true)[0, 1] > 0.99


def test_at_the_plane_it_abstains_and_far_from_it_certifies_the_most_it_can():
    model, split, true = linear_case([127, 128, 0, 255])
    row, table = certify(model, split, 300)
    assert true[2] > row["max_radius"] == radius_of(300, 300, SIGMA, 0.001)
    assert row["max_radius"] == pytest.approx(SIGMA * norm.ppf(0.001 ** (1 / 300)))
    assert row["abstained"] == 2 and row["smoothed_accuracy"] == 0.5
    assert [r["count"] for r in table] == [2] * 25 and table[-1]["radius"] == row["max_radius"]
    assert row["mean_radius"] == pytest.approx(row["max_radius"] / 2)


@pytest.mark.parametrize(("level", "plane"), [(0, -0.02), (255, 1.02)])
def test_the_noise_leaves_the_range_of_images(level, plane):
    """Clipped to [0, 1], no draw could reach a plane beyond it: the radius would be the largest,
    and above the true one."""
    model, split, (true,) = linear_case([level], plane)
    ((found, radius),) = certified(model, split, SIGMA, 50, 1000)
    assert found == split.y[0] and 0 < radius < true < radius_of(1000, 1000, SIGMA, 0.001)


def test_a_constant_predictor_is_certified_as_far_as_the_draws_allow():
    model, split, _ = linear_case([0, 60, 127, 128, 200, 255])
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 1.0]))
    split = Split(split.x, torch.tensor([1, 0, 1, 0, 0, 0]))
    most = radius_of(30, 30, SIGMA, 0.001)
    assert certified(model, split, SIGMA, 20, 30) == [(1, most)] * 6
    row, table = certify(model, split, 30)
    assert row["abstained"] == 0 and row["max_radius"] == most > 0
    assert row["smoothed_accuracy"] == 2 / 6 and row["mean_radius"] == pytest.approx(most * 2 / 6)
    assert [r["count"] for r in table] == [2] * 25


class Coin(nn.Module):
    """One of two answers, by a digit of the input that any noise changes."""

    def forward(self, x):
        heads = (1000 * x.flatten(1).sum(1)).floor() % 2
        return torch.stack([heads, 1 - heads], 1)


def test_a_network_that_answers_at_random_is_abstained_from():
    """No radius holds, so that alpha bounds how many may get one; the share that was met would
    give one to every second image."""
    _, split, _ = linear_case(list(range(0, 250, 5)))
    found = [c for c, _ in certified(Coin(), split, SIGMA, 20, 100)]
    assert found.count(ABSTAIN) >= 49


def test_a_wrong_guess_is_not_certified_but_abstained_from():
    """One draw guesses wrong about one image in four here; the bound is of the guess, not of the
    class that turns out to lead."""
    model, split, _ = linear_case([122] * 40)
    found = [c for c, _ in certified(model, split, SIGMA, 1, 1000)]
    assert set(found) == {0, ABSTAIN} and 2 <= found.count(ABSTAIN) <= 20


def test_the_table_counts_what_is_right_within_each_radius():
    model, split, _ = linear_case([100, 116, 122, 134, 140, 160])
    wrong = Split(split.x, torch.cat([1 - split.y[:1], split.y[1:]]))
    found = certified(model, wrong, SIGMA, 100, 500)
    row, table = certify(model, wrong, 500)
    radii = np.array([r if c == y else -1 for (c, r), y in zip(found, wrong.y, strict=True)])
    assert len(table) == 25 and table[0]["radius"] == 0 and row["n_images"] == 6
    for r in table:
        assert r["count"] == (radii >= r["radius"] * (1 - 1e-9)).sum()
        assert r["certified_accuracy"] == r["count"] / 6
    counts = [r["count"] for r in table]
    assert counts == sorted(counts, reverse=True) and counts[0] == 5 > counts[-1]
    assert row["smoothed_accuracy"] == 5 / 6
    assert row["mean_radius"] == pytest.approx(radii.clip(min=0).sum() / 6)


def test_numbers_by_hand():
    # Cohen et al., section 3.2.2: all of n draws agree, so the bound is alpha^(1/n).
    assert lower_bound(100_000, 100_000, 0.001) == pytest.approx(0.001 ** (1 / 100_000))
    assert radius_of(100_000, 100_000, 1.0, 0.001) == pytest.approx(3.8115, abs=1e-3)
    assert lower_bound(0, 10, 0.05) == 0 and radius_of(5, 10, 1.0, 0.05) == 0
    for k, n, alpha in ((1, 1, 0.05), (9, 10, 0.05), (620, 1000, 0.001), (55, 100, 0.2)):
        bound = lower_bound(k, n, alpha)
        theirs = binomtest(k, n, alternative="greater").proportion_ci(1 - alpha, "exact").low
        assert bound == pytest.approx(theirs, abs=1e-9)
        # What makes it exact: were it the truth, k or more would be met with probability alpha.
        assert binom.sf(k - 1, n, bound) == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize("p", [0.55, 0.7, 0.9, 0.95])
def test_the_bound_holds_as_often_as_it_says(p):
    """Not by draws but exactly: the probability, over all counts, that the bound is too high."""
    n, alpha = 200, 0.05
    counts = np.arange(n + 1)
    too_high = np.array([lower_bound(int(k), n, alpha) > p for k in counts])
    assert binom.pmf(counts, n, p)[too_high].sum() <= alpha
    # A bound that is never wrong would be an idle one.
    assert binom.pmf(counts, n, p)[too_high].sum() > alpha / 5


def test_draws_follow_from_the_seed_and_not_from_other_images_or_the_caller():
    model, split, _ = linear_case([110, 120, 135, 150])
    state = torch.get_rng_state()
    first = certified(model, split, SIGMA, 30, 200, seed=1, batch_size=200)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert certified(model, split, SIGMA, 30, 200, seed=1, batch_size=200) == first
    assert certified(model, Split(split.x[:2], split.y[:2]), SIGMA, 30, 200, seed=1) == first[:2]
    assert certified(model, split, SIGMA, 30, 200, seed=2) != first


@pytest.mark.parametrize(
    ("n0", "n", "most", "large"), [(30, 100, 500, 100), (30, 700, 200, 500), (3, 10, 7, 7)]
)
def test_passes_are_shared_by_images_and_each_keeps_its_own_noise(n0, n, most, large, monkeypatch):
    """By hand: an image at a time, its draws at most `most` at once; passes are `large`."""
    monkeypatch.setattr(batches, "of_pass", lambda where: large)
    model, split, _ = linear_case([110, 120, 124, 130, 135, 150])
    passes, guesses = [], []
    model.register_forward_hook(lambda _, inputs, out: passes.append(len(out)))
    found = certified(model, split, SIGMA, n0, n, seed=3, batch_size=most)
    total = len(split) * (n0 + n)
    assert sum(passes) == total and passes[:-1] == [large] * (math.ceil(total / large) - 1)
    for i, (x, _) in enumerate(batches.ordered(split, 1)):
        draws = torch.Generator().manual_seed(seed_for("smoothing", 3, i))
        met = []
        for size in (n0, n):
            parts = [torch.randn((k, *x.shape[1:]), generator=draws) for k in cut(size, most)]
            met.append(torch.cat([model(x + SIGMA * p) for p in parts]).argmax(1).bincount())
        guess = int(met[0].argmax())
        radius = radius_of(int(met[1][guess]), n, SIGMA, 0.001)
        guesses.append((guess, radius) if radius > 0 else (ABSTAIN, 0.0))
    assert found == guesses and len({r for _, r in found}) > 1


def cut(size: int, most: int) -> list[int]:
    return [min(most, size - done) for done in range(0, size, most)]


def test_a_network_that_is_not_finite_is_no_sure_thing():
    """The largest of nans would be the first class, on every draw."""
    model, split, _ = linear_case([100])
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(training.NotFinite, match="not all are finite"):
        certify(model, split, 50)
    with pytest.raises(training.NotFinite, match="1 of 1 images"):
        training.correct(model, split)
