"""Masks of one network on another's weights, and the controls: a shuffle, fresh weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import members, store_of

from robustlib import specs, stages, store, tickets
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.stages import network, run

SMALL = {"source": "digits", "width": 4, "stem_stride": 1, "size": 8, "n_train": 150, "epochs": 1}
NATURAL = Pretrain(**SMALL)
ROBUST = Pretrain(**SMALL, objective="pgd", eps=0.5)
TICKET = Ticket(NATURAL, sparsity=0.7)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return store_of(tmp_path_factory, NATURAL, ROBUST)


@pytest.fixture(autouse=True)
def _trained(pretrained) -> None:
    shutil.copytree(pretrained, store.root())


def is_masked(ticket: Ticket, mask: tickets.Mask, weights: dict[str, torch.Tensor]) -> None:
    """The ticket's network has exactly these weights behind exactly this mask."""
    assert stages.mask(ticket) == mask
    for name, p in network(ticket).state_dict().items():
        kept = mask[name] if name in mask else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(p, torch.where(kept, weights[name], 0)), name


@pytest.mark.parametrize("scheme", ["omp", "imp"])
def test_a_robust_mask_on_natural_weights_is_just_that(scheme):
    own = {"scheme": "imp", "rate": 0.7, "epochs": 1, "batch_size": 50} if scheme == "imp" else {}
    ticket = Ticket(NATURAL, sparsity=0.7, mask_from=ROBUST, **own)
    robust = stages.mask(Ticket(ROBUST, sparsity=0.7, **own))
    is_masked(ticket, robust, run(NATURAL).tensors())
    assert robust != stages.mask(Ticket(NATURAL, sparsity=0.7, **own))
    # And the other way about.
    back = Ticket(ROBUST, sparsity=0.7, mask_from=NATURAL, **own)
    natural = stages.mask(Ticket(NATURAL, sparsity=0.7, **own))
    is_masked(back, natural, run(ROBUST).tensors())
    row = run(ticket).row
    assert (row["objective"], row["mask_objective"], row["mask_eps"]) == ("natural", "pgd", 0.5)
    row = run(back).row
    assert (row["objective"], row["mask_objective"], row["mask_eps"]) == ("pgd", "natural", 0.0)


def test_the_mask_of_the_network_itself_is_no_other_ticket():
    same = Ticket(NATURAL, sparsity=0.7, mask_from=Pretrain(**SMALL))
    assert same == TICKET and specs.key(same) == specs.key(TICKET)


@pytest.mark.parametrize(("pattern", "sparsity"), [("row", 0.7), ("channel", 0.5), ("2:4", 0.5)])
def test_a_shuffled_ticket_keeps_counts_and_pattern_and_follows_from_its_seed(pattern, sparsity):
    base = Ticket(NATURAL, pattern=pattern, sparsity=sparsity)
    mask = stages.mask(base)
    one = replace(base, control="shuffle", seed=1)
    found = stages.mask(one)
    assert found == tickets.shuffled(mask, pattern, 1) != mask
    assert stages.mask(replace(one, seed=2)) != found
    for name, m in mask.items():
        assert int(found[name].sum()) == int(m.sum())
        if pattern != "2:4":
            groups = members(found[name], pattern)
            assert (groups.all(1) | ~groups.any(1)).all()
    # Shuffled, a mask of another network is still of the same counts.
    other = stages.mask(replace(one, mask_from=ROBUST))
    robust = stages.mask(Ticket(ROBUST, pattern=pattern, sparsity=sparsity))
    assert [int(m.sum()) for m in other.values()] == [int(m.sum()) for m in robust.values()]
    if pattern != "channel":
        is_masked(one, found, run(NATURAL).tensors())


def test_fresh_weights_keep_the_mask_and_the_normalisation():
    mask, source = stages.mask(TICKET), run(NATURAL).tensors()
    one, other = (replace(TICKET, control="reinit", seed=s) for s in (1, 2))
    assert stages.mask(one) == stages.mask(other) == mask
    first, second = network(one).state_dict(), network(other).state_dict()
    for name, m in mask.items():
        assert (first[name][~m] == 0).all() and (first[name][m] != source[name][m]).all()
        assert (first[name][m] != second[name][m]).all()
    for name in ("mean", "std"):
        assert torch.equal(first[name], source[name])
    assert torch.equal(first["bn1.running_mean"], torch.zeros_like(source["bn1.running_mean"]))
    state = torch.random.get_rng_state()
    again = network(one).state_dict()
    assert all(torch.equal(again[n], p) for n, p in first.items())
    assert torch.equal(torch.random.get_rng_state(), state)
    # A dense network of fresh weights is one trained from scratch.
    dense = network(Ticket(NATURAL, "dense", control="reinit", seed=1)).state_dict()
    assert all(torch.equal(dense[n][m], first[n][m]) for n, m in mask.items())


@pytest.mark.parametrize(
    "fields",
    [
        {"mask_from": ROBUST},
        {"control": "shuffle", "seed": 3},
        {"control": "reinit", "seed": 3},
        {"pattern": "channel", "sparsity": 0.5, "mask_from": ROBUST},
        {"pattern": "2:4", "sparsity": 0.5},
    ],
    ids=["mask_from", "shuffle", "reinit", "channel", "2:4"],
)
def test_such_a_ticket_is_transferred(fields):
    ticket = replace(TICKET, **fields)
    for defaults in (True, False):
        data = json.loads(json.dumps(specs.to_dict(ticket, defaults=defaults)))
        assert specs.from_dict(Ticket, data) == ticket
    for mode in ("finetune", "linear"):
        row = run(Transfer(ticket, "digits", mode, n_train=60, epochs=1)).row
        mask = ticket.mask_from or NATURAL
        assert (row["mask_objective"], row["mask_eps"]) == (mask.objective, mask.eps)
        assert row["control"] == ticket.control and 0 <= row["accuracy"] <= 1
        assert row["sparsity_measured"] == run(ticket).row["sparsity_measured"]


def test_the_row_names_what_stays_dense():
    found = run(Ticket(NATURAL, pattern="2:4", sparsity=0.5))
    assert found.row["left_dense"] == 1 and found.extra["left_dense"] == ["conv1.weight"]
    assert found.row["sparsity_measured"] < 0.5
    kept = found.extra["density"]
    assert kept.pop("conv1.weight") == 1 and set(kept.values()) == {0.5}
    row = run(Ticket(NATURAL, pattern="1:8", sparsity=0.875)).row
    assert row["left_dense"] > 1  # layers of four channels
    assert run(TICKET).row["left_dense"] == 0
