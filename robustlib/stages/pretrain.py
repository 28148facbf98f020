"""Pretraining: a source network, trained here or published."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustlib import checkpoints, models, objectives, parallel, store, training
from robustlib.attacks import Threat
from robustlib.data import batches, load, sources
from robustlib.data.splits import FileSplit, Split, take
from robustlib.devices import device, devices
from robustlib.specs import Pretrain
from robustlib.stages.shared import Inputs, Result, check_train, check_val, costs

UNKNOWN = {"accuracy": None, "n": 0, "val_accuracy": None}
MONITORED = 256
"""Validation images that a multi-step attack is tried on after each epoch."""


def images(spec: Pretrain) -> Any:
    """The source."""
    return load(spec.source, size=spec.size, n_train=spec.n_train, seed=spec.seed)


def data(spec: Pretrain) -> Any:
    """The source; None where a published network's is not here. Raises ValueError for too few
    images, for a batch that the processes cannot share, and for a checkpoint of another network."""
    name = f"source={spec.source!r}"
    found = _published(spec)[2] if spec.checkpoint else images(spec)
    if found is not None:
        check_val(found, name)
    if not spec.checkpoint:
        check_train(found, name, spec.n_train)
        parallel.check_shares(len(found.train), spec.batch_size, devices())
    return found


def compute(spec: Pretrain, inputs: Inputs) -> Result:
    """Trains the network, in as many processes as there are devices, or takes the published one.
    Where the source's images are not here, as ImageNet's need not be, the accuracy of that is None,
    of the zoo's what its manifest says."""
    if spec.checkpoint:
        model, extra, found = _published(spec)
        row = {k: extra[k] for k in UNKNOWN} if found is None else _accuracy(model, found)
        return row | costs(model, spec.size), model.state_dict(), {"n_classes": extra["n_classes"]}
    found = images(spec)
    # Here, once: files are decoded for it, and each process would do that anew.
    call = spec, store.checkpoint(spec), *statistics(found.train)
    model, curve = parallel.launch(_trained, call, devices(), device())
    row = _accuracy(model, found) | costs(model, spec.size)
    row["catastrophic_overfitting"] = any("catastrophic_overfitting" in c for c in curve)
    return row, model.state_dict(), {"curve": curve, "n_classes": found.n_classes}


def network(spec: Pretrain, inputs: Inputs) -> tuple[models.ResNet, None]:
    """The source network; None, for nothing is removed from it."""
    model = models.of(spec, inputs[spec].extra["n_classes"])
    model.load_state_dict(inputs[spec].tensors())
    return model.eval(), None


def _trained(
    spec: Pretrain, checkpoint: Path, mean: list[float], std: list[float]
) -> tuple[nn.Module, list[dict[str, float]]]:
    """The trained network and its curve; `parallel.launch` calls it in each process, by name."""
    found = images(spec)
    objective = objectives.from_spec(spec)
    with torch.random.fork_rng():
        torch.manual_seed(batches.seed_for(spec.seed, "init"))
        model = models.of(spec, found.n_classes, mean, std)
    curve = training.fit(
        model,
        found.train,
        objective,
        spec,
        monitor=lambda m: _monitor(m, found.val, objective.threat),
        checkpoint=checkpoint,
        label=f"pretrain {spec.objective} {spec.eps or spec.sigma or ''}".strip(),
    )
    return model, curve


def _monitor(model: nn.Module, val: Any, threat: Threat | None) -> dict[str, float]:
    row = {"val_accuracy": training.correct(model, val) / len(val)}
    if threat is not None:
        some = take(val, np.arange(min(MONITORED, len(val))))
        strong = Threat(threat.norm, threat.eps, steps=10)
        row["val_robust"] = training.robust_correct(model, some, strong) / len(some)
    return row


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
    entry = checkpoints.zoo().get(spec.checkpoint.removeprefix("zoo/"), {"spec": {}})
    # A pack that its maker has: where it is not, its name is known from the manifest alone.
    away = entry["spec"].get("source") == spec.source and not sources.here(spec.source)
    try:
        own = None if away else images(spec)
    except FileNotFoundError:
        own = None
    if own is None:
        return model, found | {k: entry.get(k, v) for k, v in UNKNOWN.items()}, None
    if own.n_classes != found["n_classes"]:
        raise ValueError(
            f"source={spec.source!r}: has {own.n_classes} classes, checkpoint "
            f"{spec.checkpoint!r} {found['n_classes']}"
        )
    return model, found, own


def _accuracy(model: nn.Module, own: Any) -> dict[str, Any]:
    val = training.correct(model, own.val) / len(own.val)
    test = training.correct(model, own.test) / len(own.test)
    return {"accuracy": test, "n": len(own.test), "val_accuracy": val}


def statistics(split: Split | FileSplit) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the training images, per channel, in [0, 1]: of all their
    pixels alike, without augmentation."""
    n, total, squares = 0, torch.zeros(3).double(), torch.zeros(3).double()
    for images, _ in batches.ordered(split, batch_size=100):
        x = images.double()  # the mean of squares less the square of the mean: floats lose digits
        n += x.numel() // x.shape[1]
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
    mean = total / n
    return mean.tolist(), (squares / n - mean**2).clamp_min(1e-6).sqrt().tolist()
