"""The specs: what they refuse, what they are as data, and the key that results are stored under."""

from __future__ import annotations

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
from robustlib.specs import Pretrain, Ticket, Transfer, columns, from_dict, key, to_dict

SPECS = (Pretrain, Ticket, Transfer)
LITERALS = {
    "arch": ("resnet10s", "resnet18s", "resnet18", "resnet50"),
    "objective": ("natural", "pgd", "trades", "free", "smoothing"),
    "norm": ("l2", "linf"),
    "schedule": ("onecycle", "step"),
    "augment": ("none", "crop", "crop-flip"),
    "precision": ("fp32", "bf16", "fp16"),
    "scheme": ("dense", "omp", "random"),
    "pattern": ("unstructured",),
    "scope": ("global", "layer"),
    "mode": ("finetune", "linear"),
}
FLOATS = {
    **dict.fromkeys(("eps", "step_size", "beta"), "[0, 1000]"),
    **{"sigma": "[0, 10]", "lr": "[0, 100]", "weight_decay": "[0, 1]"},
    **{"momentum": "[0, 1)", "sparsity": "[0, 1)"},
}
LOWEST = {
    **dict.fromkeys(("width", "stem_stride", "n_train", "steps", "replays"), 1),
    **{"size": 8, "batch_size": 2, "epochs": 0, "seed": 0},
}
TEXTS = ("source", "checkpoint", "task")
BOOLS = ("decay_norms", "recalibrate")
NESTED = {"pretrain": Pretrain, "ticket": Ticket}
OPTIONAL = ("n_train", "step_size")


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
tickets = st.one_of(
    st.builds(Ticket, pretrains, st.just("dense")),
    st.builds(Ticket, pretrains, st.just("omp"), sparsity=number(1, exclude_max=True)),
    st.builds(Ticket, pretrains, st.just("random"), sparsity=st.just(0.5), seed=seeds),
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
    Pretrain: "source=tinyimagenet200 arch=resnet10s width=32 stem_stride=2 size=32 n_train=None "
    "objective=natural norm=l2 eps=0.0 steps=1 step_size=None beta=6.0 replays=4 sigma=0.0 "
    "epochs=10 lr=0.2 schedule=onecycle batch_size=128 momentum=0.9 weight_decay=0.0005 "
    "decay_norms=False augment=crop-flip precision=fp32 checkpoint= seed=0",
    Ticket: "scheme=omp pattern=unstructured sparsity=0.0 scope=global seed=0",
    Transfer: "task=cifar10 mode=finetune n_train=1000 epochs=30 lr=0.05 batch_size=64 "
    "weight_decay=0.0005 augment=crop precision=fp32 recalibrate=False seed=0",
}


@pytest.mark.parametrize("cls", SPECS)
def test_defaults_never_change(cls):
    """The key leaves them out: under another default an old result would answer for a new spec."""
    assert set(DEFAULTS[cls].split()) <= {f"{n}={v}" for n, v in to_dict(cls()).items()}


def test_a_new_field_with_a_default_orphans_no_result(monkeypatch):
    before = key(Pretrain(seed=4))
    new = dataclasses.make_dataclass(
        "Pretrain", [("flavour", "str", "plain")], bases=(Pretrain,), frozen=True
    )
    monkeypatch.setitem(specs.KINDS, "pretrain", new)
    assert key(new(seed=4)) == before
    assert key(new(seed=4, flavour="sour")) != before


