"""Lineage: which specs a spec is built on."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from robustlib.specs.identity import key
from robustlib.specs.kinds import Evaluation, Spec, Ticket, Transfer, n_of_m


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
