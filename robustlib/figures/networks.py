"""Figures of pretrained networks: how they were trained, and what fools them."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustlib import stats
from robustlib.figures.style import (
    COLUMN,
    NATURAL,
    PAGE,
    labelled,
    legend,
    looks,
    panels,
    shared,
    style,
    written,
)


def curves(frame: pd.DataFrame) -> Figure:
    """Loss, and accuracy on validation images as they are and under attack, by epoch.

    frame: a row a network and epoch, with the columns of its Pretrain, and what
    `run(Pretrain(...)).extra["curve"]` holds: epoch, loss, val_accuracy, val_robust if measured.
    """
    shown = {"loss": "training loss", "val_accuracy": "validation accuracy (%)"}
    shown |= {"val_robust": "validation accuracy\nunder attack at its ε (%)"}
    rows = labelled(frame)
    with style():
        fig, grid = panels(1, 3, PAGE, 2.2)
        for ax, (column, ylabel) in zip(grid.flat, shown.items(), strict=True):
            for name, look in looks(rows.label).items():
                own = rows[rows.label == name]
                if column in own and own[column].notna().any():
                    ax.plot(own.epoch + 1, own[column] * (1 if column == "loss" else 100), **look)
            ax.set_ylim(0, None)
            if not ax.lines:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=7)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.set(xlabel="epoch", ylabel=ylabel)
        whose = "" if rows.empty else f"pretrained on {shared(rows, 'source', 'seed')}"
        legend(fig, looks(rows.label), whose)
    return fig


LONGEST = 12
"""Letters of a class name that are shown."""


def adversarial_examples(
    images: Tensor,
    truth: Sequence[int],
    attacked: Mapping[str, tuple[Tensor, Sequence[int], Sequence[int]]],
    class_names: Sequence[str],
) -> Figure:
    """Images, and for each network what an attack adds to them and what the network then says.

    images: [N, 3, H, W] in [0, 1]; truth: labels [N]; attacked: for each network's label the
    adversarial images [N, 3, H, W] and its predictions [N] before and after. Perturbations are
    drawn around grey, all amplified by one factor.
    """
    images = images.cpu()
    attacked = {name: (new.cpu(), *said) for name, (new, *said) in attacked.items()}
    changes = {name: entry[0] - images for name, entry in attacked.items()}
    factor = _amplification(changes.values())
    across, rows = len(images), 1 + 2 * len(attacked)
    side = PAGE / (across + 1)
    # A line of LONGEST letters and an arrow is as wide as an image; a letter is some 0.6 high.
    small = {"fontsize": min(6.5, 72 * side / (0.6 * (LONGEST + 2)))}
    with style(class_names):
        fig, grid = panels(rows, across, PAGE, 0.4 + rows * (side + 0.12))
        for ax in grid.flat:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for i in range(across):
            _image(grid[0, i], images[i])
            grid[0, i].set_title(_short(class_names[int(truth[i])]), **small)
        _row_label(grid[0, 0], "image and class")
        for k, (name, (adversarial, before, after)) in enumerate(attacked.items()):
            top, bottom = grid[1 + 2 * k], grid[2 + 2 * k]
            _row_label(top[0], f"{name}\nchange × {factor:g}")
            _row_label(bottom[0], "attacked image\nand prediction")
            for i in range(across):
                _image(top[i], 0.5 + factor * changes[name][i])
                _image(bottom[i], adversarial[i])
                right = int(after[i]) == int(truth[i])
                words = [_short(class_names[int(p[i])]) for p in (before, after)]
                said = f"{words[0]} →\n{words[1]} {'✓' if right else '✗'}"
                bottom[i].set_title(said, color=NATURAL if right else "#D55E00", **small)
    return fig


def robust_accuracy(frame: pd.DataFrame) -> Figure:
    """Accuracy of each network against the radius of an attack, with exact 95 % intervals.

    frame: a row a network and attack, with the columns of its Pretrain, and attack, attack_norm,
    attack_eps, correct and n. The attack with most radii is drawn as a line, others as hollow
    points around its own.
    """
    rows = labelled(frame).assign(accuracy=frame.correct / frame.n)
    lined = rows.groupby("attack").attack_eps.nunique().idxmax()
    others = [attack for attack in sorted(rows.attack.unique()) if attack != lined]
    with style():
        fig, grid = panels(1, 1, COLUMN, 2.8)
        ax = grid[0, 0]
        for attack, (name, look) in itertools.product([lined, *others], looks(rows.label).items()):
            points = rows[(rows.attack == attack) & (rows.label == name)].sort_values("attack_eps")
            y, ends = 100 * points.accuracy, np.transpose(_exact(points)) * 100
            bars = {"yerr": np.abs(ends - y.to_numpy()), "capsize": 1.5, "elinewidth": 0.7}
            own = look if attack == lined else look | {"ls": "", "mfc": "none", "ms": 6}
            ax.errorbar(points.attack_eps, y, **bars, **own)
            for eps in points.eps.unique():
                if eps > 0:
                    ax.axvline(eps, color=look["color"], lw=0.6, ls=":", zorder=0)
        norm = {"l2": "L2", "linf": "L∞"}[rows.attack_norm.iloc[0]]
        ax.set(
            ylim=(-0.02 * ax.get_ylim()[1], None),
            xlabel=f"radius ε of the attack ({norm}, pixels in [0, 1])",
        )
        ax.set_ylabel(f"accuracy on {rows.n.max():,} test images (%)")
        note = f"{shared(rows, 'source', 'seed')}; lines: {lined}"
        note += f"; hollow: {', '.join(others)}" * bool(others)
        note += "\nbars: 95 % intervals; dotted: the radius trained against"
        legend(fig, looks(rows.label), note)
    return fig


def _exact(points: pd.DataFrame) -> list[tuple[float, float]]:
    return [stats.accuracy_interval(a, n) for a, n in zip(points.accuracy, points.n, strict=True)]


def _amplification(changes: Any) -> float:
    """A round factor that makes the largest changes of most pixels fill half of [0, 1]."""
    large = max(float(c.abs().flatten().quantile(0.995)) for c in changes)
    if large == 0:
        return 1.0
    factor = max(1.0, 0.5001 / large)
    unit = 10 ** math.floor(math.log10(factor))
    return float(max(k for k in (1, 2, 5) if k * unit <= factor) * unit)


def _image(ax: Axes, image: Tensor) -> None:
    ax.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")


def _row_label(ax: Axes, text: str) -> None:
    ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=6.5)


def _short(name: str) -> str:
    name = name.split(",")[0]  # ImageNet's names are lists of synonyms
    if _width(written(name)) <= LONGEST:
        return written(name)
    while _width(written(name)) >= LONGEST:
        name = name[:-1]
    return f"{written(name)}…"


def _width(text: str) -> int:
    """In letters; a Chinese one is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
