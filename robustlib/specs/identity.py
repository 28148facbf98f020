"""Identity: a spec as plain data, its key and its row; and lineage: which specs it is built on."""

import hashlib
import json
import math
from collections.abc import Collection, Iterable
from dataclasses import MISSING, Field, fields, replace
from typing import Any

from robustlib.specs.checks import one_of, shown
from robustlib.specs.kinds import KINDS, Evaluation, Pretrain, Spec, Ticket, Transfer, kind, n_of_m

EDITIONS = {"corruption": 2, "domain_gap": 3, "similarity": 2}
"""Of the suites that have come to measure something else: a part of their keys, so that rows of
the edition before are not taken for theirs."""
NESTED = {"pretrain": Pretrain, "ticket": Ticket, "mask_from": Pretrain}
"""Fields that hold a spec of one kind."""
TAGGED = ("of", "other")
"""Fields that may hold a spec of more than one kind: written as {kind: spec}."""


def _fields(of: Any) -> Collection[Field[Any]]:
    # `dataclasses.fields` finds out anew at each call which of them are to be left out: none is.
    return of.__dataclass_fields__.values()


def to_dict(spec: Spec, *, defaults: bool = True) -> dict[str, Any]:
    """The spec as nested plain data; without the fields left at their default if not `defaults`."""
    out = {}
    for f in _fields(spec):
        value = getattr(spec, f.name)
        if hasattr(value, "__dataclass_fields__"):
            nested, tagged = to_dict(value, defaults=defaults), f.name in TAGGED
            if nested or f.default is None or (tagged and not isinstance(value, Transfer)):
                out[f.name] = {kind(value): nested} if tagged else nested
        elif defaults or value != f.default:
            out[f.name] = value
    return out


