"""The one training loop of every stage: resumes, runs on any device and precision, reports."""

from __future__ import annotations

import io
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.optim.swa_utils import update_bn

from robustlib import parallel, progress, store
from robustlib.attacks import Threat, evaluating, held
from robustlib.data import batches
from robustlib.devices import computing, device, layout, reduced
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
        """The recipe that a spec holds, or that it is."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)})


class NotFinite(RuntimeError):
    """The loss, a weight, or what a network puts out became nan or infinite."""


class CatastrophicOverfitting(UserWarning):
    """Robustness against a multi-step attack collapsed while the single-step loss kept falling."""


def learning_rate(recipe: Recipe, step: int, total: int) -> float:
    """The rate of step `step` of `total`: onecycle rises linearly to lr over the first fifth of the
    steps and falls linearly to 0 (Smith and Topin, 2018; Wong et al., 2020); step divides by 10 at
    1/2 and 3/4."""
    t = step / total
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** ((t >= 0.5) + (t >= 0.75))
    return recipe.lr * min((step + 1) / max(1.0, 0.2 * total), (1 - t) / 0.8, 1.0)


def optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum; norms and biases are not decayed unless decay_norms."""
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for p in model.parameters():
        groups[p.ndim < 2 and not recipe.decay_norms]["params"].append(p)
    return torch.optim.SGD(
        [g for g in groups if g["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
    )


@dataclass
class State:
    """A training on its way, as its checkpoint holds it."""

    parts: dict[str, Any]
    """The model, its optimiser, the scaler of fp16."""
    objective: Objective
    identity: dict[str, Any]
    """What it was asked for; a checkpoint with another is of another run."""
    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    began: float = field(default_factory=time.monotonic)
    """When, had it never been interrupted."""

    def save(self, checkpoint: Path) -> None:
        """Rank 0 writes it; every process must call it."""
        saved = {k: part.state_dict() for k, part in self.parts.items()}
        saved["objective"] = {k: parallel.gathered(v) for k, v in self.objective.state.items()}
        saved |= {k: getattr(self, k) for k in ("identity", "step", "curve", "loss_sum")}
        if parallel.rank() == 0:
            buffer = io.BytesIO()
            torch.save(saved | {"seconds": time.monotonic() - self.began}, buffer)
            store.write_checked(checkpoint, buffer.getbuffer())

    def resume(self, checkpoint: Path, where: torch.device) -> None:
        """Takes over what was saved. Warns, and changes nothing, where it cannot be read;
        ValueError if it is of another run."""
        try:
            # torch.load does not notice a flipped bit of a tensor.
            data = io.BytesIO(store.read_checked(checkpoint))
            saved = torch.load(data, map_location=where, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            warnings.warn(f"{checkpoint} cannot be read: training starts afresh", stacklevel=3)
            return
        found, asked = saved["identity"], self.identity.items()
        if wrong := [f"{k} {found.get(k)}, not {v}" for k, v in asked if found.get(k) != v]:
            raise ValueError(
                f"{checkpoint}: the unfinished training of another run ({'; '.join(wrong)}). "
                "Delete it to start afresh"
            )
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])
        # Rows of its own memory: the whole would be kept alive otherwise.
        rows = {k: parallel.own(v).clone() for k, v in saved["objective"].items()}
        self.objective.state.update(rows)
        self.step, self.curve, self.loss_sum = (saved[k] for k in ("step", "curve", "loss_sum"))
        self.began -= saved["seconds"]


def fit(
    model: nn.Module,
    split: Any,
    objective: Objective,
    recipe: Any,
    *,
    monitor: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: Path | None = None,
    label: str = "training",
) -> list[dict[str, float]]:
    """Trains the model in place on a split by a `Recipe`, or a spec that holds one; returns the
    curve, a row per epoch.

    Every random draw is seeded by (seed, epoch, step). The state is saved at the path `checkpoint`
    every CHECKPOINT_SECONDS; a call that finds one, in any number of processes, goes on from it to
    the weights of a run that was never killed. What `monitor` measures after an epoch joins its
    row. In a group (`parallel.launch`) every process calls it with the same arguments, takes its
    share of each batch, and ends with the same weights and curve.

    Raises NotFinite, ValueError for the checkpoint of another run. Warns when a checkpoint cannot
    be read, and starts afresh; warns CatastrophicOverfitting where the curve shows it.
    """
    recipe, where, ahead = Recipe.of(recipe), device(), _runs_ahead()
    dtype, lies = reduced(recipe.precision, where), layout(model, where)
    model.to(where).to(memory_format=lies)
    split, eps = _near(split, where), objective.threat.eps if objective.threat else 0.0
    per_epoch = batches.steps(split, recipe.batch_size) * objective.replays
    total = per_epoch * recipe.epochs
    identity = asdict(recipe) | {"eps": eps, "images": len(split), "steps": total}
    identity |= {"parameters": sum(p.numel() for p in model.parameters())}
    optim = optimiser(model, recipe)
    scaler = torch.amp.GradScaler(where.type, enabled=dtype == torch.float16)
    parts = {"model": model, "optimiser": optim, "scaler": scaler}
    objective.state.clear()
    state, network = State(parts, objective, identity), parallel.wrapped(model, where)
    if checkpoint and checkpoint.exists():
        state.resume(checkpoint, where)
    silent = parallel.rank() > 0
    bar = progress.bar(desc=label, total=total, initial=state.step, unit="step", disable=silent)

    def feed() -> Iterator[tuple[Tensor, Tensor]]:
        fixed: dict[str, Any] = {"augment": recipe.augment, "seed": recipe.seed, "device": where}
        while state.step < total:
            epoch, done = divmod(state.step, per_epoch)
            start, skip = divmod(done, objective.replays)
            for batch in batches.epoch(split, recipe.batch_size, epoch=epoch, start=start, **fixed):
                yield from repeat(batch, objective.replays - skip)
                skip = 0

    def broken(what: str, step: int) -> NotFinite:
        rate = learning_rate(recipe, step, total)
        return NotFinite(
            f"{label}: {what} at epoch {step // per_epoch}, step {step} of {total}, learning rate "
            f"{rate:.4g}, eps {eps:g}; nothing was stored. A lower lr is the usual cure"
        )

    def read(step: int, loss: Tensor) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise broken(f"the loss is {value}", step)
        state.loss_sum += value
        bar.set_postfix(loss=f"{value:.3f}", lr=f"{rate:.3g}", refresh=False)
        bar.update()

    def end_epoch() -> None:
        # The last step of all may break what no loss comes after to show.
        if not torch.stack([p.isfinite().all() for p in model.parameters()]).all():
            raise broken("a weight is not finite", state.step - 1)
        epoch, loss, state.loss_sum = state.step // per_epoch - 1, state.loss_sum / per_epoch, 0.0
        # Not numpy's floats: a checkpoint that holds those is refused when read.
        measured = {k: float(v) for k, v in monitor(model).items()} if monitor else {}
        model.train()
        state.curve.append(row := {"epoch": epoch, "loss": loss, "lr": rate} | measured)
        if overfitted(state.curve):
            row["catastrophic_overfitting"] = True
            best = max(row["val_robust"] for row in state.curve)
            warnings.warn(
                f"{label}: catastrophic overfitting at epoch {epoch}: accuracy against a "
                f"multi-step attack fell from {best:.1%} to {row['val_robust']:.1%} while the "
                "loss fell. More attack steps or a smaller eps cure it",
                CatastrophicOverfitting,
                stacklevel=3,
            )

    unread, last_save = list[tuple[int, Tensor]](), time.monotonic()
    # Without benchmark; what is not named is set to torch's default, not left as it was.
    flags = cudnn.flags(enabled=True, deterministic=True, allow_tf32=cudnn.allow_tf32)
    with parallel.synchronised(model), torch.random.fork_rng(), flags, bar:
        model.train()
        for x, y in feed():
            rate = learning_rate(recipe, state.step, total)
            for group in optim.param_groups:
                group["lr"] = rate
            # Another seed in each process: noise is not to repeat itself within a batch.
            more = [parallel.rank()] if parallel.rank() else []
            torch.manual_seed(batches.seed_for(recipe.seed, "step", state.step, *more))
            x, y = parallel.own(x).contiguous(memory_format=lies), parallel.own(y)  # noqa: PLW2901 - the batch as it came is not held
            with computing(model, dtype):
                loss = objective.loss(network, x, y)
            optim.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optim)
            scaler.update()
            due = checkpoint is not None and time.monotonic() - last_save > CHECKPOINT_SECONDS
            mean, due = parallel.agree(loss.detach(), due)
            unread.append((state.step, mean))
            state.step += 1
            ends = state.step % per_epoch == 0
            while len(unread) > (ahead and not due and not ends):
                read(*unread.pop(0))
            if ends:
                end_epoch()
            if checkpoint and due:
                state.save(checkpoint)
                last_save = time.monotonic()
    if state.curve:
        state.curve[-1]["seconds"] = time.monotonic() - state.began
    model.eval()
    return state.curve