PGD, NOISY = {"objective": "pgd", "eps": 0.1}, {"objective": "smoothing", "sigma": 0.1}
CHANGED = {
    Pretrain: {
        **{f: {f: v} for f, v in zip(TEXTS, ("digits", "resnet18"), strict=False)},
        **{f: {f: LITERALS[f][1]} for f in ("arch", "norm", "schedule", "precision")},
        **{f: {f: 9} for f in LOWEST if f != "stem_stride"},
        **{f: {f: 0.125} for f in ("step_size", "beta", "lr", "momentum", "weight_decay")},
        **{"stem_stride": {"stem_stride": 1}, "augment": {"augment": "none"}},
        **{"decay_norms": {"decay_norms": True}, "objective": {**PGD, "objective": "free"}},
        **{"eps": {**PGD, "eps": 0.2}, "sigma": {**NOISY, "sigma": 0.2}},
    },
    Ticket: {
        **{"pretrain": {"pretrain": Pretrain(seed=1)}, "sparsity": {"sparsity": 0.5}},
        **{"scheme": {"scheme": "random"}, "scope": {"scope": "layer"}},
        "seed": {"scheme": "random", "seed": 1},
    },
    Transfer: {
        **{"ticket": {"ticket": Ticket(sparsity=0.1)}, "task": {"task": "digits"}},
        **{"mode": {"mode": "linear"}, "recalibrate": {"recalibrate": True}},
        **{"augment": {"augment": "none"}, "precision": {"precision": "bf16"}},
        **{f: {f: 9} for f in ("n_train", "epochs", "batch_size", "seed")},
        **{f: {f: 0.125} for f in ("lr", "weight_decay")},
    },
}


@pytest.mark.parametrize("cls", SPECS)
def test_every_field_changes_the_key(cls):
    changed = CHANGED[cls]
    assert {f.name for f in fields(cls)} - set(changed) == ({"pattern"} if cls is Ticket else set())
    base = [{}, PGD, NOISY] if cls is Pretrain else [{}]
    keys = {key(cls(**values)) for values in [*base, *changed.values()]}
    assert len(keys) == len(base) + len(changed)
    above = {Pretrain: Ticket, Ticket: Transfer}.get(cls)
    if above:
        below = [{specs.kind(cls): cls(**values)} for values in [*base, *changed.values()]]
        assert len({key(above(**one)) for one in below}) == len(keys)


def refused(field: str) -> tuple[list, list[str]]:
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
        return [None, {}, "omp", NESTED[field], Transfer()], [NESTED[field].__name__]
    bad = ["nope", "", None, 3, True, ["omp"], np.array(["omp", "l2"])]
    return bad, list(LITERALS[field])


@pytest.mark.parametrize(
    ("cls", "field"), [(cls, f.name) for cls in SPECS for f in fields(cls)], ids=str
)
def test_a_bad_value_is_refused_by_name_with_what_is_allowed(cls, field):
    values, says = refused(field)
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
        (lambda: Pretrain(sigma=0.25), ["sigma=0.25", "'natural'", "sigma 0"]),
        (lambda: Ticket(scheme="dense", sparsity=0.5), ["sparsity=0.5", "'dense'"]),
        (lambda: Ticket(scheme="omp", seed=1), ["seed=1", "'omp'", "seed is 0"]),
        (lambda: Ticket(scheme="rnadom"), ["scheme='rnadom'", "did you mean 'random'?"]),
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


def test_columns_are_the_fields_and_a_shared_name_is_the_transfers_then_the_pretrainings():
    pretrain = Pretrain(lr=0.3, n_train=500, epochs=7, seed=1)
    ticket = Ticket(pretrain, "random", sparsity=0.5, seed=2)
    row = columns(Transfer(ticket, n_train=50, lr=0.4, epochs=8, seed=3))
    assert (row["seed"], row["pretrain_seed"], row["ticket_seed"]) == (3, 1, 2)
    assert (row["lr"], row["pretrain_lr"]) == (0.4, 0.3)
    assert (row["n_train"], row["pretrain_n_train"]) == (50, 500)
    assert (row["scheme"], row["sparsity"], row["objective"]) == ("random", 0.5, "natural")
    # Nothing is lost to a shared name, and the specs themselves are no columns.
    assert len(row) == sum(len(fields(cls)) for cls in SPECS) - len(NESTED)
    assert not set(row) & set(NESTED)
    below = columns(ticket)
    assert (below["seed"], below["ticket_seed"], below["epochs"]) == (1, 2, 7)
    assert columns(pretrain) == to_dict(pretrain)


def test_a_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Pretrain().lr = 1.0


@pytest.mark.parametrize("module", ["robustlib.specs", "robustlib", "robustlib.store"])
def test_specs_are_read_without_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
