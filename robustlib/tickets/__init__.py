"""Tickets: which weights of a pretrained network are kept, and how that is decided."""

from __future__ import annotations

from torch import nn

from robustlib.specs import Ticket
from robustlib.tickets.magnitude import dense, omp, random
from robustlib.tickets.mask import Mask, pack, prunable, unpack

__all__ = ["Mask", "dense", "draw", "omp", "pack", "prunable", "random", "unpack"]


def draw(model: nn.Module, ticket: Ticket) -> Mask:
    """The mask that a Ticket spec names, on its pretrained model."""
    if ticket.scheme == "dense":
        return dense(model)
    if ticket.scheme == "random":
        return random(model, ticket.sparsity, ticket.pattern, ticket.scope, ticket.seed)
    return omp(model, ticket.sparsity, ticket.pattern, ticket.scope)
