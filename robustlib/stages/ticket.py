"""Tickets: the mask of a subnetwork, and the weights that it is put on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustlib import models, objectives, specs, store, tickets, training
from robustlib.data import batches, load
from robustlib.specs import Ticket
from robustlib.stages import pretrain
from robustlib.stages.shared import Inputs, Result, check_train, costs
from robustlib.store import Artifact

EARLY = "early/"
"""What the names of weights begin with in the artifact of a ticket that imp rewinds to."""


def images(spec: Ticket) -> Any:
    """The source: on it a ticket is measured before any transfer."""
    return pretrain.images(spec.pretrain)


def data(spec: Ticket) -> Any:
    """What imp and lmp train on, None for the others. Raises ValueError for too few images."""
    if spec.scheme not in ("imp", "lmp"):
        return None
    own, n_train = spec.pretrain, spec.n_train
    if not spec.dataset and n_train is None:
        found, n_train = images(spec), own.n_train
    else:
        found = load(spec.dataset or own.source, size=own.size, n_train=n_train, seed=spec.seed)
    name = f"dataset={spec.dataset!r}" if spec.dataset else f"source={own.source!r}"
    check_train(found, name, n_train)
    return found


def compute(spec: Ticket, inputs: Inputs) -> Result:
    """Draws the mask, or takes over another ticket's; for a ticket that imp rewinds to, trains its
    weights."""
    model = _start(spec, inputs)
    extra: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    if (source := specs.drawn_as(spec)) is not None:
        drawn = mask_in(inputs[source])
        if spec.control == "shuffle":
            drawn = tickets.shuffled(drawn, spec.pattern, spec.seed)
    elif specs.rewound(spec) == spec:
        drawn = tickets.dense(model)
        weights, extra["curve"] = _early(spec, model)
    elif spec.sparsity == 0:
        drawn = tickets.dense(model)
    elif spec.scheme in ("imp", "lmp"):
        drawn, extra["curve"] = _trained(spec, model, inputs)
    elif spec.scheme == "random":
        what = spec.sparsity, spec.pattern, spec.scope
        drawn = tickets.random(model, *what, spec.seed, spec.min_channels)
    else:
        what = spec.sparsity, spec.pattern, spec.scope
        drawn = tickets.omp(model, *what, spec.score, spec.min_channels)
    bits, shapes = tickets.pack(drawn)
    density, left = drawn.density(), tickets.left_dense(model, spec.pattern)
    row = {"sparsity_measured": drawn.sparsity}
    row |= costs(tickets.masked(model, drawn, spec.pattern), spec.pretrain.size)
    row |= {"empty_layers": sum(d == 0 for d in density.values()), "left_dense": len(left)}
    extra |= {"shapes": shapes, "density": density, "left_dense": left}
    return row, bits | {f"{EARLY}{n}": w for n, w in weights.items()}, extra


def mask_in(artifact: Artifact) -> tickets.Mask:
    """The mask that the artifact of a ticket holds."""
    return tickets.unpack(artifact.tensors(), artifact.extra["shapes"])


def network(spec: Ticket, inputs: Inputs) -> tuple[models.ResNet, tickets.Mask]:
    """The network whose weights the ticket takes, its mask applied; and that mask."""
    kept, model = mask_in(inputs[spec]), _start(spec, inputs)
    tickets.masked(model, kept, spec.pattern)
    return model, kept


def _start(spec: Ticket, inputs: Inputs) -> models.ResNet:
    """The network whose weights a ticket takes: the pretrained one, or that network after the short
    training that imp rewinds to, or a fresh one."""
    model, _ = pretrain.network(spec.pretrain, inputs)
    if spec.control == "reinit":
        with torch.random.fork_rng():
            torch.manual_seed(batches.seed_for(spec.seed, "reinit"))
            fresh = models.of(spec.pretrain, model.fc.out_features)
        fresh.mean, fresh.std = model.mean, model.std
        return fresh.eval()
    base = specs.rewound(spec)
    if base is not None and base in inputs:  # it is not while that training is what is computed
        saved = inputs[base].tensors()
        model.load_state_dict(
            {n.removeprefix(EARLY): w for n, w in saved.items() if n.startswith(EARLY)}
        )
    return model


def _headed(spec: Ticket, model: nn.Module, task: Any) -> nn.Module:
    """A copy of the network to train, with the source's own head or for a task a fresh one."""
    model = copy.deepcopy(model)
    if not spec.dataset:
        return model
    return models.swap_head(model, task.n_classes, batches.seed_for(spec.seed, "head"))


def _trained(
    spec: Ticket, model: nn.Module, inputs: Inputs
) -> tuple[tickets.Mask, list[dict[str, float]]]:
    own, checkpoint = data(spec), store.checkpoint(spec)
    headed = _headed(spec, model, own)
    if spec.scheme == "lmp":
        return tickets.lmp(headed, own.train, spec, checkpoint)
    before = specs.previous(spec)
    earlier = None if before is None else mask_in(inputs[before])
    return tickets.imp_round(headed, own.train, spec, earlier, checkpoint)


def _early(spec: Ticket, model: nn.Module) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The weights that imp rewinds to: those of a short training of the dense network, `rewind`
    epochs with a schedule of their own. The head stays that of the source."""
    own = data(spec)
    headed = _headed(spec, model, own)
    curve = training.fit(
        headed,
        own.train,
        objectives.from_spec(spec),
        replace(training.Recipe.of(spec), epochs=spec.rewind),
        checkpoint=store.checkpoint(spec),
        label="imp, early",
    )
    headed.fc = model.fc
    return headed.state_dict(), curve
