"""The specs: what they refuse, what they are as data, and the key that results are stored under."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustlib import specs
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer, columns, from_dict, key, to_dict

SPECS = (Pretrain, Ticket, Transfer)
LITERALS = {
    "arch": ("resnet10s", "resnet18s", "resnet18", "resnet50"),
    "objective": ("natural", "pgd", "trades", "free", "smoothing"),
    "norm": ("l2", "linf"),
    "schedule": ("onecycle", "step"),
    "augment": ("none", "crop", "crop-flip"),
    "precision": ("fp32", "bf16", "fp16"),
    "scheme": ("dense", "omp", "random", "imp", "lmp"),
    "pattern": ("unstructured", "row", "kernel", "channel", "2:4", "1:4", "1:8"),
    "scope": ("global", "layer"),
    "score": ("l1", "l2"),
    "control": ("none", "shuffle", "reinit"),
    "mode": ("finetune", "linear"),
    "head": ("auto", "fusion", "fcn", "deeplab"),
    "stem": ("small", "imagenet"),
}
FLOATS = {
    **dict.fromkeys(("eps", "step_size", "beta"), "[0, 1000]"),
    **{"sigma": "[0, 10]", "lr": "[0, 100]", "weight_decay": "[0, 1]"},
    **dict.fromkeys(("momentum", "sparsity", "rate"), "[0, 1)"),
}
LOWEST = {
    **dict.fromkeys(("width", "stem_stride", "n_train", "steps", "replays", "min_channels"), 1),
    **{"size": 8, "detail": 4, "batch_size": 2, "epochs": 0, "rewind": 0, "seed": 0},
}
TEXTS = ("source", "checkpoint", "task", "dataset")
BOOLS = ("decay_norms", "grey", "recalibrate")
NESTED = {"pretrain": Pretrain, "ticket": Ticket, "mask_from": Pretrain}
OPTIONAL = ("n_train", "step_size", "mask_from", "detail")


def small(**strategies: st.SearchStrategy) -> st.SearchStrategy:
    """Dictionaries with any of the given fields."""
    return st.fixed_dictionaries({}, optional=strategies)


def number(high: float, **more) -> st.SearchStrategy:
    return st.floats(0, high, **more)


seeds = st.integers(0, 2**31)
counts = st.integers(1, 10**6)
text = st.text("az-/ü ", max_size=8)
attack = st.one_of(
    st.fixed_dictionaries({"objective": st.just("natural")}),
    st.fixed_dictionaries(
        {
            "objective": st.sampled_from(("pgd", "trades", "free")),
            "eps": number(1000, exclude_min=True),
            "norm": st.sampled_from(LITERALS["norm"]),
        }
    ),
    st.fixed_dictionaries(
        {"objective": st.just("smoothing"), "sigma": number(10, exclude_min=True)}
    ),
)
recipe = {
    "epochs": st.integers(0, 1000),
    "lr": number(100),
    "batch_size": st.integers(2, 4096),
    "weight_decay": number(1),
    "augment": st.sampled_from(LITERALS["augment"]),
    "precision": st.sampled_from(LITERALS["precision"]),
    "n_train": st.none() | counts,
    "seed": seeds,
}
pretrains = st.builds(
    lambda a, b: Pretrain(**a, **b),
    attack,
    small(
        source=text,
        arch=st.sampled_from(LITERALS["arch"]),
        width=st.integers(1, 4096),
        size=st.integers(8, 1024),
        steps=counts,
        step_size=st.none() | number(1000),
        momentum=number(1, exclude_max=True),
        decay_norms=st.booleans(),
        **recipe,
    ),
)
sparsities = number(1, exclude_max=True)
drawn = {
    **{f: st.sampled_from(LITERALS[f]) for f in ("scope", "score", "control")},
    "mask_from": st.none() | pretrains,
}
trained = {
    **{"dataset": text, "rewind": st.integers(0, 9), **drawn, **recipe},
    "rounds": st.lists(number(0.99, exclude_min=True), unique=True).map(sorted),
}
tickets = st.one_of(
    st.builds(Ticket, pretrains, st.just("dense")),
    st.builds(Ticket, pretrains, st.just("omp"), sparsity=sparsities),
    st.builds(Ticket, pretrains, st.just("omp"), st.just("2:4"), st.just(0.5)),
    st.builds(
        lambda p, a: Ticket(p, "random", **a),
        *(pretrains, small(sparsity=sparsities, seed=seeds, **drawn)),
    ),
    st.builds(
        lambda p, s, a: Ticket(p, "imp", sparsity=s, **a),
        *(pretrains, sparsities, small(**trained)),
    ),
    st.builds(
        lambda p, a: Ticket(p, "lmp", objective="pgd", eps=0.5, pattern="channel", **a),
        *(pretrains, small(min_channels=counts, norm=st.just("linf"), **drawn, **recipe)),
    ),
)
transfers = st.builds(
    lambda ticket, a: Transfer(ticket, **a),
    tickets,
    small(task=text, mode=st.sampled_from(LITERALS["mode"]), recalibrate=st.booleans(), **recipe),
)


@settings(deadline=None, max_examples=60)
@given(st.one_of(pretrains, tickets, transfers), st.booleans())
def test_a_spec_survives_json_with_or_without_its_defaults(spec, defaults):
    back = from_dict(type(spec), json.loads(json.dumps(to_dict(spec, defaults=defaults))))
    assert back == spec and hash(back) == hash(spec)
    assert key(back) == key(spec)
    assert all(type(v) is type(columns(spec)[n]) for n, v in columns(back).items())


@pytest.mark.parametrize(
    ("spec", "pinned"),
    [
        (Pretrain(), "d8ae2a1877ddf4425817"),
        (Pretrain(objective="pgd", eps=0.15, seed=1), "2cad928ba807e85593a1"),
        (Ticket(), "69685abe447956b5f9fa"),
        (Ticket(Pretrain(source="digits"), "random", sparsity=0.9, seed=3), "6b174ae9f9eba6f2e241"),
        (Transfer(), "bbcc9ee3e2d421455ec6"),
        (
            Transfer(
                Ticket(Pretrain(objective="pgd", eps=0.5), sparsity=0.8),
                *("gtsrb", "linear"),
                n_train=None,
                recalibrate=True,
            ),
            "8252a01a129b62de0e8b",
        ),
    ],
)
def test_keys_never_change(spec, pinned):
    """Results are stored under these: if one differs, everybody's stored results are lost."""
    assert key(spec) == pinned


