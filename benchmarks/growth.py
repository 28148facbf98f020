"""How seconds and memory grow: with width, side, images, density and the number of stored specs.

    python benchmarks/growth.py --out benchmarks/growth.csv
    python benchmarks/growth.py --smoke             # tiny: does it run?

Each point is a process of its own, for a process cannot tell what it needed before its peak. It
takes about 4 minutes on one thread of a machine that does nothing else.

The CSV has a row a point: seconds (a median, and the least and the most), mib (the peak
of memory, beyond what a process has that only imported everything), work (what must be done:
multiply-adds, images, weights or specs), and, the same in all rows of a curve, the slopes of
seconds, mib and work over the three largest x on log-log axes: 1 is proportional, 2 quadratic.
Nothing should grow faster than its work; what does, by more than 0.15, is named at the end.
"""

import argparse
import csv
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas  # noqa: F401 - what is imported at the first call is not what grows
import sklearn.linear_model  # noqa: F401 - as pandas
import torch

from robustlib import models, objectives, store, sweeps, tickets, training
from robustlib.compact import compact
from robustlib.data import Dataset, Split
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.transfer import linear

COLUMNS = (
    *("curve", "axis", "x", "seconds", "low", "high", "mib", "work"),
    *("slope_seconds", "slope_mib", "slope_work", "torch"),
)
REPEATS, SLACK = 3, 0.15
CLASSES, BATCH, STEPS = 10, 32, 6

Call = Callable[[], object]
Point = tuple[Call, float]
"""What is timed, and its work."""