def _runs_ahead() -> bool:
    """Whether the device is at work on a step while the loss of the one before is read."""
    return device().type == "cuda" and parallel.processes() == 1


def _near(split: Any, where: torch.device) -> Any:
    """A split with its images (and masks) on the GPU, where they fit into half of what is free:
    what is cropped there need not cross over in each step."""
    parts = {k: v for k, v in vars(split).items() if k in "xy" and v.ndim > 1}
    size = 2 * sum(v.nbytes for v in parts.values())
    if where.type != "cuda" or not parts or size > torch.cuda.mem_get_info(where)[0]:
        return split
    return replace(split, **{k: v.to(where) for k, v in parts.items()})


def overfitted(curve: list[dict[str, float]]) -> bool:
    """Whether the last epoch shows catastrophic overfitting (Wong et al., 2020): accuracy against a
    multi-step attack on val below half its best, by more than 5 points (less is chance on a few
    hundred images), and the training loss at its lowest."""
    robust = [row["val_robust"] for row in curve if "val_robust" in row] or [0.0]
    fell = robust[-1] < min(0.5 * max(robust), max(robust) - 0.05)
    return fell and curve[-1]["loss"] <= min(row["loss"] for row in curve)


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode without gradients, on the device that is in use; yields that device."""
    where = device()
    model.to(where)
    with evaluating(model), torch.no_grad():
        yield where


def outputs(model: nn.Module, split: Any, call: Callable[..., Any] | None = None) -> Any:
    """What a model, or a method of it, puts out for a split's images [N, ...], and the labels [N]:
    on the CPU; BatchNorm statistics stay as they are."""
    call = call or model
    with inference(model) as where:
        pairs = [(call(x).float().cpu(), y.cpu()) for x, y in batches.ordered(split, device=where)]
    return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))


def logits(model: nn.Module, split: Any) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and labels [N] of a split, on the CPU. Raises NotFinite: the largest of nans
    would be the first class."""
    out, y = outputs(model, split)
    if not out.isfinite().all():
        raise NotFinite(f"{int((~out.isfinite()).any(1).sum())} of {len(out)} images: logits")
    return out, y


def correct(model: nn.Module, split: Any) -> int:
    """How many images of a split the model classifies right."""
    out, y = logits(model, split)
    return int((out.argmax(1) == y).sum())


def robust_correct(model: nn.Module, split: Any, threat: Threat) -> int:
    """How many images of a split stay right under our PGD, the worst iterate of each counted; one
    that is wrong as it is stays wrong: a higher loss may come with a right answer."""
    where = device()
    model.to(where)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pairs = batches.ordered(split, 500, where)  # of which the random starts follow
        return sum(int(held(model, x, y, threat)[1].sum()) for x, y in pairs)


def recalibrate(model: nn.Module, split: Any, batch_size: int = 128) -> None:
    """Re-estimates BatchNorm statistics, in place, as the plain average over the full batches of a
    split (over its one short batch if there is no full one)."""
    where = device()
    # Shuffled: a batch of one class has the variance of that class, not of the task.
    feed = batches.epoch(split, batch_size, augment="none", seed=0, epoch=0, device=where)
    update_bn(feed, model.to(where))
    model.eval()