def test_a_new_edition_of_a_measure_has_new_keys_and_no_other_has(monkeypatch):
    before = [key(Evaluation(suite=s)) for s in ("corruption", "calibration")]
    monkeypatch.setitem(specs.EDITIONS, "corruption", specs.EDITIONS["corruption"] + 1)
    after = [key(Evaluation(suite=s)) for s in ("corruption", "calibration")]
    assert after[0] != before[0] and after[1] == before[1]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (Pretrain(epochs=3), Pretrain(epochs=3.0)),
        (Pretrain(lr=1), Pretrain(lr=1.0)),
        (Pretrain(lr=0.25), Pretrain(lr="1/4")),
        (Pretrain(lr=0.0), Pretrain(lr=-0.0)),
        (Pretrain(objective="pgd", eps=8 / 255), Pretrain(objective="pgd", eps="8/255")),
        (
            Pretrain(objective="pgd", eps=0.5),
            Pretrain(objective=np.str_("pgd"), eps=np.float32(0.5)),
        ),
        (Pretrain(width=8, seed=2), Pretrain(width=np.int64(8), seed=np.uint8(2))),
        (Pretrain(decay_norms=True), Pretrain(decay_norms=np.True_)),
        (Ticket(sparsity=0.5), Ticket(sparsity=np.float64(0.5))),
        (Transfer(n_train=100), Transfer(n_train=np.float64(100.0))),
    ],
)
def test_one_experiment_has_one_key_however_its_numbers_are_written(one, same):
    assert one == same and key(one) == key(same)
    assert json.dumps(to_dict(one)) == json.dumps(to_dict(same))


@pytest.mark.parametrize("cls", SPECS)
def test_fields_at_their_default_do_not_enter_the_key(cls):
    assert to_dict(cls(), defaults=False) == {}
    spelled_out = {f.name: getattr(cls(), f.name) for f in fields(cls)}
    assert key(cls(**spelled_out)) == key(cls())


