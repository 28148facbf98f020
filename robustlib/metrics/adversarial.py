"""Accuracy under attack: our PGD and AutoAttack (Croce and Hein, 2020)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robustlib import training
from robustlib.attacks import Threat, held
from robustlib.data import batches
from robustlib.data.splits import seed_for
from robustlib.metrics.sample import Measured, Row, sample
from robustlib.specs import Evaluation, Norm, integer

BATCH = 250
THEIR_NORMS = {"l2": "L2", "linf": "Linf"}


def measure(model: nn.Module, data: Any, spec: Evaluation, **_: Any) -> Measured:
    """Accuracy as it is, under our PGD-20, and under AutoAttack, as pyautoattack has it.

    `standard` is AutoAttack as published: APGD-CE, APGD-T on the 9 likeliest other classes, FAB-T
    and Square with 5,000 queries; 100 iterations each. `cheap`, for small machines, is the part
    that decides most images, so an upper bound: APGD-CE and APGD-T on the 3 likeliest other
    classes, 20 iterations each. With K classes at most K - 1 are aimed at; with fewer than 4 the
    loss of APGD-T is not defined, and it is left out.

    The row: `n` images, then {name}_correct and {name}_accuracy of clean, pgd (20 steps, the worst
    iterate), apgd_ce, apgd_t, fab_t, square (each what that attack *and those before it* leave, as
    AutoAttack runs them) and autoattack (what all leave). PGD stands apart, and may be below or
    above the others. eps is in pixel units of [0, 1] images.
    """
    split, threat = sample(data.test, spec.limit), Threat(spec.norm, spec.eps, steps=20)
    right: dict[str, int] = {}
    with torch.random.fork_rng(), training.inference(model) as where:
        # Attacks need gradients of the images alone; FAB would leave others on the weights.
        model = copy.deepcopy(model).requires_grad_(False)
        attacks: dict[str, Any] = {}
        for i, (images, y) in enumerate(batches.ordered(split, BATCH, device=where)):
            x = images.contiguous()  # they flatten with view, which channels_last does not allow
            attacks = attacks or _attacks(model, threat, spec, model(x[:1]).shape[1], where)
            torch.manual_seed(seed_for(spec.seed, i))
            survives, strong = held(model, x, y, threat)
            left = {"clean": survives.clone(), "pgd": strong}
            for name, part in attacks.items():
                # Only what is left is attacked: the rest would be time spent on a settled question.
                rows = survives.nonzero().flatten()
                if len(rows):
                    survives[rows] = _right(model, part.perturb(x[rows], y[rows]), y[rows])
                left[name] = survives.clone()
            left["autoattack"] = survives
            for name, mask in left.items():
                right[name] = right.get(name, 0) + int(mask.sum())
    row: Row = {"n": len(split)}
    for name, count in right.items():
        row |= {f"{name}_correct": count, f"{name}_accuracy": count / len(split)}
    return row, {}


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x).argmax(1) == y


def _attacks(
    model: nn.Module, threat: Threat, spec: Evaluation, n_classes: int, where: torch.device
) -> dict[str, Any]:
    """pyautoattack's attacks, by name and in the order in which AutoAttack runs them."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    options = {"norm": THEIR_NORMS[threat.norm], "eps": threat.eps, "seed": spec.seed}
    options["device"] = where
    if spec.attack == "standard":
        full = AutoAttack(model, version="standard", **options)
        full.fab.targeted = True
        full.fab.n_target_classes = min(9, n_classes - 1)
        parts = {"apgd_ce": full.apgd, "apgd_t": full.apgd_targeted}
        parts |= {"fab_t": full.fab, "square": full.square}
    else:
        # Built with their iterations: the schedule of the step size follows from them.
        targeted = APGDAttack_targeted(model, n_iter=20, n_target_classes=3, **options)
        parts = {"apgd_ce": APGDAttack(model, n_iter=20, **options), "apgd_t": targeted}
    if n_classes < 4:
        del parts["apgd_t"]
    else:
        parts["apgd_t"].n_target_classes = min(parts["apgd_t"].n_target_classes, n_classes - 1)
    return parts


def apgd_accuracy(
    model: nn.Module,
    split: Any,
    norm: Norm,
    eps: float,
    seed: int = 0,
    batch_size: int = BATCH,
    limit: int | None = None,
) -> tuple[int, int]:
    """How many images of a split stay right under APGD-CE, and of how many.

    pyautoattack's Auto-PGD on the cross entropy, 100 iterations from one random start: to hold our
    PGD (`training.robust_correct`) against, for it adapts its step size. eps is in pixel units;
    `limit`: at most so many images, those of `sample`. Raises ValueError for a norm, an eps or a
    limit that is none.
    """
    from pyautoattack.autopgd_base import APGDAttack

    threat = Threat(norm, eps)
    split = sample(split, None if limit is None else integer("limit", limit, 1))
    right = 0
    with torch.random.fork_rng(), training.inference(model) as where:
        attack = APGDAttack(model, norm=THEIR_NORMS[norm], eps=threat.eps, seed=seed, device=where)
        for images, y in batches.ordered(split, batch_size, device=where):
            x = images.contiguous()  # it flattens with view, which channels_last does not allow
            right += int((model(attack.perturb(x, y)).argmax(1) == y).sum())
    return right, len(split)
