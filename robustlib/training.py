"""The one training loop of every stage: resumes, runs on any device and precision, reports."""

from __future__ import annotations

import io
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from robustlib import parallel, store
from robustlib.attacks import Threat, evaluating, pgd
from robustlib.data import batches
from robustlib.devices import device, fabric, layout
from robustlib.objectives import Objective
from robustlib.specs import Augment, Precision, Schedule

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Recipe:
    """How to optimise; the fields are those of the specs, and so are their defaults."""

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float
    augment: Augment
    precision: Precision
    seed: int
    momentum: float = 0.9
    schedule: Schedule = "onecycle"
    decay_norms: bool = False

    @classmethod
    def of(cls, spec: Any) -> Recipe:
        """The recipe that a Pretrain or a Transfer holds."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)})


class NotFinite(RuntimeError):
    """The loss, a weight, or what a network puts out became nan or infinite."""


class CatastrophicOverfitting(UserWarning):
    """Robustness against a multi-step attack collapsed while the single-step loss kept falling."""


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The rate of step `step` of `total`.

    onecycle rises linearly to lr over the first fifth of the steps and falls linearly to 0 (Smith
    and Topin, 2018; Wong et al., 2020); step divides by 10 at 1/2 and 3/4.
    """
    t = step / total
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** ((t >= 0.5) + (t >= 0.75))
    return recipe.lr * min((step + 1) / max(1.0, 0.2 * total), (1 - t) / 0.8, 1.0)


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum; norms and biases are not decayed unless decay_norms."""
    decayed, free = [], []
    for p in model.parameters():
        (decayed if p.ndim > 1 or recipe.decay_norms else free).append(p)
    groups = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


def fit(
    model: nn.Module,
    split: Any,
    objective: Objective,
    recipe: Recipe,
    *,
    monitor: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    label: str = "training",
) -> list[dict[str, float]]:
    """Trains the model in place on a split; returns the curve, a row per epoch.

    Every random draw is seeded by (seed, epoch, step), so any step can be redone without those
    before it: with a `checkpoint` path the state is saved there every CHECKPOINT_SECONDS, a call
    that finds one goes on from it, and ends with the weights of a run that was never killed. The
    caller removes it once the result is stored. `monitor` is called after each epoch and its
    numbers join the row.

    In a group of processes (`parallel.launch`) every one calls it with the same arguments, takes
    its share of each batch, and ends with the same weights and curve, which are those of one
    process but for the order of sums. The monitor runs in all of them; rank 0 writes the
    checkpoint, which any number of processes can go on from.

    Raises NotFinite, naming epoch, step, rate and eps; ValueError for the checkpoint of another
    run. Warns when a checkpoint cannot be read, and starts afresh. Warns CatastrophicOverfitting
    when `overfitted` says so of the monitor's `val_robust`.
    """
    with parallel.synchronised(model):
        return _fit(model, split, objective, recipe, monitor, checkpoint, label)


def _fit(
    model: nn.Module,
    split: Any,
    objective: Objective,
    recipe: Recipe,
    monitor: Callable[[nn.Module], dict[str, float]] | None,
    checkpoint: Path | None,
    label: str,
) -> list[dict[str, float]]:
    where = device()
    parallel.check_shares(len(split), recipe.batch_size, parallel.processes())
    engine = fabric(recipe.precision, where)
    lies = layout(model, where)
    model.to(where, memory_format=lies)
    optim = optimiser(model, recipe)
    wrapped, stepper = engine.setup(model, optim)
    per_epoch = batches.steps(split, recipe.batch_size)
    total = per_epoch * recipe.epochs * objective.replays
    step, curve, loss_sum, spent = 0, [], 0.0, 0.0
    eps = objective.threat.eps if objective.threat else 0.0
    identity = asdict(recipe) | {"eps": eps, "images": len(split), "steps": total}
    identity |= {"parameters": sum(p.numel() for p in model.parameters())}
    scaler = engine.strategy.precision
    objective.state.clear()
    if (saved := _unfinished(checkpoint, identity, where)) is not None:
        model.load_state_dict(saved["model"])
        optim.load_state_dict(saved["optimiser"])
        scaler.load_state_dict(saved.get("scaler", {}))
        # Rows of its own memory: the whole would be kept alive otherwise.
        objective.state.update({k: parallel.own(v).clone() for k, v in saved["objective"].items()})
        step, curve = saved["step"], saved["curve"]
        loss_sum, spent = saved["loss_sum"], saved["seconds"]

    def save() -> None:
        whole = {k: parallel.gathered(v) for k, v in objective.state.items()}
        if parallel.rank():
            return
        state = {"model": model.state_dict(), "optimiser": optim.state_dict()}
        state |= {"scaler": scaler.state_dict(), "identity": identity}
        state |= {"objective": whole, "step": step, "curve": curve}
        state |= {"loss_sum": loss_sum, "seconds": spent + time.monotonic() - started}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        store.write_checked(checkpoint, buffer.getbuffer())

    started = last_save = time.monotonic()
    # Read at each call: tqdm itself reads it when it is imported, which a worker does too early.
    silent = bool(os.environ.get("TQDM_DISABLE")) or parallel.rank() > 0
    options = {"unit": "step", "dynamic_ncols": True, "disable": silent}
    bar = tqdm(total=total, initial=step, desc=label, **options)
    # What is not named here is set to what torch's flags have as default, not left as it was.
    cudnn = torch.backends.cudnn
    reproducible = cudnn.flags(
        enabled=True, deterministic=True, benchmark=False, allow_tf32=cudnn.allow_tf32
    )
    per_pass = per_epoch * objective.replays
    with torch.random.fork_rng(), reproducible, bar:
        while step < total:
            epoch, done = divmod(step, per_pass)
            feed = batches.epoch(
                split,
                recipe.batch_size,
                augment=recipe.augment,
                seed=recipe.seed,
                epoch=epoch,
                start=done // objective.replays,
                device=where,
            )
            model.train()
            for x, y in _replayed(feed, objective.replays, done % objective.replays):
                rate = learning_rate(recipe, step, total)
                for group in optim.param_groups:
                    group["lr"] = rate
                torch.manual_seed(batches.seed_for(recipe.seed, "step", step))
                x, y = parallel.own(x).contiguous(memory_format=lies), parallel.own(y)
                with engine.autocast(), parallel.sharing():
                    loss = objective.loss(wrapped, x, y)
                due = checkpoint is not None and time.monotonic() - last_save > CHECKPOINT_SECONDS
                value, due = parallel.agree(loss, due)
                at = (
                    f"at epoch {epoch}, step {step} of {total}, learning rate {rate:.4g}, "
                    f"eps {eps:g}; nothing was stored. A lower lr is the usual cure"
                )
                if not math.isfinite(value):
                    raise NotFinite(f"{label}: the loss is {value} {at}")
                stepper.zero_grad()
                engine.backward(loss)
                stepper.step()
                step += 1
                loss_sum += value
                bar.set_postfix(loss=f"{value:.3f}", lr=f"{rate:.3g}", refresh=False)
                bar.update()
                if step % per_pass == 0:
                    # The last step of all may break what no loss comes after to show.
                    if not all(bool(p.isfinite().all()) for p in model.parameters()):
                        raise NotFinite(f"{label}: a weight is not finite {at}")
                    curve.append({"epoch": epoch, "loss": loss_sum / per_pass, "lr": rate})
                    loss_sum = 0.0
                    if monitor is not None:
                        # Not numpy's floats: a checkpoint that holds those is refused when read.
                        curve[-1] |= {k: float(v) for k, v in monitor(model).items()}
                    _warn_if_overfitting(curve, label)
                if due:
                    save()
                    last_save = time.monotonic()
    if curve:
        curve[-1]["seconds"] = spent + time.monotonic() - started
    model.eval()
    return curve


def _replayed(feed: Iterator, times: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in feed:
        for _ in range(times - skip):
            yield x, y
        skip = 0


def _unfinished(checkpoint: Path | None, identity: dict, where: torch.device) -> dict | None:
    """What a checkpoint holds, if there is one that can be read; ValueError if of another run."""
    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        # torch.load does not notice a flipped bit of a tensor.
        data = io.BytesIO(store.read_checked(checkpoint))
        saved = torch.load(data, map_location=where, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        warnings.warn(f"{checkpoint} cannot be read: training starts afresh", stacklevel=4)
        return None
    found = saved.get("identity", identity)
    wrong = [f"{k} {found.get(k)}, not {v}" for k, v in identity.items() if found.get(k) != v]
    if wrong:
        raise ValueError(
            f"{checkpoint}: the unfinished training of another run ({'; '.join(wrong)}). "
            "Delete it to start afresh"
        )
    return saved


def overfitted(curve: list[dict[str, float]]) -> bool:
    """Whether the last epoch shows catastrophic overfitting (Wong et al., 2020).

    That is: accuracy against a multi-step attack on val below half its best, by more than 5 points
    (less is chance on a few hundred images), and the training loss at its lowest.
    """
    robust = [row["val_robust"] for row in curve if "val_robust" in row]
    losses = [row["loss"] for row in curve]
    if len(robust) < 2 or losses[-1] > min(losses):
        return False
    return robust[-1] < min(0.5 * max(robust), max(robust) - 0.05)


def _warn_if_overfitting(curve: list[dict[str, float]], label: str) -> None:
    if overfitted(curve):
        curve[-1]["catastrophic_overfitting"] = True
        best = max(row["val_robust"] for row in curve)
        warnings.warn(
            f"{label}: catastrophic overfitting at epoch {curve[-1]['epoch']}: accuracy against a "
            f"multi-step attack fell from {best:.1%} to {curve[-1]['val_robust']:.1%} while the "
            "loss fell. More attack steps or a smaller eps cure it",
            CatastrophicOverfitting,
            stacklevel=4,
        )


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode without gradients, on the device that is in use; yields that device."""
    where = device()
    model.to(where)
    with evaluating(model), torch.no_grad():
        yield where


