"""The Frechet distance against scipy, torchmetrics and closed forms; rank correlation of few."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from robustlib import models, training
from robustlib.data import Split, load
from robustlib.metrics import domain_gap as suite
from robustlib.metrics.domain_gap import (
    blockwise,
    features,
    frechet,
    frechet_infinity,
    rank_correlation,
    turned,
)
from robustlib.specs import Evaluation, Pretrain


def drawn(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + shift


def domain_gap(model, source, task, n: int, draws: int = 200, level: float = 0.95) -> dict:
    spec = Evaluation(Pretrain(), "domain_gap", against="another", limit=n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "DRAWS", draws)
        patch.setattr(suite, "LEVEL", level)
        return suite.measure(model, SimpleNamespace(test=source), spec, against=task)[0]


def mixed(x: Tensor, seed: int) -> Tensor:
    return x @ drawn(x.shape[1], x.shape[1], seed) / math.sqrt(x.shape[1])


@pytest.mark.parametrize(("n", "d"), [(300, 256), (600, 256), (50, 1), (40, 3)])
def test_frechet_is_scipys_and_torchmetrics(n, d):
    a, b = mixed(drawn(n, d, 0), 2), mixed(drawn(n + 7, d, 1, 1.5, 0.3), 3) ** 2
    ours = frechet(a, b)
    covs = [np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (a, b)]
    root = linalg.sqrtm(covs[0] @ covs[1])
    by_hand = (a.mean(0) - b.mean(0)).square().sum() + np.trace(covs[0] + covs[1] - 2 * root.real)
    assert ours == pytest.approx(float(by_hand), rel=1e-6)
    through = nn.Identity()
    through.num_features = d
    theirs = FrechetInceptionDistance(feature=through, normalize=True).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_in_closed_form_and_with_fewer_images_than_features():
    a = drawn(40, 100, 0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-4)
    assert frechet(a, a + 2) == pytest.approx(4 * 100, rel=1e-6)
    # Covariances that commute: the sum of (sqrt(u) - sqrt(v))^2 over their eigenvalues.
    assert frechet(a, 3 * a) == pytest.approx(
        4 * float(a.T.cov().trace() + a.mean(0).square().sum()), rel=1e-6
    )
    assert frechet(a, drawn(50, 100, 1)) == pytest.approx(frechet(drawn(50, 100, 1), a), rel=1e-6)


def test_at_infinity_the_bias_is_gone():
    """Sets of one distribution: the truth is 0, and finite samples say more."""
    plain, corrected = [], []
    for seed in range(8):
        a, b = drawn(400, 20, seed), drawn(400, 20, 100 + seed)
        plain.append(frechet(a, b))
        corrected.append(frechet_infinity(a, b, seed=seed))
    assert min(plain) > 0.3
    assert abs(np.mean(corrected)) < 0.25 * np.mean(plain)
    # And with a distance: a shift of 0.5 in each of 20 dimensions is 5.
    a, b = drawn(2000, 20, 0), drawn(2000, 20, 1, shift=0.5)
    assert frechet_infinity(a, b) == pytest.approx(5, abs=0.3)
    assert frechet_infinity(a, b, seed=3) == frechet_infinity(a, b, seed=3)
    assert frechet_infinity(a, b, seed=3) != frechet_infinity(a, b, seed=4)


class Pixels(nn.Module):
    """An extractor that takes the means of the colours for features, times 10."""

    def features(self, x: Tensor) -> Tensor:
        return 10 * x.mean((2, 3))


def painted(n: int, seed: int, shift: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.normal(128 + shift, 20, (n, 1, 1, 3)).round().clip(0, 255).astype(np.uint8)
    return Split(torch.from_numpy(x).expand(-1, 2, 2, -1), torch.zeros(n).long())


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    # A shift of 25 levels is 10 * 25 / 255 in each of three colours.
    truth, hit, half, biased = 3 * (250 / 255) ** 2, 0, 0, 0
    for seed in range(40):
        sets = painted(60, seed), painted(60, 1000 + seed, 25)
        row = domain_gap(Pixels(), *sets, 60, draws=100)
        hit += row["low"] < truth < row["high"]
        row = domain_gap(Pixels(), *sets, 60, draws=100, level=0.5)
        half += row["low"] < truth < row["high"]
        biased += row["frechet"] > truth
        assert row["n"] == 60 and row["block"] == 3 and row["low"] < row["high"]
    assert hit >= 33  # of 40 at 95 %; fewer than 33 have a chance below 1 in 1,000
    assert 10 <= half <= 30, "an interval that is too wide says nothing"
    assert biased >= 20


class Given(nn.Module):
    """An extractor that reads off the features that an image holds as pixels."""

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def test_many_features_and_few_images_are_taken_in_blocks_of_directions():
    """With 300 images and 300 features neither the distance nor its interval would hold."""
    hit, own, found = 0, 0, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        spread = 60 / np.sqrt(np.arange(1, 301)).reshape(10, 10, 3)
        sets = [
            Split(
                torch.from_numpy(
                    (128 + spread * rng.standard_normal((300, 10, 10, 3))).clip(0, 255)
                ).to(torch.uint8),
                torch.zeros(300).long(),
            )
            for _ in range(2)
        ]
        row = domain_gap(Given(), *sets, 300, draws=60)
        assert row["block"] == 32
        hit += row["low"] < 0 < row["high"]
        own += row["low"] < row["frechet_infinity"] < row["high"]
        found.append((row["frechet"], row["frechet_infinity"]))
    assert hit >= 10 and own >= 10
    assert abs(np.mean([f for _, f in found])) < 0.1 * np.mean([f for f, _ in found])


def test_turning_keeps_distances_and_is_the_same_for_all():
    x = drawn(40, 256, 0)
    assert turned(x)[:5].numpy() == pytest.approx(turned(x[:5]).numpy())
    assert torch.cdist(turned(x), turned(x)).numpy() == pytest.approx(
        torch.cdist(x, x).numpy(), abs=1e-5
    )
    a, b = mixed(drawn(400, 20, 0), 2), mixed(drawn(400, 20, 1, 1.5, 0.3), 3)
    assert frechet(turned(a), turned(b)) == pytest.approx(frechet(a, b))
    assert float(turned(torch.eye(256, dtype=torch.float64)).abs().max()) < 0.5, "all are mixed"


def test_blocks_add_up_to_the_whole_where_they_do_not_covary():
    a, b = drawn(500, 12, 0), drawn(400, 12, 1, 1.5, 0.3)
    assert blockwise(a, b, 12) == blockwise(a, b, 50) == frechet(a, b)
    by_hand = frechet(a[:, :5], b[:, :5]) + frechet(a[:, 5:10], b[:, 5:10])
    assert blockwise(a, b, 5) == pytest.approx(by_hand + frechet(a[:, 10:], b[:, 10:]))
    # One direction a block: the sum of (difference of means)^2 + (difference of deviations)^2.
    apart = (a.mean(0) - b.mean(0)).square() + (a.std(0) - b.std(0)).square()
    assert blockwise(a, b, 1) == pytest.approx(float(apart.sum()), rel=1e-6)
    # What covaries between blocks is left out: the sum is at most the whole.
    a, b = mixed(drawn(900, 12, 0), 2), mixed(drawn(900, 12, 1), 3)
    assert blockwise(a, b, 1) < blockwise(a, b, 4) < frechet(a, b)


def test_the_gap_does_not_depend_on_which_directions_are_taken(monkeypatch):
    """In 32 of 256 random directions a distance is anything from half to double of what it is."""
    spread = 1 / np.sqrt(np.arange(1, 257))
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(spread * rng.standard_normal((800, 256))) for _ in range(2))
    b[:, :40] += 0.5 * torch.from_numpy(spread[:40])
    found = []
    for seed in range(6):
        rotation = torch.linalg.qr(drawn(256, 256, seed))[0]
        found.append(blockwise(a @ rotation, b @ rotation, 32))
    assert np.std(found) < 0.02 * np.mean(found)


def test_a_nearer_set_has_a_smaller_gap_whatever_the_network_is_in():
    glyphs, digits = load("glyphs", size=16), load("digits", size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("resnet10s", 10, 4)
    model.train()
    state = torch.get_rng_state()
    near = domain_gap(model, glyphs.train, glyphs.test, 150, draws=20)
    far = domain_gap(model, glyphs.train, digits.test, 150, draws=20)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert far["low"] > near["high"] and far["frechet_infinity"] > near["frechet_infinity"]
    assert near["frechet_infinity"] < near["frechet"]
    assert domain_gap(model, glyphs.train, digits.test, 150, draws=20) == far
    found = features(model, glyphs.test)
    assert found.dtype == torch.float64 and found.shape == (len(glyphs.test), 32)
    assert far["block"] == 150 // 8


def test_a_feature_that_is_none_is_refused():
    class Broken(Pixels):
        def features(self, x: Tensor) -> Tensor:
            return super().features(x) / 0

    with pytest.raises(training.NotFinite, match="not all are finite"):
        domain_gap(Broken(), painted(60, 0), painted(60, 1), 60)


def test_rank_correlation_is_scipys_and_its_p_exact():
    rng = np.random.default_rng(0)
    for n in (4, 6, 8, 30):
        x = rng.normal(size=n)
        y = x + rng.normal(size=n)
        rho, low, high, p = rank_correlation(x, y)
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
        assert -1 <= low < rho < high <= 1
        if n == 30:
            assert p == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.01)
        assert rank_correlation(np.exp(x), y**3) == (rho, low, high, p)
    # By hand: of 24 orders of four, one is as much in line as this and one as much against it.
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40])[3] == pytest.approx(2 / 24)
    assert rank_correlation([1, 2, 3], [3, 2, 1])[3] == pytest.approx(2 / 6)


def test_few_tasks_in_line_do_not_make_a_sure_thing():
    widths = []
    for n in (3, 4, 6, 10, 20):
        rho, low, high, _ = rank_correlation(range(n), range(n))
        mirrored = rank_correlation(range(n), range(n)[::-1])
        assert rho == pytest.approx(1) and high == pytest.approx(1)
        assert mirrored[0] == pytest.approx(-1) and mirrored[2] == -low
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    # Of 6 orders of three, one is in line: unrelated tasks are so in a sixth of all cases.
    assert widths[0] > 1 and widths[1] > 1 and widths[-1] < 0.3


@pytest.mark.parametrize("r", [0.0, 0.7])
def test_the_interval_of_a_rank_correlation_covers(r, monkeypatch):
    truth, hit, half = 6 / np.pi * math.asin(r / 2), 0, 0
    rng = np.random.default_rng(1)
    for _ in range(60):
        x, e = rng.normal(size=(2, 6))
        y = r * x + math.sqrt(1 - r * r) * e
        _, low, high, _ = rank_correlation(x, y)
        hit += low - 0.02 <= truth <= high + 0.02
        with monkeypatch.context() as patch:
            patch.setattr(suite, "LEVEL", 0.5)
            _, low, high, _ = rank_correlation(x, y)
        half += low <= truth <= high
    assert hit >= 51  # of 60 at 95 %: fewer have a chance below 1 in 1,000
    assert half <= 48, "an interval that is too wide says nothing"


def test_what_has_no_order_has_no_correlation():
    flat = ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3], [5, 5, 5])
    for x, y in (*flat, ([1, 2], [1, 2]), ([], []), ([1, 2, math.nan], [1, 2, 3])):
        assert all(math.isnan(v) for v in rank_correlation(x, y))
    rho, low, high, _ = rank_correlation([1, 2, 2, 3, 4], [1, 3, 2, 2, 5])
    assert rho == pytest.approx(stats.spearmanr([1, 2, 2, 3, 4], [1, 3, 2, 2, 5]).statistic)
    assert low < rho < high
