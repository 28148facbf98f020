"""Evaluations and segmentations as specs: what they refuse, what they need, what is stored."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import store_of

from robustlib import models, profiles, specs, stats, store, sweeps, tickets, training
from robustlib.data import load, load_segmentation
from robustlib.metrics import domain_gap
from robustlib.metrics.sample import sample
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer, from_dict, key, to_dict
from robustlib.stages import mask, network, run
from robustlib.transfer.segment import confusions, measures

PRETRAIN = Pretrain(source="digits", width=4, stem_stride=1, size=8, epochs=2)
TICKET = Ticket(PRETRAIN, sparsity=0.5)
LINEAR = Transfer(TICKET, task="digits", mode="linear", n_train=60)
SCENES = Transfer(TICKET, "glyphs_seg", "segment", n_train=20, epochs=1, batch_size=4)
EACH = [
    Evaluation(LINEAR, "adversarial", eps=0.1, limit=20),
    Evaluation(LINEAR),
    Evaluation(LINEAR, "certified", sigma=0.1, draws=20, limit=5),
    Evaluation(LINEAR, "corruption", limit=10),
    Evaluation(PRETRAIN, "domain_gap", against="glyphs", limit=30),
    Evaluation(LINEAR, "ood", against="glyphs", limit=30),
    Evaluation(LINEAR, "similarity", other=TICKET, limit=20),
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A store that holds LINEAR and SCENES."""
    return store_of(tmp_path_factory, LINEAR, SCENES)


@pytest.fixture
def trained(computed):
    shutil.copytree(computed, store.root())


def gap(model, source, task, limit: int) -> float:
    spec = Evaluation(PRETRAIN, "domain_gap", against="another", limit=limit)
    return domain_gap.measure(model, SimpleNamespace(test=source), spec, against=task)[0]["frechet"]


def test_every_suite_is_tried_here():
    assert {spec.suite for spec in EACH} == set(specs.SUITES)


@pytest.mark.parametrize("spec", EACH, ids=lambda s: s.suite)
def test_a_suite_is_stored_with_the_columns_of_its_spec(trained, spec):
    row = run(spec).row
    assert specs.columns(spec).items() <= row.items()
    measured = set(row) - set(specs.columns(spec)) - {"key", "seconds", *store.versions()}
    assert measured and all(isinstance(row[name], int | float) for name in measured)
    stamp = store.path(spec).stat().st_mtime_ns
    again = run(spec)
    assert store.path(spec).stat().st_mtime_ns == stamp and again.row == row
    for table in again.extra.values():
        assert table and len({tuple(line) for line in table}) == 1
    assert len(store.frame(Evaluation)) == 1


def test_the_network_of_a_segmentation_has_the_head_that_was_trained(trained):
    spec = replace(SCENES, head="fcn")
    counts = run(spec).tensors()["confusion"]
    model = network(spec)
    assert type(model.head.head).__name__ == "FCNHead"
    test = load_segmentation(spec.task, n_train=20).test
    assert torch.equal(confusions(model, test, counts.shape[1], 255), counts)


def test_calibration_and_domain_gap_are_those_of_the_measures(trained):
    data, model = load("digits", size=8, n_train=60), network(LINEAR)
    row = run(Evaluation(LINEAR)).row
    assert row["accuracy"] == training.correct(model, data.test) / len(data.test)
    assert row["accuracy"] == run(LINEAR).row["accuracy"] and row["n"] == len(data.test)
    found = run(EACH[4]).row
    source, task = load("digits", size=8).test, load("glyphs", size=8).test
    assert found["frechet"] == pytest.approx(gap(network(PRETRAIN), source, task, 30), rel=1e-6)


def test_a_network_before_any_transfer_is_measured_on_its_source(trained):
    dense, pruned = (run(Evaluation(of)).row for of in (PRETRAIN, TICKET))
    assert dense["accuracy"] == run(PRETRAIN).row["accuracy"] != pruned["accuracy"]
    assert (dense["of"], pruned["of"]) == ("pretrain", "ticket") and "task" not in dense
    alike = run(Evaluation(PRETRAIN, "similarity", other=PRETRAIN, limit=20)).row
    assert alike["cka"] == pytest.approx(1) and alike["other"] == key(PRETRAIN)


