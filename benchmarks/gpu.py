"""What a GPU gives: speed and memory beside a bare loop, agreement with the CPU, the same bits in a
second run and after a kill, the tests marked `cuda`. A row of a CSV for each, written as it comes.

    make gpu                                        # writes benchmarks/gpu.csv
    python benchmarks/gpu.py --out gpu.csv --seconds 520
    python benchmarks/gpu.py --smoke                # every section on a CPU, in about a minute

To a bare machine it is carried as the clone and a few wheels. Torch, torchvision, numpy, scipy,
scikit-learn, pandas, matplotlib, pillow, safetensors, filelock, tqdm, torchmetrics and pytest must
be there; no data set is needed. Where there is a network, and with the Python of that machine:

    pip download --no-deps -d wheels lightning-utilities pyautoattack torch-pruning

There, in the clone:

    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. python benchmarks/gpu.py --out gpu.csv

Each section is a process of its own, with a share of `--seconds`: what it breaks or hangs in costs
that section alone. What fails, or finds no time left, is a row that says so.

Columns, empty where they do not apply:

    section    machine, throughput, agreement, repeatability, resume, tests, more (throughput too)
    case       what was measured
    arch, side, batch_size, objective, precision    of the training; side in pixels
    tf32       whether fp32 products may be rounded to TF32
    layout     channels_last or contiguous
    compiled   whether torch.compile was applied
    loop       ours: `training.fit` on uint8 images in main memory, from its third step to its last;
               ours, images on the card: the same, on images that are there already;
               bare: forward, backward, step on one batch of floats on the card, with the
               reproducible kernels of cuDNN, which ours takes;
               bare, any kernel: the same with the fastest kernels that cuDNN finds
    unit       of value, low and high
    value      the median of the repeats; or the one measurement
    low, high  the least and the most of the repeats
    repeats    how many
    of_bare    value over that of the loop `bare`
    peak_mib   most memory of the card that tensors held (on a CPU, of the process so far), MiB
    passed     whether a check held; False also for what failed; empty for a measurement
    note       the tolerance of a check, or what went wrong
    seconds    that the case took
    device, torch    the card, and torch's version
"""

import argparse
import copy
import csv
import io
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib import models, objectives, run, training
from robustlib.attacks import Threat
from robustlib.data import Split, load
from robustlib.data.batches import to_float
from robustlib.objectives import Objective
from robustlib.specs import Pretrain, Ticket, Transfer

COLUMNS = (
    *("section", "case", "arch", "side", "batch_size", "objective", "precision", "tf32", "layout"),
    *("compiled", "loop", "unit", "value", "low", "high", "repeats", "of_bare", "peak_mib"),
    *("passed", "note", "seconds", "device", "torch"),
)
REPEATS = 5
CASE_SECONDS = 90.0
GRACE_SECONDS = 15.0
"""A section ends by itself, if it can: a process alone needs some to import torch."""
SKIPPED_STEPS = 2
"""Steps of a training before its clock starts."""
# Sections that run at the same time, and their share of the seconds: only what is timed is alone.
GROUPS = (
    (("throughput",), 0.5),
    (("repeatability", "resume", "agreement", "tests"), 0.3),
    (("more",), 0.2),
)
THREATS = {"pgd-3": Threat("linf", 4 / 255, steps=3), "pgd-1": Threat("l2", 0.5, steps=1)}
# Largest relative difference of an epoch's loss, and difference of a test accuracy, to the CPU in
# fp32. Training is chaotic: on a CPU, a relative change of 1e-6 of the weights at the start, and an
# attack's other random start, gave up to 0.030 and 0.020.
TOLERANCE = {
    ("natural", "fp32"): (0.06, 0.03),
    ("natural", "bf16"): (0.10, 0.04),
    ("natural", "fp16"): (0.08, 0.04),
    ("pgd-1", "fp32"): (0.08, 0.04),
}

Row = dict[str, object]
Case = tuple[Row, Callable[[], list[Row]]]


