"""How fast the machinery is, as ratios measured in one run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import models, objectives, training
from robustlib.attacks import Threat
from robustlib.data.batches import to_float
from robustlib.data.splits import Split

BATCH, STEPS, ROUNDS = 128, 30, 7


def throughput() -> dict[str, list[float]]:
    """Images a second of `training.fit` over those of a bare loop, for natural and pgd.

    The bare loop is forward, backward and step on one batch of floats that is fixed, on the same
    network (1.3 M parameters, 32 px), with the same attack where there is one. The two are timed
    in turn, ROUNDS times, a ratio each, in order of size: the speed of a shared machine drifts.
    """
    generator = torch.Generator().manual_seed(0)
    n = BATCH * STEPS
    x = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    recipe = training.Recipe(
        epochs=1,
        lr=0.01,
        batch_size=BATCH,
        weight_decay=5e-4,
        augment="crop-flip",
        precision="fp32",
        seed=0,
    )
    threat = Threat("l2", 0.5, steps=1)
    out = {}
    for name, objective, attack in (
        ("natural", objectives.Objective(objectives.natural), None),
        ("pgd", objectives.adversarial(threat), threat),
    ):
        model = models.build("resnet10s", 10, width=32, stem_stride=2)
        split = Split(x, y)
        fixed = to_float(x[:BATCH], training.device()), y[:BATCH].to(training.device())

        def ours(model=model, split=split, objective=objective) -> None:
            training.fit(model, split, objective, recipe, label="bench")

        def bare(model=model, fixed=fixed, attack=attack) -> None:
            _bare(model, *fixed, attack)

        ours()
        out[name] = sorted(_seconds(bare) / _seconds(ours) for _ in range(ROUNDS))
    return out


def _bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: Threat | None) -> None:
    model.to(x.device, memory_format=torch.channels_last)
    optim = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for _ in range(STEPS):
        images = x
        if attack:
            model.eval()
            start = torch.randn_like(x)
            start *= (
                attack.eps
                * torch.rand(len(x), 1, 1, 1)
                / start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            )
            delta = start.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
            step = attack.step * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            images = (x + delta.detach() + step).clamp_(0, 1)
        model.train()
        loss = F.cross_entropy(model(images), y)
        optim.zero_grad()
        loss.backward()
        optim.step()


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Prints every measure."""
    for name, ratios in throughput().items():
        print(
            f"training loop, {name}: {np.median(ratios):.3f} of a bare loop's images a second "
            f"(median of {len(ratios)}, {ratios[0]:.3f} to {ratios[-1]:.3f}; goal 0.95)"
        )
