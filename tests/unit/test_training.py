"""The training loop: what it does to weights, and that it does the same again."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import killed_at
from torch import Tensor, nn

from robustlib import devices, models, objectives, run, store, training
from robustlib.attacks import Threat, pgd
from robustlib.data import Split, batches, load
from robustlib.data.splits import FileSplit
from robustlib.devices import layout
from robustlib.objectives import Objective, natural
from robustlib.specs import Pretrain, to_dict
from robustlib.training import CatastrophicOverfitting, NotFinite, Recipe, fit

CPU = torch.device("cpu")
NATURAL = Objective(natural)
RECIPE = Recipe(
    epochs=2, lr=0.1, batch_size=64, weight_decay=5e-4, augment="crop", precision="fp32", seed=0
)
DIGITS = {"source": "digits", "size": 8, "width": 4, "stem_stride": 1}


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")


@pytest.fixture(scope="module")
def split() -> Split:
    """200 real images, three batches of 64 and a rest."""
    return load("digits", size=8, n_train=200).train


def network(width: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build("resnet10s", 10, width, 1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def trained(split: Split, objective: Objective = NATURAL, recipe: Recipe = RECIPE, **kw) -> dict:
    model = network()
    fit(model, split, objective, recipe, **kw)
    return weights(model)


def free() -> Objective:
    return objectives.free(Threat("linf", 0.1), replays=3)


# The same again


def test_a_recipe_and_a_seed_decide_every_bit(split):
    first = trained(split)
    torch.manual_seed(123)
    assert same(first, trained(split)), "whatever the caller's generator holds"
    other = trained(split, recipe=replace(RECIPE, seed=1))
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_an_objective_that_carries_state_starts_each_run_without_it(split):
    objective = free()
    assert same(trained(split, objective), trained(split, objective))


def test_the_generators_of_the_caller_are_untouched(split):
    legacy = np.random.mtrand._rand  # scikit-learn and others draw from it if unseeded
    before = torch.get_rng_state(), legacy.get_state()[1].copy(), random.getstate()
    trained(split, objectives.adversarial(Threat("l2", 0.3, 1)))
    training.robust_correct(network(), split, Threat("l2", 0.3, 2))
    training.recalibrate(network(), split)
    run(Pretrain(**DIGITS, n_train=50, epochs=1, objective="smoothing", sigma=0.1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(legacy.get_state()[1], before[1]) and random.getstate() == before[2]


# Killed, and started again

KILLED = """
import json, os, signal, sys
import torch
from robustlib import run, specs, training
torch.set_num_threads(1)
last, rate = int(sys.argv[2]), training.learning_rate
training.CHECKPOINT_SECONDS = -1

def watched(recipe, step, total):
    if step == last - 1:
        training.CHECKPOINT_SECONDS = 1e9  # so that one step more is done, and lost
    if step == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return rate(recipe, step, total)

