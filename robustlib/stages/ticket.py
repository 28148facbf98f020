"""Tickets: the mask of a subnetwork, and the weights that it is put on."""

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
    model, what = _start(spec, inputs), (spec.sparsity, spec.pattern, spec.scope)
    extra: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    if (source := specs.drawn_as(spec)) is not None:
        drawn = mask_in(inputs[source])
        if spec.control == "shuffle":
            drawn = tickets.shuffled(drawn, spec.pattern, spec.seed)
    elif spec.sparsity == 0 and specs.rewound(spec) != spec:
        drawn = tickets.dense(model)
    elif spec.scheme in ("imp", "lmp"):
        drawn, weights, extra["curve"] = _trained(spec, model, inputs)
    elif spec.scheme == "random":
        drawn = tickets.random(model, *what, spec.seed, spec.min_channels)
    else:
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


def _trained(
    spec: Ticket, model: nn.Module, inputs: Inputs
) -> tuple[tickets.Mask, dict[str, Tensor], list[dict[str, float]]]:
    """The mask that imp or lmp draws by training a copy of the network, and the curve. At sparsity
    0 the weights that imp rewinds to: of a short training, with a schedule of its own; the head
    stays that of the source."""
    task, headed, at = data(spec), copy.deepcopy(model), store.checkpoint(spec)
    if spec.dataset:
        models.swap_head(headed, task.n_classes, batches.seed_for(spec.seed, "head"))
    if spec.sparsity == 0:
        recipe = replace(training.Recipe.of(spec), epochs=spec.rewind)
        own = objectives.from_spec(spec)
        curve = training.fit(headed, task.train, own, recipe, checkpoint=at, label="imp, early")
        headed.fc = model.fc
        return tickets.dense(model), headed.state_dict(), curve
    if spec.scheme == "lmp":
        mask, curve = tickets.lmp(headed, task.train, spec, at)
    else:
        before = specs.previous(spec)
        earlier = None if before is None else mask_in(inputs[before])
        mask, curve = tickets.imp_round(headed, task.train, spec, earlier, at)
    return mask, {}, curve
