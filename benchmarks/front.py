"""Less work for the same network: time against accuracy of ways to pretrain a robust one.

    python benchmarks/front.py --n-train 4000 --epochs 5 --out benchmarks/front.csv
    python benchmarks/front.py --source glyphs --size 24 --tasks digits --smoke    # does it run?

The plain recipe is that of the study (`robustlib/profiles/cpu.toml`), at the scale that the options
say. Each way changes one thing in it:

    plain         as it is
    resize        images of half the side for 40 % of the steps, of three quarters for 30 %
    radius        the radius of the attack grows from 0 over the first half
    late          no attack in the first half
    early stop    images that the attack has turned already are left as they are; it saves something
                  where the attack has several steps
    free          one pass for attack and step, 4 replays of a batch, a quarter of the epochs
    batch         4 times the batch, twice the rate
    short         half the epochs, twice the rate
    resize, late  both

With the first call's options it takes 20 minutes on one thread, with those of the study 5 hours.
BatchNorm has frozen statistics in the attack in all of them, as in the library. Seeds take turns:
all ways with the first, then with the second.

Columns: recipe, seed, seconds (of the training alone), passes (forward passes of an image of full
side, for each training image: it does not depend on the machine), accuracy and robust_accuracy (our
PGD of 20 steps) on test images of the source, linear_TASK (linear evaluation of the dense network,
BatchNorm statistics of the source), speed (seconds of `plain` over its own, of the same seed).
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib import models, objectives, stats, training
from robustlib.attacks import Threat, ascend, evaluating, pgd, random_start
from robustlib.data import Dataset, batches, load
from robustlib.metrics.sample import sample
from robustlib.objectives import Objective
from robustlib.specs import Pretrain
from robustlib.stages.pretrain import statistics
from robustlib.transfer import linear

Attack = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]


@dataclass(frozen=True)
class Way:
    """What differs from the plain recipe."""

    epochs: float = 1.0
    lr: float = 1.0
    batch: int = 1
    side: Callable[[float], float] = lambda t: 1.0
    """The part of the full side, by the part of the training that is done."""
    radius: Callable[[float], float] = lambda t: 1.0
    attack: Attack = pgd
    replays: int = 0
    """Of free adversarial training, in place of an attack of its own."""


def halves(t: float) -> float:
    return 0.5 if t < 0.4 else 0.75 if t < 0.7 else 1.0


def early(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """PGD that takes no step more on images that it has turned (after Zhang et al., 2020)."""
    delta = (x + random_start(x, threat)).clamp_(0, 1).sub_(x)
    rows = torch.arange(len(x), device=x.device)
    with evaluating(model):
        for _ in range(threat.steps):
            moved = delta[rows].requires_grad_()
            out = model(x[rows] + moved)
            right = out.argmax(1) == y[rows]
            if not right.any():
                break
            loss = F.cross_entropy(out[right], y[rows][right], reduction="sum")
            (grad,) = torch.autograd.grad(loss, moved)
            rows, grad, moved = rows[right], grad[right], moved.detach()[right]
            delta[rows] = ascend(moved, grad, x[rows], threat, threat.step)
    return (x + delta).detach()


WAYS = {
    "plain": Way(),
    "resize": Way(side=halves),
    "radius": Way(radius=lambda t: min(1.0, 2 * t)),
    "late": Way(radius=lambda t: float(t >= 0.5)),
    "early stop": Way(attack=early),
    "free": Way(epochs=0.25, replays=4),
    "batch": Way(batch=4, lr=2.0),
    "short": Way(epochs=0.5, lr=2.0),
    "resize, late": Way(side=halves, radius=lambda t: float(t >= 0.5)),
}


def objective(way: Way, threat: Threat, total: int) -> Objective:
    """Adversarial training in a way; `total`: how many steps it will take."""
    if way.replays:
        return objectives.free(threat, way.replays)
    done = 0

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal done
        t, done = done / total, done + 1
        if (share := way.side(t)) < 1:
            side = max(8, round(share * x.shape[-1]))
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True).clamp_(0, 1)
        # In l2 a smaller image has a smaller norm, by the same part as its side.
        eps = threat.eps * way.radius(t) * (share if threat.norm == "l2" else 1)
        if eps > 0:
            x = way.attack(model, x, y, replace(threat, eps=eps))
        return F.cross_entropy(model(x), y)

    return Objective(loss, threat=threat)


def trained(way: Way, plain: Pretrain, data: Dataset) -> tuple[nn.Module, dict[str, float]]:
    """A network that was pretrained in a way, and what that took."""
    spec = replace(
        plain,
        epochs=max(1, round(plain.epochs * way.epochs)),
        lr=plain.lr * way.lr,
        batch_size=min(plain.batch_size * way.batch, max(2, len(data.train) // 4)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(batches.seed_for(spec.seed, "init"))
        model = models.of(spec, data.n_classes, *statistics(data.train))
    pixels = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal pixels
        pixels += inputs[0].numel()

    counter = model.register_forward_pre_hook(count)
    steps = batches.steps(data.train, spec.batch_size) * max(1, way.replays) * spec.epochs
    what = objective(way, Threat(spec.norm, spec.eps, spec.steps), steps)
    started = time.perf_counter()
    training.fit(model, data.train, what, training.Recipe.of(spec), label=str(spec.seed))
    took = time.perf_counter() - started
    counter.remove()
    return model, {"seconds": took, "passes": pixels / data.train.x[..., 0].numel() / 3}


def measured(way: Way, plain: Pretrain, tasks: list[str], limit: int) -> dict[str, float]:
    """The row of a way and a seed."""
    data = load(plain.source, plain.size, plain.n_train, plain.seed)
    model, row = trained(way, plain, data)
    test = sample(data.test, limit)
    row["accuracy"] = training.correct(model, data.test) / len(data.test)
    threat = Threat(plain.norm, plain.eps, steps=20)
    row["robust_accuracy"] = training.robust_correct(model, test, threat) / len(test)
    for task in tasks:
        few = min(1000, len(load(task, plain.size).train))
        own = load(task, plain.size, few, plain.seed)
        row[f"linear_{task}"] = linear(model, own)[1]["test_correct"] / len(own.test)
    return row


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Seconds against each accuracy: a point a way, with its interval over seeds; filled are those
    that no faster way is better than."""
    from matplotlib.figure import Figure

    what = [c for c in frame if c.endswith("accuracy") or c.startswith("linear")]
    seconds = frame.groupby("recipe").seconds.median().sort_values()
    colours = {recipe: f"C{i}" for i, recipe in enumerate(frame.recipe.unique())}
    figure = Figure(figsize=(3.2 * len(what) + 1.2, 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(what), squeeze=False)[0], what, strict=True):
        best = -1.0
        for recipe, x in seconds.items():
            mean, low, high = stats.mean_interval(frame[frame.recipe == recipe][name])
            colour, ends = colours[recipe], np.nan_to_num([[mean - low], [high - mean]])
            look = {"color": colour, "mfc": colour if mean > best else "white", "label": recipe}
            axis.errorbar(x, 100 * mean, 100 * ends, fmt="o", **look)
            best = max(best, mean)
        axis.set(title=name.replace("_", " "), xlabel="seconds of training", ylabel="%")
        axis.set_xlim(0, 1.1 * seconds.max())
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs", "front.csv"), help="the CSV")
    parser.add_argument("--figure", type=Path, help="draw it here")
    parser.add_argument("--source", default="tinyimagenet150")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--n-train", type=int, help="training images of the source (default: all)")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=1, help="of the attack")
    parser.add_argument("--eps", type=float, default=0.5, help="of the attack, in l2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="*", default=["cifar10", "flowers5"])
    parser.add_argument("--limit", type=int, default=1000, help="images that are attacked")
    parser.add_argument("--recipes", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    args = parser.parse_args()
    if args.smoke:
        args.n_train, args.width, args.epochs, args.seeds, args.limit = 300, 4, 2, [0], 20
    os.environ["TQDM_DISABLE"] = "1"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    robust = {"objective": "pgd", "eps": args.eps, "steps": args.steps, "epochs": args.epochs}
    shape = {"source": args.source, "size": args.size, "width": args.width, "stem": "imagenet"}
    rows = []
    for seed in args.seeds:
        plain = Pretrain(**shape, **robust, n_train=args.n_train, seed=seed)
        for recipe in dict.fromkeys(["plain", *args.recipes]):
            row = measured(WAYS[recipe], plain, args.tasks, args.limit)
            rows.append({"recipe": recipe, "seed": seed} | row)
            first = next(r for r in rows if (r["recipe"], r["seed"]) == ("plain", seed))
            rows[-1]["speed"] = first["seconds"] / row["seconds"]
            frame = pd.DataFrame(rows).round(4)
            frame.to_csv(args.out, index=False)  # at once: what is killed leaves what it has
            print(frame.tail(1).to_string(index=False, header=len(rows) == 1), flush=True)
    if args.figure:
        draw(frame, args.figure)


if __name__ == "__main__":
    main()