training.learning_rate = watched
run(specs.from_dict(specs.Pretrain, json.loads(sys.argv[1])))
"""


@pytest.mark.parametrize(
    ("spec", "kill_at"),
    [
        # Ten steps an epoch, killed in the second; the monitor has run once.
        (Pretrain(**DIGITS, objective="pgd", eps=0.3, epochs=2), 14),
        # Two batches an epoch, three steps on each: the last checkpoint is after step 1 of 3.
        (Pretrain(**DIGITS, objective="free", eps=0.3, replays=3, batch_size=512, epochs=2), 11),
    ],
    ids=["pgd", "free"],
)
def test_killed_in_an_epoch_and_run_again_it_ends_with_the_same_bits(spec, kill_at, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(to_dict(spec)), str(kill_at)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not store.has(spec) and store.checkpoint(spec).exists()
    steps, rate = [], training.learning_rate
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", lambda r, s, t: steps.append(s) or rate(r, s, t))
        resumed = run(spec)
    assert steps[0] == kill_at - 1, "it went on from the last checkpoint"
    assert not store.checkpoint(spec).exists()
    monkeypatch.setenv("ROBUSTLIB_STORE", os.environ["ROBUSTLIB_STORE"] + "-2")
    whole = run(spec)
    assert whole.path != resumed.path and same(resumed.tensors(), whole.tensors())
    curves = [[r | {"seconds": 0} for r in a.extra["curve"]] for a in (resumed, whole)]
    assert curves[0] == curves[1]
    assert whole.row["accuracy"] == resumed.row["accuracy"]


def interrupted(split: Split, path: Path, at: int = 4, recipe: Recipe = RECIPE, **kw) -> None:
    """Leaves the checkpoint that a run has after `at` steps."""
    stop, _ = killed_at(at + 1, natural)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "CHECKPOINT_SECONDS", -1)
        fit(network(), split, Objective(stop), recipe, checkpoint=path, **kw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": replace(RECIPE, epochs=3)}, "epochs 2, not 3; steps 6, not 9"),
        ({"recipe": replace(RECIPE, lr=0.2)}, "lr 0.1, not 0.2"),
        ({"recipe": replace(RECIPE, seed=1)}, "seed 0, not 1"),
        ({"model": network(6)}, "parameters 19902, not 44176"),
        ({"objective": objectives.adversarial(Threat("l2", 0.3, 1))}, "eps 0.0, not 0.3"),
        ({"images": 190}, "images 200, not 190"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(split, tmp_path, change, message):
    path = tmp_path / "run.pt"
    interrupted(split, path)
    model, recipe = change.get("model", network()), change.get("recipe", RECIPE)
    n = change.get("images", 200)
    other = Split(split.x[:n], split.y[:n])
    with pytest.raises(ValueError, match=f"run.pt: .*{message}.*Delete"):
        fit(model, other, change.get("objective", NATURAL), recipe, checkpoint=path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_named_and_training_starts_afresh(split, tmp_path, keep):
    path = tmp_path / "run.pt"
    interrupted(split, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.warns(UserWarning, match="run.pt cannot be read"):
        resumed = trained(split, checkpoint=path)
    assert same(resumed, trained(split))


def test_a_checkpoint_carries_what_the_monitor_measured_and_the_scale_of_fp16(
    split, tmp_path, monkeypatch
):
    path, recipe, given = tmp_path / "run.pt", replace(RECIPE, precision="bf16"), []
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(scaler, "state_dict", lambda self: {"scale": 512.0})
    monkeypatch.setattr(scaler, "load_state_dict", lambda self, d: given.append(d))

    def monitor(model):
        return {"val_accuracy": np.float64(0.25)}

    interrupted(split, path, recipe=recipe, monitor=monitor)
    curve = fit(network(), split, NATURAL, recipe, checkpoint=path, monitor=monitor)
    assert [r["val_accuracy"] for r in curve] == [0.25, 0.25]
    assert given == [{"scale": 512.0}]


# When it goes wrong


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_is_stored():
    # Each step multiplies the weights by 1 - lr * weight_decay = -99.
    spec = Pretrain(**DIGITS, objective="pgd", eps=0.25, epochs=10, lr=100, weight_decay=1)
    words = r"loss is (nan|inf) at epoch \d+, step \d+ of 100, learning rate [\d.]+, eps 0.25;"
    with pytest.raises(NotFinite, match=words):
        run(spec)
    assert not store.has(spec) and store.frame(Pretrain).empty


def test_a_weight_broken_by_the_very_last_step_is_found(split):
    def loss(model, x, y):  # the square root has no derivative at 0
        return natural(model, x, y) + (model.fc.bias * 0).square().sum().sqrt()

    with pytest.raises(NotFinite, match="a weight is not finite at epoch 0, step 0 of 1, learning"):
        fit(network(), split, Objective(loss), replace(RECIPE, epochs=1, batch_size=200))


def curve(robust: list[float], losses: list[float]) -> list[dict[str, float]]:
    return [{"val_robust": r, "loss": x} for r, x in zip(robust, losses, strict=True)]


@pytest.mark.parametrize(
    ("robust", "losses", "collapsed"),
    [
        ([0.2, 0.4, 0.1], [2, 1.5, 1], True),
        ([0.2, 0.4, 0.0], [2, 1.5, 1], True),
        ([0.4, 0.1, 0.3], [2, 1.5, 1], False),  # it recovered
        ([0.2, 0.4, 0.25], [2, 1.5, 1], False),  # not by half
        ([0.2, 0.4, 0.1], [2, 1.5, 1.6], False),  # the loss rose: a plain divergence
        ([0.012, 0.0], [5.2, 5.1], False),  # 3 of 256 images and none: chance
        ([0.4], [1], False),
    ],
)
def test_catastrophic_overfitting_is_a_collapse_while_the_loss_falls(robust, losses, collapsed):
    assert training.overfitted(curve(robust, losses)) is collapsed


def test_without_a_multi_step_attack_nothing_is_called_overfitted():
    assert not training.overfitted([{"loss": 2.0}, {"loss": 1.0}])


def test_catastrophic_overfitting_is_reported_as_it_happens(split):
    measured = iter([0.5, 0.1])
    with pytest.warns(CatastrophicOverfitting, match="^fast: .*epoch 1.*from 50.0% to 10.0%"):
        rows = fit(
            network(),
            split,
            NATURAL,
            RECIPE,
            monitor=lambda m: {"val_robust": next(measured)},
            label="fast",
        )
    assert [bool(r.get("catastrophic_overfitting")) for r in rows] == [False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(network(), split, NATURAL, RECIPE, monitor=lambda m: {"val_robust": 0.5})


def test_a_loss_that_is_read_a_step_later_is_the_same_and_is_never_saved_unread(
    split, tmp_path, monkeypatch
):
    at_once = network()
    expected = fit(at_once, split, NATURAL, RECIPE)
    monkeypatch.setattr(training, "_runs_ahead", lambda: True)
    later = network()
    rows = fit(later, split, NATURAL, RECIPE)
    assert same(weights(later), weights(at_once))
    assert [r["loss"] for r in rows] == [r["loss"] for r in expected]

    def loss(model, x, y, calls=[]):  # noqa: B006 - counts over all calls
        calls.append(1)
        return natural(model, x, y) * (math.nan if len(calls) == 5 else 1)

    for name, every in (("each.pt", -1), ("none.pt", 1e9)):
        loss.__defaults__[0].clear()
        monkeypatch.setattr(training, "CHECKPOINT_SECONDS", every)
        with pytest.raises(NotFinite, match="the loss is nan at epoch 1, step 4 of 6"):
            fit(network(), split, Objective(loss), RECIPE, checkpoint=tmp_path / name)
    resumed = network()
    again = fit(resumed, split, NATURAL, RECIPE, checkpoint=tmp_path / "each.pt")
    assert same(weights(resumed), weights(at_once)), "its last checkpoint is of step 4"
    assert [r["loss"] for r in again] == [r["loss"] for r in expected]
    assert not (tmp_path / "none.pt").exists()


# How it optimises


@pytest.mark.parametrize("total", [1, 2, 7, 9, 10, 33, 1000])
def test_one_cycle_rises_to_lr_and_falls_to_nothing(total):
    rates = [training.learning_rate(RECIPE, s, total) for s in range(total)]
    peak = rates.index(max(rates))
    assert max(rates) <= RECIPE.lr and max(rates) > 0.85 * RECIPE.lr
    assert peak <= 0.2 * total
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if total == 1000:
        assert rates[199] == rates[200] == RECIPE.lr
        assert rates[0] == pytest.approx(RECIPE.lr / 200)
        assert rates[99] == pytest.approx(RECIPE.lr / 2)
        assert rates[600] == pytest.approx(RECIPE.lr / 2)
        assert rates[-1] == pytest.approx(RECIPE.lr / 800)


def test_the_step_schedule_divides_by_ten_at_a_half_and_three_quarters():
    recipe = replace(RECIPE, schedule="step")
    rates = [training.learning_rate(recipe, s, 100) / RECIPE.lr for s in (0, 49, 50, 74, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_schedule_spans_the_replays_and_is_what_the_optimiser_uses(split):
    rows = fit(network(), split, free(), RECIPE)
    assert [r["lr"] for r in rows] == [training.learning_rate(RECIPE, s, 18) for s in (8, 17)]
    still = network()
    before = weights(still)
    fit(still, split, NATURAL, replace(RECIPE, lr=0.0))
    assert all(torch.equal(p, before[n]) for n, p in still.named_parameters())


@pytest.mark.parametrize("decay_norms", [False, True])
def test_weight_decay_spares_norms_and_biases_unless_asked(decay_norms):
    model = network()
    nn.init.ones_(model.fc.bias)
    nn.init.ones_(model.bn1.bias)
    before = weights(model)
    recipe = replace(RECIPE, weight_decay=0.5, momentum=0.0, decay_norms=decay_norms)
    optim = training.optimiser(model, recipe)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optim.step()
    for name, p in model.named_parameters():
        spared = not decay_norms and ("bn" in name or "downsample.1" in name or "bias" in name)
        factor = 1.0 if spared else 1 - 0.1 * 0.5
        assert torch.allclose(p, before[name] * factor), name


def test_the_momentum_is_nesterovs():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optim = training.optimiser(model, replace(RECIPE, weight_decay=0.0))
    for _ in range(2):
        model.weight.grad = torch.ones(1, 1)
        optim.step()
    # v = 1, then 1.9; each step is lr (g + 0.9 v).
    assert model.weight.item() == pytest.approx(-0.1 * (1.9 + 2.71))


def test_it_is_the_loop_that_anyone_would_write(split):
    loss = objectives.adversarial(Threat("l2", 0.3, 1)).loss
    model, step = network().train(), 0
    lies = layout(model, torch.device("cpu"))
    model.to(memory_format=lies)
    decayed = [p for n, p in model.named_parameters() if "conv" in n or "downsample.0" in n]
    decayed.append(model.fc.weight)
    others = [p for p in model.parameters() if not any(p is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others}]
    optim = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(2):
        for x, y in batches.epoch(split, 64, augment="crop", seed=0, epoch=epoch):
            x = x.contiguous(memory_format=lies)
            for group in optim.param_groups:
                group["lr"] = training.learning_rate(RECIPE, step, 6)
            with torch.random.fork_rng():
                torch.manual_seed(batches.seed_for(0, "step", step))
                optim.zero_grad()
                loss(model, x, y).backward()
            optim.step()
            step += 1
    found = trained(split, objectives.adversarial(Threat("l2", 0.3, 1)))
    for name, value in model.state_dict().items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_the_images_come_in_the_order_of_the_batches_and_replayed(split):
    seen = []

    def watch(model, x, y):
        seen.append((x.clone(), y.clone()))
        return natural(model, x, y)

    fit(network(), split, Objective(watch, replays=2), RECIPE)
    kw = {"augment": "crop", "seed": 0}
    feed = [b for e in (0, 1) for b in batches.epoch(split, 64, epoch=e, **kw)]
    expected = [b for b in feed for _ in range(2)]
    assert len(seen) == len(expected) == 12
    for (x, y), (x_right, y_right) in zip(seen, expected, strict=True):
        assert torch.equal(x, x_right) and torch.equal(y, y_right)
    assert not torch.equal(seen[0][0], seen[6][0]), "the second epoch is another draw"


def test_a_step_is_in_train_mode_whatever_the_monitor_did_and_ends_in_eval_mode(split):
    model, modes = network(), []

    def watch(model, x, y):
        modes.append(model.training)
        return natural(model, x, y)

    fit(model.eval(), split, Objective(watch), RECIPE, monitor=lambda m: m.eval() and {})
    assert modes == [True] * 6 and not model.training
    assert model.bn1.num_batches_tracked == 6


def test_no_epochs_leave_the_network_as_it_is(split):
    model = network()
    assert fit(model, split, NATURAL, replace(RECIPE, epochs=0)) == []
    assert same(weights(model), weights(network()))


def test_the_curve_holds_the_mean_loss_of_each_epoch(split):
    losses = []

    def watch(model, x, y):
        loss = natural(model, x, y)
        losses.append(loss.item())
        return loss

    rows = fit(network(), split, Objective(watch), RECIPE)
    assert [r["epoch"] for r in rows] == [0, 1]
    assert [r["loss"] for r in rows] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


# Where it runs


def test_bf16_computes_in_bf16_the_attack_too_and_keeps_weights_in_fp32(split):
    used, attacked = [], objectives.adversarial(Threat("l2", 0.3, 1))

    def watch(model, x, y):
        hook = model.conv1.register_forward_hook(lambda m, i, out: used.append(out.dtype))
        loss = attacked.loss(model, x, y)
        hook.remove()
        return loss

    half = trained(split, Objective(watch), replace(RECIPE, precision="bf16"))
    assert used == [torch.bfloat16] * 12, "six steps, each after an attack of one step"
    whole = trained(split, attacked)
    assert all(v.dtype == whole[k].dtype for k, v in half.items())
    near = torch.nn.functional.cosine_similarity(
        half["layer4.0.conv1.weight"].flatten(), whole["layer4.0.conv1.weight"].flatten(), dim=0
    )
    assert 0.9 < near < 1 and not same(half, whole)


def test_fp16_on_a_cpu_is_refused_before_anything_is_trained(split):
    with pytest.raises(ValueError, match="precision='fp16': needs a GPU.*fp32, bf16"):
        trained(split, recipe=replace(RECIPE, precision="fp16"))


@pytest.mark.parametrize(
    ("flags", "warned"),
    [("avx2 avx512bw", True), ("avx2 avx512_bf16", False), ("avx512bw amx_bf16", False)],
)
def test_bf16_that_a_cpu_has_not_in_hardware_warns_of_what_it_costs(
    split, monkeypatch, flags, warned
):
    monkeypatch.setattr(devices, "_flags", lambda: frozenset(flags.split()))
    devices._slower.cache_clear()
    started, before = time.monotonic(), torch.get_rng_state()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert devices.reduced("fp32", torch.device("cpu")) is None and not seen
        assert devices.reduced("bf16", torch.device("cpu")) == torch.bfloat16
        took = time.monotonic() - started
        assert len(seen) == warned
        fit(network(), split, NATURAL, replace(RECIPE, precision="bf16", epochs=0))
    assert 0.7 * warned < took < 30 and torch.equal(torch.get_rng_state(), before)
    words = r"precision='bf16': this CPU has no bf16 in hardware; a small training step takes "
    assert len(seen) == 2 * warned
    for warning in seen:
        assert re.fullmatch(
            words + r"\d+\.\d times as long as in fp32\. Choose fp32", str(warning.message)
        )


def test_what_bf16_costs_is_measured(monkeypatch):
    devices._slower.cache_clear()
    where, autocast = torch.device("cpu"), torch.autocast

    def slow(kind, dtype, enabled=True):
        time.sleep(0.2 * enabled)
        return autocast(kind, dtype, enabled=enabled)

    monkeypatch.setattr(torch, "autocast", slow)
    assert devices._slower(torch.bfloat16, where) > 3
    devices._slower.cache_clear()


@pytest.mark.parametrize(
    ("precision", "capability", "has"),
    [
        *(("fp32", (6, 0), True), ("bf16", (7, 5), False), ("bf16", (8, 0), True)),
        *(("fp16", (6, 1), False), ("fp16", (7, 0), True)),
    ],
)
def test_a_gpu_has_by_its_generation_what_it_has(precision, capability, has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert devices.hardware(precision, torch.device("cuda")) is has


def test_the_fast_kernels_of_a_gpu_stay_on_and_are_the_reproducible_ones(split):
    cudnn, seen = torch.backends.cudnn, []

    def watch(model, x, y):
        seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark))
        return natural(model, x, y)

    before = cudnn.enabled, cudnn.deterministic, cudnn.benchmark
    trained(split, Objective(watch))
    assert set(seen) == {(True, True, False)}
    assert (cudnn.enabled, cudnn.deterministic, cudnn.benchmark) == before


@pytest.mark.parametrize("allowed", [False, True])
def test_whether_convolutions_are_rounded_to_tf32_is_the_callers_to_say(
    split, monkeypatch, allowed
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    seen = []

    def watch(model, x, y):
        seen.append(torch.backends.cudnn.allow_tf32)
        return natural(model, x, y)

    trained(split, Objective(watch))
    assert set(seen) == {allowed} and torch.backends.cudnn.allow_tf32 is allowed


def test_images_move_to_a_gpu_once_where_they_fit_into_half_of_what_is_free(monkeypatch, split):
    @dataclass
    class Held:
        x: SimpleNamespace
        y: SimpleNamespace

    def part(ndim: int) -> SimpleNamespace:
        return SimpleNamespace(nbytes=50, ndim=ndim, to=lambda where: f"on {where.type}")

    card = SimpleNamespace(type="cuda")
    classes, masks = Held(part(4), part(1)), Held(part(4), part(3))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (200, 1000))
    assert training._near(classes, card) == Held("on cuda", classes.y), "labels are few"
    assert training._near(masks, card) == Held("on cuda", "on cuda")
    files = FileSplit(("a.png",), torch.zeros(1), 8)
    assert training._near(files, card) is files
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (199, 1000))
    assert training._near(masks, card) is masks and training._near(split, CPU) is split


def test_the_device_is_the_one_that_the_environment_names(monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cuda:1")
    assert training.device() == torch.device("cuda", 1)


# What it measures


def flat(rows: list[list[float]], bias: list[float]) -> nn.Module:
    """Logits linear in the first pixel's channels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, len(bias)))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(rows))
        model[1].bias.copy_(torch.tensor(bias))
    return model