@pytest.mark.parametrize("spec", [*EACH, Evaluation(), Evaluation(Transfer(), other=None)], ids=str)
def test_an_evaluation_survives_as_data(spec):
    for defaults in (False, True):
        assert from_dict(Evaluation, to_dict(spec, defaults=defaults)) == spec
    assert specs.parents(spec) == tuple(s for s in (spec.of, spec.other) if s is not None)
    order = specs.closure([spec])
    assert order[-1] == spec and set(specs.parents(spec)) <= set(order[:-1])
    assert sweeps.cost(spec) > 0


def test_no_two_evaluations_share_a_key():
    more = [
        *EACH,
        Evaluation(),
        Evaluation(Ticket()),
        Evaluation(Pretrain()),
        Evaluation(scaled=True),
        Evaluation(limit=5),
        Evaluation(suite="corruption", seed=1),
        *(Evaluation(suite="similarity", other=o) for o in (Transfer(), Ticket(), Pretrain())),
        *(Evaluation(suite="adversarial", eps=0.1, **f) for f in ({}, {"norm": "linf"})),
        Evaluation(suite="adversarial", eps=0.1, attack="standard"),
        Evaluation(suite="certified", sigma=0.1, draws=70),
    ]
    assert len({key(spec) for spec in more}) == len(more)
    assert to_dict(Evaluation(), defaults=False) == {}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"suite": "calibrated"}, "did you mean 'calibration'"),
        ({"eps": 0.1}, "eps=0.1: suite='calibration' does not use it"),
        ({"suite": "adversarial"}, "eps=0.0: suite='adversarial' needs it"),
        ({"suite": "certified", "draws": 0, "sigma": 0.1}, "draws=0"),
        ({"suite": "certified", "draws": 9, "sigma": 0.1}, "draws=9: 10 at least"),
        ({"suite": "ood"}, "against='': suite='ood' needs it"),
        ({"suite": "similarity"}, "other=None: suite='similarity' needs it"),
        ({"suite": "similarity", "other": "dense"}, "other='dense': must be a Pretrain, a Ticket"),
        ({"seed": 1}, "seed=1: suite='calibration' does not use it"),
        ({"suite": "domain_gap", "against": "digits"}, "measures tasks from a source"),
        ({"suite": "ood", "against": Transfer.task}, "is the network's own set"),
        ({"suite": "ood", "of": TICKET, "against": "digits"}, "is the network's own set"),
        ({"suite": "similarity", "other": PRETRAIN, "limit": 3}, "limit=3: .* needs 4 images"),
        (
            {"of": PRETRAIN, "suite": "domain_gap", "against": "digits", "limit": 7},
            "needs 8 images",
        ),
        ({"of": PRETRAIN, "suite": "domain_gap", "against": "digits"}, "limit=None: .* needs one"),
        ({"of": 3}, "of=3: must be a Pretrain"),
        ({"of": SCENES}, "labels pixels"),
    ],
)
def test_what_a_suite_does_not_use_or_lacks_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        Evaluation(**fields)
    with pytest.raises(ValueError, match="of={}: must be a table of one of pretrain"):
        from_dict(Evaluation, {"of": {}})


def test_a_set_that_is_not_there_is_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match="glyfs.*did you mean 'glyphs'"):
        run(Evaluation(LINEAR, "ood", against="glyfs"))
    with pytest.raises(ValueError, match="limit=360: only 359 images"):
        run(Evaluation(PRETRAIN, "domain_gap", against="glyphs", limit=360))
    assert not store.has(PRETRAIN)


def test_the_source_is_at_no_distance_from_itself(trained):
    """Its test images against training images: no image against itself, which would be too near."""
    row = run(Evaluation(PRETRAIN, "domain_gap", against=PRETRAIN.source, limit=300)).row
    far = run(Evaluation(PRETRAIN, "domain_gap", against="glyphs", limit=300)).row
    assert row["frechet"] > 0 and row["low"] < 0.1 * far["low"] and far["low"] > row["high"] > 0
    data, model = load("digits", size=8), network(PRETRAIN)
    assert row["frechet"] == pytest.approx(gap(model, data.test, data.train, 300))