def logits(model: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and labels [N] of a split, on the CPU. Raises NotFinite: the largest of nans
    would be the first class."""
    with inference(model) as where:
        pairs = [(model(x).float().cpu(), y.cpu()) for x, y in batches.ordered(split, device=where)]
    out = torch.cat([p[0] for p in pairs])
    if not out.isfinite().all():
        raise NotFinite(f"{int((~out.isfinite()).any(1).sum())} of {len(out)} images: logits")
    return out, torch.cat([p[1] for p in pairs])


def correct(model: nn.Module, split: Any) -> int:
    """How many images of a split the model classifies right."""
    out, y = logits(model, split)
    return int((out.argmax(1) == y).sum())


def robust_correct(model: nn.Module, split: Any, threat: Threat, seed: int = 0) -> int:
    """How many images of a split stay right under our PGD, the worst iterate of each counted.

    An image that is wrong as it is stays wrong: a higher loss may come with a right answer.
    """
    where, right = device(), 0
    model.to(where)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for x, y in batches.ordered(split, device=where):
            x_adv = pgd(model, x, y, threat, worst=True)
            with evaluating(model), torch.no_grad():
                stays = (model(x).argmax(1) == y) & (model(x_adv).argmax(1) == y)
                right += int(stays.sum())
    return right


@torch.no_grad()
def recalibrate(model: nn.Module, split: Any, batch_size: int = 128) -> None:
    """Re-estimates BatchNorm statistics, in place, as the plain average over the full batches of a
    split (over its one short batch if there is no full one)."""
    where = device()
    model.to(where)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None
    model.train()
    # Shuffled: a batch of one class has the variance of that class, not of the task.
    for x, _ in batches.epoch(split, batch_size, augment="none", seed=0, epoch=0, device=where):
        model(x)
    model.eval()
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