def as_python(spec: Spec) -> str:
    """A spec as the Python that makes it, without the fields left at their default."""
    given = []
    for f in _fields(spec):
        value = getattr(spec, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if value != default:
            nested = hasattr(value, "__dataclass_fields__")
            given.append(f"{f.name}={as_python(value) if nested else repr(value)}")
    return f"{type(spec).__name__}({', '.join(given)})"


def from_dict(cls: type, data: dict[str, Any]) -> Any:
    """The inverse of `to_dict`. Raises ValueError for an unknown field or a bad value."""
    if not isinstance(data, dict):
        known = ", ".join(f.name for f in _fields(cls))
        raise ValueError(f"{cls.__name__}={shown(data)}: must be a table of {known}")
    values = dict(data)
    for name, value in data.items():
        if name in TAGGED and value is not None:
            values[name] = from_tagged(name, value)
        elif name in NESTED and (name, value) != ("mask_from", None):
            values[name] = from_dict(NESTED[name], value)
    return cls(**values)


def from_tagged(name: str, data: Any) -> Any:
    """The spec that {kind: fields} says. Raises ValueError, where it is called `name`."""
    if not isinstance(data, dict) or len(data) != 1:
        raise ValueError(f"{name}={shown(data)}: must be a table of one of {', '.join(KINDS)}")
    ((tag, values),) = data.items()
    return from_dict(KINDS[one_of(name, tag, KINDS)], values)


def key(spec: Spec) -> str:
    """The content address of a spec: 20 hex digits of the SHA-256 of its canonical JSON."""
    if isinstance(spec, type):
        raise ValueError(
            f"{spec.__name__}: is a kind of spec, not a spec; did you mean () after it?"
        )
    return _keys(spec)[-1]


def earlier_keys(spec: Spec) -> list[str]:
    """The keys that a spec had in the earlier editions of its suite (EDITIONS)."""
    return _keys(spec)[:-1]


def _keys(spec: Spec) -> list[str]:
    keys = []
    content: dict[str, Any] = {kind(spec): to_dict(spec, defaults=False)}
    last = EDITIONS.get(spec.suite, 1) if isinstance(spec, Evaluation) else 1
    for edition in range(1, last + 1):
        own = content | ({"edition": edition} if edition > 1 else {})
        canonical = json.dumps(own, sort_keys=True, separators=(",", ":"))
        keys.append(hashlib.sha256(canonical.encode()).hexdigest()[:20])
    return keys


def columns(spec: Spec) -> dict[str, Any]:
    """The spec as one flat row, columns named as the fields are.

    Where two levels share a name, the transfer's keeps it, then the pretraining's; the other gets
    its level in front: `seed` is the transfer's, `pretrain_seed` and `ticket_seed` the others'.
    mask_objective, mask_norm, mask_eps, mask_sigma, mask_steps and mask_seed say of which network a
    ticket's mask is; `rounds` is text; `of` is the kind of the spec that is evaluated, `other` the
    key of that which it is compared with.
    """
    own: dict[str, Any] = {kind(spec): spec}
    if isinstance(spec, Evaluation):
        own[kind(spec.of)] = spec.of
    if "transfer" in own:
        own["ticket"] = own["transfer"].ticket
    if "ticket" in own:
        own["pretrain"] = own["ticket"].pretrain
    row: dict[str, Any] = {}
    for level in ("transfer", "pretrain", "ticket", "evaluation"):
        for f in _fields(own[level]) if level in own else ():
            if f.name not in (*NESTED, *TAGGED):
                name = f"{level}_{f.name}" if f.name in row else f.name
                row[name] = getattr(own[level], f.name)
    if "ticket" in own:
        row["rounds"] = ", ".join(map(str, row["rounds"]))
        mask = own["ticket"].mask_from or own["ticket"].pretrain
        for name in ("objective", "norm", "eps", "sigma", "steps", "seed"):
            row[f"mask_{name}"] = getattr(mask, name)
    if isinstance(spec, Evaluation):
        row |= {"of": kind(spec.of), "other": "" if spec.other is None else key(spec.other)}
    return row


def previous(ticket: Ticket) -> Ticket | None:
    """The round of imp before this ticket; None before the first, which starts from the dense
    network. A pattern n:m has one round."""
    if ticket.scheme != "imp" or ticket.sparsity == 0:
        return None
    before = 0.0
    if ticket.rounds:
        before = ticket.rounds[-1]
    elif not n_of_m(ticket.pattern):
        kept = math.log(1 - ticket.sparsity) / math.log(1 - ticket.rate)
        done = max(0, math.ceil(kept - 1e-6) - 1)
        # Rounded, so that 1 - 0.8 ** 2 is the 0.36 that someone may ask for. Where rounds are so
        # small that this counts one too many, it is the one before.
        rounds = (round(1 - (1 - ticket.rate) ** i, 9) for i in range(done, -1, -1))
        before = next(sparsity for sparsity in rounds if sparsity < ticket.sparsity)
    if before == 0:
        return rewound(ticket)
    return replace(ticket, sparsity=before, mask_from=None, control="none")


def drawn_as(ticket: Ticket) -> Ticket | None:
    """The ticket whose mask this one takes over, by mask_from or as a control; None: its own."""
    if ticket.mask_from is None and ticket.control == "none":
        return None
    seed = ticket.seed if ticket.scheme in ("random", "imp", "lmp") else 0
    source = ticket.mask_from or ticket.pretrain
    return replace(ticket, pretrain=source, mask_from=None, control="none", seed=seed)


def rewound(ticket: Ticket) -> Ticket | None:
    """The ticket, of sparsity 0, that holds the weights which `rewind` names; None: the pretrained
    ones."""
    if ticket.rewind == 0 or ticket.control == "reinit":
        return None
    # One for all masks: how they are drawn does not enter it.
    own = ("pattern", "scope", "score", "min_channels", "rate", "rounds", "epochs")
    default: dict[str, Any] = {f.name: f.default for f in fields(ticket) if f.name in own}
    return replace(ticket, **default, sparsity=0.0, mask_from=None, control="none")


def parents(spec: Spec) -> tuple[Spec, ...]:
    """The specs that this one is built on."""
    if isinstance(spec, Transfer):
        return (spec.ticket,)
    if isinstance(spec, Ticket):
        above = (spec.pretrain, rewound(spec), drawn_as(spec) or previous(spec))
        return tuple(dict.fromkeys(s for s in above if s is not None and s != spec))
    if isinstance(spec, Evaluation):
        return (spec.of,) if spec.other is None else (spec.of, spec.other)
    return ()


def closure(wanted: Iterable[Spec]) -> list[Spec]:
    """The specs and all they are built on, each once, what others need first."""
    found: dict[str, Spec] = {}

    def add(spec: Spec) -> None:
        if (name := key(spec)) not in found:
            for below in parents(spec):
                add(below)
            found[name] = spec

    for spec in wanted:
        add(spec)
    return list(found.values())