def test_similarity_has_the_overlap_of_the_masks_where_both_removed_something(trained):
    sparser = replace(TICKET, sparsity=0.8)
    row = run(Evaluation(LINEAR, "similarity", other=sparser, limit=20)).row
    masks = [mask(t) for t in (TICKET, sparser)]
    assert row["mask_overlap"] == masks[0].overlap(masks[1]) > 1.5 * row["mask_chance"] > 0
    layers = stats.mask_overlap(*masks)
    kept = layers.weights * (layers.density_first + layers.density_second)
    both = layers.weights * layers.density_first * layers.density_second
    assert row["mask_chance"] == pytest.approx(both.sum() / (kept.sum() - both.sum()))
    assert "mask_overlap" not in run(Evaluation(LINEAR, "similarity", other=PRETRAIN, limit=20)).row


def test_rows_of_an_earlier_edition_are_left_out(trained, monkeypatch):
    old, other = Evaluation(LINEAR, "corruption", limit=10), Evaluation(LINEAR)
    with monkeypatch.context() as patch:
        patch.delitem(specs.EDITIONS, "corruption")
        run(old), run(other)
        assert len(store.frame(Evaluation)) == 2 and specs.earlier_keys(old) == []
        before = key(old)
    assert specs.earlier_keys(old) == [before] and not store.has(old)
    assert list(store.frame(Evaluation).key) == [key(other)]
    run(old)
    assert set(store.frame(Evaluation).key) == {key(old), key(other)}
    assert specs.earlier_keys(other) == specs.earlier_keys(LINEAR) == []


def test_a_network_before_any_transfer_is_attacked_on_its_source(trained):
    spec = Evaluation(PRETRAIN, "adversarial", norm="linf", eps=4 / 255, limit=30)
    row = run(spec).row
    assert row["autoattack_accuracy"] <= row["clean_accuracy"] and row["n"] == 30
    split = sample(load("digits", size=8).test, 30)
    assert row["clean_accuracy"] == training.correct(network(PRETRAIN), split) / 30


def test_a_segmentation_is_stored_with_its_counts_and_comes_back(trained):
    artifact, model = run(SCENES), network(SCENES)
    data = load_segmentation("glyphs_seg", n_train=20)
    counts = artifact.tensors()["confusion"]
    assert counts.shape == (len(data.test), data.n_classes, data.n_classes)
    row = artifact.row
    assert {"miou", "pixel_accuracy", "val_miou", "n"} <= set(row) and "accuracy" not in row
    assert row["miou"] == measures(counts)["miou"]
    with torch.no_grad():
        x = data.test.x[:3].permute(0, 3, 1, 2).float() / 255
        predicted = model(x).argmax(1)
    right = ((predicted == data.test.y[:3]) & (data.test.y[:3] != data.ignore)).sum((1, 2))
    assert right.tolist() == counts[:3].diagonal(dim1=1, dim2=2).sum(1).tolist()
    mask = tickets.unpack(run(TICKET).tensors(), run(TICKET).extra["shapes"])
    for name, kept in mask.items():
        assert not model.backbone.get_parameter(name)[~kept].any()
    assert row["multiply_adds"] == models.multiply_adds(model, tuple(data.test.x.shape[1:3]))


def test_a_channel_ticket_segments_as_the_small_network_it_is(trained):
    spec = replace(SCENES, ticket=replace(TICKET, pattern="channel"))
    row = run(spec).row
    assert row["parameters"] < run(SCENES).row["parameters"] * 1.5
    assert sum(p.numel() for p in network(spec).parameters()) < sum(
        p.numel() for p in network(SCENES).parameters()
    )


def test_a_profile_asks_for_evaluations_by_name():
    asked = profiles.evaluations("quick:properties")
    assert {"adversarial", "similarity with dense", "similarity with natural"} <= set(asked)
    for spec in asked["similarity with dense"]:
        assert spec.other.ticket == Ticket(spec.of.ticket.pretrain)
        assert spec.other != spec.of
    for spec in asked["similarity with natural"]:
        own, natural = spec.of.ticket.pretrain, spec.other.ticket.pretrain
        assert (own.objective, natural.objective) == ("pgd", "natural")
        assert own.seed == natural.seed and spec.of.ticket.sparsity == spec.other.ticket.sparsity
    assert profiles.evaluations("quick:patterns") == {}