DEFAULTS = {
    Pretrain: "source=tinyimagenet200 arch=resnet10s width=32 stem_stride=2 stem=small size=32 "
    "n_train=None "
    "objective=natural norm=l2 eps=0.0 steps=1 step_size=None beta=6.0 replays=4 sigma=0.0 "
    "epochs=10 lr=0.2 schedule=onecycle batch_size=128 momentum=0.9 weight_decay=0.0005 "
    "decay_norms=False augment=crop-flip precision=fp32 checkpoint= seed=0",
    Ticket: "scheme=omp pattern=unstructured sparsity=0.0 scope=global score=l1 min_channels=1 "
    "mask_from=None control=none dataset= n_train=None objective=natural norm=l2 eps=0.0 steps=1 "
    "rate=0.2 rounds=() rewind=0 epochs=2 lr=0.05 batch_size=128 weight_decay=0.0005 augment=crop "
    "precision=fp32 seed=0",
    Transfer: "task=cifar10 mode=finetune n_train=1000 epochs=30 lr=0.05 batch_size=64 "
    "weight_decay=0.0005 augment=crop detail=None grey=False precision=fp32 recalibrate=False "
    "head=auto seed=0",
}


@pytest.mark.parametrize("cls", SPECS)
def test_defaults_never_change(cls):
    """The key leaves them out: under another default an old result would answer for a new spec."""
    pinned = {f"{n}={v}" for n, v in to_dict(cls()).items() if n not in ("pretrain", "ticket")}
    assert set(DEFAULTS[cls].split()) == pinned


def test_a_new_field_with_a_default_orphans_no_result(monkeypatch):
    before = key(Pretrain(seed=4))
    new = dataclasses.make_dataclass(
        "Pretrain", [("flavour", "str", "plain")], bases=(Pretrain,), frozen=True
    )
    monkeypatch.setitem(specs.KINDS, "pretrain", new)
    assert key(new(seed=4)) == before
    assert key(new(seed=4, flavour="sour")) != before


PGD, NOISY = {"objective": "pgd", "eps": 0.1}, {"objective": "smoothing", "sigma": 0.1}
IMP = {"scheme": "imp", "sparsity": 0.5}
BASES = {Pretrain: [{}, PGD, NOISY], Ticket: [{}, IMP], Transfer: [{}]}
CHANGED = {
    Pretrain: {
        **{f: {f: v} for f, v in zip(TEXTS, ("digits", "resnet18"), strict=False)},
        **{f: {f: LITERALS[f][1]} for f in ("arch", "norm", "schedule", "precision", "stem")},
        **{
            f: {f: 9}
            for f in LOWEST
            if f not in ("stem_stride", "min_channels", "rewind", "detail")
        },
        **{f: {f: 0.125} for f in ("step_size", "beta", "lr", "momentum", "weight_decay")},
        **{"stem_stride": {"stem_stride": 1}, "augment": {"augment": "none"}},
        **{"decay_norms": {"decay_norms": True}, "objective": {**PGD, "objective": "free"}},
        **{"eps": {**PGD, "eps": 0.2}, "sigma": {**NOISY, "sigma": 0.2}},
    },
    Ticket: {
        **{"pretrain": {"pretrain": Pretrain(seed=1)}, "sparsity": {"sparsity": 0.5}},
        **{"scheme": {"scheme": "random"}, "seed": {"scheme": "random", "seed": 1}},
        **{f: {f: LITERALS[f][1]} for f in ("scope", "score", "pattern", "control")},
        **{"min_channels": {"pattern": "channel", "min_channels": 2}},
        **{"mask_from": {"mask_from": Pretrain(seed=1)}, "dataset": {**IMP, "dataset": "digits"}},
        **{"objective": {**IMP, **PGD}, "eps": {**IMP, **PGD, "eps": 0.2}},
        **{"rounds": {**IMP, "rounds": (0.25,)}, "augment": {**IMP, "augment": "none"}},
        **{f: {**IMP, f: LITERALS[f][1]} for f in ("norm", "precision")},
        **{f: {**IMP, f: 9} for f in ("n_train", "steps", "rewind", "epochs", "batch_size")},
        **{f: {**IMP, f: 0.125} for f in ("rate", "lr", "weight_decay")},
    },
    Transfer: {
        **{"ticket": {"ticket": Ticket(sparsity=0.1)}, "task": {"task": "digits"}},
        **{
            "mode": {"mode": "linear"},
            "recalibrate": {"recalibrate": True},
            "grey": {"grey": True},
        },
        **{"head": {"mode": "segment", "head": "fcn"}},
        **{"augment": {"augment": "none"}, "precision": {"precision": "bf16"}},
        **{f: {f: 9} for f in ("n_train", "epochs", "batch_size", "seed", "detail")},
        **{f: {f: 0.125} for f in ("lr", "weight_decay")},
    },
}


