"""How alike two networks represent the same images: linear CKA (Kornblith et al., 2019)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.metrics.sample import Measured, Table, sample
from robustlib.specs import Evaluation

LAYERS = ("layer1", "layer2", "layer3", "layer4", "avgpool")
"""The four stages of our ResNets (`pyramid`) and their pooled features."""
COLUMNS = 2**14
"""Of activations that are multiplied at a time."""


def measure(model: nn.Module, data: Any, spec: Evaluation, *, other: Any, **_: Any) -> Measured:
    """Linear CKA of two networks' activations on the same test images, layer by layer.

    An activation is the whole of a layer's output, channels and places. The table `layers`:
    `layer`, `cka` and `cka_debiased` (see `linear_cka`); the row: n and the means of the two over
    the layers. One layer is held at a time: its activations of all images, and an N x N matrix for
    each network (with 2,000 images 32 MB each, with 10,000 800 MB).
    """
    split = sample(data.test, spec.limit)
    table: Table = []
    for layer in LAYERS:
        plain, debiased = _cka(*(_gram(activations(m, split, layer)) for m in (model, other)))
        table.append({"layer": layer, "cka": plain, "cka_debiased": debiased})
    means = {k: sum(r[k] for r in table) / len(table) for k in ("cka", "cka_debiased")}
    return {"n": len(split)} | means, {"layers": table}


def activations(model: nn.Module, split: Any, layer: str) -> Tensor:
    """What a layer, named as in `named_modules`, puts out for each image: [N, P] on the CPU."""
    out: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, value: Tensor) -> None:
        # A copy: what comes after may work in place.
        out.append(value.detach().flatten(1).float().cpu().clone())

    with model.get_submodule(layer).register_forward_hook(keep):
        training.outputs(model, split)
    return torch.cat(out)


def linear_cka(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Linear CKA of features [N, P] and [N, Q] of the same N > 3 images, and its debiased estimate.

    0 for unrelated features, 1 for features that differ by a rotation, a scale and a shift. With P
    near or above N the first is high for any two sets of features; the second uses the unbiased
    estimator of HSIC (Song et al., 2012), and is around 0 for unrelated ones, a little below it
    included. nan where all features are the same.
    """
    return _cka(_gram(a), _gram(b))


def _gram(x: Tensor) -> Tensor:
    # Some columns at a time: those of a ResNet-50's first stage are gigabytes in double precision.
    gram = torch.zeros((len(x), len(x)), dtype=torch.float64)
    for part in x.split(COLUMNS, 1):
        # Centred before the products: with a mean far from 0 they would lose their digits.
        columns = part.double()
        columns = columns - columns.mean(0)
        gram += columns @ columns.T
    return gram


def _cka(k: Tensor, m: Tensor) -> tuple[float, float]:
    def plain(k: Tensor, m: Tensor) -> float:
        return float((k * m).sum())  # the matrices are centred, and scale cancels

    def unbiased(k: Tensor, m: Tensor) -> float:
        n = len(k)
        k, m = (g - torch.diag(g.diagonal()) for g in (k, m))
        across = k.sum() * m.sum() / ((n - 1) * (n - 2))
        return float((k * m).sum() + across - 2 / (n - 2) * (k.sum(0) * m.sum(0)).sum())

    both = [(hsic(k, m), hsic(k, k) * hsic(m, m)) for hsic in (plain, unbiased)]
    first, second = (a / math.sqrt(b) if b > 0 else math.nan for a, b in both)
    return first, second
