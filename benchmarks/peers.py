"""Training and pruning beside what people use instead, in one run: a row of a CSV for each.

    python benchmarks/peers.py --robustness PATH --open-lth PATH --out benchmarks/peers.csv
    python benchmarks/peers.py --smoke              # tiny: does it run?

PATH is a checkout of github.com/MadryLab/robustness or github.com/facebookresearch/open_lth;
without it their rows are missing. On one thread of a machine that does nothing else it takes about
5 minutes.

Loops, all on one network and the same images:

    bare        forward, backward, step on one batch of floats, the attack written out: the limit
    ours        `training.fit`, on uint8 images in memory, cropped and flipped
    field       what is written most often: torchvision transforms on PIL images, a DataLoader with
                workers, a class of attackers, a scheduler, `.item()` of loss and accuracy each step
    robustness  its `_model_loop` and `AttackerModel`; fed by the DataLoader of `field`
    open_lth    its `train`, `ImageDataset` and `DataLoader`; it trains without an attack alone

A hook of torch's optimizers is the clock of all: from the second step to the last, so that starting
workers and setting up do not count, and whatever a loop does between two steps does. What is
changed in the checkouts so that they run here stands in the column `note`.

Masks: a ResNet-50 without 80 % of its weights or half of its channels, beside torch.nn.utils.prune,
open_lth's mask and Torch-Pruning, which ties channels in another way: the note says what is left.

Columns: section (training, drawing, masked step), what, loop, unit, value (the median of the
rounds), low, high, rounds, ratio (the median over the rounds of value over that of `bare`; in the
other sections over that of `ours`), note, threads, torch.
"""

import argparse
import contextlib
import csv
import io
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from robustlib import devices, models, objectives, tickets, training
from robustlib.attacks import Threat
from robustlib.compact import compact
from robustlib.data import Split
from robustlib.data.batches import to_float

EPS, BETA, CLASSES = 4 / 255, 6.0, 10
ATTACKS = {"natural": 0, "pgd-1": 1, "pgd-7": 7, "trades-7": 7}
"""Steps of the attack, in linf."""
SPARSITY, CHANNELS = 0.8, 0.5
COLUMNS = (
    *("section", "what", "loop", "unit", "value", "low", "high", "rounds", "ratio", "note"),
    *("threads", "torch"),
)

Row = dict[str, object]


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    side: int = 64
    batch: int = 32
    width: int = 32
    rounds: int = 5
    steps: tuple[int, ...] = (20, 10, 4, 4)
    """Of each measurement, by objective."""
    workers: int = 2
    arch: str = "resnet50"
    """What is pruned."""
    masked: tuple[int, int] = (8, 4)
    """Batch and steps of a masked training."""


SMOKE = Scale(16, 4, 4, 2, (4, 3, 3, 3), 1, "resnet10s", (2, 3))


@dataclass(frozen=True)
class Job:
    """One measurement: what a loop is given."""

    what: str
    steps: int
    scale: Scale
    images: Tensor
    """uint8 [N, S, S, 3]."""
    labels: Tensor

    @property
    def threat(self) -> Threat:
        return Threat("linf", EPS, max(1, ATTACKS[self.what]))

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return models.build("resnet10s", CLASSES, self.scale.width, stem_stride=2)


# The loops


def bare(job: Job) -> None:
    model, n = job.network(), job.scale.batch
    lies = devices.layout(model, torch.device("cpu"))
    model.to(memory_format=lies)
    x = to_float(job.images[:n]).contiguous(memory_format=lies)
    y, optim = job.labels[:n], sgd(model)
    for _ in range(job.steps):
        if job.what == "natural":
            loss = F.cross_entropy(model.train()(x), y)
        elif job.what.startswith("pgd"):
            target = partial(F.cross_entropy, target=y, reduction="sum")
            found = attacked(model, x, job.threat, target)
            loss = F.cross_entropy(model.train()(found), y)
        else:
            with torch.no_grad():
                clean = model.eval()(x).log_softmax(1)
            found = attacked(model, x, job.threat, partial(kl, clean=clean))
            out = model.train()(x)
            loss = F.cross_entropy(out, y)
            loss = loss + BETA / n * kl(model(found), out.log_softmax(1))
        optim.zero_grad()
        loss.backward()
        optim.step()


def attacked(
    model: nn.Module, x: Tensor, threat: Threat, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """PGD in linf, as short as it can be written."""
    model.eval()
    delta = torch.empty_like(x).uniform_(-threat.eps, threat.eps)
    for _ in range(threat.steps):
        delta.requires_grad_()
        (grad,) = torch.autograd.grad(loss(model((x + delta).clamp(0, 1))), delta)
        delta = (delta.detach() + threat.step * grad.sign()).clamp_(-threat.eps, threat.eps)
    return (x + delta).clamp_(0, 1)


def kl(out: Tensor, clean: Tensor) -> Tensor:
    return F.kl_div(out.log_softmax(1), clean, reduction="sum", log_target=True)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.01, 0.9, nesterov=True, weight_decay=5e-4)


