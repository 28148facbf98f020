"""The whole pipeline on a set that is read file by file (`FileSplit`): ImageNet, or any in its
layout. Here three classes, of pictures of several sizes."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import killed_at
from PIL import Image

from robustlib import deployment, models, specs, stages, store, training
from robustlib.data import load
from robustlib.data.splits import FileSplit
from robustlib.metrics.sample import in_memory
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer
from robustlib.stages import pretrain, run
from robustlib.sweeps import sweep

PER_CLASS = {"train": 10, "val": 4}
PRETRAIN = Pretrain(source="imagenet", width=16, epochs=1, batch_size=8)
OBJECTIVES = {
    "natural": {},
    "pgd": {"eps": 0.3},
    "trades": {"eps": 0.3},
    "free": {"eps": 0.3, "replays": 2},
    "smoothing": {"sigma": 0.1},
}
TICKETS = {
    "dense": {},
    "omp": {"sparsity": 0.5},
    "random": {"sparsity": 0.5},
    "lmp": {"sparsity": 0.5},
    "imp": {"sparsity": 0.5, "rounds": (0.3,), "rewind": 1},
}
TRAINED = {"epochs": 1, "batch_size": 8}
LINEAR = Transfer(Ticket(PRETRAIN, sparsity=0.5), "imagenet", "linear", n_train=None)
EVALUATIONS = [
    Evaluation(LINEAR, "adversarial", eps=0.1, limit=3),
    Evaluation(LINEAR, "calibration", scaled=True),
    Evaluation(LINEAR, "certified", sigma=0.1, draws=20, limit=3),
    Evaluation(LINEAR, "corruption", limit=3),
    Evaluation(PRETRAIN, "domain_gap", against="imagenet", limit=8),
    Evaluation(PRETRAIN, "domain_gap", against="digits", limit=8),
    Evaluation(LINEAR, "ood", against="digits", limit=8),
    Evaluation(replace(LINEAR, task="digits", n_train=30), "ood", against="imagenet", limit=8),
    Evaluation(LINEAR, "similarity", other=PRETRAIN, limit=8),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Iterator[tuple[Path, Path]]:
    """The folder of the data, and a store with LINEAR and all that it is built on."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, n in PER_CLASS.items():
        for k in range(3):
            folder = root / "imagenet" / split / f"n0{k}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 80, (36 + i, 40, 3), dtype=np.uint8)
                pixels[..., k] += 100
                kind, suffix = (("RGB", "JPEG"), ("L", "png"))[i % 4 == 3]
                Image.fromarray(pixels).convert(kind).save(folder / f"{i}.{suffix}")
    folder = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_DATA", str(root))
        patch.setenv("ROBUSTLIB_STORE", str(folder))
        run(LINEAR)
    return root, folder


@pytest.fixture(autouse=True)
def _here(made, monkeypatch) -> None:
    root, folder = made
    monkeypatch.setenv("ROBUSTLIB_DATA", str(root))
    shutil.copytree(folder, store.root())


def n_test() -> int:
    return 3 * PER_CLASS["val"]


def test_everything_is_tried_here():
    assert set(OBJECTIVES) == set(specs.OBJECTIVES) and set(TICKETS) == set(specs.SCHEMES)
    assert {spec.suite for spec in EVALUATIONS} == set(specs.SUITES)
    data = load("imagenet", size=32)
    assert all(isinstance(s, FileSplit) for s in (data.train, data.val, data.test))
    assert [len(s) for s in (data.train, data.val, data.test)] == [27, 3, n_test()]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_pretrains(objective):
    spec = replace(PRETRAIN, objective=objective, **OBJECTIVES[objective])
    found = run(spec)
    assert found.row["n"] == n_test() and len(found.extra["curve"]) == 1
    tensors = found.tensors()
    assert tensors["fc.weight"].shape[0] == 3
    pixels = in_memory(load("imagenet", size=32).train).x.numpy() / 255
    for name, expected in (("mean", pixels.mean((0, 1, 2))), ("std", pixels.std((0, 1, 2)))):
        np.testing.assert_allclose(tensors[name].flatten(), expected, rtol=1e-6)


