"""What only a GPU can show; benchmarks/gpu.py runs these and writes down what each said."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import killed_at
from torch import nn

from robustlib import models, objectives, run, store, training
from robustlib.attacks import Threat, pgd
from robustlib.data import Split, load
from robustlib.objectives import Objective, natural
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer
from robustlib.training import Recipe, fit

CARD = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

NATURAL = Objective(natural)
RECIPE = Recipe(
    epochs=2, lr=0.1, batch_size=64, weight_decay=5e-4, augment="crop", precision="fp32", seed=0
)
SOURCE = Pretrain(source="digits", size=16, width=8, stem_stride=1, epochs=4)
TICKET = Ticket(SOURCE, sparsity=0.5)


@pytest.fixture(autouse=True)
def _on_the_card(monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DEVICE", CARD)


@pytest.fixture(scope="module")
def data():
    return load("digits", size=16, n_train=500)


def network(width: int = 8) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build("resnet10s", 10, width, 1)


def trained(split: Split, objective: Objective = NATURAL, recipe: Recipe = RECIPE, **options):
    """The weights after a training, on the CPU, and the curve without seconds."""
    model = network()
    curve = fit(model, split, objective, recipe, **options)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in curve]
    return {k: v.cpu().clone() for k, v in model.state_dict().items()}, rows


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_card_is_taken_unless_the_environment_names_another_device(monkeypatch):
    monkeypatch.delenv("ROBUSTLIB_DEVICE")
    assert training.device().type == CARD
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")
    assert training.device().type == "cpu"


def test_a_training_is_on_the_card_with_its_images_and_labels(data):
    seen, model = set(), network()

    def watch(wrapped, x, y):
        weights = {p.device.type for p in wrapped.parameters()}
        seen.add((x.device.type, y.device.type, x.dtype, *weights))
        return natural(wrapped, x, y)

    fit(model, data.train, Objective(watch), RECIPE)
    assert seen == {(CARD, CARD, torch.float32, CARD)}
    assert {t.device.type for t in model.state_dict().values()} == {CARD}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "objective",
    [
        lambda: NATURAL,
        lambda: objectives.adversarial(Threat("l2", 0.5, 2)),
        lambda: objectives.trades(Threat("linf", 0.05, 2), 6.0),
        lambda: objectives.free(Threat("linf", 0.05), 2),
        lambda: objectives.smoothing(0.1),
    ],
    ids=["natural", "pgd", "trades", "free", "smoothing"],
)
def test_a_recipe_and_a_seed_decide_every_bit(data, objective, precision):
    recipe = replace(RECIPE, precision=precision)
    first, curve = trained(data.train, objective(), recipe)
    torch.rand(3, device=CARD)
    again, same_curve = trained(data.train, objective(), recipe)
    assert same(first, again) and curve == same_curve
    assert all(v.dtype == torch.float32 for v in first.values() if v.is_floating_point())


def test_images_that_are_on_the_card_already_give_the_same_bits(data):
    there = Split(data.train.x.to(CARD), data.train.y)
    for augment in ("none", "crop", "crop-flip"):
        recipe = replace(RECIPE, augment=augment)
        assert same(trained(data.train, recipe=recipe)[0], trained(there, recipe=recipe)[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_stopped_and_run_again_it_ends_with_the_same_bits(data, tmp_path, monkeypatch, precision):
    path, recipe = tmp_path / "run.pt", replace(RECIPE, precision=precision)
    whole, curve = trained(data.train, recipe=recipe)
    stop, _ = killed_at(11, natural)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "CHECKPOINT_SECONDS", -1)
        trained(data.train, Objective(stop), recipe, checkpoint=path)
    saved = torch.load(bytes_of(path), map_location="cpu", weights_only=True)
    assert saved["step"] == 10
    if precision == "fp16":
        assert saved["scaler"]["scale"] > 1
    resumed, same_curve = trained(data.train, recipe=recipe, checkpoint=path)
    assert same(whole, resumed) and curve == same_curve


def bytes_of(path: Path):
    import io

    return io.BytesIO(store.read_checked(path))


def test_a_training_begun_on_the_card_goes_on_on_the_cpu(data, tmp_path, monkeypatch):
    path, (stop, _) = tmp_path / "run.pt", killed_at(11, natural)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "CHECKPOINT_SECONDS", -1)
        trained(data.train, Objective(stop), checkpoint=path)
    whole = trained(data.train)[1]
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")
    curve = trained(data.train, checkpoint=path)[1]
    assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in whole], rel=0.05)


def test_what_a_network_puts_out_is_that_of_the_cpu(data, monkeypatch):
    model = network()
    fit(model, data.train, NATURAL, RECIPE)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    threat, found = Threat("l2", 0.5, 5), {}
    for where in (CARD, "cpu"):
        monkeypatch.setenv("ROBUSTLIB_DEVICE", where)
        own = copy.deepcopy(model)
        out, labels = training.logits(own, data.test)
        robust = training.robust_correct(own, data.test, threat) / len(data.test)
        found[where] = out, labels, training.correct(own, data.test), robust
    (out, labels, right, robust), (expected, *others) = found[CARD], found["cpu"]
    assert (out - expected).norm() < 1e-4 * expected.norm()
    assert torch.equal(labels, others[0]) and abs(right - others[1]) <= 1
    assert abs(robust - others[2]) < 0.05, "another random start, much the same attack"


def test_an_attack_on_the_card_stays_in_its_ball_and_raises_the_loss(data):
    model = network()
    fit(model, data.train, NATURAL, RECIPE)
    x = data.test.x[:64].permute(0, 3, 1, 2).float().div(255).expand(-1, 3, -1, -1).to(CARD)
    y = data.test.y[:64].to(CARD)
    x_adv = pgd(model, x, y, Threat("linf", 0.1, 5), worst=True)
    assert x_adv.device.type == CARD and (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(model(x_adv), y) > loss(model(x), y)


@pytest.mark.parametrize(
    ("mode", "task", "measure", "least"),
    [
        ("linear", "digits", "accuracy", 0.8),
        ("finetune", "digits", "accuracy", 0.4),
        ("segment", "glyphs_seg", "pixel_accuracy", 0.5),
    ],
)
@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_a_transfer_runs_and_what_is_stored_is_read_without_a_card(
    mode, task, measure, least, pattern, monkeypatch
):
    spec = Transfer(
        replace(TICKET, pattern=pattern), task, mode=mode, n_train=200, epochs=3, augment="none"
    )
    artifact = run(spec)
    assert artifact.row[measure] > least
    assert {t.device.type for t in artifact.tensors().values()} == {"cpu"}
    from robustlib import network as built

    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")
    assert next(built(spec).parameters()).device.type == "cpu"


@pytest.mark.parametrize("scheme", ["imp", "lmp"])
def test_tickets_that_are_trained_are_drawn_on_the_card(scheme):
    source = replace(SOURCE, epochs=1, n_train=200)
    artifact = run(Ticket(source, scheme=scheme, sparsity=0.5, epochs=1))
    assert artifact.row["sparsity_measured"] == pytest.approx(0.5, abs=0.01)


def test_the_memory_of_a_training_is_given_back(data):
    trained(data.train)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        trained(data.train)
    assert torch.cuda.memory_allocated() <= before + 2**20


@pytest.mark.parametrize(
    "fields",
    [
        {"suite": "adversarial", "eps": 0.5, "limit": 50},
        {"suite": "calibration", "scaled": True},
        {"suite": "certified", "sigma": 0.1, "draws": 50, "limit": 10},
        {"suite": "corruption", "limit": 20},
        {"suite": "ood", "against": "glyphs", "limit": 50},
        {"suite": "similarity", "other": replace(SOURCE, seed=1), "limit": 50},
        {"suite": "adversarial", "eps": 0.5, "limit": 10, "attack": "standard"},
    ],
    ids=lambda fields: f"{fields['suite']}-{fields.get('attack', '')}".strip("-"),
)
def test_every_suite_measures_on_the_card(fields):
    of = SOURCE if fields["suite"] == "similarity" else Transfer(TICKET, "digits", mode="linear")
    row = run(Evaluation(of, **fields)).row
    if fields["suite"] == "adversarial":
        assert row["autoattack_accuracy"] <= row["clean_accuracy"]
        assert row["clean_accuracy"] > 0.5
    assert row["n"] > 0 if "n" in row else row
