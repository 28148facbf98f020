"""Deployment: costs are those of the network that is deployed, over those of its dense one."""

import tempfile
from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from helpers import half, inside, reach, small, texts

from robustlib import deployment, devices, export, figures, specs, stages
from robustlib.data import load
from robustlib.specs import Pretrain, Ticket, Transfer

NATURAL = Pretrain("digits", width=8, size=12, epochs=1, n_train=200)
ROBUST = replace(NATURAL, objective="pgd", eps=0.3)


def transfer(pretrain: Pretrain, pattern: str, sparsity: float = 0.5) -> Transfer:
    ticket = Ticket(pretrain, pattern=pattern, sparsity=sparsity)
    return Transfer(ticket, "digits", n_train=200, epochs=1)


HALF = [transfer(NATURAL, p) for p in ("unstructured", "channel", "2:4")]
WANTED = [*HALF, transfer(NATURAL, "unstructured", 0.8), transfer(ROBUST, "channel")]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(autouse=True)
def shared(store, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", str(store / "store"))
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def measured(store):
    """The frame, and the graphs that were timed: names, sizes and rounds of each call."""
    calls, real = [], deployment.latencies

    def timed(files, *numbers):
        calls.append((dict(files), *numbers))
        return real(files, *numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(store / "store"))
        patch.setattr(deployment, "latencies", timed)
        state = torch.random.get_rng_state()
        frame = deployment.measure(WANTED, store / "onnx", rounds=3, batch_sizes=(1, 4))
        assert torch.equal(state, torch.random.get_rng_state())
    return frame, calls


def one(frame: pd.DataFrame, spec: Transfer, form: str = "fp32") -> pd.Series:
    own = specs.columns(spec)
    named = ["pattern", "sparsity", "objective", "eps", "task", "seed"]
    same = (frame[named] == [own[c] for c in named]).all(axis=1)
    (at,) = np.flatnonzero(same & (frame.form == form))
    return frame.iloc[at]


def test_each_ticket_and_each_dense_network_has_a_row_in_the_forms_it_can_take(measured):
    frame, _ = measured
    whole = [deployment.dense(HALF[0]), deployment.dense(WANTED[-1])]
    for spec in [*WANTED, *whole]:
        row = one(frame, spec)
        assert row.accuracy == stages.run(spec).row["accuracy"] and row.n == 359
        assert row.parameters == stages.run(spec).row["parameters"]
        assert row.multiply_adds == stages.run(spec).row["multiply_adds"]
    reduced = frame[frame.form == "int8"]
    assert sorted(zip(reduced.pattern, reduced.sparsity, reduced.eps, strict=True)) == [
        *(("channel", 0.5, e) for e in (0, 0.3)),
        *(("unstructured", 0.0, e) for e in (0, 0.3)),
    ]
    assert len(frame) == len(WANTED) + 2 + 4


def test_a_row_says_its_form_and_the_instructions_that_it_was_measured_on(measured):
    frame, _ = measured
    assert set(zip(frame.form, frame.weight_bits, strict=True)) == {("fp32", 32), ("int8", 7)}
    assert set(frame.instructions) == {devices.instructions()}
    assert list(deployment.int8(frame).instructions) == [devices.instructions()] * 4


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ("flags\t\t: fpu avx avx2 bmi1\nbugs: avx_vnni", "avx2"),
        ("flags\t\t: avx2 avx512f avx512bw", "avx512bw"),
        ("flags\t\t: avx2 avx_vnni", "avx_vnni"),
        ("flags\t\t: avx2 avx512bw avx512_vnni\n\nflags: avx2", "avx512_vnni"),
        ("flags\t\t: avx2 avx512_vnni amx_int8", "amx_int8"),
        ("Features\t: fp asimd asimddp", "asimddp"),
        ("model name: none", "this"),
        (None, "this"),
    ],
)
def test_instructions_are_the_fastest_of_the_cpu(about, name, monkeypatch):
    def read(*_, **__):
        if about is None:
            raise FileNotFoundError
        return about

    monkeypatch.setattr(devices.Path, "read_text", read)
    monkeypatch.setattr(devices.platform, "machine", lambda: "this")
    assert devices.instructions() == name


def test_ratios_are_over_the_dense_network_of_the_same_pretraining(measured):
    frame, _ = measured
    for spec in WANTED:
        row, whole = one(frame, spec), one(frame, deployment.dense(spec))
        for cost in ("parameters", "multiply_adds", "bytes"):
            assert row[f"{cost}_ratio"] == row[cost] / whole[cost] < 1, (spec, cost)
            assert whole[f"{cost}_ratio"] == 1
        for b in (1, 4):
            low, middle, high = (row[f"latency_{b}_ratio{q}"] for q in ("_low", "", "_high"))
            assert 0 < low <= middle <= high and row[f"latency_{b}"] > 0
            assert whole[f"latency_{b}_ratio"] == 1


