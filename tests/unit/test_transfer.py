"""Transfer: the frozen stays frozen, C is chosen on val, the stored network is the row's."""

import importlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn

from robustlib import models, stages, training
from robustlib.data import Dataset, Split, load, packs
from robustlib.data.packs import Pack
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.tickets import Mask, omp
from robustlib.transfer import finetune, linear

linear_module = importlib.import_module("robustlib.transfer.linear")
PRETRAIN = Pretrain(source="digits", width=4, stem_stride=1, size=8, epochs=2)


def split(y: list[int] | np.ndarray, seed: int, noise: float) -> Split:
    """Noisy images whose class is the colour of one of their halves."""
    rng = np.random.default_rng(seed)
    y = np.asarray(y)
    colours = np.random.default_rng(0).uniform(80, 170, (12, 3))
    x = rng.normal(125, noise, (len(y), 8, 8, 3))
    x[:, :4] += (colours[y] - 125)[:, None, None]
    return Split(torch.from_numpy(x.clip(0, 255).astype(np.uint8)), torch.from_numpy(y))


def dataset(train: list[int], k: int = 5, n: int = 100, noise: float = 20.0) -> Dataset:
    y = np.arange(n) % k
    parts = (split(t, i, noise) for i, t in enumerate((train, y[: n // 2], y)))
    return Dataset("halves", *parts, tuple("abcdefghijkl"[:k]), 8)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("resnet10s", 7, width=4)


def classes(k: int, n: int) -> list[int]:
    return [i % k for i in range(n)]


def features(net: nn.Module, part: Split) -> np.ndarray:
    with torch.no_grad():
        return net.eval().features(part.x.permute(0, 3, 1, 2) / 255).numpy()


def predictions(net: nn.Module, part: Split) -> np.ndarray:
    return training.logits(net, part)[0].argmax(1).numpy()


@pytest.mark.parametrize(
    ("train", "k"),
    [
        pytest.param(classes(5, 60), 5, id="all-classes"),
        pytest.param(classes(2, 40), 2, id="two-classes"),
        pytest.param(classes(5, 5), 5, id="one-image-each"),
        pytest.param([0, 2, 4] * 10, 5, id="classes-missing"),
        pytest.param([1, 3] * 10, 5, id="two-of-five-classes"),
        pytest.param([11, 3, 3, 7], 12, id="four-images"),
    ],
)
def test_the_head_predicts_what_scikit_learn_does(train, k):
    data, net = dataset(train, k), model()
    mask = omp(net, 0.5)
    head, measures = linear(mask.apply(net), data)
    regression = LogisticRegression(C=measures["C"], max_iter=1000, tol=1e-3)
    fit = make_pipeline(StandardScaler(), FunctionTransformer(np.float64), regression)
    fit.fit(features(net, data.train), data.train.y.numpy())
    net = models.swap_head(net, k)
    assert not net.load_state_dict(head, strict=False).unexpected_keys
    for part, correct in ((data.test, "test_correct"), (data.val, "val_correct")):
        ours = predictions(net, part)
        assert (ours == fit.predict(features(net, part))).all()
        sure = np.zeros((len(part), k))  # a class that training lacks has no probability at all
        sure[:, fit.classes_] = fit.predict_proba(features(net, part))
        ours_sure = training.logits(net, part)[0].softmax(1).numpy()
        np.testing.assert_allclose(ours_sure, sure, atol=1e-4)
        assert not ours_sure[:, sorted(set(range(k)) - set(train))].any()
        assert (ours == part.y.numpy()).sum() == measures[correct]
        assert set(ours) <= set(train)
    assert measures["test_correct"] > 1.2 * len(data.test) / k or len(set(train)) < k


def test_linear_leaves_the_backbone_and_its_statistics_alone():
    data, net = dataset(classes(5, 60)), model().train()
    mask = omp(net, 0.5)
    mask.apply(net)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    linear(mask.apply(net), data)
    assert net.training
    for name, t in net.state_dict().items():
        assert torch.equal(t, before[name]), name
    assert int(before["bn1.num_batches_tracked"]) == 0


def test_linear_extracts_features_once_and_of_the_pruned_network(monkeypatch):
    data, net, seen = dataset(classes(5, 60)), model(), Counter()
    mask = omp(net, 0.9)
    extract = net.features

    def counting(x):
        seen[len(x)] += 1
        assert net.conv1.weight.count_nonzero() == mask["conv1.weight"].sum()
        return extract(x)

    monkeypatch.setattr(net, "features", counting)
    linear(mask.apply(net), data)
    assert seen == {60: 1, 50: 1, 100: 1}


def test_c_is_chosen_on_val_and_the_test_labels_have_no_say():
    data, net = dataset(classes(5, 60), noise=60), model()
    mask = omp(net, 0.5)
    mask.apply(net)
    head, measures = linear(mask.apply(net), data)
    shuffled = Split(data.test.x, data.test.y.roll(1))
    head_2, measures_2 = linear(mask.apply(net), replace(data, test=shuffled))
    assert measures_2["C"] == measures["C"] and measures_2["val_correct"] == measures["val_correct"]
    assert all(torch.equal(t, head_2[n]) for n, t in head.items())
    assert measures_2["test_correct"] != measures["test_correct"]
    # With val labels that one C predicts without a mistake, no C that predicts others is chosen.
    scaler = StandardScaler().fit(features(net, data.train))
    x, x_val = (scaler.transform(features(net, part)) for part in (data.train, data.val))
    answers = {}
    for c in linear_module.STRENGTHS:
        fit = LogisticRegression(C=c, max_iter=1000, tol=1e-3)
        answers[c] = fit.fit(x.astype(np.float64), data.train.y).predict(x_val.astype(np.float64))
    assert (answers[1e-4] != answers[10.0]).any()
    for c, answer in answers.items():
        val = Split(data.val.x, torch.from_numpy(answer))
        chosen = linear(mask.apply(net), replace(data, val=val))[1]
        equal = [s for s in answers if (answers[s] == answer).all()]
        assert chosen["C"] == min(equal) and chosen["val_correct"] == len(answer), c


def test_of_equally_good_values_of_c_the_smallest_is_taken():
    data, net = dataset(classes(2, 40), k=2, noise=1), model()
    measures = linear(omp(net, 0.1).apply(net), data)[1]
    assert set(measures["val_correct_by_C"].values()) == {50}
    assert measures["C"] == min(linear_module.STRENGTHS) == 1e-4
    assert len(measures["val_correct_by_C"]) == len(linear_module.STRENGTHS)


def tuned(data: Dataset, net: nn.Module, **fields) -> tuple[nn.Module, Mask, dict]:
    mask = omp(net, 0.7)
    spec = Transfer(**{"epochs": 8, "batch_size": 20, "augment": "none"} | fields)
    net, measures = finetune(mask.apply(net), data, spec)
    return net, mask, measures


def test_finetuning_learns_the_task_and_keeps_removed_weights_at_zero(monkeypatch):
    data, seen, correct = dataset(classes(5, 100)), Counter(), training.correct

    def counting(net, part):
        seen[len(part)] += 1
        return correct(net, part)

    monkeypatch.setattr(training, "correct", counting)
    start = model().state_dict()
    net, mask, measures = tuned(data, model())
    assert seen[len(data.test)] == 1  # the test images are used once
    assert measures["test_correct"] > 0.5 * len(data.test)
    assert measures["test_correct"] == (predictions(net, data.test) == data.test.y.numpy()).sum()
    assert measures["val_correct"] == (predictions(net, data.val) == data.val.y.numpy()).sum()
    losses = [row["loss"] for row in measures["curve"]]
    assert len(losses) == 8 and losses[-1] < 0.7 * losses[0]
    assert net.fc.out_features == 5 and not net.training
    for name, m in mask.items():
        w = net.get_parameter(name).detach()
        assert not w[~m].any() and (w[m] != start[name][m]).all(), name
    assert not torch.equal(net.bn1.running_mean, start["bn1.running_mean"])


def test_finetuning_follows_from_the_spec_and_the_training_images_alone():
    data = dataset(classes(5, 40))
    torch.manual_seed(1)
    one = tuned(data, model(), epochs=2)[0].state_dict()
    other_labels = [Split(p.x, p.y.roll(1)) for p in (data.val, data.test)]
    blind = Dataset(data.name, data.train, *other_labels, data.class_names, data.native)
    torch.manual_seed(2)
    two = tuned(blind, model(), epochs=2)[0].state_dict()
    assert all(torch.equal(t, two[n]) for n, t in one.items())
    three = tuned(data, model(), epochs=2, seed=1)[0].state_dict()
    assert not torch.equal(one["fc.weight"], three["fc.weight"])


def test_no_epochs_leave_the_ticket_and_the_callers_random_numbers_as_they_are():
    net, state = model(), torch.random.get_rng_state()
    net, mask, measures = tuned(dataset(classes(5, 40)), net, epochs=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert measures["curve"] == []
    for name, t in model().state_dict().items():
        if not name.startswith("fc."):
            kept = mask[name] if name in mask else torch.ones_like(t, dtype=torch.bool)
            assert torch.equal(net.state_dict()[name], torch.where(kept, t, 0)), name


def test_the_network_of_a_transfer_has_the_accuracy_of_its_row_in_every_mode():
    data, tensors = load("digits", size=8), {}
    ticket = Ticket(PRETRAIN, sparsity=0.8)
    for mode in ("finetune", "linear"):
        for recalibrate in (False, True):
            spec = Transfer(
                ticket, "digits", mode, n_train=60, epochs=3, recalibrate=recalibrate, seed=2
            )
            artifact, net = stages.run(spec), stages.network(spec)
            assert training.correct(net, data.test) / 359 == artifact.row["accuracy"]
            val = load("digits", size=8, n_train=60, seed=2).val
            assert training.correct(net, val) / len(val) == artifact.row["val_accuracy"]
            assert not net.training
            for name, m in stages.mask(ticket).items():
                assert not net.get_parameter(name)[~m].any()
            tensors[mode, recalibrate] = artifact.tensors()
            backbone = stages.network(ticket).bn1.running_mean
            frozen = mode == "linear" and not recalibrate
            assert torch.equal(net.bn1.running_mean, backbone) == frozen
    # Features change with the statistics. Training goes by those of its batches, and only carries
    # the recalibrated ones on into the network that it ends with.
    for mode, changed in (("linear", "fc.weight"), ("finetune", "bn1.running_mean")):
        assert not torch.equal(tensors[mode, False][changed], tensors[mode, True][changed])


@pytest.mark.parametrize(("k", "n_train"), [(5, 3), (5, 5), (2, 2), (2, 10)])
def test_tiny_budgets_run_from_spec_to_network(tmp_path, monkeypatch, k, n_train):
    """Fewer images than classes, one image a class, two classes: in both modes."""
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    data = dataset(classes(k, 60), k)
    arrays = {
        f"{a}_{s}": getattr(getattr(data, s), a).numpy() for s in ("train", "test") for a in "xy"
    }
    packs.write(tmp_path / "halves.npz", Pack(arrays, data.class_names, "folder"))
    for mode in ("finetune", "linear"):
        pretrain = replace(PRETRAIN, source="halves", epochs=1, batch_size=30)
        spec = Transfer(Ticket(pretrain, sparsity=0.5), "halves", mode, n_train=n_train, epochs=1)
        row, net = stages.run(spec).row, stages.network(spec)
        assert row["n_train_measured"] == n_train and net.fc.out_features == k
        assert training.correct(net, data.test) / row["n"] == row["accuracy"]
        if mode == "linear":
            present = set(load("halves", size=8, n_train=n_train).train.y.tolist())
            assert len(present) == min(k, n_train)
            assert set(predictions(net, data.test).tolist()) <= present
