"""What the stages share: the images that training needs at least, and columns of rows."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from robustlib import models, specs
from robustlib.data.splits import LEAST_FOR_VAL
from robustlib.specs import Spec
from robustlib.store import Artifact

Inputs = Mapping[Spec, Artifact]
"""What a stage is given: the artifacts of what its spec is built on, by spec."""
Result = tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]
"""What a stage returns: (row, tensors, extra), as `store.put` takes them."""


def stage(spec: Spec) -> Any:
    """The module that computes a kind of spec, which has its name."""
    return import_module(f"robustlib.stages.{specs.kind(spec)}")


def check_val(data: Any, name: str) -> None:
    """Raises ValueError for a set without an image, or a labelled pixel, to validate on. name: the
    field that asked for the set, with its value."""
    if not len(data.val):
        raise ValueError(
            f"{name}: no validation image can be cut from its {len(data.train)} training images; "
            f"{LEAST_FOR_VAL} at least are needed, two of them of one class"
        )
    _check_labelled(data, "val", name)


def check_train(data: Any, name: str, n_train: int | None, mode: str = "") -> None:
    """Raises ValueError for a set with too few images to train on: of pixels with a class, for a
    mode that needs them of two classes."""
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
    split = getattr(data, part)
    if bool((split.y == data.ignore).all()):
        raise ValueError(
            f"{name}: no pixel of its {len(split)} {part} images has a class; 1 at least must"
        )


def costs(model: nn.Module, size: int | tuple[int, int]) -> dict[str, int]:
    """The columns of what a network costs on an image of `size` px."""
    adds = models.multiply_adds(model, size)
    return {"parameters": models.parameters(model), "multiply_adds": adds}
