"""run(spec): computed once, stored whole, built on what it names, and the same every time."""

import os
import shutil
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import killed_at, store_of
from PIL import Image
from torch import nn

from robustlib import models, specs, stages, store, tickets, training
from robustlib.data import load
from robustlib.data.splits import FileSplit, Split
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.stages import network, pretrain, run, ticket, transfer
from robustlib.store import Damaged

PRETRAIN = Pretrain(source="digits", width=4, stem_stride=1, size=8, epochs=2)
TICKET = Ticket(PRETRAIN, sparsity=0.8)
LINEAR = Transfer(TICKET, task="digits", mode="linear", n_train=60)
STAGES = {m.__name__.rpartition(".")[2]: m for m in (pretrain, ticket, transfer)}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A store that holds PRETRAIN."""
    return store_of(tmp_path_factory, PRETRAIN)


@pytest.fixture
def trained(pretrained) -> None:
    """Puts PRETRAIN into the store of the test."""
    shutil.copytree(pretrained, store.root())


@pytest.fixture
def counted(monkeypatch) -> dict[str, int]:
    """How often each stage was computed."""
    counts = dict.fromkeys(STAGES, 0)

    def counting(name, compute):
        def wrapper(spec, inputs):
            counts[name] += 1
            return compute(spec, inputs)

        return wrapper

    for name, stage in STAGES.items():
        monkeypatch.setattr(stage, "compute", counting(name, stage.compute))
    return counts


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def fake() -> tuple[dict, dict, dict]:
    return {"accuracy": 0.5}, {"w": torch.ones(3)}, {}


def test_a_result_and_what_it_is_built_on_are_computed_once(counted):
    first = run(LINEAR)
    assert list(counted.values()) == [1, 1, 1]
    assert all(store.has(s) for s in (LINEAR, TICKET, PRETRAIN))
    again = run(LINEAR)
    assert again == first and list(counted.values()) == [1, 1, 1]
    run(specs.from_dict(Transfer, specs.to_dict(LINEAR) | {"seed": 1}))
    network(LINEAR)
    assert list(counted.values()) == [1, 1, 2]


@pytest.mark.usefixtures("trained")
def test_the_row_has_the_columns_that_are_promised():
    row = run(LINEAR).row
    assert specs.columns(LINEAR).items() <= row.items()
    data = load("digits", size=8)
    assert row["n"] == len(data.test) and row["n_train_measured"] == 60
    assert row["accuracy"] * row["n"] == pytest.approx(round(row["accuracy"] * row["n"]), abs=1e-9)
    assert 0.2 < row["accuracy"] <= 1 and 0 <= row["val_accuracy"] <= 1
    mask, model = stages.mask(TICKET), network(LINEAR)
    n = sum(m.numel() for m in mask.values())
    assert row["sparsity_measured"] == pytest.approx(round(0.8 * n) / n, abs=1e-12)
    assert row["parameters"] == sum(int((p != 0).sum()) for p in model.parameters())
    assert row["multiply_adds"] == models.multiply_adds(model, 8)
    assert row["seconds"] > 0 and row["key"] == specs.key(LINEAR)
    assert {"robustlib_version", "torch_version", "scikit-learn_version"} <= set(row)
    frame = store.frame(Transfer)
    assert list(frame.columns) == list(row) and frame.iloc[0]["accuracy"] == row["accuracy"]
    sparse, dense = run(TICKET).row, run(Ticket(PRETRAIN, "dense")).row
    assert sparse["multiply_adds"] < 0.5 * dense["multiply_adds"]
    assert dense["sparsity_measured"] == sparse["empty_layers"] == 0


def test_the_seconds_of_a_result_are_its_own(monkeypatch):
    clock = {"now": 0.0}

    def slow(spec, inputs, compute=pretrain.compute):
        clock["now"] += 1000
        return compute(spec, inputs)

    monkeypatch.setattr(pretrain, "compute", slow)
    module = import_module("robustlib.stages.run")
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    run(LINEAR)
    seconds = [run(s).row["seconds"] for s in (PRETRAIN, TICKET, LINEAR)]
    assert seconds == [1000, 0, 0]


@pytest.mark.usefixtures("trained")
def test_a_network_is_what_its_artifact_says():
    data = load("digits", size=8)
    source = network(PRETRAIN)
    assert not source.training
    assert training.correct(source, data.test) / len(data.test) == run(PRETRAIN).row["accuracy"]
    mask = stages.mask(TICKET)
    assert mask == tickets.omp(source, 0.8)
    pruned = network(TICKET)
    for name, p in pruned.state_dict().items():
        kept = mask[name] if name in mask else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(p, torch.where(kept, source.state_dict()[name], 0)), name


def test_a_channel_ticket_is_trained_as_the_small_network_that_it_is(monkeypatch):
    wide = Pretrain(source="digits", width=16, stem_stride=1, size=8, epochs=0)
    sides, fit = [], training.fit

    def watched(model, *args, **kwargs):
        sides.append([m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)])
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(training, "fit", watched)
    whole = Ticket(wide, sparsity=0.5)
    for drawn in (whole, Ticket(wide, pattern="channel", scope="layer", sparsity=0.5)):
        run(Transfer(drawn, task="digits", n_train=60, epochs=1))
    dense, small = (np.array(s) for s in sides[-2:])
    assert (small <= dense).all() and small.sum() < 0.8 * dense.sum()


def test_the_same_spec_gives_the_same_bits(tmp_path, monkeypatch):
    both = []
    for name in ("a", "b"):
        monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / name))
        torch.manual_seed(len(both))
        finetuned = Transfer(TICKET, task="digits", n_train=60, epochs=2)
        both.append([run(s).tensors() for s in (PRETRAIN, TICKET, LINEAR, finetuned)])
    assert all(same(one, other) for one, other in zip(*both, strict=True))
    other = run(specs.from_dict(Pretrain, specs.to_dict(PRETRAIN) | {"seed": 1}))
    assert not torch.equal(other.tensors()["conv1.weight"], both[0][0]["conv1.weight"])


def test_a_damaged_result_is_named_and_computed_again_only_if_asked(trained, counted):
    before = run(PRETRAIN).tensors()
    file = store.path(PRETRAIN) / store.TENSORS
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for use in (lambda: run(PRETRAIN).tensors(), lambda: network(PRETRAIN), lambda: run(LINEAR)):
        with pytest.raises(Damaged, match=store.TENSORS):
            use()
    assert counted["pretrain"] == 0
    assert same(run(PRETRAIN, recompute=True).tensors(), before)
    assert counted["pretrain"] == 1 and len(store.frame(Pretrain)) == 1
    run(LINEAR)


def test_a_row_from_elsewhere_without_its_network_is_named_where_the_network_is_needed(trained):
    known, extra = run(PRETRAIN).row, run(PRETRAIN).extra
    store.put(PRETRAIN, {"accuracy": known["accuracy"]}, None, extra, replace=True)
    assert run(PRETRAIN).row["accuracy"] == known["accuracy"]
    for use in (lambda: network(PRETRAIN), lambda: run(TICKET), lambda: run(LINEAR)):
        with pytest.raises(ValueError, match="without its tensors") as e:
            use()
        assert f"run({specs.as_python(PRETRAIN)}, recompute=True)" in str(e.value)
    run(PRETRAIN, recompute=True)
    assert network(PRETRAIN) and run(LINEAR)


def test_a_recomputation_that_fails_loses_nothing(trained, monkeypatch):
    before = run(PRETRAIN)

    def failing(spec, inputs):
        raise training.NotFinite("the loss is nan")

    monkeypatch.setattr(pretrain, "compute", failing)
    with pytest.raises(training.NotFinite):
        run(PRETRAIN, recompute=True)
    assert run(PRETRAIN) == before and before.tensors()


def test_a_failure_stores_nothing_and_the_next_try_is_free(trained, monkeypatch):
    def failing(spec, inputs):
        raise training.NotFinite("the loss is nan")

    compute = ticket.compute
    monkeypatch.setattr(ticket, "compute", failing)
    with pytest.raises(training.NotFinite):
        run(LINEAR)
    assert not store.has(TICKET) and not store.has(LINEAR)
    monkeypatch.setattr(ticket, "compute", compute)
    assert run(LINEAR).row["n"] == 359


def test_two_processes_compute_one_result_once(tmp_path, monkeypatch):
    computed = tmp_path / "computed"

    def slow(spec, inputs):
        with open(computed, "a") as f:
            f.write("x")
        time.sleep(0.5)
        return fake()

    monkeypatch.setattr(pretrain, "compute", slow)
    children = []
    for _ in range(3):
        if not (pid := os.fork()):
            try:
                assert run(PRETRAIN).tensors()["w"].sum() == 3
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    assert computed.read_text() == "x" and store.get(PRETRAIN).row["accuracy"] == 0.5


@pytest.mark.parametrize("wrong", ["digits", None, Pretrain, Transfer, {"source": "digits"}])
def test_what_is_no_spec_is_refused_and_leaves_no_trace(wrong):
    with pytest.raises(ValueError, match="spec"):
        run(wrong)
    assert not store.root().exists()


def test_wrong_data_are_refused_before_anything_is_computed_or_written(counted):
    for wrong in (Transfer(TICKET, task="digitz"), Transfer(Ticket(Pretrain("digitz")), "digits")):
        with pytest.raises(ValueError, match="'digitz'.*'digits'"):
            run(wrong)
    with pytest.raises(ValueError, match="n_train=100000"):
        run(Transfer(TICKET, task="digits", n_train=100_000))
    assert not any(counted.values()) and not store.root().exists()


def test_an_interrupted_training_goes_on_to_the_same_bits(trained, tmp_path, monkeypatch):
    expected = run(PRETRAIN)
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "other"))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    interrupting, epochs = killed_at(2, pretrain._monitor)
    monkeypatch.setattr(pretrain, "_monitor", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(PRETRAIN)
    assert store.checkpoint(PRETRAIN).exists() and not store.has(PRETRAIN)
    resumed = run(PRETRAIN)
    # The first epoch was not trained again: it was watched once, the second twice.
    assert len(epochs) == 3
    assert same(resumed.tensors(), expected.tensors())
    assert [c["loss"] for c in resumed.extra["curve"]] == [
        c["loss"] for c in expected.extra["curve"]
    ]
    assert not store.checkpoint(PRETRAIN).exists()


@pytest.mark.usefixtures("trained")
def test_running_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(LINEAR)
    network(LINEAR)
    network(Transfer(TICKET, task="digits", n_train=60, epochs=1))
    run(PRETRAIN, recompute=True)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["grey", "colour", "files"])
@pytest.mark.parametrize("n", [1, 499, 501, 1001])
def test_the_statistics_of_a_source_are_those_of_all_its_pixels(n, kind, tmp_path):
    """The last image is unlike the others: what a short chunk says must weigh no more than it."""
    rng = np.random.default_rng(n)
    x = rng.integers(0, 60, (n, 8, 8, 1 if kind == "grey" else 3), dtype=np.uint8)
    x[-1] = rng.integers(150, 256, x.shape[1:])
    split = Split(torch.from_numpy(x), torch.zeros(n, dtype=torch.long))
    if kind == "files":
        x[:] = x[:, :1, :1]  # of one colour: what decoding does to edges is not at issue
        paths = [tmp_path / f"{i}.png" for i in range(n)]
        for path, image in zip(paths, x, strict=True):
            Image.fromarray(image).save(path)
        split = FileSplit(tuple(map(os.fspath, paths)), split.y, 8)
    pixels = np.broadcast_to(x / 255, (n, 8, 8, 3))
    mean, std = pretrain.statistics(split)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    # A single file is of one colour here, and nothing is divided by 0.
    np.testing.assert_allclose(std, pixels.std((0, 1, 2)).clip(1e-3), rtol=1e-6)


def test_a_source_of_one_colour_can_be_normalised():
    x = torch.full((501, 8, 8, 3), 77, dtype=torch.uint8)
    mean, std = pretrain.statistics(Split(x, torch.zeros(501, dtype=torch.long)))
    assert mean == pytest.approx([77 / 255] * 3, rel=1e-6) and std == pytest.approx([1e-3] * 3)