@dataclass(frozen=True)
class Cell:
    """One training whose speed is measured."""

    arch: str
    side: int
    batch_size: int
    objective: str = "natural"
    precision: str = "fp32"
    tf32: bool = True
    layout: str = "channels_last"
    compiled: bool = False


# Speed


def cells(smoke: bool, more: bool) -> list[Cell]:
    """What to measure, the most wanted first."""
    if smoke:
        small = "resnet10s", 16, 8
        if more:
            return [Cell(*small, compiled=True), Cell(*small, "pgd-3", layout="contiguous")]
        return [
            Cell(*small),
            Cell(*small, "pgd-3", "bf16", False),
            Cell("resnet18", 32, 4),
            Cell(*small, "natural", "fp16"),  # refused on a CPU: a row says so
        ]
    nets = (("resnet10s", 64, 128), ("resnet50", 224, 128), ("resnet18", 224, 256))
    fast, slow = (("bf16", True), ("fp32", True)), (("fp16", True), ("fp32", False))
    grid = {
        how: [Cell(*net, what, *p) for net in nets for what in ("natural", "pgd-3") for p in how]
        for how in (fast, slow)
    }
    if not more:
        big = [Cell("resnet10s", 64, 1024, what, "bf16") for what in ("natural", "pgd-3")]
        compiled = [Cell(*net, precision="bf16", compiled=True) for net in nets[:2]]
        return grid[fast] + big + compiled
    contiguous = [Cell(*net, precision="bf16", layout="contiguous") for net in nets]
    contiguous.append(Cell(*nets[1], layout="contiguous"))
    return contiguous[:3] + grid[slow] + contiguous[3:]


def throughput(device: torch.device, smoke: bool, more: bool = False) -> list[Case]:
    return [(asdict(c), partial(speed, c, device, smoke)) for c in cells(smoke, more)]


