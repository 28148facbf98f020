"""run(spec): the one place where a spec meets the code that computes it."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustlib import (
    checkpoints,
    heads,
    models,
    objectives,
    parallel,
    specs,
    store,
    tickets,
    training,
)
from robustlib.attacks import Threat
from robustlib.compact import compact
from robustlib.data import batches, load, load_segmentation
from robustlib.data.splits import LEAST_FOR_VAL, FileSplit, MaskSplit, Split, take
from robustlib.devices import device, devices
from robustlib.metrics.evaluate import evaluate
from robustlib.specs import Evaluation, Pretrain, Spec, Ticket, Transfer
from robustlib.store import Artifact
from robustlib.transfer import finetune, linear, segment

MONITORED = 256
"""Validation images that a multi-step attack is tried on after each epoch."""
MULTIPLE = 4
"""Channels of a layer of a small network come in such lots: inference is slow on other numbers."""
CONFUSION = "confusion"
"""The name, in a segmentation's artifact, of the counts of each test image [N, K, K]."""
EARLY = "early/"
"""What the names of weights begin with in the artifact of a ticket that imp rewinds to."""


def run(spec: Spec, recompute: bool = False) -> Artifact:
    """The artifact of a spec: from the store, or else computed, with what it is built on.

    Two processes that want one artifact compute it once. Raises ValueError for what is not a
    spec, store.Damaged for a stored file that fails its checksum (`recompute` replaces it), and
    what the stages raise.
    """
    specs.kind(spec)
    if not recompute and store.has(spec):
        return store.get(spec)
    _check_data(spec)
    # A caller's random numbers must not depend on what was stored already.
    with store.lock(spec), torch.random.fork_rng():
        if not recompute and store.has(spec):
            return store.get(spec)
        for below in specs.parents(spec):
            run(below)  # Here, so that its seconds do not count as this one's.
        if recompute:
            store.checkpoint(spec).unlink(missing_ok=True)
        stages = {Pretrain: _pretrain, Ticket: _ticket, Transfer: _transfer}
        stages[Evaluation] = _evaluation
        started = time.monotonic()
        row, tensors, extra = stages[type(spec)](spec)
        row["seconds"] = round(time.monotonic() - started, 3)
        # A recomputation that fails, or finds the disk full, loses nothing.
        artifact = store.put(spec, row, tensors, extra, replace=recompute)
        store.checkpoint(spec).unlink(missing_ok=True)
        return artifact


def _check_data(spec: Spec) -> None:
    """Raises what loading would, and ValueError for sets too small for what is done with them:
    before hours of pretraining, and before anything is written."""
    if isinstance(spec, Transfer):
        data = _task(spec)
        _check_val(data, _named(spec))
        _check_train(data, _named(spec), spec.n_train, spec.mode)
    elif isinstance(spec, Evaluation):
        _check_measured(spec)
    elif isinstance(spec, Ticket):
        if spec.scheme in ("imp", "lmp"):
            name = f"dataset={spec.dataset!r}" if spec.dataset else _named(spec.pretrain)
            given = spec.n_train or (None if spec.dataset else spec.pretrain.n_train)
            _check_train(_images(spec), name, given)
    elif spec.checkpoint:
        _, _, data = _published(spec)
        if data is not None:
            _check_val(data, _named(spec))
    else:
        data = _source(spec)
        _check_val(data, _named(spec))
        _check_train(data, _named(spec), spec.n_train)
        parallel.check_shares(len(data.train), spec.batch_size, devices())
    for below in specs.parents(spec):
        if not store.has(below):
            _check_data(below)


def _check_val(data: Any, name: str) -> None:
    if not len(data.val):
        raise ValueError(
            f"{name}: no validation image can be cut from its {len(data.train)} training images; "
            f"{LEAST_FOR_VAL} at least are needed, two of them of one class"
        )
    _check_labelled(data, "val", name)


