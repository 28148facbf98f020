"""Figures of tickets: which weights they keep, where, and in common with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from robustlib import stats
from robustlib.figures.style import (
    COLUMN,
    NATURAL,
    OTHER,
    PAGE,
    labelled,
    legend,
    looks,
    panels,
    plain,
    style,
)
from robustlib.tickets import Mask

CHANNELS = 24
"""Channels of a layer in the picture of a mask, at most: more would be smaller than a pixel."""


START = "natural before training"
"""The label of the network that natural and robust pretraining of one seed both start from."""


def layer_density(frame: pd.DataFrame) -> Figure:
    """What fraction of each layer the tickets keep, and that over what the natural one keeps.

    frame: rows with the columns of stats.PRETRAINING or label, and sparsity, layer and density;
    layers in the order of the network. A row of panels for each sparsity; a layer of which nothing
    is kept is a gap in a line.
    """
    rows = labelled(frame)
    rows = rows.assign(density=rows.density.where(rows.density > 0))
    natural = rows[rows.label == "natural"][["sparsity", "layer", "density"]]
    rows = rows.merge(natural, on=["sparsity", "layer"], how="left", suffixes=("", "_natural"))
    rows = rows.assign(ratio=rows.density / rows.density_natural)
    colours = _colours(rows.label)
    with style():
        fig, grid = _by_layer(rows, ["density (fraction kept)", "density ÷ natural density"])
        for axes, (sparsity, here) in zip(grid, rows.groupby("sparsity"), strict=True):
            for name, look in colours.items():
                own = here[here.label == name]
                axes[0].plot(np.arange(len(own)), own.density, **look)
                if name != START:
                    axes[1].plot(np.arange(len(own)), own.ratio, **look)
            axes[0].axhline(1 - sparsity, color=OTHER, lw=0.8, ls=":", zorder=0)
            axes[0].set(yscale="log", ylim=(0.7 * here.density.min(), 1.2))
            axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
            axes[0].yaxis.set_major_formatter("{x:g}")
            axes[0].yaxis.set_minor_formatter(NullFormatter())
        legend(fig, colours, "dotted: the density of the whole ticket")
    return fig


def mask_overlap(frame: pd.DataFrame) -> Figure:
    """Overlap of masks with the natural one by layer, beside chance, a panel for each sparsity.

    frame: rows of `stats.mask_overlap` with the columns of stats.PRETRAINING or label, which say
    whose the second mask is, and sparsity; layers in the order of the network.
    """
    rows = labelled(frame)
    colours = _colours(rows.label)
    with style():
        fig, grid = _by_layer(rows, ["overlap with natural (Jaccard)"])
        for (ax,), (_, here) in zip(grid, rows.groupby("sparsity"), strict=True):
            for name, look in colours.items():
                own = here[here.label == name]
                ax.plot(np.arange(len(own)), own.overlap, **look)
                chance = {"color": look["color"], "lw": 0.8, "ls": (0, (1, 2))}
                ax.plot(np.arange(len(own)), own.chance, **chance)
            ax.set_ylim(0, 1)
        legend(fig, colours, "dotted, same colour: two random masks of these densities")
    return fig


def filters(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None, note: str = "ticket"
) -> Figure:
    """First-layer filters as colour images, a panel for each network; zero is grey.

    weights: for each label a tensor [O, 3, K, K]; the filters of a network share one scale, its
    largest magnitude. masks: what a ticket keeps of each, shaped alike; drawn as a second row that
    `note` names. At most 64 filters are drawn.
    """
    rows = {"": weights}
    if masks is not None:
        rows[f"\n{note}"] = {name: w.cpu() * masks[name] for name, w in weights.items()}
    across, side = len(weights), max(w.shape[-1] + 1 for w in weights.values())
    tall = max(-(-min(64, len(w)) // 8) for w in weights.values())
    width = PAGE if across > 2 else COLUMN * 1.4
    with style():
        height = len(rows) * (0.35 + width / across * tall / 8) + 0.1
        fig, grid = panels(len(rows), across, width, height)
        fig.get_layout_engine().set(wspace=0.08)
        for line, (note, shown) in zip(grid, rows.items(), strict=True):
            for ax, (name, w) in zip(line, shown.items(), strict=True):
                scale = 2 * float(weights[name].detach().abs().max()) or 1.0
                sheet = np.ones((tall * side - 1, 8 * side - 1, 3))
                for i, one in enumerate((0.5 + w.detach().cpu() / scale)[:64]):
                    y, x, k = i // 8 * side, i % 8 * side, one.shape[-1]
                    sheet[y : y + k, x : x + k] = one.permute(1, 2, 0).numpy()
                ax.imshow(sheet, interpolation="nearest")
                ax.set_title(name + note)
                ax.set_axis_off()
    return fig


def masks(natural: Mask, robust: Mask, layer: str, name: str) -> Figure:
    """One layer of two masks laid over each other, and their overlap in every layer.

    layer: a parameter name of both; name: what the robust one is called. Left, an output channel
    is a row of kernels and an input channel a column; of wide layers the first CHANNELS are drawn.
    """
    table = stats.mask_overlap(natural, robust)
    here = table[table.layer == layer].iloc[0]
    kinds = ["by neither", "by natural alone", "by robust alone", "by both"]
    colours = ["#F0F0F0", NATURAL, "#E69F00", "#000000"]
    with style():
        fig = plain(PAGE, 3.3)
        # Each side has a layout of its own: long layer names must not shrink the picture.
        left, right = (part.subplots() for part in fig.subfigures(1, 2, width_ratios=[1, 1.2]))
        left.imshow(
            overlay(natural[layer], robust[layer]),
            cmap=ListedColormap(colours),
            vmin=0,
            vmax=3,
            interpolation="nearest",
        )
        left.set(xticks=[], yticks=[], xlabel="input channels", ylabel="output channels")
        left.set_title(
            f"{_layer_name(layer)}: {here.overlap:.2f} overlap, {here.chance:.2f} by chance"
        )
        patches = [Patch(fc=c, ec="grey", label=k) for c, k in zip(colours, kinds, strict=True)]
        title = f"sparsity {natural.sparsity:.3g}; natural and {name}; kept:"
        fig.legend(
            handles=patches, loc="outside upper center", ncols=4, title=title, title_fontsize=8
        )
        at = np.arange(len(table))
        right.bar(at, table.overlap, color="#BBBBBB", width=0.7, label="these two")
        right.bar(at[table.layer == layer], here.overlap, color="#555555", width=0.7)
        right.hlines(table.chance, at - 0.45, at + 0.45, color="#D55E00", lw=1.5, label="by chance")
        _layer_axis(right, list(table.layer))
        right.set(ylim=(0, 1), ylabel="overlap (Jaccard)")
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return fig


def patterns(masks: Mapping[str, Mask], layer: str, note: str = "") -> Figure:
    """One layer of several masks of one network, a panel each: black is kept.

    layer: a parameter name of all; note: of which network they are. An output channel is a row of
    kernels and an input channel a column; of wide layers the first CHANNELS are drawn.
    """
    across = min(5, len(masks))
    down = -(-len(masks) // across)
    with style():
        fig, grid = panels(down, across, PAGE, 0.6 + down * (0.3 + 0.92 * PAGE / across))
        for ax in grid.flat[len(masks) :]:
            ax.set_axis_off()
        for ax, (name, mask) in zip(grid.flat, masks.items(), strict=False):
            shown = ListedColormap(["#F0F0F0", "#000000"])
            kept = overlay(mask[layer], mask[layer]) > 0
            ax.imshow(kept, cmap=shown, vmin=0, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"{name}\n{float(mask[layer].float().mean()):.2f} kept")
        fig.suptitle(f"{note}; black: kept" if note else "black: kept", fontsize=8)
        fig.supxlabel(f"input channels of {_layer_name(layer)}", fontsize=8)
        fig.supylabel("output channels", fontsize=8)
    return fig


def overlaps(masks: Mapping[str, Mask], note: str = "") -> Figure:
    """How far each two of several masks of one network keep the same weights, as a table of
    colours; the number in a cell is the overlap (Jaccard), the small one below it that of chance
    with their densities by layer.

    note: what they have in common, the task and the sparsity for one. More than 6 masks take the
    width of a page.
    """
    side = len(masks)
    narrow = side <= 6
    lines = [name.replace(", ", ",\n", 1) if narrow else name for name in masks]
    names = [f"{name}  {i}" for i, name in enumerate(lines, 1)]
    table = pair_overlaps(masks)
    values = table.overlap.to_numpy().reshape(side, side)
    chance = table.chance.to_numpy().reshape(side, side)
    with style():
        fig = plain(COLUMN if narrow else PAGE, 0.7 + 0.28 * side)
        ax = fig.subplots()
        ax.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for i in range(side):
            for j in range(side):
                ink = "white" if values[i, j] < 0.5 else "black"
                here = {"ha": "center", "va": "center", "color": ink}
                ax.text(j, i - 0.19, f"{values[i, j]:.2f}", fontsize=6, **here)
                ax.text(j, i + 0.25, f"{chance[i, j]:.2f}", fontsize=5, **here)
        # Names once, at the rows, for a column would be as wide as its name.
        ax.set_xticks(range(side), range(1, side + 1))
        ax.set_yticks(range(side), names, fontsize=6 if narrow else 7)
        ax.tick_params(length=0)
        ax.grid(visible=False)
        said = "overlap of masks (Jaccard); small: by chance"
        fig.suptitle(f"{note}\n{said}" if note else said, fontsize=8)
    return fig


def pair_overlaps(masks: Mapping[str, Mask]) -> pd.DataFrame:
    """Overlap of each two masks of one network, and that of chance with their densities by layer.
    Columns: first, second, overlap, chance."""
    rows = []
    for first, a in masks.items():
        for second, b in masks.items():
            rows.append([first, second, a.overlap(b), a.chance(b)])
    return pd.DataFrame(rows, columns=["first", "second", "overlap", "chance"])


def overlay(natural: Tensor, robust: Tensor) -> np.ndarray:
    """Two masks [O, I, K, K] as one image [O' K, I' K] of 0 neither, 1 natural, 2 robust, 3 both.

    O' and I' are O and I, but CHANNELS at most.
    """
    code = (natural.int() + 2 * robust.int())[:CHANNELS, :CHANNELS]
    o, i, kh, kw = code.shape
    return code.permute(0, 2, 1, 3).reshape(o * kh, i * kw).numpy()


def _colours(labels: pd.Series) -> dict[str, dict[str, Any]]:
    start = {"color": OTHER, "marker": "x", "ls": "-", "ms": 3.0, "label": START}
    return looks(labels[labels != START]) | ({START: start} if (labels == START).any() else {})


def _by_layer(rows: pd.DataFrame, columns: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """Panels over the layers of a network: a row a sparsity, a column for each quantity."""
    sparsities = sorted(rows.sparsity.unique())
    size = PAGE, 1.5 + 1.15 * len(sparsities)
    fig, grid = panels(len(sparsities), len(columns), *size, sharex=True)
    for axes, sparsity in zip(grid, sparsities, strict=True):
        axes[0].set_ylabel(f"sparsity {sparsity:g}")
    for ax, column in zip(grid[0], columns, strict=True):
        ax.set_title(column)
    for ax in grid[-1]:
        _layer_axis(ax, list(rows.layer.unique()))
    return fig, grid


def _layer_axis(ax: Axes, layers: Sequence[str]) -> None:
    every = -(-len(layers) // 24)
    names = [_layer_name(name) for name in layers[::every]]
    ax.set_xticks(range(0, len(layers), every), names, rotation=90, fontsize=6)
    ax.grid(axis="x", visible=False)


def _layer_name(parameter: str) -> str:
    return parameter.removesuffix(".weight")
