"""What a transfer costs beside what it must: a whole trade-off curve, and a finetuning.

    python benchmarks/curve.py --out benchmarks/curve.csv         # embedded digits
    python benchmarks/curve.py --task cifar10 --out ...           # with packs: 5 minutes a round
    python benchmarks/curve.py --smoke                            # tiny: does it run?

The curve is a linear evaluation of natural and robust tickets of three networks of the zoo at
eight sparsities, one after the other into an empty store; beside it, the features of each ticket
on the same images, read once. The finetuning is `run`'s, from an empty store too; beside it, its
training alone, and as many bare steps. In one process, on one thread, in turn.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sklearn.linear_model  # noqa: F401 - what is imported at the first call is no cost of it
import torch
from torch.nn import functional as F

from robustlib import checkpoints, run, stages, training
from robustlib.data import batches
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.stages import transfer

SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98)
COLUMNS = ("what", "task", "tickets", "images", "seconds", "low", "high", "of", "ratio", "torch")


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def networks(seeds: int) -> list[Pretrain]:
    return [
        checkpoints.pretrain(f"zoo/{name}-{seed}")
        for seed in range(seeds)
        for name in ("natural", "robust")
    ]


def empty(pretrained: list[Pretrain]) -> None:
    """A new store that has the networks alone."""
    os.environ["ROBUSTLIB_STORE"] = tempfile.mkdtemp(dir=os.environ["CURVES"])
    for spec in pretrained:
        run(spec)


def read(specs: list[Transfer]) -> Callable[[], object]:
    """Reads the features of each ticket, its network ready."""
    data = transfer.data(specs[0])
    ready = [stages.network(spec.ticket) for spec in specs]
    splits = (data.train, data.val, data.test)
    return lambda: [training.outputs(m, s, m.features) for m in ready for s in splits]


def bare(spec: Transfer) -> Callable[[], object]:
    """As many steps as the finetuning takes, on one batch."""
    data, model = transfer.data(spec), stages.network(spec.ticket)
    x, y = next(batches.ordered(data.train, batch_size=spec.batch_size))
    steps = batches.steps(data.train, spec.batch_size) * spec.epochs
    optim = training.optimiser(model, training.Recipe.of(spec))
    model.train().to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)

    def loop() -> None:
        for _ in range(steps):
            loss = F.cross_entropy(model(x), y)
            optim.zero_grad()
            loss.backward()
            optim.step()

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(description="What a transfer costs beside what it must.")
    parser.add_argument("--task", default="digits", help="the set that tickets go to")
    parser.add_argument("--out", type=Path, default=Path("runs", "curve.csv"), help="the CSV")
    parser.add_argument("--rounds", type=int, default=3, help="how often all is timed, in turn")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    rounds, n, seeds, epochs = (1, 100, 1, 1) if args.smoke else (args.rounds, 1000, 3, 20)
    sparsities = SPARSITIES[-2:] if args.smoke else SPARSITIES
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as os.environ["CURVES"]:
        pretrained = networks(seeds)
        empty(pretrained)
        curve = [
            Transfer(Ticket(p, sparsity=s), args.task, "linear", n_train=n, seed=p.seed)
            for p in pretrained
            for s in sparsities
        ]
        tuned = Transfer(Ticket(pretrained[0], sparsity=0.9), args.task, n_train=n, epochs=epochs)
        for spec in (*curve, tuned):
            run(spec.ticket)
        reading, steps = read(curve), bare(tuned)
        for _ in range(rounds):
            empty(pretrained)
            seconds = {
                "curve": timed(lambda: [run(spec) for spec in curve]),
                "reading": timed(reading),
            }
            seconds |= {"finetuning": timed(lambda: run(tuned)), "bare steps": timed(steps)}
            seconds["training"] = run(tuned).extra["curve"][-1]["seconds"]
            for what, s in seconds.items():
                found.setdefault(what, []).append(s)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    of = {"curve": "reading", "training": "finetuning", "bare steps": "finetuning"}
    with args.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for what, s in found.items():
            other = of.get(what, what)
            ratio = statistics.median(a / b for a, b in zip(s, found[other], strict=True))
            tickets = len(curve) if what in ("curve", "reading") else 1
            spread = [round(v, 3) for v in (statistics.median(s), min(s), max(s))]
            row = [what, args.task, tickets, n, *spread, other, round(ratio, 3), torch.__version__]
            table.writerow(row)
            print(f"{what}: {spread[0]:.3g} s, {ratio:.2f} of {other}")


if __name__ == "__main__":
    main()