def test_robust_accuracy_on_a_linear_model_is_the_closed_form():
    # Label 1 where the sum of channels is above 1.5: an image at distance d from that plane
    # resists every l2 attack below d, and every linf attack below d / sqrt(3).
    levels = np.array([60, 90, 115, 127, 128, 140, 165, 195])
    x = torch.tensor(np.repeat(levels[:, None], 3, 1), dtype=torch.uint8).view(-1, 1, 1, 3)
    split = Split(x, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]))
    model = flat([[0, 0, 0], [5, 5, 5]], [0, -7.5])
    distance = np.abs(levels / 255 - 0.5) * math.sqrt(3)
    assert training.correct(model, split) == 8
    for eps in (0.01, 0.1, 0.2, 0.4):
        found = training.robust_correct(model, split, Threat("l2", eps, 40, eps / 2))
        assert found == (distance > eps).sum()
        found = training.robust_correct(model, split, Threat("linf", eps / math.sqrt(3)))
        assert found == (distance > eps).sum()
    assert training.robust_correct(model, split, Threat("l2", 0.0)) == 8


def test_an_image_that_is_wrong_as_it_is_is_not_robust():
    # Up the first channel the loss of label 0 rises, and yet the answer becomes label 0.
    model = flat([[1, 0, 0], [0, 0, 0], [10, 0, 0]], [-0.5, 0.05, -6])
    split = Split(torch.full((1, 1, 1, 3), 128, dtype=torch.uint8), torch.tensor([0]))
    assert training.correct(model, split) == 0
    assert training.robust_correct(model, split, Threat("linf", 0.1)) == 0