def test_a_sweep_of_files_is_what_run_gives(tmp_path, monkeypatch):
    """Its workers may have no processes of their own to decode in."""
    spec = replace(PRETRAIN, seed=1)
    (row,) = sweep([spec], workers=1).to_dict("records")
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "other"))
    assert {**row, "seconds": 0} == {**run(spec).row, "seconds": 0}


def test_a_network_of_imagenets_kind_pretrains_at_another_size():
    row = run(replace(PRETRAIN, arch="resnet18", size=64, n_train=8)).row
    assert row["n"] == n_test() and row["parameters"] > 11e6


def test_a_published_network_is_measured_on_the_files(tmp_path):
    model = models.build("resnet18", 3)
    torch.save(model.state_dict(), tmp_path / "published.pt")
    published = str(tmp_path / "published.pt")
    spec = Pretrain(source="imagenet", arch="resnet18", size=64, checkpoint=published)
    row = run(spec).row
    assert row["n"] == n_test() and 0 <= row["val_accuracy"] <= 1


@pytest.mark.parametrize("dataset", ["", "imagenet", "digits"])
@pytest.mark.parametrize("scheme", TICKETS)
def test_every_scheme_draws_a_ticket(scheme, dataset):
    trained = TRAINED | {"dataset": dataset, "n_train": 16} if scheme in ("imp", "lmp") else {}
    spec = Ticket(PRETRAIN, scheme, **TICKETS[scheme], **trained)
    row = run(spec).row
    assert row["sparsity_measured"] == pytest.approx(spec.sparsity, abs=1e-3)
    if scheme == "imp" and dataset == "imagenet":
        run(replace(spec, objective="pgd", eps=0.3))


@pytest.mark.parametrize("recalibrate", [False, True])
@pytest.mark.parametrize("task", ["imagenet", "digits"])
@pytest.mark.parametrize("mode", ["finetune", "linear"])
def test_every_mode_transfers(mode, task, recalibrate):
    spec = replace(LINEAR, mode=mode, task=task, recalibrate=recalibrate, n_train=24, **TRAINED)
    row = run(spec).row
    assert row["n_train_measured"] == 24 and 0 <= row["accuracy"] <= 1
    assert row["n"] == (n_test() if task == "imagenet" else 359)
    stages.network(spec)


@pytest.mark.parametrize("augment", specs.AUGMENTS)
def test_every_augmentation_transfers(augment):
    run(replace(LINEAR, mode="finetune", augment=augment, **TRAINED))


def test_its_ticket_segments():
    row = run(Transfer(LINEAR.ticket, "glyphs_seg", "segment", n_train=8, **TRAINED)).row
    assert 0 < row["miou"] < 1


@pytest.mark.filterwarnings("ignore:temperature")
@pytest.mark.parametrize("spec", EVALUATIONS, ids=lambda s: f"{s.suite}-{s.against}")
def test_every_suite_measures(spec):
    row = run(spec).row
    measured = set(row) - set(specs.columns(spec)) - {"key", "seconds", *store.versions()}
    assert measured and all(np.isfinite(row[name]) for name in measured)
    counted = {"certified": "n_images", "ood": "n_inside"}.get(spec.suite, "n")
    assert row[counted] == (spec.limit or n_test())


def test_its_ticket_is_deployed():
    spec = replace(LINEAR, ticket=Ticket(PRETRAIN), mode="finetune", **TRAINED)
    frame = deployment.measure(spec, rounds=1, batch_sizes=[1])
    assert frame.form.tolist() == ["fp32", "int8"] and (frame.n == n_test()).all()


def test_unfinished_training_goes_on_to_the_same_bits(monkeypatch):
    spec, (interrupting, epochs) = replace(PRETRAIN, epochs=2), killed_at(2, pretrain._monitor)
    expected = run(spec).tensors()
    shutil.rmtree(store.path(spec))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(pretrain, "_monitor", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(spec)
    assert store.checkpoint(spec).exists()
    resumed = run(spec).tensors()
    assert len(epochs) == 3 and all(torch.equal(t, expected[n]) for n, t in resumed.items())
