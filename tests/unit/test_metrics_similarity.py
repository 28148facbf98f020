"""CKA: what it must not see, what it must, and HSIC written out."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from robustlib import models
from robustlib.data import batches, load
from robustlib.metrics import similarity
from robustlib.metrics.sample import sample
from robustlib.metrics.similarity import LAYERS, activations, linear_cka, measure
from robustlib.specs import Evaluation, Pretrain


def drawn(n: int, p: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, p, generator=generator, dtype=torch.float64)


def network(seed: int, width: int = 4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build("resnet10s", 10, width)


def cka(a, b, split, **fields) -> tuple[dict, list[dict]]:
    spec = Evaluation(suite="similarity", other=Pretrain(), **fields)
    row, tables = measure(a, SimpleNamespace(test=split), spec, other=b)
    return row, tables["layers"]


def by_hand(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. (2019), equation 3, with the centring matrix written out."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - torch.ones(n, n, dtype=torch.float64) / n

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        return torch.trace(a @ a.T @ centre @ b @ b.T @ centre) / (n - 1) ** 2

    return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())


def unbiased_by_hand(x: Tensor, y: Tensor) -> float:
    """Song et al. (2012): the mean over quadruples of different images, summed in full."""
    n = len(x)
    k, m = x @ x.T, y @ y.T

    def hsic(k: Tensor, m: Tensor) -> float:
        pairs = triples = fours = 0.0
        for i in range(n):
            for j in set(range(n)) - {i}:
                pairs += float(k[i, j] * m[i, j])
                for q in set(range(n)) - {i, j}:
                    triples += float(k[i, j] * m[i, q])
                    for r in set(range(n)) - {i, j, q}:
                        fours += float(k[i, j] * m[q, r])
        two, three = n * (n - 1), n * (n - 1) * (n - 2)
        return pairs / two - 2 * triples / three + fours / (three * (n - 3))

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("p", "q"), [(3, 5), (40, 12)])
def test_it_is_hsic_written_out_in_gram_and_in_feature_form(p, q):
    x, y = drawn(9, p, 0), drawn(9, q, 1)
    y[:, :3] += x[:, :3]
    plain, debiased = linear_cka(x + 5, y - 3)
    assert plain == pytest.approx(by_hand(x, y), abs=1e-12)
    assert debiased == pytest.approx(unbiased_by_hand(x, y), abs=1e-9)
    x, y = x - x.mean(0), y - y.mean(0)
    features = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain == pytest.approx(float(features), abs=1e-12)


def test_it_sees_no_rotation_scale_or_shift_but_other_linear_maps():
    x = drawn(200, 10, 0)
    rotation, _ = torch.linalg.qr(drawn(10, 10, 1))
    for same in (x, x @ rotation, 0.01 * x, x + 100, -3 * x @ rotation + 1):
        assert linear_cka(x, same) == pytest.approx((1, 1), abs=1e-9)
    y = drawn(200, 10, 2) + 0.5 * x
    assert linear_cka(x @ rotation, 7 * y) == pytest.approx(linear_cka(x, y), abs=1e-9)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), abs=1e-12)
    stretched = x * torch.tensor([10.0] + [1] * 9)
    assert linear_cka(x, stretched)[0] < 0.6


def test_unrelated_features_are_around_zero_once_debiased():
    wide = [linear_cka(drawn(60, 400, s), drawn(60, 400, 100 + s)) for s in range(5)]
    # 400 features of 60 images: the plain measure takes them for alike, the debiased does not.
    assert all(plain > 0.8 and abs(debiased) < 0.1 for plain, debiased in wide)
    narrow = linear_cka(drawn(2000, 5, 0), drawn(2000, 5, 1))
    assert narrow[0] < 0.02 and abs(narrow[1]) < 0.02
    assert all(math.isnan(v) for v in linear_cka(torch.ones(9, 2), drawn(9, 2, 0)))


def test_a_network_is_like_itself_and_less_like_another():
    test = load("digits", size=16).test
    a, b = network(0), network(1)
    a.train()
    row, table = cka(a, a, test, limit=80)
    assert a.training and [r["layer"] for r in table] == list(LAYERS) and row["n"] == 80
    assert all(r["cka"] == pytest.approx(1) for r in table)
    assert all(r["cka_debiased"] == pytest.approx(1) for r in table)
    row, other = cka(a, b, test, limit=80)
    assert all(0 < r["cka"] < 0.999 for r in other)
    assert row["cka"] == pytest.approx(sum(r["cka"] for r in other) / 5)
    _, wider = cka(a, network(2, width=8), test, limit=80)  # widths may differ
    assert all(0 < r["cka"] < 1 for r in wider)


def test_activations_are_those_of_the_layer_convolutions_included(monkeypatch):
    test, model = load("digits", size=16).test, network(0).eval()
    x = torch.cat([x for x, _ in batches.ordered(test)])
    with torch.no_grad():
        maps, pooled = model.pyramid(x), model.features(x)
        stem = model.conv1((x - model.mean) / model.std)
    for i, want in enumerate(maps):
        assert torch.allclose(activations(model, test, f"layer{i + 1}"), want.flatten(1), atol=1e-5)
    assert torch.allclose(activations(model, test, "avgpool"), pooled, atol=1e-5)
    # The normalisation after a convolution and the ReLU in place after it must not be seen.
    assert torch.allclose(activations(model, test, "conv1"), stem.flatten(1), atol=1e-5)
    bn = activations(model, test, "bn1")
    assert (bn < 0).any()
    assert not any(m._forward_hooks for m in model.modules())
    monkeypatch.setattr(similarity, "LAYERS", ("conv1", "layer1.0.conv1"))
    _, table = cka(model, model, test, limit=20)
    assert [r["layer"] for r in table] == ["conv1", "layer1.0.conv1"]


def test_each_row_is_linear_cka_of_the_two_networks_activations():
    test, (a, b) = sample(load("digits", size=16).test, 40), (network(0), network(1))
    row, table = cka(a, b, test)
    for line in table:
        pair = (activations(net, test, line["layer"]) for net in (a, b))
        assert (line["cka"], line["cka_debiased"]) == pytest.approx(linear_cka(*pair))
        assert line["cka_debiased"] < line["cka"]
    for name in ("cka", "cka_debiased"):
        assert row[name] == pytest.approx(sum(line[name] for line in table) / len(table))


def test_what_comes_after_a_layer_in_place_is_not_seen():
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.ReLU(inplace=True))
    model[0].forward = lambda x: (x - 0.5).contiguous()
    test = load("digits", size=16).test
    assert (activations(model, test, "0") < 0).any()


def test_columns_are_multiplied_in_parts(monkeypatch):
    x, y = drawn(9, 40, 0), drawn(9, 12, 1)
    whole = linear_cka(x, y)
    monkeypatch.setattr(similarity, "COLUMNS", 7)
    assert linear_cka(x, y) == pytest.approx(whole, abs=1e-12)