def test_a_file_is_the_one_that_its_pattern_can_use(measured):
    frame, _ = measured
    for spec in WANTED:
        row, sizes = one(frame, spec), export.file_sizes(stages.network(spec))
        assert {c: row[f"bytes_{c}"] for c in sizes} == sizes
        expected = "dense" if spec.ticket.pattern == "channel" else "bitmap"
        assert row.stored_as == expected and row.bytes == sizes[expected]
    channel, whole = one(frame, HALF[1]), one(frame, deployment.dense(HALF[1]))
    assert channel.bytes_dense < whole.bytes_dense  # small as it is
    unstructured = one(frame, HALF[0])
    assert unstructured.bytes_dense == whole.bytes_dense  # zeros are stored like any number


def test_a_bitmap_of_half_the_weights_by_hand(measured):
    """Of n weights: n / 8 bytes of bits, 2 n bytes of values; all else stays."""
    frame, _ = measured
    n = sum(p.numel() for p in stages.network(HALF[0]).parameters() if p.ndim == 4)
    row, whole = one(frame, HALF[0]), one(frame, deployment.dense(HALF[0]))
    saved = 4 * n - (n / 8 + 4 * n / 2)
    # The headers differ by a few names; padding to whole bytes is one byte a layer.
    assert whole.bytes - row.bytes == pytest.approx(saved, abs=3000) and saved > 30_000


def test_networks_of_one_shape_are_timed_once_and_together(measured):
    frame, calls = measured
    assert [c[1:] for c in calls] == [(12, 1, 3), (12, 4, 3)]
    small = {one(frame, s).timed_as for s in (HALF[1], WANTED[-1])}
    fp32 = {"dense", "zeros", *small}
    assert small.isdisjoint({"dense", "zeros"})
    for files, *_ in calls:
        assert set(files) == fp32 | {f"{name}, int8" for name in fp32 - {"zeros"}}
        assert list(files)[0] == "dense"
    for spec in (HALF[0], HALF[2], WANTED[3]):
        assert one(frame, spec).timed_as == "zeros"
    assert one(frame, deployment.dense(WANTED[-1])).timed_as == "dense"
    # What stands for all zeros that stay in place is the network with the most of them.
    graph = onnx.load(calls[0][0]["zeros"]).graph
    weights = [onnx.numpy_helper.to_array(i) for i in graph.initializer]
    kept = sum(int(np.count_nonzero(w)) for w in weights if w.ndim == 4)
    net = stages.network(WANTED[3])
    assert kept == sum(int(p.count_nonzero()) for p in net.parameters() if p.ndim == 4)


def test_ratios_are_within_rounds_dense_is_no_ticket_and_no_file_stays(monkeypatch, tmp_path):
    times = {"dense": [1.0, 10.0, 2.0], "zeros": [2.0, 5.0, 6.0]}
    monkeypatch.setattr(deployment, "latencies", lambda files, *_: {n: times[n[:5]] for n in files})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    named = replace(HALF[0], ticket=Ticket(NATURAL, "dense"))
    wanted = [deployment.dense(HALF[0]), named, HALF[0], HALF[0]]
    frame = deployment.measure(wanted, rounds=3, batch_sizes=(2,))
    forms = frame[["sparsity", "form"]].to_numpy().tolist()
    assert forms == [[0.0, "fp32"], [0.0, "int8"], [0.5, "fp32"]]
    row = one(frame, HALF[0])
    assert row.latency_2 == 5.0  # the median of 2, 5 and 6
    assert row.latency_2_ratio == 2.0  # of 2, 0.5 and 3
    assert (row.latency_2_ratio_low, row.latency_2_ratio_high) == (1.25, 2.5)
    assert not list(tmp_path.glob("robustlib-*"))