def ours(job: Job) -> None:
    objective = objectives.Objective(objectives.natural)
    if job.what.startswith("pgd"):
        objective = objectives.adversarial(job.threat)
    elif job.what != "natural":
        objective = objectives.trades(job.threat, BETA)
    recipe = training.Recipe(1, 0.01, job.scale.batch, 5e-4, "crop-flip", "fp32", 0)
    training.fit(job.network(), Split(job.images, job.labels), objective, recipe)


class Pictures(Dataset):
    """PIL images with torchvision's transforms."""

    def __init__(self, job: Job) -> None:
        self.images = [Image.fromarray(x) for x in job.images.numpy()]
        self.labels, side = job.labels.tolist(), job.scale.side
        crop = transforms.RandomCrop(side, padding=side // 8)
        some = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose(some)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), self.labels[i]


def loader(job: Job) -> DataLoader:
    options = {"shuffle": True, "drop_last": True, "num_workers": job.scale.workers}
    return DataLoader(Pictures(job), job.scale.batch, **options)


class Attacker:
    """PGD as a class, the loss of TRADES by a flag."""

    def __init__(self, model: nn.Module, threat: Threat, divergence: bool) -> None:
        self.model, self.threat, self.divergence = model, threat, divergence

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        images, eps = images.clone().detach(), self.threat.eps
        adversarial = images + torch.empty_like(images).uniform_(-eps, eps)
        adversarial = torch.clamp(adversarial, 0, 1).detach()
        self.model.eval()
        for _ in range(self.threat.steps):
            adversarial.requires_grad = True
            out = self.model(adversarial)
            if self.divergence:  # the published code of TRADES runs the clean images each time too
                clean = F.softmax(self.model(images), dim=1)
                cost = nn.KLDivLoss(reduction="sum")(F.log_softmax(out, dim=1), clean)
            else:
                cost = nn.CrossEntropyLoss()(out, labels)
            grad = torch.autograd.grad(cost, adversarial)[0]
            adversarial = adversarial.detach() + self.threat.step * grad.sign()
            delta = torch.clamp(adversarial - images, min=-eps, max=eps)
            adversarial = torch.clamp(images + delta, min=0, max=1).detach()
        self.model.train()
        return adversarial


def field(job: Job) -> None:
    model, trades = job.network(), job.what.startswith("trades")
    optim, criterion = sgd(model), nn.CrossEntropyLoss()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optim, max_lr=0.01, total_steps=job.steps)
    attack = Attacker(model, job.threat, trades) if job.what != "natural" else None
    model.train()
    running = correct = 0.0
    for images, labels in loader(job):
        found = attack(images, labels) if attack else images
        optim.zero_grad()
        if trades:
            out = model(images)
            robust = F.kl_div(
                F.log_softmax(model(found), dim=1), F.softmax(out, dim=1), reduction="batchmean"
            )
            loss = criterion(out, labels) + BETA * robust
        else:
            out = model(found)
            loss = criterion(out, labels)
        loss.backward()
        optim.step()
        scheduler.step()
        running += loss.item()
        correct += (out.argmax(1) == labels).sum().item()