@pytest.mark.parametrize("cls", SPECS)
def test_every_field_changes_the_key(cls):
    changed = CHANGED[cls]
    assert {f.name for f in fields(cls)} == set(changed)
    base = BASES[cls]
    keys = {key(cls(**values)) for values in [*base, *changed.values()]}
    assert len(keys) == len(base) + len(changed)
    above = {Pretrain: Ticket, Ticket: Transfer}.get(cls)
    if above:
        below = [{specs.kind(cls): cls(**values)} for values in [*base, *changed.values()]]
        assert len({key(above(**one)) for one in below}) == len(keys)


def refused(cls: type, field: str) -> tuple[list, list[str]]:
    """Bad values for a field, and what the message must hold."""
    odd = [math.nan, math.inf, -math.inf, -1, True, np.True_, [1], "many", "1/0", 10**400]
    odd += [] if field in OPTIONAL else [None]
    if field in FLOATS:
        above = 1.0 if FLOATS[field].endswith(")") else 1001
        return [*odd, above, "nan", -1e-9, 1j], [FLOATS[field]]
    if field in LOWEST:
        bad = [*odd, LOWEST[field] - 1, 1.5, 2**40, "3", np.float64(0.5)]
        return bad, ["whole number", f"at least {LOWEST[field]} "]
    if field in TEXTS:
        return [None, 3, ["digits"]], ["text"]
    if field in BOOLS:
        return [None, 0, 1, "yes", np.int64(1)], ["True, False"]
    if field in NESTED:
        bad = [{}, "omp", NESTED[field], Transfer(), *([] if field in OPTIONAL else [None])]
        return bad, [NESTED[field].__name__]
    if field == "rounds":
        return [None, 3, "0.5", {0.5}, {"0": 0.5}, np.array([0.5])], ["list of numbers"]
    bad = ["nope", "", None, 3, True, ["omp"], np.array(["omp", "l2"])]
    if (cls, field) == (Ticket, "objective"):
        return [*bad, "trades"], ["natural, pgd"]
    return bad, list(LITERALS[field])