def test_int8_accuracy_is_that_of_its_file_on_the_test_images(measured, store):
    frame, calls = measured
    row, data = one(frame, HALF[1], "int8"), load("digits", 12, n_train=200)
    file = calls[0][0][row.timed_as]
    right = export.logits(file, data.test).argmax(1) == data.test.y
    assert row.accuracy == int(right.sum()) / 359 and row.n == 359
    assert row.bytes == file.stat().st_size
    whole = store / "onnx" / f"{specs.key(deployment.dense(HALF[1]))}.onnx"
    assert row.bytes_ratio == row.bytes / whole.stat().st_size < 0.7
    assert np.isnan(row.bytes_bitmap)
    assert file == store / "onnx" / f"{specs.key(HALF[1])}.int8.onnx"
    table = deployment.int8(frame)
    assert list(table.pattern) == ["dense", "dense", "channel", "channel"]
    assert table["accuracy int8 %"][2] == pytest.approx(100 * row.accuracy, abs=1e-3)
    fp32 = one(frame, HALF[1]).accuracy
    assert table["accuracy fp32 %"][2] == pytest.approx(100 * fp32, abs=1e-3)


def test_training_steps_are_those_of_the_ticket_small_and_as_a_mask(measured, monkeypatch):
    frame, _ = measured
    small, masked = stages.network(HALF[1]), deployment._masked(HALF[1])
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in masked.parameters())
    assert masked.fc.out_features == 10
    seen, threads = [], torch.get_num_threads()

    def seconds(step):
        step()
        seen.append((step, torch.get_num_threads()))
        return 1.0 if len(seen) % 2 else 0.25  # masked, then small

    monkeypatch.setattr(deployment, "seconds", seconds)
    torch.set_num_threads(2)
    try:
        steps = deployment.training_steps([HALF[1], WANTED[-1]], rounds=3, batch_size=4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert steps.training_step_ratio.tolist() == [0.25, 0.25]
    # In turn, a round first that is not counted.
    assert len(seen) == 16 and [s for s, _ in seen[:4]] == [s for s, _ in seen[4:8]]
    assert {n for _, n in seen} == {1}
    table = deployment.channels(frame, steps)
    assert list(table.objective) == ["natural", "pgd"]
    assert list(table.columns[9:]) == ["multiply_adds", "latency_1", "latency_4", "training_step"]
    assert set(table.task) == {"digits"} and set(table.seed) == {0}
    fig = figures.channels(table)
    assert fig.axes[0].get_title() == "latency at batch 1"
    assert fig.legends[0].get_title().get_text().startswith("channel tickets, Digits, seed 0\n")
    with pytest.raises(ValueError, match="task: the rows have digits, glyphs"):
        figures.channels(pd.concat([table, table.assign(task="glyphs")]))
    assert table.multiply_adds[0] == round(one(frame, HALF[1]).multiply_adds_ratio, 3)


def test_a_step_trains_and_keeps_the_removed_at_zero():
    model = deployment._masked(HALF[1])
    zero = {n: p == 0 for n, p in model.named_parameters() if p.ndim == 4}
    before = {n: p.clone() for n, p in model.state_dict().items()}
    step = deployment._step(model, HALF[1], 8)
    step()
    assert model.training and model.conv1.weight.grad is not None
    assert all(torch.equal(p == 0, zero[n]) for n, p in model.named_parameters() if n in zero)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())  # rate 0
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: deployment.measure([]), "there are none"),
        (lambda: deployment.measure([Ticket()]), "must be a Transfer"),
        (lambda: deployment.measure([replace(HALF[0], mode="linear")]), "mode='linear'"),
        (lambda: deployment.measure(HALF, rounds=0), "rounds=0"),
        (lambda: deployment.measure(HALF, batch_sizes=()), "must name at least one"),
        (lambda: deployment.measure(HALF, batch_sizes=(1, 0.5)), "batch_sizes=0.5"),
        (lambda: deployment.training_steps(HALF), "pattern='unstructured'"),
        (lambda: deployment.training_steps([deployment.dense(HALF[1])]), "sparsity=0"),
        (lambda: deployment.training_steps(HALF[1:2], batch_size=1), "batch_size=1"),
    ],
)
def test_bad_input_is_refused_before_any_work(call, says, monkeypatch):
    for name in ("network", "run", "transfer"):
        monkeypatch.setattr(deployment, name, None)
    with pytest.raises(ValueError, match=says):
        call()


def made_up(accuracies: dict[str, float]) -> pd.DataFrame:
    """Rows as `measure` gives them, of natural and robust, costs by pattern."""
    rows = []
    for pretrain in (NATURAL, ROBUST):
        for pattern, accuracy in accuracies.items():
            sparsity = 0.0 if pattern == "dense" else 0.5
            named = "unstructured" if pattern == "dense" else pattern
            row = specs.columns(transfer(pretrain, named, sparsity))
            cost = {"dense": 1.0, "channel": 0.5}.get(pattern, 0.6)
            slow = cost if pattern == "channel" else 1.0
            row |= {"form": "fp32", "accuracy": accuracy + pretrain.eps / 10, "n": 400}
            row |= {f"{c}_ratio": cost for c in ("parameters", "multiply_adds", "bytes")}
            rows.append(row | {"latency_1_ratio": slow, "latency_64_ratio": slow})
    frame = pd.DataFrame(rows)
    extra = frame[frame.pattern == "channel"].assign(form="int8", latency_1_ratio=0.25)
    return pd.concat([frame, extra], ignore_index=True)


