"""Our PGD against independent attacks, on networks trained on real images."""

import math
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from robustlib import models, objectives, training
from robustlib.attacks import Threat, held, pgd
from robustlib.data import Split, batches, load
from robustlib.data.splits import seed_for
from robustlib.metrics import adversarial as suite
from robustlib.metrics.adversarial import _attacks, measure
from robustlib.metrics.sample import sample
from robustlib.specs import Evaluation

EPS = {"l2": 0.5, "linf": 0.1}
THEIR_NORM = {"l2": "L2", "linf": "Linf"}


def adversarial(model, split, norm, eps, attack="standard", seed=0) -> dict:
    spec = SimpleNamespace(norm=norm, eps=eps, attack=attack, seed=seed, limit=None)
    return measure(model, SimpleNamespace(test=split), spec)[0]


def apgd(model: nn.Module, split: Split, norm: str, eps: float) -> int:
    """How many images stay right under APGD-CE of 100 iterations."""
    from pyautoattack.autopgd_base import APGDAttack

    right = 0
    with torch.random.fork_rng(), training.inference(model) as where:
        attack = APGDAttack(model, norm=THEIR_NORM[norm], eps=eps, seed=0, device=where)
        for images, y in batches.ordered(split, 250, device=where):
            x = images.contiguous()  # it flattens with view, which channels_last does not allow
            right += int((model(attack.perturb(x, y)).argmax(1) == y).sum())
    return right


@pytest.fixture(scope="module")
def networks():
    """A natural network and one trained against each norm, made when first asked for."""
    made = {}

    def get(name: str) -> nn.Module:
        if name not in made:
            objective = objectives.Objective(objectives.natural)
            if name != "natural":
                objective = objectives.adversarial(Threat(name, EPS[name], 1))
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[name] = models.build("resnet10s", 10, 8, 1)
            recipe = training.Recipe(6, 0.2, 64, 5e-4, "none", "fp32", 0)
            training.fit(made[name], load("digits", size=8).train, objective, recipe)
        return made[name]

    return get


@pytest.fixture(scope="module")
def withstood(networks):
    """How many test images a network has right under APGD: it takes seconds, and is asked once."""
    test = load("digits", size=8).test
    return cache(lambda name, norm: apgd(networks(name), test, norm, EPS[norm]))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("trained", ["natural", "robust"])
def test_apgd_is_below_our_pgd_and_close_to_it(networks, withstood, norm, trained):
    """Both maximise the same loss over the same ball, so they part only on images close to the
    boundary of a decision. APGD is stronger: five times the iterations, an adapted step, and any
    wrong iterate counts. But each has a random start of its own, so that ours may win single
    images: two of 359 are allowed. An attack of ours that was off in radius, projection or
    normalisation would be off by far more than the five points allowed below: how far the two are
    apart depends on the network, which is another one on another CPU."""
    name = norm if trained == "robust" else "natural"
    model, test = networks(name), load("digits", size=8).test
    clean = training.correct(model, test)
    ours = training.robust_correct(model, test, Threat(norm, EPS[norm], steps=20))
    theirs, n = withstood(name, norm), len(test)
    assert n == 359 and clean > 0.9 * n
    assert theirs <= ours + 2
    assert ours - theirs <= 0.05 * n
    assert max(ours, theirs) < 0.95 * clean
    # The five points mean something: an eps that is a fifth smaller is told from this one.
    assert training.robust_correct(model, test, Threat(norm, 0.8 * EPS[norm], 20)) > theirs + 8


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_training_against_an_attack_resists_the_independent_one(withstood, norm):
    natural, robust = (withstood(name, norm) for name in ("natural", norm))
    assert robust > natural + 0.05 * 359


def linear_case(side: int = 2) -> tuple[nn.Module, Split, np.ndarray]:
    """Grey images of side x side pixels at a known distance from the plane between two classes."""
    levels = np.array([60, 90, 115, 127, 128, 140, 165, 195])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 3 * side**2))
        model[1].bias.copy_(torch.tensor([0.0, -1.5 * side**2]))
    x = torch.tensor(
        np.broadcast_to(levels[:, None, None, None], (8, side, side, 1)).astype(np.uint8)
    )
    return model, Split(x, (torch.tensor(levels) > 127).long()), np.abs(levels / 255 - 0.5)


