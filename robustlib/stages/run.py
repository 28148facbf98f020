"""run(spec): the one place where a spec meets the store, its parents and the code of its kind."""

import time

import torch
from torch import nn

from robustlib import models, specs, store, tickets
from robustlib.specs import Pretrain, Spec, Ticket, Transfer
from robustlib.stages.shared import Inputs, stage
from robustlib.stages.ticket import mask_in
from robustlib.store import Artifact


def run(spec: Spec, recompute: bool = False) -> Artifact:
    """The artifact of a spec: from the store, or else computed, with what it is built on. Two
    processes that want one artifact compute it once. Raises ValueError for what is not a spec,
    store.Damaged for a stored file that fails its checksum (`recompute` replaces it), and what the
    stages raise."""
    specs.kind(spec)
    if not recompute and store.has(spec):
        return store.get(spec)
    _check_data(spec)
    # A caller's random numbers must not depend on what was stored already.
    with store.lock(spec), torch.random.fork_rng():
        if not recompute and store.has(spec):
            return store.get(spec)
        # Before the clock runs. Of all but its network, a ticket takes the masks alone.
        inputs: dict[Spec, Artifact] = {}
        for below in specs.parents(spec):
            inputs |= {below: run(below)} if isinstance(spec, Ticket) else _made_of(below)
        if recompute:
            store.checkpoint(spec).unlink(missing_ok=True)
        started = time.monotonic()
        row, tensors, extra = stage(spec).compute(spec, inputs)
        row["seconds"] = round(time.monotonic() - started, 3)
        # A recomputation that fails, or finds the disk full, loses nothing.
        artifact = store.put(spec, row, tensors, extra, replace=recompute)
        store.checkpoint(spec).unlink(missing_ok=True)
        return artifact


def _check_data(spec: Spec) -> None:
    """Raises what the stages of a spec, and of all that must be computed for it, say of their
    data: before hours of pretraining, and before anything is written."""
    stage(spec).data(spec)
    for below in specs.parents(spec):
        if not store.has(below):
            _check_data(below)


def _made_of(spec: Spec) -> Inputs:
    """The artifacts that the network of a spec is put together from, its own among them."""
    found: dict[Spec, Artifact] = {spec: run(spec)}
    if isinstance(spec, Transfer):
        found |= _made_of(spec.ticket)
    elif isinstance(spec, Ticket):
        early = specs.rewound(spec)
        found |= {below: run(below) for below in (spec.pretrain, early) if below is not None}
    return found


def mask(spec: Ticket) -> tickets.Mask:
    """The mask of a ticket, drawn and stored if need be."""
    return mask_in(run(spec))


def layers(spec: Pretrain) -> list[str]:
    """The names of the weights that tickets of a network may remove; nothing is trained for it."""
    return list(tickets.prunable(models.of(spec, 2)))


@torch.random.fork_rng()
def network(spec: Spec) -> nn.Module:
    """The network that a spec ends with, in eval mode, computed and stored if need be.

    Pretrain: the source network. Ticket: the network whose weights it takes, with the mask applied.
    Transfer: with the task's head, finetuned or with the logistic regression as its head.
    """
    return stage(spec).network(spec, _made_of(spec))[0]
