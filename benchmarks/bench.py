"""How fast the machinery is: the training loop, sweeps, and what an import costs."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import cluster, devices, models, objectives, store, sweeps, training
from robustlib.attacks import Threat
from robustlib.data.batches import to_float
from robustlib.data.splits import Split
from robustlib.specs import Pretrain, Ticket, Transfer

BATCH, STEPS, ROUNDS = 128, 30, 7


def throughput() -> dict[str, list[float]]:
    """Images a second of `training.fit` over those of a bare loop, for natural and pgd.

    The bare loop is forward, backward and step on one batch of floats that is fixed, on the same
    network (1.3 M parameters, 32 px), with the same attack where there is one. The two are timed
    in turn, ROUNDS times, a ratio each, in order of size: the speed of a shared machine drifts.
    """
    generator = torch.Generator().manual_seed(0)
    n = BATCH * STEPS
    x = torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (n,), generator=generator)
    recipe = training.Recipe(
        epochs=1,
        lr=0.01,
        batch_size=BATCH,
        weight_decay=5e-4,
        augment="crop-flip",
        precision="fp32",
        seed=0,
    )
    threat = Threat("l2", 0.5, steps=1)
    out = {}
    for name, objective, attack in (
        ("natural", objectives.Objective(objectives.natural), None),
        ("pgd", objectives.adversarial(threat), threat),
    ):
        model = models.build("resnet10s", 10, width=32, stem_stride=2)
        split = Split(x, y)
        fixed = to_float(x[:BATCH], training.device()), y[:BATCH].to(training.device())

        def ours(model=model, split=split, objective=objective) -> None:
            training.fit(model, split, objective, recipe, label="bench")

        def bare(model=model, fixed=fixed, attack=attack) -> None:
            _bare(model, *fixed, attack)

        with _own_store():
            ours()
            out[name] = sorted(_seconds(bare) / _seconds(ours) for _ in range(ROUNDS))
    return out


def _bare(model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: Threat | None) -> None:
    lies = devices.layout(model, x.device)
    model.to(x.device, memory_format=lies)
    x = x.contiguous(memory_format=lies)
    optim = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for _ in range(STEPS):
        images = x
        if attack:
            model.eval()
            start = torch.randn_like(x)
            start *= (
                attack.eps
                * torch.rand(len(x), 1, 1, 1)
                / start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            )
            delta = start.requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
            step = attack.step * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            images = (x + delta.detach() + step).clamp_(0, 1)
        model.train()
        loss = F.cross_entropy(model(images), y)
        optim.zero_grad()
        loss.backward()
        optim.step()


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@contextmanager
def _own_store() -> Iterator[Path]:
    """An empty store for as long as the context lasts, and no progress bars."""
    names = {"TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory(prefix="robustlib-bench-") as folder:
        names["ROBUSTLIB_STORE"] = folder
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(names)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def stored_sweep(n: int = 1000) -> tuple[float, float]:
    """Seconds of a sweep over n specs that are all stored; seconds a spec that Dask and the store
    take when a worker is handed each of them and finds it stored."""
    with _own_store():
        specs = [Transfer(Ticket(Pretrain()), "digits", seed=i) for i in range(n)]
        for spec in specs:
            store.put(spec, {"accuracy": 0.5, "n": 360})
        swept = _seconds(lambda: sweeps.sweep(specs))
        with cluster.connect(workers=1) as client:

            def through(some: list[Transfer]) -> None:
                jobs = [sweeps.job(spec) for spec in some]
                if failures := sweeps.compute(jobs, client=client):
                    raise RuntimeError(str(failures[0]))

            through(specs[:1])  # What a worker imports is not the engine's.
            return swept, _seconds(lambda: through(specs)) / n


def two_workers(trainings: int = 8) -> tuple[float, float]:
    """Seconds of a sweep over equal trainings on one worker, and on two, their start included."""
    spec = Pretrain(source="digits", width=16, size=24, epochs=24, batch_size=50)
    specs = [replace(spec, seed=i) for i in range(trainings)]
    took = []
    for workers in (1, 2):
        with _own_store():
            took.append(_seconds(lambda n=workers: sweeps.sweep(specs, n)))
    return took[0], took[1]


def starts(rounds: int = 5) -> dict[str, float]:
    """Median seconds of fresh processes, run in turn: importing torch, torch and robustlib, torch
    and all that robustlib's public names bring, and `robustlib --help`."""
    lines = {
        "torch": "import torch",
        "robustlib": "import torch, robustlib",
        "everything": "import torch; from robustlib import *",
        "help": "from robustlib.cli import main; main(['--help'])",
    }
    took: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(rounds):
        for name, line in lines.items():
            call = [sys.executable, "-c", line]
            took[name].append(
                _seconds(lambda c=call: subprocess.run(c, check=True, stdout=subprocess.DEVNULL))
            )
    return {name: float(np.median(seconds)) for name, seconds in took.items()}


def main() -> None:
    """Prints every measure."""
    took = starts()
    for name in ("robustlib", "everything"):
        what = "import robustlib" if name == "robustlib" else "all its public names"
        added = took[name] - took["torch"]
        print(f"{what}: {added:+.2f} s over import torch, {took['torch']:.2f} s (goal 0.5)")
    print(f"robustlib --help: {took['help']:.2f} s (goal 1)")
    swept, each = stored_sweep()
    print(f"sweep of 1,000 stored specs: {swept:.2f} s (goal 3)")
    print(f"scheduling: {1000 * each:.1f} ms a spec (goal 20)")
    one, two = two_workers()
    print(
        f"8 equal trainings, 2 workers: {two / one:.2f} of the time of 1, {one:.0f} s (goal 0.55)"
    )
    for name, ratios in throughput().items():
        print(
            f"training loop, {name}: {np.median(ratios):.3f} of a bare loop's images a second "
            f"(median of {len(ratios)}, {ratios[0]:.3f} to {ratios[-1]:.3f}; goal 0.95)"
        )


if __name__ == "__main__":
    main()