@cache
def images(side: int, n: int) -> Split:
    """n random images in main memory: what they show does not change the speed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=generator)
    return Split(x, torch.randint(0, 10, (n,), generator=generator))


def speed(cell: Cell, device: torch.device, smoke: bool) -> list[Row]:
    """Images a second of each loop, a row each. Loops take turns, so that the clock of the card
    and of its machine drift for all of them alike."""
    width = 4 if smoke else 32
    pool = images(cell.side, 64 if smoke else 20_480 if cell.side == 64 else 2560)
    seconds, repeats = (0.01, 2) if smoke else (0.3, REPEATS)
    torch.manual_seed(0)
    model = models.build(cell.arch, 10, width, stem_stride=1 if smoke else 2)
    layout = torch.channels_last if cell.layout == "channels_last" else torch.contiguous_format
    model.to(device, memory_format=layout)
    if cell.compiled:
        model.compile(backend="eager" if smoke else "inductor")
    x, y = to_float(pool.x[: cell.batch_size], device), pool.y[: cell.batch_size].to(device)
    x = x.contiguous(memory_format=layout)

    def bare(steps: int, reproducible: bool = True) -> float:
        flags = {"deterministic": reproducible, "benchmark": not reproducible}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=cell.tf32, **flags):
            return bare_loop(model, x, y, cell, steps)

    def ours(steps: int, resident: bool = False) -> float:
        n = cell.batch_size * steps
        split = Split(pool.x[:n].to(device) if resident else pool.x[:n], pool.y[:n])
        return fit_loop(model, split, cell, device)

    with tf32(cell.tf32), mock.patch.object(training, "layout", lambda *_: layout):
        fixed = {"bare": bare, "ours": ours, "bare, any kernel": partial(bare, reproducible=False)}
        for loop in fixed.values():
            loop(SKIPPED_STEPS + 2)
        most = len(pool) // cell.batch_size
        steps = int(np.clip(round(seconds / bare(3)), SKIPPED_STEPS + 3, most))
        rates, peaks = {}, {}
        later = {"ours, images on the card": partial(ours, resident=True)}
        # Those on the card come last: their images would count as memory of the others.
        for loops in (fixed, later):
            for _ in range(repeats):
                for name, loop in loops.items():
                    if device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    rates.setdefault(name, []).append(cell.batch_size / loop(steps))
                    peaks[name] = peak_mib(device)
    base = float(np.median(rates["bare"]))
    return [
        {
            "case": "images/s",
            "loop": name,
            "unit": "images/s",
            "value": round(float(np.median(found)), 1),
            "low": round(min(found), 1),
            "high": round(max(found), 1),
            "repeats": len(found),
            "of_bare": round(float(np.median(found)) / base, 4),
            "peak_mib": peaks[name],
            "note": f"{steps} steps a repeat",
        }
        for name, found in rates.items()
    ]


def fit_loop(model: nn.Module, split: Split, cell: Cell, device: torch.device) -> float:
    """Seconds a step of `training.fit`, its set-up and its first steps left out."""
    inner, calls, started = objective(cell.objective), 0, 0.0

    def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls, started
        calls += 1
        if calls == SKIPPED_STEPS + 1:
            synchronise(device)
            started = time.perf_counter()
        elif calls == len(split) // cell.batch_size:
            synchronise(device)
            started = (time.perf_counter() - started) / (calls - SKIPPED_STEPS - 1)
        return inner.loss(network, x, y)

    settings = recipe(lr=1e-3, batch_size=cell.batch_size, precision=cell.precision)
    training.fit(model, split, Objective(loss, threat=inner.threat), settings, label="gpu")
    return started


def bare_loop(model: nn.Module, x: Tensor, y: Tensor, cell: Cell, steps: int) -> float:
    """Seconds a step of the least that a training can do: nothing loaded, checked or reported."""
    threat, where = THREATS.get(cell.objective), x.device
    optim = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(cell.precision)
    scaler = torch.amp.GradScaler(where.type, enabled=cell.precision == "fp16")
    synchronise(where)
    started = time.perf_counter()
    for _ in range(steps):
        with torch.autocast(where.type, dtype=half, enabled=half is not None):
            adversarial = x if threat is None else attacked(model, x, y, threat)
            model.train()
            loss = F.cross_entropy(model(adversarial), y)
        optim.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optim)
        scaler.update()
    synchronise(where)
    return (time.perf_counter() - started) / steps


def attacked(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """PGD in linf, as short as it can be written."""
    model.eval()
    delta = torch.empty_like(x).uniform_(-threat.eps, threat.eps)
    for _ in range(threat.steps):
        delta.requires_grad_()
        loss = F.cross_entropy(model((x + delta).clamp(0, 1)), y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, delta)
        moved = delta.detach() + threat.step * grad.sign()
        delta = moved.clamp_(-threat.eps, threat.eps)
    return (x + delta).clamp_(0, 1)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)


# The same curve, the same bits


def objective(name: str) -> Objective:
    if name == "natural":
        return Objective(objectives.natural)
    if name == "free":
        return objectives.free(Threat("linf", 4 / 255), replays=2)
    if name == "trades":
        return objectives.trades(Threat("linf", 4 / 255, steps=2), beta=6.0)
    return objectives.adversarial(THREATS[name])


def recipe(**changes: object) -> training.Recipe:
    settings = {
        "epochs": 1,
        "lr": 0.1,
        "batch_size": 64,
        "weight_decay": 5e-4,
        "augment": "crop-flip",
    }
    return training.Recipe(**(settings | {"precision": "fp32", "seed": 0} | changes))


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products of fp32 may be rounded to TF32, in convolutions and matrix products."""
    places = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = allowed
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


@contextmanager
def on(device: torch.device | str) -> Iterator[None]:
    with mock.patch.dict(os.environ, ROBUSTLIB_DEVICE=str(device)):
        yield


