"""Transfer: a ticket on a downstream task."""

from typing import Any, cast

from torch import nn

from robustlib import heads, models, store, tickets, training
from robustlib.compact import compact
from robustlib.data import load, load_segmentation
from robustlib.specs import Transfer
from robustlib.stages import ticket
from robustlib.stages.shared import Inputs, Result, check_train, check_val, costs
from robustlib.transfer import finetune, linear, segment

MULTIPLE = 4
"""Channels of a layer of a small network come in such lots: inference is slow on other numbers."""
CONFUSION = "confusion"
"""The name, in a segmentation's artifact, of the counts of each test image [N, K, K]."""


def images(spec: Transfer) -> Any:
    """The task."""
    if spec.mode == "segment":
        return load_segmentation(spec.task, n_train=spec.n_train, seed=spec.seed)
    size = spec.ticket.pretrain.size
    return load(spec.task, size, spec.n_train, spec.seed, detail=spec.detail, grey=spec.grey)


def data(spec: Transfer) -> Any:
    """The task. Raises ValueError for too few task."""
    found = images(spec)
    check_val(found, f"task={spec.task!r}")
    check_train(found, f"task={spec.task!r}", spec.n_train, spec.mode)
    return found


def compute(spec: Transfer, inputs: Inputs) -> Result:
    """Trains the ticket on the task; the row has what it is worth on the test images, and costs."""
    task, (model, kept) = images(spec), _prepared(spec, inputs)
    size: int | tuple[int, int] = spec.ticket.pretrain.size
    whole: nn.Module = model
    if spec.mode == "segment":
        whole, extra = segment(model, task, spec, store.checkpoint(spec))
        tensors = whole.state_dict() | {CONFUSION: extra.pop("test_confusion")}
        size = tuple(task.test.x.shape[1:3])
        del extra["val_confusion"]
        row = {name: extra.pop(f"test_{name}") for name in ("miou", "pixel_accuracy", "n")}
        row["val_miou"] = extra.pop("val_miou")
    else:
        if spec.mode == "finetune":
            model, extra = finetune(model, task, spec, store.checkpoint(spec))
            tensors = model.state_dict()
        else:
            tensors, extra = linear(model, task)
            models.swap_head(model, task.n_classes).load_state_dict(tensors, strict=False)
        row = {"accuracy": extra.pop("test_correct") / len(task.test), "n": len(task.test)}
        row["val_accuracy"] = extra.pop("val_correct") / len(task.val)
        row["native_detail"] = task.native
    row["n_train_measured"] = len(task.train)
    removed = sum(int((model.get_parameter(n)[~m] != 0).sum()) for n, m in kept.items())
    if removed:
        raise RuntimeError(f"{removed} removed weights are not zero after {spec.mode}")
    row["sparsity_measured"] = ticket.mask_in(inputs[spec.ticket]).sparsity
    return row | costs(whole, size), tensors, extra | {"n_classes": task.n_classes}


def network(spec: Transfer, inputs: Inputs) -> tuple[nn.Module, tickets.Mask]:
    """The network with the task's head, and the ticket's mask."""
    (drawn, _), artifact = _prepared(spec, inputs), inputs[spec]
    n_classes = artifact.extra["n_classes"]
    model: nn.Module = drawn
    if spec.mode == "segment":
        model = heads.segmenter(drawn, n_classes, spec.head)
    else:
        models.swap_head(drawn, n_classes)
    tensors = {n: t for n, t in artifact.tensors().items() if n != CONFUSION}
    model.load_state_dict(tensors, strict=spec.mode != "linear")
    return model.eval(), ticket.mask_in(inputs[spec.ticket])


def _prepared(spec: Transfer, inputs: Inputs) -> tuple[models.ResNet, tickets.Mask]:
    """The ticket's network, BatchNorm statistics re-estimated if the spec says so, and the mask
    that is applied to it. A channel ticket comes as the small network that it is."""
    model, kept = ticket.network(spec.ticket, inputs)
    if spec.ticket.pattern == "channel":
        small = compact(model, spec.ticket.pretrain.size, MULTIPLE)
        model, kept = cast(models.ResNet, small.model), small.held  # it is a cut copy of one
    if spec.recalibrate:
        training.recalibrate(model, images(spec).train)
    return model, kept