class Net(nn.Module):
    """A network that lets the options of another library pass by."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, **_: object) -> Tensor:
        return self.inner(x)


@contextlib.contextmanager
def importing(path: Path) -> Iterator[None]:
    """In this context modules are found in a checkout first."""
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


def robustness(path: Path) -> tuple[Callable[[Job], None], str]:
    """The loop of MadryLab/robustness, and what is changed in it."""
    cox = {name: ModuleType(name) for name in ("cox", "cox.store", "cox.utils")}
    cox["cox"].store, cox["cox.utils"].Parameters = cox["cox.store"], SimpleNamespace
    with mock.patch.dict(sys.modules, cox | {"dill": pickle}), importing(path):
        from robustness import attacker, train

    def loop(job: Job) -> None:
        args = SimpleNamespace(lr=0.01, momentum=0.9, weight_decay=5e-4, step_lr=50, epochs=1)
        args.step_lr_gamma, args.custom_lr_multiplier, args.mixed_precision = 0.1, None, False
        args.custom_eps_multiplier, args.random_start, args.use_best = None, True, False
        args.constraint, args.eps, args.attack_lr = "inf", EPS, job.threat.step
        args.attack_steps, images = job.threat.steps, loader(job)
        about = SimpleNamespace(mean=torch.zeros(3), std=torch.ones(3))
        model = attacker.AttackerModel(Net(job.network()), about)
        optim, _ = train.make_optimizer_and_schedule(args, model, None, None)
        model, attacks = nn.DataParallel(model), job.what != "natural"
        with mock.patch.object(Tensor, "cuda", lambda x, **_: x):
            train._model_loop(args, "train", images, model, optim, 0, attacks, None)

    return loop, ".cuda() does nothing; stand-ins for cox, dill (not used in training)"


def open_lth(path: Path) -> tuple[Callable[[Job], None], SimpleNamespace, str]:
    """The loop of facebookresearch/open_lth, its parts that prune, and what is changed in it."""
    stand_in = mock.patch.object(nn.parallel, "DistributedDataParallel", nn.DataParallel)
    with importing(path), stand_in:
        import_module("lottery.desc")  # before the others: what they import goes round in a circle
        import platforms.local
        import platforms.platform
        from datasets import base as data
        from foundations.hparams import TrainingHparams
        from models import base
        from pruning import mask, pruned_model, sparse_global
        from training import train

    class Model(base.Model, Net):
        loss_criterion = nn.CrossEntropyLoss()
        output_layer_names = ("inner.fc.weight", "inner.fc.bias")
        default_hparams = get_model_from_name = is_valid_model_name = staticmethod(print)

        def __init__(self, inner: nn.Module) -> None:
            Net.__init__(self, inner)

        @property
        def prunable_layer_names(self) -> list[str]:  # as ours: the head stays
            return [n for n in super().prunable_layer_names if n not in self.output_layer_names]

    class Images(data.ImageDataset):
        num_test_examples = num_train_examples = num_classes = staticmethod(print)
        get_train_set = get_test_set = staticmethod(print)

        def example_to_image(self, example: np.ndarray) -> Image.Image:
            return Image.fromarray(example)

    def loop(job: Job) -> None:
        platform = platforms.local.Platform(num_workers=job.scale.workers)
        side, n = job.scale.side, job.scale.batch
        flip = transforms.RandomHorizontalFlip()
        augment = [flip, transforms.RandomCrop(side, padding=side // 8)]
        options = TrainingHparams("sgd", 0.01, f"{job.steps}it", nesterov_momentum=0.9)
        options.weight_decay, options.data_order_seed = 5e-4, 0
        with (
            mock.patch.object(platforms.platform, "_PLATFORM", platform),
            mock.patch.object(np, "product", np.prod, create=True),
            tempfile.TemporaryDirectory() as folder,
        ):
            images = Images(job.images.numpy(), job.labels.numpy(), augment)
            batches = data.DataLoader(images, n, job.scale.workers)
            train.train(options, Model(job.network()), batches, folder)

    parts = SimpleNamespace(Model=Model, mask=mask, pruned=pruned_model, omp=sparse_global)
    return loop, parts, "numpy.product, which numpy 2 lacks, is prod; no DistributedDataParallel"


# Masks


def pruners(scale: Scale, parts: Any) -> dict[str, dict[str, Callable[[Any], nn.Module]]]:
    """What makes a network sparse, ready to be trained: by what is removed, and by library."""

    def by_ours(model: nn.Module) -> nn.Module:
        return tickets.omp(model, SPARSITY).apply(model)

    def by_torch(model: nn.Module) -> nn.Module:
        layers = [(m, "weight") for m in model.modules() if isinstance(m, nn.Conv2d)]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=SPARSITY)
        return model

    def by_open_lth(model: nn.Module) -> nn.Module:
        inner = parts.Model(model)
        strategy = parts.omp.Strategy.prune(
            parts.omp.PruningHparams("", pruning_fraction=SPARSITY), inner
        )
        return parts.pruned.PrunedModel(inner, strategy)

    def channels(model: nn.Module) -> nn.Module:
        drawn = tickets.omp(model, CHANNELS, "channel", "layer")
        return compact(tickets.masked(model, drawn, "channel"), scale.side).model

    def by_torch_pruning(model: Any) -> nn.Module:
        import torch_pruning

        example = torch.rand(1, 3, scale.side, scale.side)
        rank = torch_pruning.importance.GroupMagnitudeImportance(p=1)
        options = {"pruning_ratio": CHANNELS, "ignored_layers": [model.fc]}
        torch_pruning.pruner.BasePruner(model.eval(), example, rank, **options).step()
        return model

    single = {"ours": by_ours, "torch.nn.utils.prune": by_torch}
    if parts:
        single["open_lth"] = by_open_lth
    return {"weights": single, "channels": {"ours": channels, "Torch-Pruning": by_torch_pruning}}


def steps(model: nn.Module, scale: Scale) -> None:
    """A natural training on one batch, as `bare`."""
    n, count = scale.masked
    x, y, optim = torch.rand(n, 3, scale.side, scale.side), torch.zeros(n).long(), sgd(model)
    for _ in range(count):
        loss = F.cross_entropy(model.train()(x), y)
        optim.zero_grad()
        loss.backward()
        optim.step()


def weights(model: nn.Module) -> int:
    """Those of convolutions that are not zero."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return sum(int(torch.count_nonzero(m.weight)) for m in layers)