def images(n: int, side: int) -> Split:
    """n random images; their classes differ in brightness, so that they can be learned."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 128, (n, side, side, 3), dtype=torch.uint8, generator=draws)
    y = torch.arange(n) % CLASSES
    return Split(x + (12 * y).to(torch.uint8)[:, None, None, None], y)


def network(width: int) -> models.ResNet:
    torch.manual_seed(0)
    return models.build("resnet10s", CLASSES, width, stem_stride=2)


def fit(model: torch.nn.Module, split: Split, batch: int) -> None:
    recipe = training.Recipe(1, 0.01, batch, 5e-4, "crop-flip", "fp32", 0)
    training.fit(model, split, objectives.Objective(objectives.natural), recipe)


def step(width: int = 32, side: int = 64) -> Point:
    """A few training steps."""
    model, split = network(width), images(BATCH * STEPS, side)
    return lambda: fit(model, split, BATCH), models.multiply_adds(model, side) * BATCH * STEPS


def epoch(n: int) -> Point:
    """A pass over n small images by a narrow network."""
    model, split = network(8), images(n, 32)
    return lambda: fit(model, split, 100), n


def regression(n: int) -> Point:
    """Linear evaluation with n training images, and a tenth for validation and test each."""
    model, few = network(8), images(max(20, n // 10), 32)
    data = Dataset("random", images(n, 32), few, few, tuple("0123456789"), 32, -1)
    return lambda: linear(model, data), n


def masked(density: float, side: int = 64) -> Point:
    """Training steps with a mask on weights: it saves no arithmetic, and should cost none."""
    model, split = network(32), images(BATCH * STEPS, side)
    work = models.multiply_adds(model, side) * BATCH * STEPS
    tickets.omp(model, 1 - density).apply(model)
    return lambda: fit(model, split, BATCH), work


def channels(density: float, side: int = 64) -> Point:
    """Training steps of a channel ticket, as the smaller network that it is."""
    model, split = network(32), images(BATCH * STEPS, side)
    mask = tickets.omp(model, 1 - density, "channel", "layer")
    small = compact(tickets.masked(model, mask, "channel"), side, 4).model
    return lambda: fit(small, split, BATCH), models.multiply_adds(small, side) * BATCH * STEPS


def drawn(width: int) -> Point:
    """Drawing a mask by magnitude."""
    model = network(width)
    return lambda: tickets.omp(model, 0.8), sum(p.numel() for p in model.parameters())


def stored(n: int) -> list[Transfer]:
    """n specs with results like those of a finetuning, in the store that is in use."""
    specs = [
        Transfer(Ticket(Pretrain(seed=i % 5), sparsity=i % 20 / 20), "digits", seed=i)
        for i in range(n)
    ]
    row = {"accuracy": 0.5, "n": 360, "val_accuracy": 0.5, "parameters": 1, "seconds": 1.0}
    curve = [{"epoch": e, "loss": 1.0, "lr": 0.1} for e in range(30)]
    with mock.patch.object(os, "fsync"):  # what is measured is read
        for spec in specs:
            store.put(spec, row, None, {"curve": curve})
    return specs


def table(n: int) -> Point:
    """The table of all stored results of a kind."""
    stored(n)
    return lambda: store.frame(Transfer), n


def sweep(n: int) -> Point:
    """A sweep over specs that are all stored."""
    specs = stored(n)
    return lambda: sweeps.sweep(specs), n


CURVES: dict[str, tuple[Callable[..., Point], str, tuple[float, ...]]] = {
    "training step": (step, "width", (16, 32, 64)),
    "training step of width 32": (step, "side", (32, 48, 64, 96)),
    "epoch": (epoch, "n", (1_000, 4_000, 10_000, 40_000)),
    "linear evaluation": (regression, "n", (1_000, 4_000, 16_000)),
    "masked step": (masked, "density", (0.05, 0.2, 0.5, 1.0)),
    "channel step": (channels, "density", (0.25, 0.5, 1.0)),
    "drawing by magnitude": (drawn, "width", (16, 32, 64, 128)),
    "table of stored results": (table, "n", (10, 100, 1_000, 10_000)),
    "sweep of stored specs": (sweep, "n", (10, 100, 1_000, 10_000)),
}
TINY = {"width": (4, 8), "side": (16, 24), "n": (20, 40), "density": (0.5, 1.0)}


def point(curve: str, x: float, repeats: int) -> dict[str, float]:
    """Measures one point, in a process that has done nothing else."""
    function, axis, _ = CURVES[curve]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"ROBUSTLIB_STORE": folder, "ROBUSTLIB_DEVICE": "cpu", "TQDM_DISABLE": "1"}
        with mock.patch.dict(os.environ, settings):
            before = peak_mib()
            call, work = function(**{axis: x})
            took = []
            for _ in range(repeats):
                started = time.perf_counter()
                call()
                took.append(time.perf_counter() - started)
    found = {"seconds": statistics.median(took), "low": min(took), "high": max(took)}
    return found | {"mib": peak_mib() - before, "work": work}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def slope(x: list[float], y: list[float]) -> float | str:
    """Of log y over log x, by least squares over the three largest x; "" if y is 0 somewhere."""
    some = sorted(zip(x, y, strict=True))[-3:]
    if min(v for _, v in some) <= 0:
        return ""
    return round(float(np.polyfit(*np.log(np.transpose(some)), 1)[0]), 2)


def grown(curve: str, values: tuple[float, ...], repeats: int) -> list[dict[str, object]]:
    """The rows of a curve."""
    found = []
    for x in values:
        # A fork: it has imported everything already, and its peak begins at what it has.
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found.append(pool.apply(point, (curve, x, repeats)))
    slopes = {
        f"slope_{k}": slope(list(values), [f[k] for f in found]) for k in ("seconds", "mib", "work")
    }
    about = {"curve": curve, "axis": CURVES[curve][1], "torch": torch.__version__}
    return [
        about | {"x": x} | {k: float(f"{v:.4g}") for k, v in f.items()} | slopes
        for x, f in zip(values, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs", "growth.csv"), help="the CSV")
    parser.add_argument("--only", nargs="+", choices=list(CURVES), help="these curves alone")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    steep = []
    with args.out.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for curve in args.only or CURVES:
            _, axis, values = CURVES[curve]
            rows = grown(curve, TINY[axis] if args.smoke else values, 1 if args.smoke else REPEATS)
            table.writerows(rows)
            file.flush()
            for row in rows:
                print(*(row[k] for k in ("curve", "axis", "x", "seconds", "mib")))
            slopes = [rows[0][f"slope_{k}"] for k in ("seconds", "mib", "work")]
            print("  slopes of seconds, mib and work:", *slopes)
            if any(v != "" and v > slopes[2] + SLACK for v in slopes[:2]):
                steep.append(curve)
    print(f"grow faster than their work: {', '.join(steep) or 'none'}")


if __name__ == "__main__":
    main()