def test_logits_keep_the_order_of_the_split(split):
    model = network().train()
    out, y = training.logits(model, split)
    with torch.no_grad():
        expected = model.eval()(batches.to_float(split.x))
    assert torch.allclose(out, expected, atol=1e-5) and torch.equal(y, split.y)
    assert training.correct(model, split) == int((expected.argmax(1) == split.y).sum())


def test_measuring_gives_each_module_its_mode_back(split):
    model = network().train()
    model.layer1.eval()
    before = weights(model)
    training.correct(model, split)
    training.robust_correct(model, split, Threat("l2", 0.1, 1))
    assert model.training and model.fc.training and not model.layer1.training
    assert same(weights(model), before)


def test_recalibration_is_the_plain_average_over_the_batches(split):
    model = network()
    fit(model, split, NATURAL, RECIPE)
    kept = {n: p.clone() for n, p in model.named_parameters()}
    momentum = model.bn1.momentum
    training.recalibrate(model, split, batch_size=40)
    x = batches.to_float(split.x)
    with torch.no_grad():
        maps = model.conv1((x - model.mean) / model.std)
    assert torch.allclose(model.bn1.running_mean, maps.mean((0, 2, 3)), atol=1e-5)
    # Shuffled batches: the variance within them is that of the whole, less that of their means.
    assert torch.allclose(model.bn1.running_var, maps.var((0, 2, 3)), rtol=0.05)
    assert model.bn1.num_batches_tracked == 5 and model.bn1.momentum == momentum
    assert not model.training
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters())

    # With one batch every layer has the statistics of that batch, so both modes agree.
    training.recalibrate(model, split, batch_size=200)
    with torch.no_grad():
        evaluated, trained = model(x), model.train()(x)
    assert torch.allclose(evaluated, trained, atol=0.02 * trained.abs().max().item())