def _check_train(data: Any, name: str, n_train: int | None, mode: str = "") -> None:
    n, name = len(data.train), name if n_train is None else f"n_train={n_train}"
    if n < 2:  # one has no statistics of a batch
        raise ValueError(
            f"{name}: {n} training image beside {len(data.val)} for validation; 2 at least are "
            "needed to train on"
        )
    if mode == "linear" and len(data.train.y.unique()) < 2:
        raise ValueError(
            f"{name}: the {n} training images are all of one class; mode='linear' needs 2 at least"
        )
    _check_labelled(data, "train", name)


def _check_labelled(data: Any, part: str, name: str) -> None:
    """Raises ValueError where no pixel of a set for segmentation has a class."""
    split = getattr(data, part)
    if isinstance(split, MaskSplit) and bool((split.y == data.ignore).all()):
        raise ValueError(
            f"{name}: no pixel of its {len(split)} {part} images has a class; 1 at least must"
        )


def _check_measured(spec: Evaluation) -> None:
    data = _images_of(spec.of)
    sets = {_named(spec.of): data.test}
    if spec.against:
        sets[f"against={spec.against!r}"] = _against(spec, data)
    least = specs.LEAST_MEASURED.get(spec.suite, 1)
    for name, split in sets.items():
        if len(split) < least:
            raise ValueError(
                f"{name}: {len(split)} images to measure on, suite={spec.suite!r} needs {least}"
            )
    n = min(map(len, sets.values()))
    if spec.suite == "domain_gap" and spec.limit > n:
        raise ValueError(f"limit={spec.limit}: only {n} images of each set are there")


def _named(spec: Pretrain | Ticket | Transfer) -> str:
    """The field, with its value, that says on which images the network of a spec is measured."""
    if isinstance(spec, Transfer):
        return f"task={spec.task!r}"
    return f"source={(spec.pretrain if isinstance(spec, Ticket) else spec).source!r}"


def mask(ticket: Ticket) -> tickets.Mask:
    """The mask of a ticket, drawn and stored if need be."""
    artifact = run(ticket)
    return tickets.unpack(artifact.tensors(), artifact.extra["shapes"])


def layers(spec: Pretrain) -> list[str]:
    """The names of the weights that tickets of a network may remove; nothing is trained for it."""
    return list(tickets.prunable(models.of(spec, 2)))


@torch.random.fork_rng()
def network(spec: Spec) -> nn.Module:
    """The network that a spec ends with, in eval mode, computed and stored if need be.

    Pretrain: the source network. Ticket: the network whose weights it takes, with the mask applied.
    Transfer: with the task's head, finetuned or with the logistic regression as its head.
    """
    if isinstance(spec, Pretrain):
        artifact = run(spec)
        model = models.of(spec, artifact.extra["n_classes"])
        model.load_state_dict(artifact.tensors())
        return model.eval()
    if isinstance(spec, Ticket):
        return tickets.masked(_start(spec), mask(spec), spec.pattern)
    (model, _), artifact = _prepared(spec), run(spec)
    n_classes = artifact.extra["n_classes"]
    if spec.mode == "segment":
        model = heads.segmenter(model, n_classes, spec.head)
    else:
        models.swap_head(model, n_classes)
    tensors = {n: t for n, t in artifact.tensors().items() if n != CONFUSION}
    model.load_state_dict(tensors, strict=spec.mode != "linear")
    return model.eval()


def _pretrain(spec: Pretrain) -> tuple[dict, dict, dict]:
    if spec.checkpoint:
        return _pretrained(spec)
    data = _source(spec)
    # Here, once: files are decoded for it, and each process would do that anew.
    call = spec, store.checkpoint(spec), *_statistics(data.train)
    model, curve = parallel.launch(_trained, call, devices(), device())
    row = _source_accuracy(model, data) | _size(model, spec.size)
    row["catastrophic_overfitting"] = any("catastrophic_overfitting" in c for c in curve)
    return row, model.state_dict(), {"curve": curve, "n_classes": data.n_classes}


