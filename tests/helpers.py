"""What test files share: none of them imports another."""

import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from jobs import PATH, ROOT, TESTS  # noqa: F401 - ROOT and TESTS are for others
from torch import nn
from torchvision.models.resnet import Bottleneck

from robustlib import models, run, specs, stats
from robustlib.profile_files import PROFILES
from robustlib.specs import Pretrain, Ticket, Transfer

LEAST = {
    **{"epochs": 1, "n_train": 100, "limit": 10, "draws": 20},
    **{"width": 8, "size": 32, "detail": 32},
}
GIVEN = {
    "01_robust_pretraining": {"n_images": 20},
    "02_ticket_extraction": {"epochs": 1},
    "05_ablations": {"gap_images": 50},
    "07_edge_deployment": {"rounds": 2},
    "08_your_task": {"n_train": 30},
    "09_paper_figures": {"names": "detail,patterns,rates"},  # test_paper.py draws all of them
}


def small_profile() -> str:
    """The profile `quick`, its numbers smaller: all of its grids, figures and tables in seconds."""

    def fewer(field: re.Match) -> str:
        return re.sub(r"\d+", lambda n: str(min(int(n[0]), LEAST[field[1]])), field[0])

    text = (PROFILES / "quick.toml").read_text(encoding="utf-8")
    text = re.sub(rf"\b({'|'.join(LEAST)}) = (\d+|\[[^]]*\])", fewer, text)
    return text.replace("seeds = [0, 1, 2]", "seeds = [0, 1]")


def parameters_of(notebook: str, defaults: Collection[str], profile: Path) -> dict[str, object]:
    """What a notebook is tested with where its defaults would take minutes."""
    own: dict[str, object] = {"profile": str(profile), "workers": 1}
    if notebook == "01_robust_pretraining":  # of quick it shows networks that were trained here
        own["profile"] = f"{profile}:pretraining"
    elif notebook == "09_paper_figures":  # from the committed rows
        own = {}
    return {k: v for k, v in own.items() if k in defaults} | GIVEN.get(notebook, {})


SCOPES = ("global", "layer")
BLOCKS = {"2:4": (2, 4), "1:4": (1, 4), "1:8": (1, 8)}


def store_of(folders: pytest.TempPathFactory, *wanted: specs.Spec) -> Path:
    """A store of its own that holds these specs."""
    folder = folders.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(folder))
        for spec in wanted:
            run(spec)
    return folder


