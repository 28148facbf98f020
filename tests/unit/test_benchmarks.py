"""The harnesses of benchmarks/ measure what they say, at a scale of seconds."""

import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from torch import nn

from robustlib.attacks import Threat, pgd
from robustlib.data import load
from robustlib.specs import Pretrain

NUMBERS = ["side", "batch_size", "value", "low", "high", "of_bare", "peak_mib"]


def script(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return script("peers")


@pytest.fixture(scope="module")
def growth() -> ModuleType:
    return script("growth")


@pytest.fixture(scope="module")
def front() -> ModuleType:
    return script("front")


def test_the_clock_runs_from_the_second_step_to_the_last(peers):
    model = nn.Linear(1, 1)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)

    def loop() -> None:
        for wait in (0.3, 0.3, 0.05, 0.05, 0.05):
            time.sleep(wait)
            optimiser.step()
        time.sleep(0.3)

    assert (
        5 < peers.clocked(loop) < 20
    )  # 20 were there no other work; with the waits at the ends, 4


def test_every_loop_is_measured_beside_the_bare_one(peers):
    scale = replace(peers.SMOKE, workers=0, rounds=1, steps=(3, 3, 3, 3))
    found = list(peers.measure(scale, None, None))
    loops = {(r["section"], r["what"]): {} for r in found}
    for row in found:
        assert set(row) <= set(peers.COLUMNS) and 0 < row["low"] <= row["value"] <= row["high"]
        loops[row["section"], row["what"]][row["loop"]] = row
    for what in peers.ATTACKS:
        assert set(loops["training", what]) == {"bare", "ours", "field"}
        assert loops["training", what]["bare"]["ratio"] == 1
    masked = loops["masked step", "weights"]
    assert set(masked) == {"ours", "torch.nn.utils.prune", "dense"}
    ours, theirs, dense = (int(masked[n]["note"].split()[0].replace(",", "")) for n in masked)
    assert abs(ours - theirs) <= 1 and ours == pytest.approx((1 - peers.SPARSITY) * dense, abs=1)


def test_the_attacks_of_the_loops_are_in_the_ball_and_as_strong_as_ours(peers):
    x, y, threat = torch.rand(64, 3, 8, 8), torch.arange(64) % 10, Threat("linf", 0.05, 7)
    torch.manual_seed(0)
    model = peers.models.build("resnet10s", 10, 4, 1).eval()

    @torch.no_grad()
    def loss(images: torch.Tensor) -> float:
        return float(nn.functional.cross_entropy(model.eval()(images), y))

    target = peers.partial(nn.functional.cross_entropy, target=y, reduction="sum")
    attacks = {
        "ours": pgd(model, x, y, threat),
        "bare": peers.attacked(model, x, threat, target).detach(),
        "field": peers.Attacker(model, threat, False)(x, y),
    }
    won = {name: loss(found) - loss(x) for name, found in attacks.items()}
    for found in attacks.values():
        assert 0.049 < (found - x).abs().max() < 0.0501 and 0 <= found.min() <= found.max() <= 1
    assert min(won.values()) > 0.8 * max(won.values()) > 0


def test_slopes_are_those_of_the_largest_points(growth):
    assert growth.slope([1, 10, 100, 1000], [7, 20, 2000, 200_000]) == 2
    assert growth.slope([1, 2], [0, 3]) == ""


def test_a_point_is_measured_in_a_process_of_its_own(growth):
    found = growth.grown("table of stored results", (5, 20), 2)
    assert [r["work"] for r in found] == [5, 20] and {r["slope_work"] for r in found} == {1}
    for row in found:
        assert set(row) == set(growth.COLUMNS) and 0 < row["low"] <= row["high"] and row["mib"] >= 0