def test_a_suite_is_a_module_of_its_name_and_loads_no_large_library():
    heavy = "{'sklearn', 'torchmetrics', 'pyautoattack', 'pandas', 'PIL.Image', 'scipy.stats'}"
    code = (
        "import sys, robustlib; assert 'robustlib.metrics' not in sys.modules; import torchvision;"
        "before = set(sys.modules); from importlib import import_module;"
        "found = [import_module(f'robustlib.metrics.{name}') for name in robustlib.specs.SUITES];"
        "assert all(callable(module.measure) for module in found);"
        f"found = {heavy} & (set(sys.modules) - before); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PARTS = ["clean", "apgd_ce", "apgd_t", "fab_t", "square", "autoattack"]


def counts(row: dict) -> dict[str, int]:
    return {k.removesuffix("_correct"): v for k, v in row.items() if k.endswith("_correct")}


def theirs(model: nn.Module, split: Split, norm: str, eps: float, suite: str) -> int:
    """What AutoAttack's own run leaves."""
    from pyautoattack import AutoAttack

    attack = AutoAttack(model, norm=THEIR_NORM[norm], eps=eps, seed=0)
    if suite == "cheap":
        attack.version, attack.attacks_to_run = "custom", ["apgd-ce", "apgd-t"]
        attack.apgd_targeted.n_target_classes = 3
        for part in (attack.apgd, attack.apgd_targeted):
            part.n_iter, part.n_iter_2, part.n_iter_min, part.size_decr = 20, 4, 1, 1
    ((x, y),) = batches.ordered(split, 500)
    with torch.random.fork_rng():
        x_adv, _ = attack.run_standard_evaluation(x.contiguous(), y)
    with torch.no_grad():
        return int((model(x_adv).argmax(1) == y).sum())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_cheap_suite_is_autoattacks_own_run_of_the_same_attacks(networks, norm):
    model, test = networks(norm), sample(load("digits", size=8).test, 120)
    found = counts(adversarial(model, test, norm, EPS[norm], "cheap"))
    assert found["autoattack"] == theirs(model, test, norm, EPS[norm], "cheap")
    assert list(found) == ["clean", "pgd", "apgd_ce", "apgd_t", "autoattack"]
    assert found["clean"] == training.correct(model, test)
    assert found["autoattack"] == found["apgd_t"] <= found["apgd_ce"] < found["clean"]
    # PGD-20 and APGD search the same ball: a wrong radius would part them by far more.
    assert abs(found["pgd"] - found["apgd_ce"]) <= 0.04 * 120 < 0.1 * (120 - found["apgd_ce"]) + 4


def test_the_standard_suite_is_autoattack_and_no_part_leaves_less_than_the_next(networks):
    model, test = networks("natural"), sample(load("digits", size=8).test, 60)
    # So far that few images are left for Square, whose 5,000 queries take their time.
    row = adversarial(model, test, "linf", 0.2)
    found = counts(row)
    assert list(found) == ["clean", "pgd", *PARTS[1:]]
    ordered = [found[name] for name in PARTS]
    assert ordered == sorted(ordered, reverse=True) and found["clean"] > 50
    assert found["autoattack"] == theirs(model, test, "linf", 0.2, "standard")
    assert row["n"] == 60
    assert all(row[f"{k}_accuracy"] == v / 60 for k, v in found.items())


@pytest.mark.parametrize("suite", ["cheap", "standard"])
def test_on_a_linear_model_every_part_is_the_closed_form(suite):
    """Two classes: APGD-T has no loss for them, every other part is exact on a plane."""
    model, split, level = linear_case(6)  # Square has squares of a fifth of the side
    cases = {"linf": 1.0, "l2": math.sqrt(108)} if suite == "cheap" else {"linf": 1.0}
    for norm, unit in cases.items():
        found = counts(adversarial(model, split, norm, 0.1 * unit, suite))
        parts = ["fab_t", "square"] if suite == "standard" else []
        assert list(found) == ["clean", "pgd", "apgd_ce", *parts, "autoattack"]
        assert found.pop("clean") == 8
        assert set(found.values()) == {int((level > 0.1).sum())}


def five_classes(norm: str) -> tuple[nn.Module, Split, np.ndarray]:
    """A linear network, 12 images it is right about, and how far each is from another answer.

    All pixels are far enough from 0 and 1 that the box of images is never in an attack's way.
    """
    x = torch.randint(96, 160, (12, 6, 6, 3), dtype=torch.uint8)
    weight = torch.randn(5, 108)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(-weight.sum(1) / 2)
        out = model(batches.to_float(x).contiguous())
    y = out.argmax(1)
    # The plane between two classes is |difference of logits| / |difference of weights| away, by
    # the dual norm; the class itself is at 0 / 0.
    margin = out.gather(1, y[:, None]) - out
    distance = margin / torch.cdist(weight, weight, p={"l2": 2, "linf": 1}[norm])[y]
    return model, Split(x, y), np.sort(distance.nan_to_num(math.inf).min(1).values.numpy())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("suite", ["cheap", "standard"])
def test_on_a_linear_model_of_five_classes_what_is_left_is_the_closed_form(norm, suite):
    """More classes than APGD-T needs and fewer than the 9 it aims at elsewhere."""
    model, split, distance = five_classes(norm)
    # In the widest gap, so that no image is close to being lost; Square needs some that are not.
    first = 6 + np.diff(distance[6:-1]).argmax()
    eps, left = distance[first : first + 2].mean(), 11 - first
    assert distance[first] < 0.97 * eps and (distance > eps / 2).sum() > left
    found = counts(adversarial(model, split, norm, eps, suite))
    names = [name for name in PARTS if suite == "standard" or name not in ("fab_t", "square")]
    assert list(found) == ["clean", "pgd", *names[1:]]
    assert found["clean"] == 12 and found["apgd_t"] == found["autoattack"] == left


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 10, 100])
def test_the_attacks_are_as_strong_as_published_and_aim_at_no_more_classes_than_there_are(
    norm, n_classes
):
    """Most images fall to much weaker attacks, so that counts alone would not tell."""
    args = (n_classes, torch.device("cpu"))
    full, small = (
        _attacks(
            nn.Identity(),
            Threat(norm, 0.3),
            Evaluation(suite="adversarial", norm=norm, eps=0.3, attack=attack, seed=7),
            *args,
        )
        for attack in ("standard", "cheap")
    )
    targeted = ["apgd_t"] if n_classes >= 4 else []
    assert list(full) == ["apgd_ce", *targeted, "fab_t", "square"]
    assert list(small) == ["apgd_ce", *targeted]
    for attack in (*full.values(), *small.values()):
        assert (attack.norm, attack.eps, attack.seed) == (THEIR_NORM[norm], 0.3, 7)
        assert attack.n_restarts == 1
    assert full["square"].n_queries == 5000
    assert full["fab_t"].targeted and full["fab_t"].n_iter == 100
    assert full["fab_t"].n_target_classes == min(9, n_classes - 1)
    for parts, n_iter, most in ((full, 100, 9), (small, 20, 3)):
        for name in ("apgd_ce", *targeted):
            # The first of the steps at which the step size may change is 22% of the way.
            assert (parts[name].n_iter, parts[name].n_iter_2) == (n_iter, int(0.22 * n_iter))
        if targeted:
            assert parts["apgd_t"].n_target_classes == min(most, n_classes - 1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("batch_size", [3, 7])
def test_the_images_of_all_batches_are_counted(norm, batch_size, monkeypatch):
    model, split, level = linear_case()
    eps = 0.1 * (math.sqrt(12) if norm == "l2" else 1)
    row = adversarial(model, split, norm, eps, "cheap")
    monkeypatch.setattr(suite, "BATCH", batch_size)
    assert row == adversarial(model, split, norm, eps, "cheap")
    # The last batch is none that could pass for all.
    assert counts(row)["autoattack"] == (level > 0.1).sum() > (level[-2:] > 0.1).sum()


class Waves(nn.Module):
    """Answers 0 but in places all over a ball, so that each iterate of an attack is a new try."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(12, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([1.5, 0.0, 0.0, 0.0]))

    def forward(self, x):
        return self.last((200 * self.first(x.flatten(1))).sin())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_its_pgd_is_ours_of_20_steps_and_keeps_the_worst_of_them(norm, monkeypatch):
    x, y = torch.randint(256, (90, 2, 2, 3), dtype=torch.uint8), torch.zeros(90, dtype=torch.long)
    model, split = Waves(), Split(x, y)

    def by_hand(steps: int, worst: bool) -> int:
        right, threat = 0, Threat(norm, EPS[norm], steps)
        for i, (x, y) in enumerate(batches.ordered(split, 60)):
            x = x.contiguous()  # the draws of the random start follow the layout
            torch.manual_seed(seed_for(5, i))
            x_adv = pgd(model, x, y, threat, worst=worst)
            right += int(((model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)).sum())
        return right

    monkeypatch.setattr(suite, "BATCH", 60)
    row = adversarial(model, split, norm, EPS[norm], "cheap", seed=5)
    assert row["pgd_correct"] == by_hand(20, worst=True)
    # A weaker attack leaves more of these images: the equality above tells it from this one.
    assert row["pgd_correct"] < min(by_hand(3, worst=True), by_hand(20, worst=False))


@pytest.mark.parametrize("right", [0, 1, 13, 40])
def test_what_is_wrong_already_is_not_attacked_and_the_others_as_if_it_were(right):
    """The random start of an image does not depend on which others are right."""
    x, y, model, threat = (
        torch.rand(40, 3, 2, 2),
        torch.zeros(40).long(),
        Waves(),
        Threat("l2", 0.5),
    )
    with torch.no_grad():
        y[:] = model(x).argmax(1)
    y[torch.randperm(40)[right:]] += 1
    torch.manual_seed(4)
    everything = pgd(model, x, y, threat, worst=True)
    expected = (model(x).argmax(1) == y) & (model(everything).argmax(1) == y)
    seen = []
    model.register_forward_hook(lambda _, i, out: seen.append(len(out) * torch.is_grad_enabled()))
    torch.manual_seed(4)
    found = held(model, x, y, threat)
    assert found[0].sum() == right and torch.equal(found[1], expected)
    assert right < 13 or 0 < expected.sum() < right
    assert sum(seen) <= right * (threat.steps + 1)


@pytest.mark.filterwarnings("ignore:.*points with zero gradient")
@pytest.mark.parametrize(
    ("suite", "norm"), [("cheap", "l2"), ("cheap", "linf"), ("standard", "linf")]
)
def test_a_constant_predictor_cannot_be_attacked(suite, norm):
    """All gradients are zero: what divides by their norm must not make images of nan."""
    model, split, _ = five_classes(norm)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 3.0, 2.0, 1.0, -1.0]))
    split = Split(split.x, torch.arange(12) % 5)
    found = counts(adversarial(model, split, norm, 1.0, suite))
    assert set(found.values()) == {int((split.y == 1).sum())} == {3}


def test_the_limits_no_radius_and_a_network_that_is_always_wrong(networks):
    model, test = networks("natural"), sample(load("digits", size=8).test, 40)
    clean = training.correct(model, test)
    assert set(counts(adversarial(model, test, "l2", 0, "cheap")).values()) == {clean}
    linear, split, _ = linear_case()
    wrong = Split(split.x, 1 - split.y)
    assert set(counts(adversarial(linear, wrong, "l2", 2.0, "cheap")).values()) == {0}


def test_an_evaluation_leaves_the_network_and_the_generator_as_they_were(networks):
    model, test = networks("natural"), sample(load("digits", size=8).test, 40)
    model.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model.zero_grad()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first = adversarial(model, test, "l2", 0.5, "cheap", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert adversarial(model, test, "l2", 0.5, "cheap", seed=3) == first
    assert model.training and not model.layer1.training
    assert not model.conv1.weight.requires_grad and model.fc.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    model.conv1.weight.requires_grad_(True)
    model.eval()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_images_of_a_limit_are_the_same_for_everybody_and_nested():
    test = load("digits", size=8).test
    few, more = sample(test, 30), sample(test, 90)
    assert len(few) == 30 and len(more) == 90 and sample(test, 10**6) is sample(test) is test
    rows = {x.numpy().tobytes() for x in more.x}
    assert all(x.numpy().tobytes() in rows for x in few.x)
    assert torch.equal(few.x, sample(test, 30).x)
    assert len(few.y.unique()) == 10  # a set that is sorted by class is not cut to its first ones