ACCURACIES = {"dense": 0.9, "unstructured": 0.88, "channel": 0.8, "2:4": 0.87}


def test_the_figure_shows_each_accuracy_at_each_cost():
    frame = made_up(ACCURACIES)
    fig = figures.edge(frame)
    costs = ["parameters", "multiply-adds", "bytes of the file"]
    costs += ["latency, batch 1", "latency, batch 64"]
    lines = [fig.axes[i : i + 3] for i in range(0, 15, 3)]
    assert [ax.get_title() for ax in lines[0]] == ["unstructured", "channel", "n:m"]
    assert [line[0].get_ylabel() for line in lines] == [f"{c}\naccuracy (%)" for c in costs]

    def drawn(ax):
        """Cost and accuracy of the large dots, and the small ones of single seeds."""
        found = [c[0].get_xydata() for c in ax.containers]
        return sorted((round(float(x), 6), round(float(y), 6)) for xy in found for x, y in xy)

    kinds = {"unstructured": "unstructured", "channel": "channel", "n:m": "2:4"}
    columns = ["parameters", "multiply_adds", "bytes", "latency_1", "latency_64"]
    for line, cost in zip(lines, columns, strict=True):
        for ax, kind in zip(line, kinds.values(), strict=True):
            own = frame[(frame.pattern == kind) | (frame.sparsity == 0)]
            own = own[(own.form == "fp32") | cost.startswith(("bytes", "latency"))]
            pairs = zip(100 * own[f"{cost}_ratio"], 100 * own.accuracy, strict=True)
            assert drawn(ax) == sorted((round(x, 6), round(y, 6)) for x, y in pairs)
    # Zeros that stay in place are where the dense network is.
    assert sum(x == 100 for x, _ in drawn(lines[4][0])) == 4
    assert "Digits, seed 0; numbers: sparsity; hollow: int8" in texts(fig)
    numbers = {t.get_text() for t in lines[0][0].texts}
    assert numbers == {f"{s:g}" for s in {0, *frame[frame.pattern == "unstructured"].sparsity}}
    named = [t.get_text() for t in fig.legends[0].get_texts()]
    assert named == ["natural", "robust, L2 ε = 0.3"] and inside(fig)
    looks = figures.looks(named)
    shown = [(c[0].get_color(), c[0].get_marker()) for c in lines[0][0].containers]
    assert shown == [(looks[name]["color"], looks[name]["marker"]) for name in named]


def test_several_seeds_have_bars_of_the_paired_difference_and_dots():
    once = made_up(ACCURACIES)
    robust = once.objective != "natural"
    # Seeds are far apart; robust is ahead by 3 points in each, and by one more in the second.
    frame = pd.concat(
        once.assign(seed=i, accuracy=once.accuracy - 0.1 * i + 0.01 * i * robust) for i in (0, 1)
    )
    fig = figures.edge(frame)
    natural, ahead = (reach(c) for c in fig.axes[0].containers)
    assert np.isnan(natural).all()
    assert ahead == pytest.approx(np.full_like(ahead, half([3, 4])))
    assert len(small(fig.axes[0])) == 2 * 2 * 2
    note = " ".join(fig.legends[0].get_title().get_text().split())
    assert "2 seeds" in note and "difference to natural, paired by seed" in note


def test_the_words_are_the_numbers_of_the_rows():
    said = figures.saved(made_up(ACCURACIES)).splitlines()
    assert said[0].startswith("unstructured, fp32, in % of dense: parameters 60")
    assert "latency, batch 1 100" in said[0]
    assert said[1] == "  robust, L2 ε = 0.3: +3.0 points over natural"
    assert any(line.startswith("channel, int8") and "batch 1 25" in line for line in said)
    assert said[-1].startswith("One accuracy, of 400 test images, is known to ±")


def test_no_rows_and_several_tasks_are_refused():
    frame = made_up(ACCURACIES)
    two = pd.concat([frame, frame.assign(task="glyphs")])
    for draw in (figures.edge, figures.saved):
        with pytest.raises(ValueError, match="no rows"):
            draw(frame[:0])
        with pytest.raises(ValueError, match="digits, glyphs: one at a time"):
            draw(two)