@dataclass(frozen=True)
class Training:
    """A short training on an embedded set, the same whoever runs it."""

    objective: str = "natural"
    precision: str = "fp32"
    arch: str = "resnet10s"
    side: int = 32
    n_train: int = 2000
    epochs: int = 3
    width: int = 16
    source: str = "glyphs"
    lr: float = 0.1

    def network(self, n_classes: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return models.build(self.arch, n_classes, self.width, stem_stride=2)

    def data(self):
        return embedded(self.source, self.side, self.n_train)

    def fit(self, device: torch.device | str, **options) -> tuple[nn.Module, list[dict]]:
        """The trained network, on the CPU, and its curve, without seconds."""
        data = self.data()
        model = self.network(data.n_classes)
        settings = recipe(epochs=self.epochs, lr=self.lr, augment="crop", precision=self.precision)
        with on(device):
            curve = training.fit(
                model, data.train, objective(self.objective), settings, label="gpu", **options
            )
        return model.cpu(), [{k: v for k, v in r.items() if k != "seconds"} for r in curve]


@cache
def embedded(source: str, side: int, n_train: int):
    return load(source, size=side, n_train=n_train)


def short(smoke: bool, **what: object) -> Training:
    small = {"side": 16, "n_train": 128, "epochs": 2, "width": 4} if smoke else {}
    return Training(**(small | what))


def compared(smoke: bool, **what: object) -> Training:
    """One that comes far in little time, at a rate at which differences grow slowly."""
    large = {} if smoke else {"side": 24, "n_train": 1000, "epochs": 6}
    return short(smoke, source="digits", lr=0.02, **(large | what))


def agreement(device: torch.device, smoke: bool) -> list[Case]:
    """A training on the card against the same one on the CPU in fp32, within TOLERANCE."""

    @cache
    def reference(name: str) -> tuple[list[dict], float, nn.Module]:
        model, curve = compared(smoke, objective=name).fit("cpu")
        return curve, accuracy(model, "cpu"), model

    def accuracy(model: nn.Module, where: torch.device | str) -> float:
        test = compared(smoke).data().test
        with on(where):
            return training.correct(model, test) / len(test)

    def compare(name: str, precision: str, allowed: bool) -> list[Row]:
        expected, right, _ = reference(name)
        with tf32(allowed):
            model, curve = compared(smoke, objective=name, precision=precision).fit(device)
            got = accuracy(model, device)
        loss = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(curve, expected, strict=True))
        most, points = TOLERANCE[name, precision]
        ends = f"losses {curve[-1]['loss']:.4f} and {expected[-1]['loss']:.4f} in the last epoch"
        return [
            {
                "case": "loss of each epoch, card and CPU",
                "unit": "largest relative difference",
                "value": round(loss, 6),
                "passed": loss <= most,
                "note": f"tolerance {most}; {ends}",
            },
            {
                "case": "test accuracy, card and CPU",
                "unit": "difference",
                "value": round(got - right, 4),
                "passed": abs(got - right) <= points,
                "note": f"tolerance {points}; {got:.4f} and {right:.4f}",
            },
        ]

    def outputs(allowed: bool) -> list[Row]:
        model, test = copy.deepcopy(reference("natural")[2]), compared(smoke).data().test
        found = []
        with tf32(allowed):
            for where in ("cpu", device):
                with on(where):
                    found.append(training.logits(model, test)[0])
        difference = float((found[0] - found[1]).norm() / found[0].norm())
        most = 1e-2 if allowed else 1e-4
        return [
            {
                "case": "logits of one network, card and CPU",
                "unit": "norm of the difference over the norm",
                "value": float(f"{difference:.3g}"),
                "passed": difference <= most,
                "note": f"tolerance {most}",
            }
        ]

    trained = [("natural", "fp32", False), ("pgd-1", "fp32", False), ("natural", "fp32", True)]
    trained += [("natural", "bf16", True)] + ([] if smoke else [("natural", "fp16", True)])
    found: list[Case] = [({"tf32": t}, partial(outputs, t)) for t in (False, True)]
    for name, precision, allowed in trained:
        what = {"objective": name, "precision": precision, "tf32": allowed}
        found.append((what, partial(compare, name, precision, allowed)))
    return found


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that are not equal to the bit."""
    names = sorted(first.keys() | second.keys())
    return [n for n in names if n not in first or n not in second or not equal(first[n], second[n])]


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.cpu(), b.cpu())


def verdict(
    case: str, first: dict[str, Tensor], second: dict[str, Tensor], same_curve: bool
) -> Row:
    wrong = differing(first, second)
    return {
        "case": case,
        "unit": "tensors that differ",
        "value": len(wrong),
        "passed": same_curve and not wrong,
        "note": f"{len(first)} tensors{'' if same_curve else '; the curves differ'}",
    }


def repeatability(device: torch.device, smoke: bool) -> list[Case]:
    """Two trainings in one process, with other work and other random numbers between them."""

    def twice(what: Training) -> list[Row]:
        a, curve_a = what.fit(device)
        torch.rand(1000, device=device)
        b, curve_b = what.fit(device)
        same = curve_a == curve_b
        return [verdict("two trainings", a.state_dict(), b.state_dict(), same)]

    def stored(mode: str) -> list[Row]:
        size = {"width": 4, "n_train": 60, "epochs": 1} if smoke else {"width": 16, "epochs": 2}
        source = Pretrain(source="glyphs", size=32, seed=0, **size)
        spec = Transfer(
            Ticket(source, sparsity=0.5),
            "glyphs_seg" if mode == "segment" else "digits",
            mode=mode,
            n_train=20 if smoke else 200,
            epochs=1 if smoke else 3,
        )
        found = []
        for _ in range(2):
            with (
                tempfile.TemporaryDirectory(prefix="robustlib-gpu-") as folder,
                on(device),
                mock.patch.dict(os.environ, ROBUSTLIB_STORE=folder),
            ):
                found.append({k: v.clone() for k, v in run(spec).tensors().items()})
        return [verdict(f"two runs to a transfer, {mode}", *found, True)]

    half = "bf16" if smoke else "fp16"
    kinds = [("natural", "fp32"), ("pgd-3", half), ("trades", "fp32"), ("free", half)]
    found: list[Case] = [
        ({"objective": o, "precision": p}, partial(twice, short(smoke, objective=o, precision=p)))
        for o, p in kinds
    ]
    large = {"arch": "resnet18", "side": 32 if smoke else 128, "n_train": 64 if smoke else 512}
    found.append(({"arch": "resnet18"}, partial(twice, short(smoke, **large, epochs=1))))
    return found + [({"case": m}, partial(stored, m)) for m in ("finetune", "linear", "segment")]


def resume(device: torch.device, smoke: bool) -> list[Case]:
    """A training killed in its second epoch goes on from its checkpoint to the bits of a whole."""

    def killed(what: Training, kill_at: int) -> list[Row]:
        whole, curve = what.fit(device)
        with tempfile.TemporaryDirectory(prefix="robustlib-gpu-") as folder:
            path = Path(folder, "checkpoint")
            call = [sys.executable, __file__, "--device", str(device), "--killed"]
            call.append(json.dumps([asdict(what), str(path), kill_at]))
            done = subprocess.run(
                call, capture_output=True, text=True, timeout=CASE_SECONDS, check=False
            )
            if done.returncode != -signal.SIGKILL or not path.exists():
                raise RuntimeError(f"not killed: exit {done.returncode}; {last(done.stderr)}")
            steps, rate = [], training.learning_rate

            def watch(settings: object, step: int, total: int) -> float:
                steps.append(step)
                return rate(settings, step, total)

            with mock.patch.object(training, "learning_rate", watch):
                model, resumed = what.fit(device, checkpoint=path)
        row = verdict(
            "killed and resumed", whole.state_dict(), model.state_dict(), curve == resumed
        )
        row["passed"] = row["passed"] and steps[0] == kill_at - 1
        row["note"] = f"{row['note']}; killed at step {kill_at}, went on at step {steps[0]}"
        return [row]

    # A process for each: for a smoke test the one that carries most from step to step.
    kinds = [("natural", "fp32"), ("pgd-3", "fp16"), ("free", "fp32")][-1 if smoke else 0 :]
    return [
        (
            {"objective": o, "precision": p},
            partial(killed, short(smoke, objective=o, precision=p), 3 if smoke else 45),
        )
        for o, p in kinds
    ]


def be_killed(what: Training, path: Path, kill_at: int, device: torch.device) -> None:
    """Trains, saves after each step but the last, and dies before the step `kill_at`."""
    rate = training.learning_rate
    training.CHECKPOINT_SECONDS = -1

    def watch(settings: object, step: int, total: int) -> float:
        if step == kill_at - 1:
            training.CHECKPOINT_SECONDS = 1e9  # so that one step more is done, and lost
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return rate(settings, step, total)

    training.learning_rate = watch
    what.fit(device, checkpoint=path)


# Tests, and the machine


def tests(device: torch.device, smoke: bool) -> list[Case]:
    """The tests marked `cuda`, a row each; skipped ones have no verdict."""

    def pytest() -> list[Row]:
        # Without the options of pyproject.toml, which need the plugin for notebooks.
        call = [sys.executable, "-m", "pytest", "-v", "-rA", "--color=no", "-o", "addopts="]
        call += ["-p", "no:cacheprovider", "-m", "cuda", "tests/unit/test_cuda.py"]
        cut = ""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            try:
                # Wide: a line that is cut loses the message.
                wide = os.environ | {"COLUMNS": "400"}
                subprocess.run(
                    call, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, env=wide, check=False
                )
            except TimeoutError as error:
                cut = f"not all were run: {error}"
            said.seek(0)
            text = said.read()
        sys.stderr.write(text)
        test = r"tests/unit/test_cuda\.py::(\S+)"
        why = dict(re.findall(rf"^(?:FAILED|ERROR) {test} - (.*)$", text, re.MULTILINE))
        found = re.findall(rf"^{test} (PASSED|FAILED|SKIPPED|ERROR)(.*)$", text, re.MULTILINE)
        rows: list[Row] = [
            {
                "case": name,
                "passed": {"PASSED": True, "SKIPPED": ""}.get(outcome, False),
                "note": why.get(name, rest.split("[")[0].strip() if outcome != "PASSED" else ""),
            }
            for name, outcome, rest in found
        ]
        if cut or not found:
            rows.append({"passed": False, "note": cut or last(text)})
        return rows

    return [({"case": "pytest -m cuda"}, pytest)]


def machine(device: torch.device, smoke: bool) -> list[Case]:
    """What it was measured on."""

    def facts() -> list[Row]:
        about = [
            f"Python {platform.python_version()}, {os.cpu_count()} cores",
            f"cuDNN {torch.backends.cudnn.version()}, CUDA {torch.version.cuda}",
        ]
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            about.append(f"{card.total_memory / 2**30:.1f} GiB, sm_{card.major}{card.minor}")
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            try:
                found = subprocess.run(
                    query, capture_output=True, text=True, timeout=20, check=False
                ).stdout
            except OSError as error:
                found = repr(error)
            about.append(f"driver {found.strip()}")
        return [{"case": "what it was measured on", "note": "; ".join(about)}]

    return [({"case": "what it was measured on"}, facts)]


SECTIONS: dict[str, Callable[[torch.device, bool], list[Case]]] = {
    "machine": machine,
    "throughput": throughput,
    "repeatability": repeatability,
    "resume": resume,
    "agreement": agreement,
    "tests": tests,
    "more": partial(throughput, more=True),
}


# Running them


def last(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises TimeoutError when that time is over, as soon as Python has a say."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def append(out: Path, row: Row) -> None:
    """One write to the end of the file: sections that run at once do not mix their lines."""
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row)
    with out.open("a", encoding="utf-8", newline="") as f:
        f.write(text.getvalue())
        f.flush()
        os.fsync(f.fileno())
    shown = ("section", "case", "arch", "objective", "precision", "loop", "value", "of_bare")
    words = [str(row[k]) for k in shown if row.get(k) not in (None, "")]
    bad = f"  FAILED: {row.get('note')}" if row.get("passed") is False else ""
    print(" ".join(words) + bad, flush=True)


def section(name: str, device: torch.device, smoke: bool, deadline: float, out: Path) -> None:
    """Runs the cases of a section while there is time; each writes its rows, or why it has none.

    deadline: by time.monotonic(), which all processes of a machine share.
    """
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    always = {"section": name, "device": card or device.type, "torch": torch.__version__}
    for what, call in SECTIONS[name](device, smoke):
        started, left = time.monotonic(), deadline - time.monotonic()
        if left <= 0:
            append(out, always | what | {"note": "not measured: the time was over"})
            continue
        try:
            with limited(left if name == "tests" else min(left, CASE_SECONDS)):
                rows = call()
        except Exception as error:  # noqa: BLE001 - a case that fails is a row, the others go on
            traceback.print_exc()
            rows = [{"passed": False, "note": f"{type(error).__name__}: {last(str(error))}"}]
        took = round(time.monotonic() - started, 1)
        for row in rows:
            append(out, always | what | row | {"seconds": took})
        if device.type == "cuda":
            torch.cuda.empty_cache()


def everything(args: argparse.Namespace) -> int:
    """Every section in a process of its own; how many rows failed."""
    for folder in filter(None, (args.out.parent, args.logs)):
        folder.mkdir(parents=True, exist_ok=True)
    args.out.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    end = time.monotonic() + args.seconds
    section("machine", args.device, args.smoke, end + 30, args.out)
    wanted = args.only or list(SECTIONS)
    groups = [(tuple(n for n in names if n in wanted), share) for names, share in GROUPS]
    groups = [(names, share) for names, share in groups if names]
    for i, (names, share) in enumerate(groups):
        left = end - time.monotonic()
        group_seconds = left * share / sum(s for _, s in groups[i:])
        together(names, args, group_seconds)
    with args.out.open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    failed = [row for row in rows if row["passed"] == "False"]
    print(f"{args.out}: {len(rows)} rows, {len(failed)} failed", flush=True)
    return len(failed)


def together(names: tuple[str, ...], args: argparse.Namespace, seconds: float) -> None:
    """Some sections at the same time; one that does not end in time, or fails, gets a row."""
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
    if len(names) > 1:
        threads = max(1, (os.cpu_count() or 1) // len(names))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    call = [sys.executable, __file__, "--device", str(args.device), "--out", str(args.out)]
    deadline = time.monotonic() + seconds
    call += ["--until", str(deadline)] + (["--smoke"] if args.smoke else [])
    with tempfile.TemporaryDirectory(prefix="robustlib-gpu-") as folder:
        logs = {name: Path(args.logs or folder, f"gpu-{name}.log") for name in names}
        started = {}
        for name in names:
            with logs[name].open("w") as errors:
                started[name] = subprocess.Popen(
                    [*call, "--section", name],
                    env=environment | {"ROBUSTLIB_STORE": str(Path(folder, f"{name}-store"))},
                    stderr=errors,
                    start_new_session=True,
                )
        for name, process in started.items():
            try:
                code: int | str = process.wait(
                    max(0.1, deadline + GRACE_SECONDS - time.monotonic())
                )
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = f"none, killed after {seconds:.0f} s"
            said = logs[name].read_text(encoding="utf-8", errors="replace")
            if not args.logs:
                sys.stderr.write(said[-6000:])
            if code != 0:
                row = {"section": name, "case": "the section itself", "passed": False}
                row |= {"note": f"exit {code}; {last(said)}", "torch": torch.__version__}
                append(args.out, row | {"device": str(args.device)})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cuda (default), cuda:1, or cpu")
    parser.add_argument("--seconds", type=float, default=520, help="wall clock for everything")
    parser.add_argument("--out", type=Path, default=Path("runs", "gpu.csv"), help="the CSV")
    parser.add_argument("--logs", type=Path, help="folder for what each section says (stderr)")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU: does it run?")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--killed", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = torch.device(args.device or ("cpu" if args.smoke else "cuda"))
    args.out = args.out.resolve()
    os.environ |= {"TQDM_DISABLE": "1", "ROBUSTLIB_DEVICE": str(args.device)}
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is here; --smoke runs every section on the CPU")
    if args.killed:
        what, path, kill_at = json.loads(args.killed)
        be_killed(Training(**what), Path(path), kill_at, args.device)
        return 1
    if args.section:
        section(args.section, args.device, args.smoke, args.until, args.out)
        return 0
    return 1 if everything(args) and not args.smoke else 0


if __name__ == "__main__":
    sys.exit(main())
