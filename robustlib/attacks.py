"""Threat models, and the projected gradient attack that training and quick checks use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib.devices import layout
from robustlib.specs.declare import spec
from robustlib.specs.kinds import Count, Norm, Radius


@spec
class Threat:
    """What an attacker may do: a ball around each image, and how it is searched.

    `eps` and `step_size` are in pixel units of [0, 1] images ("8/255" is read too). step_size
    None: 1.25 eps for a single step (Wong et al., 2020), 2.5 eps / steps for more (Madry et al.,
    2018). Raises ValueError for what is no such number.
    """

    norm: Norm = "l2"
    eps: Radius = 0.5
    steps: Count = 20
    step_size: Radius | None = None

    @property
    def step(self) -> float:
        """Size of one step, in pixel units."""
        if self.step_size is not None:
            return self.step_size
        return 1.25 * self.eps if self.steps == 1 else 2.5 * self.eps / self.steps


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode and gives each module its own mode back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unwrapped(model: nn.Module) -> nn.Module:
    """The bare module below a wrapper such as DistributedDataParallel, whose hooks on gradients of
    weights an attack must not trip: it needs those of the images alone."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def random_start(x: Tensor, threat: Threat) -> Tensor:
    """A random point of the ball, as an offset shaped as x.

    linf: uniform in the cube. l2: uniform direction and uniform radius; a draw uniform in volume
    would sit on the sphere in so many dimensions, and leave a single step little room.
    """
    if threat.norm == "linf":
        return torch.empty_like(x).uniform_(-threat.eps, threat.eps)
    direction = torch.randn_like(x)
    radius = torch.rand(len(x), 1, 1, 1, device=x.device) * threat.eps
    return direction * (radius / _norms(direction))


def ascend(delta: Tensor, grad: Tensor, x: Tensor, threat: Threat, step: float) -> Tensor:
    """One step up the gradient, projected on the ball around x and on the [0, 1] box."""
    if threat.norm == "linf":
        delta = (delta + step * grad.sign()).clamp_(-threat.eps, threat.eps)
    else:
        delta = delta + step * grad / _norms(grad)
        delta = delta * (threat.eps / _norms(delta)).clamp_max(1.0)
    return (x + delta).clamp_(0, 1).sub_(x)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    loss: Callable[[Tensor], Tensor] | None = None,
    worst: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """Adversarial images: projected gradient ascent from a random start (Madry et al., 2018).

    x: [N, 3, H, W] in [0, 1]; y: labels [N]; returns images shaped as x, detached, within the ball
    and within [0, 1]. loss: from logits [N, K] to losses [N]; None: cross entropy with y. worst:
    returns the iterate of highest loss for each image, as an evaluation wants it, not the last.
    start: the first offset; None: drawn here. Runs with BatchNorm in eval mode, leaves no gradient
    on weights, and may be called in torch.no_grad().
    """
    loss = loss or (lambda logits: F.cross_entropy(logits, y, reduction="none"))
    model = unwrapped(model)
    x = _laid(model, x)
    start = random_start(x, threat) if start is None else start
    delta = (x + start).clamp_(0, 1).sub_(x)
    best, best_loss = delta, torch.full((len(x),), -torch.inf, device=x.device)
    with evaluating(model), torch.enable_grad():
        for _ in range(threat.steps):
            delta = delta.detach().requires_grad_()
            losses = loss(model(x + delta))
            # The sum, not the mean: the scale of a gradient must not depend on the batch.
            (grad,) = torch.autograd.grad(losses.sum(), delta)
            if worst:
                best, best_loss = _keep(delta, losses, best, best_loss)
            delta = ascend(delta.detach(), grad, x, threat, threat.step)
        if worst:
            with torch.no_grad():
                delta, _ = _keep(delta, loss(model(x + delta)), best, best_loss)
    return (x + delta).detach()


def held(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Which images are right, and which of them stay so under `pgd`, the worst iterate of each
    counted: bool [N] each. Only what is right is attacked, each image from the random start that it
    would have if all were."""
    with evaluating(model), torch.no_grad():
        right = model(x).argmax(1) == y
        rows, stays = right.nonzero().flatten(), torch.zeros_like(right)
        start = random_start(_laid(unwrapped(model), x), threat)
        if len(rows):
            found = pgd(model, x[rows], y[rows], threat, worst=True, start=start[rows])
            stays[rows] = model(found).argmax(1) == y[rows]
    return right, stays


def _laid(model: nn.Module, x: Tensor) -> Tensor:
    """Images as they must lie in memory where gradients of this network are taken."""
    return x.contiguous() if layout(model, x.device) == torch.contiguous_format else x


def _keep(delta: Tensor, loss: Tensor, best: Tensor, best_loss: Tensor) -> tuple[Tensor, Tensor]:
    loss = loss.detach()
    better = loss > best_loss
    chosen = torch.where(better.view(-1, 1, 1, 1), delta.detach(), best)
    return chosen, torch.where(better, loss, best_loss)