def killed_at(at: int, call: Callable) -> tuple[Callable, list[tuple]]:
    """`call`, but for its call number `at`, which is interrupted; and the arguments of each."""
    calls: list[tuple] = []

    def instead(*args):
        calls.append(args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return call(*args)

    return instead, calls


def basic(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("resnet10s", 10, width=8)


def bottleneck(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.ResNet(Bottleneck, (1, 1, 1, 1), 10, width=8, small_stem_stride=1)


def odd(seed: int = 0) -> nn.Module:
    """1x1, depthwise, grouped and oblong kernels, biases, and a convolution without a norm."""
    torch.manual_seed(seed)
    parts = {
        **{"point": nn.Conv2d(3, 16, 1), "bn1": nn.BatchNorm2d(16)},
        **{"depth": nn.Conv2d(16, 16, 3, groups=16), "bn2": nn.BatchNorm2d(16), "r1": nn.ReLU()},
        **{"group": nn.Conv2d(16, 24, (1, 3), groups=2), "r2": nn.ReLU()},
        **{"tall": nn.Conv2d(24, 12, (3, 2), bias=False), "bn3": nn.BatchNorm2d(12)},
        **{"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(12, 10)},
    }
    return nn.Sequential(OrderedDict(parts))


NETS = {"basic": basic, "bottleneck": bottleneck, "odd": odd}


def members(values: torch.Tensor, pattern: str) -> np.ndarray:
    """The entries of a weight [O, I, KH, KW] as [groups, size], by position; for n:m the blocks of
    m input channels at one place of one kernel. Written from the definition, not from the code."""
    a = values.detach().numpy()
    _, n_in, height, width = a.shape
    if pattern in BLOCKS:  # o, kh and kw tell the blocks apart, and which m input channels
        return np.ascontiguousarray(a.transpose(0, 2, 3, 1)).reshape(-1, BLOCKS[pattern][1])
    size = {"row": width, "kernel": height * width, "channel": n_in * height * width}
    return a.reshape(-1, size.get(pattern, 1))


def fits(p: torch.Tensor, pattern: str) -> bool:
    return pattern not in BLOCKS or p.shape[1] % BLOCKS[pattern][1] == 0


def sparsity_of(pattern: str, wanted: float) -> float:
    return 1 - BLOCKS[pattern][0] / BLOCKS[pattern][1] if pattern in BLOCKS else wanted


def rows(effect=0.05, seeds=(0, 1, 2), tasks=("a", "b"), noise=0.0) -> pd.DataFrame:
    """Robust is `effect` above natural, give or take noise; seeds and tasks differ a lot."""
    out = []
    for seed, task, sparsity in itertools.product(seeds, tasks, (0.0, 0.9)):
        base = 0.5 + 0.1 * seed + 0.2 * (task == "a") - 0.1 * sparsity
        natural = {"objective": "natural", "eps": 0.0, "accuracy": base}
        robust = {"objective": "pgd", "eps": 0.5, "accuracy": base + effect + noise * (seed - 1)}
        for side in (natural, robust):
            cell = {"task": task, "mode": "linear", "sparsity": sparsity, "seed": seed}
            out.append({**side, **cell, "norm": "l2", "sigma": 0.0, "steps": 1})
    return pd.DataFrame(out)


TINY = Pretrain(source="digits", width=4, n_train=100, epochs=1, batch_size=50)


def transfers(pretrain=TINY, **fields):
    tickets = [Ticket(pretrain, sparsity=s) for s in (0.0, 0.5)]
    return [Transfer(t, "digits", "linear", n_train=50, **fields) for t in tickets]


@pytest.fixture(autouse=True)
def _workers_import_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATH)


NATURAL, WEAK, STRONG = (
    Pretrain(),
    Pretrain(objective="pgd", eps=0.15),
    Pretrain(objective="pgd", eps=0.5),
)


def transfer_rows(
    tasks=("mnist",), modes=("linear",), seeds=(0, 1, 2), sparsities=(0.0, 0.8, 0.9), **fields
):
    """Rows as sweep gives them, accuracies made up: robust is ahead by 0.1 eps (1 + seed), more of
    it by half of the sparsity, of a task's place and of a mode's: no two panels are alike."""
    rng, rows = np.random.default_rng(0), []
    product = itertools.product(enumerate(tasks), enumerate(modes), seeds, sparsities)
    for (t, task), (m, mode), seed, s in product:
        level = 0.2 + 0.2 * rng.random()
        more = 1 + (s + t + m) / 2
        for pretrain in (NATURAL, WEAK, STRONG):
            source = Pretrain(objective=pretrain.objective, eps=pretrain.eps, seed=seed)
            spec = Transfer(Ticket(source, sparsity=s), task, mode, seed=seed, **fields)
            accuracy = level + 0.1 * pretrain.eps * (1 + seed) * more
            rows.append(specs.columns(spec) | {"accuracy": accuracy, "n": 1000, "seconds": 1.0})
    return pd.DataFrame(rows)


def reach(container, axis=1):
    """How far bars reach below and above each point, or to its left and right (nan: no bar)."""
    points = np.asarray(container[0].get_xydata(), dtype=float)
    out = np.full((len(points), 2), math.nan)
    for i, ends in enumerate(container[2][-axis].get_segments() if container[2] else ()):
        if np.ndim(ends) == 2:
            out[i] = (ends[:, axis] - points[i, axis]) * (-1, 1)
    return out


def half(values):
    """Half the length of the 95 % bar of independent values."""
    mean, low, _ = stats.mean_interval(values)
    return mean - low


def lines(ax):
    """The curves of a panel by label: places, values, and how far their bars reach."""
    return {c.get_label(): (*c[0].get_data(), reach(c)) for c in ax.containers}


def small(ax):
    """The heights of the small dots of a panel, in the order they were drawn."""
    large = [line for c in ax.containers for line in (c[0], *c[1])]
    dots = [line for line in ax.lines if line.get_ls() == "None" and line not in large]
    return [float(y) for line in dots for y in line.get_ydata()]


def texts(fig):
    return [t.get_text() for t in fig.findobj(plt.Text) if t.get_text().strip()]


def inside(fig, drawn=False):
    """Whether all that is drawn lies within the figure, nothing clipped. drawn: it is already,
    which takes as long again."""
    if not drawn:
        fig.draw_without_rendering()
    box, size = fig.get_tightbbox(), fig.get_size_inches()
    return min(box.x0, box.y0) > -0.01 and box.x1 < size[0] + 0.01 and box.y1 < size[1] + 0.01