# Timing, and the rows


def clocked(call: Callable[[], object]) -> float:
    """Steps a second of a training, from its second step to its last."""
    ends: list[float] = []
    clock = register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    said = io.StringIO()  # a progress bar is a part of a loop, and is not to be seen here
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            call()
    finally:
        clock.remove()
    return (len(ends) - 2) / (ends[-1] - ends[1])


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rounds(n: int, calls: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each call returns in n rounds. They take turns, and every round begins with another, so
    that a machine that becomes slower does so for all."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(n):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(calls[name]())
    return found


def rows(found: dict[str, list[float]], base: str, **columns: object) -> list[Row]:
    ratios = {name: np.median(np.divide(v, found[base])) for name, v in found.items()}
    return [
        {
            **columns,
            "loop": name,
            "value": round(float(np.median(values)), 4),
            "low": round(min(values), 4),
            "high": round(max(values), 4),
            "rounds": len(values),
            "ratio": round(float(ratios[name]), 3),
        }
        for name, values in found.items()
    ]


def measure(scale: Scale, madry: Path | None, lth: Path | None) -> Iterator[Row]:
    """Every row, one after the other."""
    loops: dict[str, Callable[[Job], None]] = {"bare": bare, "ours": ours, "field": field}
    notes, parts, natural = {}, None, {}
    if madry:
        loops["robustness"], notes["robustness"] = robustness(madry)
    if lth:
        natural["open_lth"], parts, notes["open_lth"] = open_lth(lth)
    pool = torch.Generator().manual_seed(0)
    n = max(scale.steps) * scale.batch
    shape = (n, scale.side, scale.side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=pool)
    labels = torch.randint(0, CLASSES, (n,), generator=pool)
    for (what, attack), count in zip(ATTACKS.items(), scale.steps, strict=True):
        used = count * scale.batch
        job = Job(what, count, scale, images[:used], labels[:used])
        some = loops if attack else loops | natural
        if what.startswith("trades"):  # robustness has no such loss
            some = {name: loop for name, loop in some.items() if name != "robustness"}
        calls = {name: partial(clocked, partial(loop, job)) for name, loop in some.items()}
        found = rounds(scale.rounds, calls)
        found = {name: [scale.batch * v for v in values] for name, values in found.items()}
        for row in rows(found, "bare", section="training", what=what, unit="images/s"):
            yield row | {"note": notes.get(str(row["loop"]), "")}
    yield from masks(scale, parts)


def masks(scale: Scale, parts: Any) -> Iterator[Row]:
    """Seconds to draw a ticket, and steps a second to train it."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return models.build(scale.arch, CLASSES, scale.width, stem_stride=2)

    for what, calls in pruners(scale, parts).items():
        timed = {n: lambda c=call: seconds(partial(c, network())) for n, call in calls.items()}
        yield from rows(rounds(scale.rounds, timed), "ours", section="drawing", what=what, unit="s")
        drawn = {name: call(network()) for name, call in calls.items()} | {"dense": network()}
        left = {
            name: f"{weights(model):,} weights of convolutions" for name, model in drawn.items()
        }
        trained = {name: partial(clocked, partial(steps, m, scale)) for name, m in drawn.items()}
        found = rounds(scale.rounds, trained)
        for row in rows(found, "ours", section="masked step", what=what, unit="steps/s"):
            yield row | {"note": left[str(row["loop"])]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robustness", type=Path, help="checkout of MadryLab/robustness")
    parser.add_argument("--open-lth", type=Path, help="checkout of facebookresearch/open_lth")
    parser.add_argument("--out", type=Path, default=Path("runs", "peers.csv"), help="the CSV")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, help="fewer, or more, than 5")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # theirs take a GPU where there is one
    os.environ["ROBUSTLIB_DEVICE"] = "cpu"
    torch.set_num_threads(args.threads)
    scale = SMOKE if args.smoke else Scale()
    scale = replace(scale, rounds=args.rounds or scale.rounds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in measure(scale, args.robustness, args.open_lth):
            table.writerow(row | {"threads": args.threads, "torch": torch.__version__})
            file.flush()
            print(*(row[k] for k in ("section", "what", "loop", "value", "unit", "ratio")))


if __name__ == "__main__":
    main()