@pytest.mark.parametrize(
    ("conv", "plain"),
    [
        (nn.Conv2d(4, 8, 1, 2), True),
        (nn.Conv2d(15, 64, 1, (1, 2)), True),
        (nn.Conv2d(16, 8, 1, 2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, 2), False),
    ],
)
def test_one_rule_says_how_memory_is_laid_out(conv, plain, split):
    model = nn.Sequential(nn.Conv2d(3, conv.in_channels, 3), conv)
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(conv.out_channels, 10)])
    last = torch.channels_last
    assert layout(model, torch.device("cuda")) == last
    assert layout(model, torch.device("cpu")) == (torch.contiguous_format if plain else last)
    # Images come in channels_last: they must not lead a plain network there.
    seen = []
    model.register_forward_pre_hook(lambda _, x: seen.append(x[0].is_contiguous()))
    objective = objectives.adversarial(Threat("l2", 0.1, 1))
    fit(model, split, objective, RECIPE)
    assert len(seen) == 2 * 6 and set(seen) == {plain}
    lies = torch.contiguous_format if plain else last
    assert all(p.is_contiguous(memory_format=lies) for p in model.parameters() if p.ndim == 4)
    seen.clear()
    x, y = next(batches.ordered(split))
    assert x.is_contiguous(memory_format=last)
    pgd(model, x, y, Threat("l2", 0.1, 2))
    assert seen == [plain] * 2