def test_a_smaller_side_saves_its_square_and_a_late_attack_its_passes(front, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    data, spec = load("digits", size=16, n_train=200), Pretrain("digits", width=4, size=16)
    spec = replace(spec, objective="pgd", eps=0.5, batch_size=20, epochs=2)
    passes = {n: front.trained(front.WAYS[n], spec, data)[1]["passes"] for n in front.WAYS}
    assert passes["plain"] == passes["early stop"] == 4
    assert passes["radius"] == pytest.approx(4 - 1 / 10)  # it begins at 0
    assert passes["resize"] == pytest.approx(4 * (0.4 / 4 + 0.3 * 0.75**2 + 0.3))
    assert passes["late"] == 3 and passes["short"] == 2 and passes["batch"] == 4


def test_the_attack_that_stops_early_leaves_what_it_has_turned(front):
    x, y, threat = torch.rand(64, 3, 8, 8), torch.zeros(64).long(), Threat("linf", 0.05, 5)
    torch.manual_seed(0)
    model = front.models.build("resnet10s", 3, 4, 1).eval()
    y[:32] = model(x[:32]).argmax(1)
    y[32:] = (model(x[32:]).argmax(1) + 1) % 3
    seen = []
    model.register_forward_hook(lambda _, i, out: seen.append(len(out)))
    found = front.early(model, x, y, threat)
    assert (found - x).abs().max() < 0.0501 and seen[0] == 64 and max(seen[1:], default=0) <= 40
    torch.manual_seed(1)
    start = front.random_start(x, threat)
    torch.manual_seed(1)
    found = front.early(model, x, y, threat)
    begins = (x + start).clamp(0, 1)
    wrong = model(begins).argmax(1) != y
    assert wrong.any() and torch.allclose(found[wrong], begins[wrong], atol=1e-6)
    assert not wrong.all() and not torch.allclose(found[~wrong], begins[~wrong], atol=1e-3)


def test_a_transfer_is_timed_beside_its_own_work_from_an_empty_store(tmp_path, monkeypatch):
    curve, out = script("curve"), tmp_path / "curve.csv"
    monkeypatch.setattr(sys, "argv", ["curve.py", "--smoke", "--out", str(out)])
    monkeypatch.setattr(curve, "SPARSITIES", (0.9,))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for name in ("ROBUSTLIB_STORE", "CURVES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, str(tmp_path))
    curve.main()
    rows = pd.read_csv(out).set_index("what")
    assert rows.tickets.to_dict() == {
        "curve": 2,
        "reading": 2,
        "finetuning": 1,
        "bare steps": 1,
        "training": 1,
    }
    # Were anything found in the store, the whole would take less than a part of it.
    assert rows.ratio["curve"] > 1 > rows.ratio["training"] > 0
    assert rows.ratio["bare steps"] < 1


def test_tables_stand_between_their_marks_and_come_again_the_same(tmp_path):
    tables = script("tables")
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text("utf-8")
    assert tables.filled(page, tmp_path) == page
    seeds = {"recipe": ["plain", "plain", "resize", "resize"], "seed": [0, 1, 1, 0]}
    frame = pd.DataFrame(seeds).assign(
        speed=[1, 1, 3, 2],
        passes=[2, 2, 1, 1],
        accuracy=[0.2, 0.4, 0.39, 0.21],
        robust_accuracy=0.1,
        linear_a=[0.5, 0.5, 0.6, 0.6],
        linear_b=[0.5, 0.5, 0.4, 0.6],
    )
    frame.to_csv(tmp_path / "front.csv", index=False)
    found = tables.filled(page, tmp_path)
    assert "| plain | 1.00 | 2.0 | 30.0 % | 10.0 % | 50.0 % |" in found
    # Differences of a seed with itself: +1 and -1 points; transfer: +10 and 0.
    line = "| resize | 2.50 | 1.0 | +0.0 [-12.7, +12.7] | +0.0 [+0.0, +0.0] | +5.0 [-58.5, +68.5] |"
    assert line in found
    frame[frame.seed.eq(0) | frame.recipe.eq("plain")].to_csv(tmp_path / "front.csv", index=False)
    fewer = tables.filled(page, tmp_path)  # one seed of two: a difference, and no interval
    assert "| resize | 2.00 | 1.0 | +1.0 [" in fewer and "+nan [" not in fewer
    frame.to_csv(tmp_path / "front.csv", index=False)
    assert tables.filled(found, tmp_path) == found and found.count("<!-- end -->") == 5
    with pytest.raises(ValueError, match="found 0 times"):
        tables.filled("", tmp_path)


def test_the_page_on_speed_has_the_tables_of_the_committed_rows():
    tables, root = script("tables"), Path(__file__).parents[2]
    page = (root / "docs" / "speed.md").read_text("utf-8")
    assert tables.filled(page, root / "benchmarks") == page, "python benchmarks/tables.py"
    rows = pd.read_csv(root / "benchmarks" / "gpu.csv", dtype=str)
    timed = rows[(rows.loop == "ours") & (rows.case == "images/s")]
    lines = tables.gpu(rows.assign(**{c: pd.to_numeric(rows[c], "coerce") for c in NUMBERS}))
    assert lines.count("\n") == len(timed) + 1 and "TF32 off" in lines and "compiled" in lines
    best = timed[(timed.arch == "resnet50") & (timed.precision == "fp16")].iloc[0]
    assert f"fp16 | 4,694 | {float(best.of_bare):.2f} (± " in lines


def test_two_runs_from_nothing_are_compared_to_the_bit(tmp_path, capsys, monkeypatch):
    again = script("again")
    small = "\n".join(
        [
            'seeds = [0]\n[pretrain]\nsource = "glyphs"\nsize = 16\nwidth = 4\nepochs = 1',
            'n_train = 64\n[[objective]]\nobjective = "natural"',
            '[[objective]]\nobjective = "pgd"\neps = 0.5\n[ticket]\nsparsity = [0.5]',
            '[[transfer]]\ntask = "digits"\nmode = "linear"\nn_train = 60\n',
        ]
    )
    (tmp_path / "small.toml").write_text(small)
    asked = ["--profile", str(tmp_path / "small.toml"), "--tasks", "digits", "--sparsities", "0.5"]
    assert again.main([*asked, "--out", str(tmp_path / "a.csv")]) == 0
    assert "6 of 6 results are equal to the bit" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "a.csv")
    assert rows.equal.all() and set(rows.kind) == {"pretrain", "ticket", "transfer"}
    assert (rows.tensors_first == rows.tensors_second).all() and rows.tensors_first.nunique() == 6
    # One bit of one network, in the second run alone.
    runs, told = [], again.told

    def other(found):
        runs.append(found)
        out = told(found)
        if len(runs) == 7:
            out["tensors"] = out["tensors"][::-1]
        return out

    monkeypatch.setattr(again, "told", other)
    assert again.main([*asked, "--out", str(tmp_path / "b.csv")]) == 1
    assert pd.read_csv(tmp_path / "b.csv").equal.to_list() == [False] + [True] * 5
