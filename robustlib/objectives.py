"""What training minimises: each objective is a function (model, x, y) -> loss.

The attack inside an objective runs with BatchNorm in eval mode, the pass that is differentiated
for the weights in train mode. `free` is the exception: it uses one pass for both.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.attacks import Threat, ascend, evaluating, pgd, random_start

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss with what the training loop must know of it."""

    loss: Loss
    """(model, images [N, 3, H, W] in [0, 1], labels [N]) -> scalar."""
    replays: int = 1
    """How many steps in a row are taken on one batch."""
    threat: Threat | None = None
    """The attack it trains against, if any."""
    state: dict[str, Tensor] = field(default_factory=dict)
    """What it carries from step to step; a checkpoint keeps it."""


def natural(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy on the images as they are."""
    return F.cross_entropy(model(x), y)


def pixelwise(ignore: int) -> Objective:
    """Cross entropy of logits [N, K, H, W], the mean over all pixels of a batch whose label in the
    masks [N, H, W] is not `ignore`; 0 if there is none."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        total = F.cross_entropy(model(x), y.long(), ignore_index=ignore, reduction="sum")
        return total / (y != ignore).sum().clamp_min(1)

    return Objective(loss)


def adversarial(threat: Threat) -> Objective:
    """Cross entropy on adversarial images (Madry et al., 2018); with one step, fast adversarial
    training (Wong et al., 2020)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(pgd(model, x, y, threat)), y)

    return Objective(loss, threat=threat)


def trades(threat: Threat, beta: float) -> Objective:
    """Cross entropy plus beta times the divergence between clean and adversarial predictions
    (Zhang et al., 2019). The attack maximises that divergence."""

    def divergence(logits: Tensor, target: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, 1)
        return F.kl_div(log_p, target, reduction="none", log_target=True).sum(1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with evaluating(model), torch.no_grad():
            clean = F.log_softmax(model(x), 1)
        x_adv = pgd(model, x, y, threat, loss=lambda logits: divergence(logits, clean))
        logits = model(x)
        robust = divergence(model(x_adv), F.log_softmax(logits, 1)).mean()
        return F.cross_entropy(logits, y) + beta * robust

    return Objective(loss, threat=threat)


def free(threat: Threat, replays: int) -> Objective:
    """Each batch is replayed; the gradient that updates the weights also moves the perturbation,
    which the next batch inherits (Shafahi et al., 2019). Its single pass is in train mode."""
    state: dict[str, Tensor] = {}

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        delta = state.get("delta")
        if delta is None or delta.shape != x.shape:
            delta = random_start(x, threat)
        delta = (x + delta).clamp_(0, 1).sub_(x).requires_grad_()

        def move(grad: Tensor) -> None:
            # fp16 scales the loss until gradients overflow, and skips that step; so does delta.
            grad = grad.nan_to_num(0, 0, 0)
            state["delta"] = ascend(delta.detach(), grad, x, threat, threat.eps)

        delta.register_hook(move)
        return F.cross_entropy(model(x + delta), y)

    return Objective(loss, replays, threat, state)


def smoothing(sigma: float) -> Objective:
    """Cross entropy on images with Gaussian noise, for randomized smoothing (Cohen et al.,
    2019)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x + sigma * torch.randn_like(x)), y)

    return Objective(loss)


def from_spec(spec: Any) -> Objective:
    """The objective that the fields objective, norm, eps, steps, ... of a Pretrain or a Ticket
    name."""
    if spec.objective == "natural":
        return Objective(natural)
    if spec.objective == "smoothing":
        return smoothing(spec.sigma)
    threat = Threat(spec.norm, spec.eps, spec.steps, getattr(spec, "step_size", None))
    if spec.objective == "pgd":
        return adversarial(threat)
    if spec.objective == "trades":
        return trades(threat, spec.beta)
    return free(threat, spec.replays)
