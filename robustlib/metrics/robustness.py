"""Robust accuracy under an attack that is not ours, to hold our own PGD against."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from robustlib import training
from robustlib.attacks import Threat
from robustlib.data import batches
from robustlib.metrics.adversarial import THEIR_NORMS
from robustlib.metrics.sample import sample
from robustlib.specs import Norm, integer


def apgd_accuracy(
    model: nn.Module,
    split: Any,
    norm: Norm,
    eps: float,
    seed: int = 0,
    batch_size: int = 250,
    limit: int | None = None,
) -> tuple[int, int]:
    """How many images of a split stay right under APGD-CE, and of how many.

    The attack is pyautoattack's: Auto-PGD on the cross entropy, 100 iterations from one random
    start (Croce and Hein, 2020). Unlike our PGD it adapts its step size, and an image counts as
    lost as soon as one iterate is wrong. `training.robust_correct` is the same measure under ours.
    eps is in pixel units of [0, 1] images; `limit`: at most so many images, those of `sample`.
    Raises ValueError for a norm, an eps or a limit that is none.
    """
    from pyautoattack.autopgd_base import APGDAttack

    threat = Threat(norm, eps)
    split = sample(split, None if limit is None else integer("limit", limit, 1))
    right = 0
    with torch.random.fork_rng(), training.inference(model) as where:
        attack = APGDAttack(model, norm=THEIR_NORMS[norm], eps=threat.eps, seed=seed, device=where)
        for x, y in batches.ordered(split, batch_size, device=where):
            x = x.contiguous()  # it flattens with view, which channels_last does not allow
            right += int((model(attack.perturb(x, y)).argmax(1) == y).sum())
    return right, len(split)
