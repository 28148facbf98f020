"""Identity: a spec as plain data, the key that its result is stored under, and its row."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import Field
from typing import Any

from robustlib.specs.checks import one_of, shown
from robustlib.specs.kinds import KINDS, Evaluation, Pretrain, Spec, Ticket, Transfer, kind

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