def _trained(
    spec: Pretrain, checkpoint: Path, mean: list[float], std: list[float]
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The trained network and its curve; `parallel.launch` calls it in each process, by name."""
    data = _source(spec)
    objective = objectives.from_spec(spec)
    with torch.random.fork_rng():
        torch.manual_seed(batches.seed_for(spec.seed, "init"))
        model = models.of(spec, data.n_classes, mean, std)
    curve = training.fit(
        model,
        data.train,
        objective,
        training.Recipe.of(spec),
        monitor=lambda m: _monitor(m, data.val, objective.threat),
        checkpoint=checkpoint,
        label=f"pretrain {spec.objective} {spec.eps or spec.sigma or ''}".strip(),
    )
    return model, curve


def _published(spec: Pretrain) -> tuple[nn.Module, dict[str, Any], Any]:
    """The network of a checkpoint, what it is, and its source's images, None where they are not
    here. Raises ValueError where they are not those that the spec says."""
    small = spec.arch.endswith("s")
    model = checkpoints.load(spec.checkpoint, stem_stride=spec.stem_stride if small else None)
    found = checkpoints.describe(model)
    with torch.device("meta"):
        expected = checkpoints.describe(models.of(spec, found["n_classes"]))
    for name, value in expected.items():
        if found[name] != value:
            raise ValueError(
                f"{name}={getattr(spec, name)!r}: checkpoint {spec.checkpoint!r} holds a network "
                f"with {name}={found[name]!r}"
            )
    try:
        data = _source(spec)
    except FileNotFoundError:
        return model, found, None
    if data.n_classes != found["n_classes"]:
        raise ValueError(
            f"source={spec.source!r}: has {data.n_classes} classes, checkpoint "
            f"{spec.checkpoint!r} {found['n_classes']}"
        )
    return model, found, data


def _pretrained(spec: Pretrain) -> tuple[dict, dict, dict]:
    """A published network. Its accuracy is None where the source's images are not here: whoever
    transfers from ImageNet weights need not have ImageNet."""
    model, found, data = _published(spec)
    row: dict[str, Any] = {"accuracy": None, "n": 0, "val_accuracy": None}
    if data is not None:
        row = _source_accuracy(model, data)
    return row | _size(model, spec.size), model.state_dict(), {"n_classes": found["n_classes"]}


def _source(spec: Pretrain) -> Any:
    return load(spec.source, size=spec.size, n_train=spec.n_train, seed=spec.seed)


def _source_accuracy(model: nn.Module, data: Any) -> dict[str, Any]:
    val = training.correct(model, data.val) / len(data.val)
    return _counts(training.correct(model, data.test), len(data.test)) | {"val_accuracy": val}


def _monitor(model: nn.Module, val: Any, threat: Threat | None) -> dict[str, float]:
    row = {"val_accuracy": training.correct(model, val) / len(val)}
    if threat is not None:
        some = take(val, np.arange(min(MONITORED, len(val))))
        strong = Threat(threat.norm, threat.eps, steps=10)
        row["val_robust"] = training.robust_correct(model, some, strong) / len(some)
    return row


def _ticket(spec: Ticket) -> tuple[dict, dict, dict]:
    early = specs.rewound(spec) == spec
    model, extra, weights = network(spec.pretrain) if early else _start(spec), {}, {}
    if (source := specs.drawn_as(spec)) is not None:
        drawn = mask(source)
        if spec.control == "shuffle":
            drawn = tickets.shuffled(drawn, spec.pattern, spec.seed)
    elif early:
        drawn = tickets.dense(model)
        weights, extra["curve"] = _early(spec, model)
    elif spec.scheme in ("imp", "lmp") and spec.sparsity > 0:
        drawn, extra["curve"] = _trained_mask(spec, model)
    elif spec.sparsity == 0:
        drawn = tickets.dense(model)
    elif spec.scheme == "random":
        how = spec.sparsity, spec.pattern, spec.scope, spec.seed, spec.min_channels
        drawn = tickets.random(model, *how)
    else:
        how = spec.sparsity, spec.pattern, spec.scope, spec.score, spec.min_channels
        drawn = tickets.omp(model, *how)
    bits, shapes = tickets.pack(drawn)
    density = drawn.density()
    size = _size(tickets.masked(model, drawn, spec.pattern), spec.pretrain.size)
    row = {"sparsity_measured": drawn.sparsity} | size
    row["empty_layers"] = sum(d == 0 for d in density.values())
    left = tickets.left_dense(model, spec.pattern)
    row["left_dense"] = len(left)
    extra |= {"shapes": shapes, "density": density, "left_dense": left}
    return row, bits | {f"{EARLY}{n}": w for n, w in weights.items()}, extra


def _start(spec: Ticket) -> nn.Module:
    """The network whose weights a ticket takes: the pretrained one, or that network after the short
    training that imp rewinds to, or a fresh one."""
    model = network(spec.pretrain)
    if spec.control == "reinit":
        with torch.random.fork_rng():
            torch.manual_seed(batches.seed_for(spec.seed, "reinit"))
            fresh = models.of(spec.pretrain, model.fc.out_features)
        fresh.mean, fresh.std = model.mean, model.std
        return fresh.eval()
    if (base := specs.rewound(spec)) is not None:
        saved = run(base).tensors()
        model.load_state_dict(
            {n.removeprefix(EARLY): w for n, w in saved.items() if n.startswith(EARLY)}
        )
    return model


def _images(spec: Ticket) -> Any:
    """What imp and lmp train on."""
    own = spec.pretrain
    if not spec.dataset and spec.n_train is None:
        return _source(own)
    name = spec.dataset or own.source
    return load(name, size=own.size, n_train=spec.n_train, seed=spec.seed)


def _with_head(spec: Ticket, model: nn.Module, data: Any) -> nn.Module:
    """The source's own head, or for a task a fresh one."""
    if not spec.dataset:
        return model
    return models.swap_head(model, data.n_classes, batches.seed_for(spec.seed, "head"))


def _trained_mask(spec: Ticket, model: nn.Module) -> tuple[tickets.Mask, list[dict[str, float]]]:
    data, checkpoint = _images(spec), store.checkpoint(spec)
    headed = _with_head(spec, copy.deepcopy(model), data)
    if spec.scheme == "lmp":
        return tickets.lmp(headed, data.train, spec, checkpoint)
    before = specs.previous(spec)
    earlier = None if before is None else mask(before)
    return tickets.imp_round(headed, data.train, spec, earlier, checkpoint)


def _early(spec: Ticket, model: nn.Module) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The weights that imp rewinds to: those of a short training of the dense network, `rewind`
    epochs with a schedule of their own. The head stays that of the source."""
    data = _images(spec)
    headed = _with_head(spec, copy.deepcopy(model), data)
    recipe = replace(training.Recipe.of(spec), epochs=spec.rewind)
    objective = objectives.from_spec(spec)
    where = store.checkpoint(spec)
    curve = training.fit(
        headed, data.train, objective, recipe, checkpoint=where, label="imp, early"
    )
    headed.fc = model.fc
    return headed.state_dict(), curve


def _prepared(spec: Transfer) -> tuple[nn.Module, tickets.Mask]:
    """The ticket's network, BatchNorm statistics re-estimated if the spec says so, and the mask
    that is applied to it. A channel ticket comes as the small network that it is."""
    model = network(spec.ticket)
    if spec.ticket.pattern == "channel":
        small = compact(model, spec.ticket.pretrain.size, MULTIPLE)
        model, kept = small.model, small.held
    else:
        kept = mask(spec.ticket)
    if spec.recalibrate:
        training.recalibrate(model, _task(spec).train)
    return model, kept


def _task(spec: Transfer) -> Any:
    if spec.mode == "segment":
        return load_segmentation(spec.task, n_train=spec.n_train, seed=spec.seed)
    size = spec.ticket.pretrain.size
    return load(spec.task, size, spec.n_train, spec.seed, detail=spec.detail)


def _transfer(spec: Transfer) -> tuple[dict, dict, dict]:
    data, (model, kept) = _task(spec), _prepared(spec)
    size, network = spec.ticket.pretrain.size, model
    if spec.mode == "finetune":
        model, extra = finetune(model, data, spec, store.checkpoint(spec))
        tensors = model.state_dict()
    elif spec.mode == "linear":
        tensors, extra = linear(model, data)
        models.swap_head(model, data.n_classes).load_state_dict(tensors, strict=False)
    else:
        network, extra = segment(model, data, spec, store.checkpoint(spec))
        counts = {CONFUSION: extra.pop("test_confusion")}
        del extra["val_confusion"]
        tensors, size = network.state_dict() | counts, tuple(data.test.x.shape[1:3])
    if spec.mode == "segment":
        row = {name: extra.pop(f"test_{name}") for name in ("miou", "pixel_accuracy", "n")}
        row["val_miou"] = extra.pop("val_miou")
    else:
        row = _counts(extra.pop("test_correct"), len(data.test))
        row["val_accuracy"] = extra.pop("val_correct") / len(data.val)
        row["native_detail"] = data.native
    row["n_train_measured"] = len(data.train)
    removed = sum(int((model.get_parameter(n)[~m] != 0).sum()) for n, m in kept.items())
    if removed:
        raise RuntimeError(f"{removed} removed weights are not zero after {spec.mode}")
    row["sparsity_measured"] = mask(spec.ticket).sparsity
    return row | _size(network, size), tensors, extra | {"n_classes": data.n_classes}


def _evaluation(spec: Evaluation) -> tuple[dict, dict, dict]:
    data = _images_of(spec.of)
    other = None if spec.other is None else network(spec.other)
    row, tables = evaluate(spec, network(spec.of), data, other, _against(spec, data))
    if spec.suite == "similarity":
        masks = [_mask_of(s) for s in (spec.of, spec.other)]
        masks = [m for m in masks if m and m.sparsity > 0]
        shapes = [{name: kept.shape for name, kept in m.items()} for m in masks]
        if len(masks) == 2 and shapes[0] == shapes[1]:
            first, second = masks
            row |= {"mask_overlap": first.overlap(second), "mask_chance": first.chance(second)}
    return row, {}, tables


def _against(spec: Evaluation, data: Any) -> Any:
    """The images of `spec.against`, none of which are among the test images of `data`."""
    if not spec.against:
        return None
    if spec.suite == "domain_gap" and spec.against == spec.of.source:
        return data.train  # from the source to itself, by images of two splits
    return load(spec.against, size=_size_of(spec.of)).test


def _mask_of(spec: Spec) -> tickets.Mask | None:
    """The mask of the network that a spec ends with."""
    if isinstance(spec, Pretrain):
        return None
    return mask(spec.ticket if isinstance(spec, Transfer) else spec)


def _images_of(spec: Spec) -> Any:
    """The set that the network of a spec was made for."""
    if isinstance(spec, Transfer):
        return _task(spec)
    return _source(spec.pretrain if isinstance(spec, Ticket) else spec)


def _size_of(spec: Spec) -> int:
    return specs.columns(spec)["size"]


def _counts(correct: int, n: int) -> dict[str, float]:
    return {"accuracy": correct / n, "n": n}


def _size(model: nn.Module, size: int | tuple[int, int]) -> dict[str, int]:
    return {
        "parameters": models.parameters(model),
        "multiply_adds": models.multiply_adds(model, size),
    }


def _statistics(split: Split | FileSplit) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the training images, per channel, in [0, 1]: of all their
    pixels alike, without augmentation."""
    n, total, squares = 0, 0.0, 0.0
    for x, _ in batches.ordered(split, batch_size=100):
        x = x.double()  # the mean of squares less the square of the mean: floats lose digits
        n += x.numel() // x.shape[1]
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
    mean = total / n
    return mean.tolist(), (squares / n - mean**2).clamp_min(1e-6).sqrt().tolist()
