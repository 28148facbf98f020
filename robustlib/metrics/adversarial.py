"""Accuracy under attack: our PGD and AutoAttack (Croce and Hein, 2020)."""

import copy
from typing import Any

import torch
from torch import nn

from robustlib import training
from robustlib.attacks import Threat, held
from robustlib.data import batches
from robustlib.data.splits import seed_for
from robustlib.metrics.sample import Measured, Row, sample
from robustlib.specs import Evaluation

BATCH = 250


def measure(model: nn.Module, data: Any, spec: Evaluation, **_: Any) -> Measured:
    """Accuracy as it is, under our PGD-20, and under AutoAttack, as pyautoattack has it.

    `standard` is AutoAttack as published: APGD-CE, APGD-T on the 9 likeliest other classes, FAB-T
    and Square with 5,000 queries; 100 iterations each. `cheap` is the part that decides most
    images, so an upper bound: APGD-CE and APGD-T on the 3 likeliest other classes, 20 iterations
    each. With K classes at most K - 1 are aimed at; with fewer than 4 APGD-T has no loss and is
    left out.

    The row: `n` images, then {name}_correct and {name}_accuracy of clean, pgd (20 steps, the worst
    iterate; it stands apart), apgd_ce, apgd_t, fab_t, square (each what that attack *and those
    before it* leave, as AutoAttack runs them) and autoattack (what all leave).
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
                    found = part.perturb(x[rows], y[rows])
                    survives[rows] = model(found).argmax(1) == y[rows]
                left[name] = survives.clone()
            left["autoattack"] = survives
            for name, mask in left.items():
                right[name] = right.get(name, 0) + int(mask.sum())
    row: Row = {"n": len(split)}
    for name, count in right.items():
        row |= {f"{name}_correct": count, f"{name}_accuracy": count / len(split)}
    return row, {}


def _attacks(
    model: nn.Module, threat: Threat, spec: Evaluation, n_classes: int, where: torch.device
) -> dict[str, Any]:
    """pyautoattack's attacks, by name and in the order in which AutoAttack runs them."""
    from pyautoattack import AutoAttack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    norm = {"l2": "L2", "linf": "Linf"}[threat.norm]
    options = {"norm": norm, "eps": threat.eps, "seed": spec.seed, "device": where}
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
