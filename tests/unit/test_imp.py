"""IMP: every round is a ticket of its own, and starts from the weights that the ticket has."""

import copy
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import killed_at, store_of

from robustlib import attacks, objectives, specs, stages, store, tickets, training
from robustlib.data import batches, load
from robustlib.data.splits import take
from robustlib.specs import PATTERNS, Pretrain, Ticket, previous
from robustlib.stages import network, run
from robustlib.training import Recipe

PRETRAIN = Pretrain(source="digits", width=4, stem_stride=1, size=8, n_train=150, epochs=1)
RECIPE = {"scheme": "imp", "epochs": 1, "batch_size": 50, "lr": 0.1, "augment": "none"}


def imp(sparsity: float, **fields) -> Ticket:
    return Ticket(PRETRAIN, sparsity=sparsity, **{**RECIPE, **fields})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory, PRETRAIN)


@pytest.fixture(autouse=True)
def _trained(pretrained) -> None:
    """Puts PRETRAIN into the store of the test."""
    shutil.copytree(pretrained, store.root())


@pytest.fixture
def fits(monkeypatch) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Of each training: what it is called, and the weights that it started from."""
    calls, fit = [], training.fit

    def noted(model, *args, **kwargs):
        calls.append((kwargs["label"], copy.deepcopy(model.state_dict())))
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(training, "fit", noted)
    return calls


def chain(ticket: Ticket) -> list[float]:
    """The sparsities of the rounds, the last first."""
    out = [ticket.sparsity]
    while (ticket := previous(ticket)) is not None:
        out.append(ticket.sparsity)
    return out


@pytest.mark.parametrize(
    ("ticket", "expected"),
    [
        (Ticket(scheme="imp", sparsity=0.488), [0.488, 0.36, 0.2]),
        (Ticket(scheme="imp", sparsity=0.5), [0.5, 0.488, 0.36, 0.2]),
        (Ticket(scheme="imp", sparsity=0.2), [0.2]),
        (Ticket(scheme="imp", sparsity=1 - 0.8**2), [1 - 0.8**2, 0.2]),
        (Ticket(scheme="imp", sparsity=0.1), [0.1]),
        (Ticket(scheme="imp", sparsity=0.0), [0]),
        (Ticket(scheme="imp", sparsity=0.9, rate=0.5), [0.9, 0.875, 0.75, 0.5]),
        (Ticket(scheme="imp", sparsity=0.9, rate=0.95), [0.9]),
        (Ticket(scheme="imp", sparsity=0.9, rounds=(0.3, 0.8)), [0.9, 0.8, 0.3]),
        (Ticket(scheme="imp", sparsity=0.8, rounds=(0.3, 0.8, 0.9)), [0.8, 0.3]),
        (Ticket(scheme="imp", sparsity=0.2, rounds=(0.3, 0.8)), [0.2]),
        (Ticket(scheme="imp", sparsity=0.36, rewind=2), [0.36, 0.2, 0]),
        (Ticket(scheme="imp", sparsity=0.5, rounds=(0.3,), rewind=2), [0.5, 0.3, 0]),
        (Ticket(scheme="imp", sparsity=0.75, pattern="1:4"), [0.75]),
        (Ticket(scheme="imp", sparsity=0.75, pattern="1:4", rewind=1), [0.75, 0]),
        (Ticket(scheme="lmp", sparsity=0.9), [0.9]),
        (Ticket(sparsity=0.9), [0.9]),
    ],
)
def test_the_rounds_before_a_ticket(ticket, expected):
    assert chain(ticket) == pytest.approx(expected, abs=1e-9)


def test_every_ticket_of_a_chain_has_the_key_that_one_would_ask_for():
    sparsities = [0.2, 0.36, 0.488, 0.5904, 0.67232]
    one = Ticket(scheme="imp", sparsity=0.67232)
    for s in reversed(sparsities):
        assert one == Ticket(scheme="imp", sparsity=s)
        one = previous(one)
    given = Ticket(scheme="imp", sparsity=0.9, rounds=(0.2, 0.5, 0.9, 0.95))
    assert given.rounds == (0.2, 0.5)
    assert previous(given) == Ticket(scheme="imp", sparsity=0.5, rounds=(0.2, 0.5, 0.6))
    # A control, or another network's mask, is drawn by the rounds of the mask itself.
    assert previous(Ticket(scheme="imp", sparsity=0.36, control="shuffle")).control == "none"


@pytest.mark.parametrize("pattern", ["unstructured", "row", "kernel", "channel"])
def test_every_round_is_stored_and_lies_within_the_one_before(pattern, fits):
    run(imp(0.488, pattern=pattern))
    rounds = [imp(s, pattern=pattern) for s in (0.2, 0.36, 0.488)]
    assert all(map(store.has, rounds)) and len(fits) == 3
    masks = [stages.mask(t) for t in rounds]
    for denser, sparser in zip(masks, masks[1:], strict=False):
        assert all(not (m & ~denser[n]).any() for n, m in sparser.items())
    row = store.frame(Ticket).sort_values("sparsity")
    assert list(row.sparsity) == [0.2, 0.36, 0.488]
    for ticket, measured in zip(rounds, row.sparsity_measured, strict=True):
        assert 0 <= ticket.sparsity - measured + 1e-4 < 0.03
        stored = run(ticket)
        assert specs.from_dict(Ticket, specs.to_dict(stored.spec)) == ticket
        assert len(stored.extra["curve"]) == RECIPE["epochs"]
    # A sparser one trains its own round alone.
    run(imp(0.5904, pattern=pattern))
    assert len(fits) == 4
    # Each round starts from the pretrained weights, those of the round before at zero.
    source = run(PRETRAIN).tensors()
    for (_, start), before in zip(fits[1:], masks, strict=True):
        for name, m in before.items():
            assert torch.equal(start[name], torch.where(m, source[name], 0))


@pytest.mark.parametrize("how", [{"rate": 0.6}, {"rounds": (0.6, 0.9, 0.95)}], ids=str)
def test_ninety_five_after_ninety_trains_only_what_is_new(how, fits):
    run(imp(0.9, **how))
    first = len(fits)
    assert first == len(chain(imp(0.9, **how)))
    before = {p: p.stat().st_mtime_ns for p in store.root().rglob("*.safetensors")}
    run(imp(0.95, **how))
    new = set(chain(imp(0.95, **how))) - set(chain(imp(0.9, **how)))
    assert 0 < len(new) < len(chain(imp(0.95, **how))) and len(fits) - first == len(new)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())


def test_a_ticket_has_the_pretrained_weights_where_it_keeps_them():
    source, ticket = network(PRETRAIN).state_dict(), imp(0.5, rounds=(0.3,))
    mask, found = stages.mask(ticket), network(ticket).state_dict()
    for name, p in source.items():
        kept = mask[name] if name in mask else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(found[name], torch.where(kept, p, 0)), name
    # The training mattered: the mask is not that of the weights as they were.
    assert mask != tickets.omp(network(PRETRAIN), 0.5)


def test_rounds_without_training_are_one_shot_pruning():
    source = network(PRETRAIN)
    for pattern in PATTERNS:
        blocks = specs.n_of_m(pattern)
        s = 1 - blocks[0] / blocks[1] if blocks else 0.2
        omp = tickets.omp(source, s, pattern)
        assert stages.mask(imp(s, pattern=pattern, epochs=0)) == omp
        if pattern in ("unstructured", "row"):
            again = stages.mask(imp(0.6, pattern=pattern, epochs=0, scope="layer"))
            assert again == tickets.omp(source, 0.6, pattern, "layer")


@pytest.mark.parametrize(("pattern", "sparsity"), [("unstructured", 0.36), ("2:4", 0.5)])
def test_a_rewound_ticket_has_the_weights_after_so_many_epochs(pattern, sparsity, fits):
    ticket = imp(sparsity, pattern=pattern, rewind=2, epochs=1)
    early = specs.rewound(ticket)
    mask, found = stages.mask(ticket), network(ticket).state_dict()
    assert store.has(early) and "early" in fits[0][0]
    # A second way to them.
    expected = network(PRETRAIN)
    data = load("digits", size=8, n_train=150)
    recipe = Recipe(2, 0.1, 50, 5e-4, "none", "fp32", 0)
    training.fit(expected, data.train, objectives.Objective(objectives.natural), recipe, label="")
    expected = expected.state_dict() | {
        n: p for n, p in network(PRETRAIN).state_dict().items() if n.startswith("fc.")
    }
    fits.pop()
    source = network(PRETRAIN).state_dict()
    assert not torch.equal(expected["conv1.weight"], source["conv1.weight"])
    for name, p in expected.items():
        kept = mask[name] if name in mask else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(found[name], torch.where(kept, p, 0)), name
    # Every round starts from them too; the first of all trainings from the pretrained ones.
    rounds = 1 if pattern == "2:4" else 2
    assert len(fits) == 1 + rounds
    assert torch.equal(fits[0][1]["conv1.weight"], source["conv1.weight"])
    for _, start in fits[1:]:
        w = start["layer2.0.conv1.weight"]
        assert torch.equal(w[w != 0], expected["layer2.0.conv1.weight"][w != 0])
        assert torch.equal(start["bn1.running_mean"], expected["bn1.running_mean"])
    # A sparser one and another pattern rewind to the same.
    run(imp(0.2, pattern="row", rewind=2, epochs=1))
    assert len(fits) == 2 + rounds


def test_upstream_and_downstream_masks_differ_and_leave_the_head_alone(fits):
    up, down = imp(0.2), imp(0.2, dataset="glyphs", n_train=100)
    masks = [stages.mask(t) for t in (up, down)]
    assert masks[0] != masks[1]
    source = network(PRETRAIN).state_dict()
    assert torch.equal(fits[0][1]["fc.weight"], source["fc.weight"])
    n_classes = load("glyphs", size=8).n_classes
    assert fits[1][1]["fc.weight"].shape[0] == n_classes != source["fc.weight"].shape[0]
    assert torch.equal(network(down).fc.weight, source["fc.weight"])
    with pytest.raises(ValueError, match="'digitz'.*'digits'"):
        run(imp(0.2, dataset="digitz"))


def test_adversarial_rounds_attack_and_draw_another_mask(monkeypatch):
    threats = []

    def noted(model, x, y, threat, **more):
        threats.append(threat)
        return attacks.pgd(model, x, y, threat, **more)

    monkeypatch.setattr(objectives, "pgd", noted)
    natural = stages.mask(imp(0.36))
    assert not threats
    robust = imp(0.36, objective="pgd", norm="linf", eps=0.2, steps=2)
    assert stages.mask(robust) != natural
    assert len(threats) == 2 * batches.steps(load("digits", size=8, n_train=150).train, 50)
    assert {(t.norm, t.eps, t.steps) for t in threats} == {("linf", 0.2, 2)}


@pytest.mark.parametrize("rewind", [0, 1])
def test_a_killed_round_goes_on_to_the_same_mask(rewind, monkeypatch, tmp_path):
    ticket = imp(0.36, epochs=2, rewind=rewind)
    expected = stages.mask(ticket)
    per_round = 2 * batches.steps(load("digits", size=8, n_train=150).train, 50)
    early = per_round // 2 * rewind
    kill = early + per_round + per_round - 1
    killing, calls = killed_at(kill, training.learning_rate)
    for folder in store.root().glob("ticket*"):
        shutil.rmtree(folder)
    assert not store.has(ticket)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "learning_rate", killing)
    with pytest.raises(KeyboardInterrupt):
        run(ticket)
    assert store.has(previous(ticket)) and not store.has(ticket)
    assert store.checkpoint(ticket).exists()
    assert stages.mask(ticket) == expected
    # It went on from the step at which it was killed, in the round in which it was.
    steps = [step for _, step, _ in calls]
    assert len(steps) == kill + 2 and steps[kill] == steps[kill - 1] == per_round - 2
    assert not store.checkpoint(ticket).exists()


def test_a_round_leaves_the_model_and_the_callers_random_numbers_alone():
    model, data = network(PRETRAIN), take(load("digits", size=8).train, np.arange(60))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    earlier = tickets.omp(model, 0.2)
    mask, curve = tickets.imp_round(model, data, imp(0.5), earlier)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert not model.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(not (m & ~earlier[n]).any() for n, m in mask.items()) and len(curve) == 1


@pytest.mark.parametrize(
    ("rate", "sparsity"), [(0.2, 0.999), (0.02, 0.99), (0.01, 0.98), (0.1, 0.998)]
)
def test_every_round_is_sparser_than_the_one_before(rate, sparsity):
    ticket, rounds = Ticket(Pretrain(), "imp", sparsity=sparsity, rate=rate), 0
    while (before := specs.previous(ticket)) is not None:
        assert 0 < before.sparsity < ticket.sparsity
        ticket, rounds = before, rounds + 1
    assert rounds == math.ceil(math.log(1 - sparsity) / math.log(1 - rate)) - 1


def test_a_pattern_n_of_m_has_no_rounds():
    with pytest.raises(ValueError, match="rounds=.0.3,.: pattern='2:4' has one round"):
        Ticket(scheme="imp", pattern="2:4", sparsity=0.5, rounds=(0.3,))