@pytest.mark.parametrize(
    ("cls", "field"), [(cls, f.name) for cls in SPECS for f in fields(cls)], ids=str
)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(cls, field):
    values, says = refused(cls, field)
    for value in values:
        with pytest.raises(ValueError) as refusal:
            cls(**{field: value})
        message = str(refusal.value)
        assert message.startswith(f"{field}={value!r}")
        assert all(s in message for s in says), message


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Pretrain(objective="pgd"), ["eps=0", "'pgd'", "above 0"]),
        (lambda: Pretrain(objective="trades", eps="0/255"), ["eps=0", "'trades'", "above 0"]),
        (lambda: Pretrain(eps=0.5), ["eps=0.5", "'natural'", "must be 0", "pgd, trades and free"]),
        (lambda: Pretrain(objective="smoothing"), ["sigma=0", "'smoothing'", "above 0"]),
        (lambda: Pretrain(sigma=0.25), ["sigma=0.25", "'natural'", "must be 0"]),
        (lambda: Ticket(scheme="dense", sparsity=0.5), ["sparsity=0.5", "'dense'"]),
        (lambda: Transfer(head="fcn"), ["head='fcn'", "'finetune'", "does not use it"]),
        (lambda: Ticket(scheme="omp", seed=1), ["seed=1", "'omp'", "seed is 0"]),
        (lambda: Ticket(scheme="rnadom"), ["scheme='rnadom'", "did you mean 'random'?"]),
        (lambda: Ticket(scheme="dense", control="shuffle"), ["control='shuffle'", "'dense'"]),
        (lambda: Ticket(pattern="2:4", sparsity=0.75), ["sparsity=0.75", "'2:4'", "0.5"]),
        (lambda: Ticket(pattern="row", min_channels=2), ["min_channels=2", "'row'"]),
        (lambda: Ticket(epochs=3), ["epochs=3", "'omp'", "imp and lmp do"]),
        (lambda: Ticket(dataset="digits"), ["dataset='digits'", "'omp'", "imp and lmp do"]),
        (lambda: Ticket(scheme="random", objective="pgd", eps=1), ["objective='pgd'", "'random'"]),
        (lambda: Ticket(scheme="lmp", rate=0.5), ["rate=0.5", "'lmp'", "imp does"]),
        (lambda: Ticket(scheme="lmp", rewind=1), ["rewind=1", "'lmp'", "imp does"]),
        (lambda: Ticket(scheme="imp", objective="pgd"), ["eps=0", "'pgd'", "above 0"]),
        (lambda: Ticket(scheme="imp", eps=0.5), ["eps=0.5", "'natural'", "must be 0", "pgd does"]),
        (lambda: Ticket(scheme="imp", rounds=[0.5, 0.2]), ["rounds=(0.5, 0.2)", "growing"]),
        (lambda: Ticket(scheme="imp", rounds=[0.5, 0.5]), ["rounds=(0.5, 0.5)", "growing"]),
        (lambda: Ticket(scheme="imp", rounds=[0]), ["rounds=(0.0,)", "(0, 1)"]),
        (lambda: Ticket(scheme="imp", rounds=[0.5, 1]), ["rounds=1", "[0, 1)"]),
        (lambda: Ticket(scheme="imp", rate=0), ["rate=0", "must remove something"]),
        (lambda: Ticket(scheme="imp", rate=0.5, rounds=[0.5]), ["rate=0.5", "rounds=(0.5,)"]),
        (lambda: from_dict(Transfer, {"tasks": "x"}), ["'tasks'", "mean 'task'", "recalibrate"]),
        (lambda: from_dict(Transfer, {"ticket": {"pretrain": {"lr": -1}}}), ["lr=-1", "[0, 100]"]),
        (lambda: from_dict(Pretrain, {"ticket": {}}), ["'ticket'", "source"]),
        (lambda: from_dict(Transfer, {"ticket": None}), ["Ticket=None", "scheme"]),
        (lambda: key(Pretrain), ["Pretrain"]),
        (lambda: specs.kind("cifar10"), ["str", "Pretrain, Ticket, Transfer"]),
    ],
)
def test_what_does_not_go_together_is_refused(make, says):
    with pytest.raises(ValueError) as refusal:
        make()
    assert all(s in str(refusal.value) for s in says), str(refusal.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Transfer(Ticket(), "digits", "liner"), "mode='liner' .did you mean 'linear'.*"),
        (lambda: Pretrain(3), "source=3: must be text"),
        (lambda: Transfer(3), "ticket=3: must be a Ticket"),
        (lambda: Pretrain(*range(99)), "source=0: must be text"),
    ],
)
def test_a_bad_value_without_its_name_is_refused_by_name_too(make, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        make()


def test_columns_are_the_fields_and_a_shared_name_is_the_transfers_then_the_pretrainings():
    pretrain = Pretrain(lr=0.3, n_train=500, epochs=7, seed=1)
    ticket = Ticket(pretrain, "random", sparsity=0.5, seed=2)
    row = columns(Transfer(ticket, n_train=50, lr=0.4, epochs=8, seed=3))
    assert (row["seed"], row["pretrain_seed"], row["ticket_seed"]) == (3, 1, 2)
    assert (row["lr"], row["pretrain_lr"]) == (0.4, 0.3)
    assert (row["n_train"], row["pretrain_n_train"]) == (50, 500)
    assert (row["scheme"], row["sparsity"], row["objective"]) == ("random", 0.5, "natural")
    # Nothing is lost to a shared name, and the specs themselves are no columns.
    mask = {f"mask_{f}" for f in ("objective", "norm", "eps", "sigma", "steps", "seed")}
    assert len(row) == sum(len(fields(cls)) for cls in SPECS) - len(NESTED) + len(mask)
    assert not set(row) & set(NESTED) and mask <= set(row)
    below = columns(ticket)
    assert (below["seed"], below["ticket_seed"], below["epochs"]) == (1, 2, 7)
    assert (below["ticket_epochs"], below["ticket_lr"], below["rounds"]) == (2, 0.05, "")
    assert columns(pretrain) == to_dict(pretrain)


def test_columns_say_whose_mask_it_is_and_the_rounds_as_text():
    robust = Pretrain(objective="pgd", eps=0.5, norm="linf", seed=7)
    noisy = Pretrain(objective="smoothing", sigma=0.25)
    ticket = Ticket(Pretrain(), "imp", sparsity=0.9, mask_from=robust, rounds=(0.5, 0.75))
    for row in (columns(ticket), columns(Transfer(ticket))):
        found = [row[f"mask_{n}"] for n in ("objective", "norm", "eps", "sigma", "seed")]
        assert found == ["pgd", "linf", 0.5, 0.0, 7]
        assert (row["objective"], row["eps"], row["rounds"]) == ("natural", 0.0, "0.5, 0.75")
    # Without mask_from the mask is that of the network itself.
    row = columns(Transfer(Ticket(noisy)))
    assert (row["mask_objective"], row["mask_sigma"]) == ("smoothing", 0.25)
    assert not any(n.startswith("mask_") for n in columns(robust))


def test_a_spec_is_built_on_its_parents_and_no_others():
    natural, robust = Pretrain(), Pretrain(objective="pgd", eps=0.5)
    omp = Ticket(natural, sparsity=0.5)
    assert specs.parents(natural) == ()
    assert specs.parents(omp) == (natural,)
    assert specs.parents(Transfer(omp)) == (omp,)
    other = Ticket(natural, sparsity=0.5, mask_from=robust)
    assert specs.parents(other) == (natural, Ticket(robust, sparsity=0.5))
    # omp draws nothing: every shuffle and every reinitialisation is of one mask.
    for control in ("shuffle", "reinit"):
        made = Ticket(natural, sparsity=0.5, control=control, seed=4)
        assert specs.parents(made) == (natural, omp)
    seeded = Ticket(natural, "random", sparsity=0.5, control="shuffle", seed=4)
    assert specs.parents(seeded)[1] == Ticket(natural, "random", sparsity=0.5, seed=4)
    second = Ticket(natural, "imp", sparsity=0.36)
    assert specs.parents(second) == (natural, Ticket(natural, "imp", sparsity=0.2))
    assert specs.parents(Ticket(natural, "imp", sparsity=0.2)) == (natural,)
    # A mask of another network is drawn by rounds on that one.
    mixed = Ticket(natural, "imp", sparsity=0.36, mask_from=robust)
    assert specs.parents(mixed) == (natural, Ticket(robust, "imp", sparsity=0.36))


@pytest.mark.parametrize("pattern", LITERALS["pattern"])
def test_what_imp_rewinds_to_is_the_same_for_every_mask(pattern):
    blocks = specs.n_of_m(pattern)
    sparsity = 1 - blocks[0] / blocks[1] if blocks else 0.9
    own = {"scheme": "imp", "rewind": 3, "lr": 0.1}
    ticket = Ticket(pattern=pattern, sparsity=sparsity, **own)
    early = specs.rewound(ticket)
    assert early == specs.rewound(Ticket(sparsity=0.5, rounds=(0.2,), scope="layer", **own))
    assert early.sparsity == 0 and specs.rewound(early) == early
    assert specs.parents(early) == (early.pretrain,) and early in specs.parents(ticket)
    chain = [ticket]
    while (before := specs.previous(chain[-1])) is not None:
        chain.append(before)
    assert chain[-1] == early and (len(chain) == 2 or not blocks)
    assert specs.rewound(Ticket(**{**own, "rewind": 0})) is None


def test_a_field_that_says_nothing_makes_no_second_key():
    base = Ticket(sparsity=0.5)
    assert key(Ticket(sparsity=0.5, mask_from=Pretrain())) == key(base)
    assert from_dict(Ticket, {"sparsity": 0.5, "mask_from": None}) == base
    assert from_dict(Ticket, {"sparsity": 0.5, "mask_from": {"seed": 1}}).mask_from.seed == 1
    # The first of given rounds has none before it, of whatever sparsities the later ones are.
    first = Ticket(scheme="imp", sparsity=0.3, rounds=(0.3, 0.8))
    assert specs.previous(first) is None and specs.previous(Ticket(scheme="imp", sparsity=0.3))
    assert first == Ticket(scheme="imp", sparsity=0.3, rounds=(0.7,))
    assert first == specs.previous(Ticket(scheme="imp", sparsity=0.9, rounds=(0.3,)))
    one = Ticket(scheme="imp", sparsity=0.5, rounds=(0.2, 0.4))
    assert key(Ticket(scheme="imp", sparsity=0.5, rounds=[0.2, "2/5", 0.5, 0.9])) == key(one)
    assert hash(one) == hash(from_dict(Ticket, json.loads(json.dumps(to_dict(one)))))


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pretrain().lr = 1.0


def test_no_message_is_made_for_a_spec_that_is_right(monkeypatch):
    """The table of a store makes 10,000 specs of 100 fields each."""
    made = []
    monkeypatch.setattr(specs.declare, "shown", lambda value, *_: made.append(value) or "")
    for spec in (Transfer(Ticket(scheme="omp", sparsity=0.5), "digits"), Evaluation()):
        assert from_dict(type(spec), to_dict(spec)) == spec
    assert not made
    with pytest.raises(ValueError, match="does not use it"):
        Pretrain(eps=0.5)
    assert made == [0.5]


@pytest.mark.parametrize("module", ["robustlib.specs", "robustlib", "robustlib.store"])
def test_specs_are_read_without_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
