"""Figures of tickets: which weights they keep, where, and in common with whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import labelled, shared
from robustlib.figures.style import OTHER, START, column_width, looks, page_width, paler, style
from robustlib.tickets import Mask

CHANNELS = 24
"""Channels of a layer in the picture of a mask, at most: more would be smaller than a pixel."""
WHITE = "#F0F0F0"
"""What is removed, in the picture of a mask."""
_KERNELS = colormaps["cividis"].with_extremes(bad="#FFFFFF")  # has no white of its own


@style()
def layer_density(frame: pd.DataFrame) -> Figure:
    """What fraction of each layer the tickets keep, and that over what the natural one keeps.

    frame: rows with the columns of stats.PRETRAINING or label, and sparsity, layer and density;
    layers in the order of the network. A row of panels for each sparsity; a layer of which nothing
    is kept is a gap in a line.
    """
    rows = labelled(frame)
    rows = rows.assign(density=100 * rows.density.where(rows.density > 0))
    natural = rows[rows.label == "natural"][["sparsity", "layer", "density"]]
    rows = rows.merge(natural, on=["sparsity", "layer"], how="left", suffixes=("", "_natural"))
    density = rows.assign(what="density (% kept)", y=rows.density)
    ratio = rows.assign(what="density ÷ natural density", y=rows.density / rows.density_natural)
    fig, cells = _by_layer(pd.concat([density, ratio[ratio.label != START]]))
    colours = looks(rows.label)
    for ax, own in cells:
        grid.curves(ax, own, "x", "y", colours)
        if "kept" in own.what.iloc[0]:
            ax.axhline(100 * (1 - own.sparsity.iloc[0]), color=OTHER, lw=0.8, ls=":", zorder=0)
            ax.set(yscale="log", ylim=(0.7 * own.y.min(), 120))
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
    grid.legend(fig, colours, _of(rows), "dotted: the density of the whole ticket")
    return fig


@style()
def mask_overlap(frame: pd.DataFrame) -> Figure:
    """Overlap of masks with the natural one by layer, and what it is above that of chance, a row of
    panels for each sparsity.

    frame: rows of `stats.mask_overlap` with the columns of stats.PRETRAINING or label, which say
    whose the second mask is, and sparsity; layers in the order of the network.
    """
    rows = labelled(frame)
    overlap = rows.assign(what="overlap with natural (Jaccard, %)", y=rows.overlap)
    above = rows.assign(what="overlap − chance (points)", y=rows.overlap - rows.chance)
    fig, cells = _by_layer(pd.concat([overlap, above]))
    colours = looks(rows.label)
    chance = {"lw": 0.8, "ls": (0, (1, 2)), "marker": None}
    dotted = {name: look | chance for name, look in colours.items()}
    for ax, own in cells:
        grid.curves(ax, own, "x", "y", colours, 100)
        if "Jaccard" in own.what.iloc[0]:
            grid.curves(ax, own, "x", "chance", dotted, 100)
            ax.set_ylim(0, 100)
        else:
            ax.axhline(0, color=OTHER, lw=0.8, ls=":", zorder=0)
    grid.legend(fig, colours, _of(rows), "dotted: two random masks of these densities (chance)")
    return fig


@style()
def filters(
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    note: str = "ticket",
    of: str = "",
) -> Figure:
    """First-layer filters as colour images, a panel for each network; zero is grey.

    weights: for each label a tensor [O, 3, K, K]; the filters of a network share one scale, its
    largest magnitude. masks: what a ticket keeps of each, shaped alike; drawn as a second row that
    `note` names; of: of which data set and seed they are. At most 64 filters are drawn.
    """
    drawn = {"": weights}
    if masks is not None:
        drawn[f"\n{note}"] = {name: w.cpu() * masks[name] for name, w in weights.items()}
    across, side = len(weights), max(w.shape[-1] + 1 for w in weights.values())
    tall = max(-(-min(64, len(w)) // 8) for w in weights.values())
    lines: list[grid.Line] = []
    for below, networks in drawn.items():
        sheets = []
        for name, w in networks.items():
            scale = 2 * float(weights[name].detach().abs().max()) or 1.0
            sheets.append(np.ones((tall * side - 1, 8 * side - 1, 3)))
            for i, one in enumerate((0.5 + w.detach().cpu() / scale)[:64]):
                y, x, k = i // 8 * side, i % 8 * side, one.shape[-1]
                sheets[-1][y : y + k, x : x + k] = one.permute(1, 2, 0).numpy()
        lines.append(("", sheets, [name + below for name in networks]))
    width = page_width() if across > 2 else column_width()
    fig = grid.pictures(lines, width, len(lines) * (0.35 + width / across * tall / 8) + 0.1)
    fig.set_layout_engine("constrained", wspace=0.08)
    for ax in fig.axes:
        ax.set_axis_off()
    fig.suptitle(f"{of}; zero is grey" if of else "zero is grey", fontsize=6.5)
    return fig


@style()
def masks(
    masks: Mapping[str, Mask], weights: Mapping[str, Tensor], layer: str, onto: Figure | None = None
) -> Figure:
    """Two tickets of one architecture close up. Above, one layer: its kernels, with removed weights
    blank, and both masks laid over each other; below, by layer, density and overlap.

    masks: two, by label; weights: those of the layer [O, I, K, K], by the same labels. What stands
    behind " (" in a label tells networks of one pretraining apart. Grey is zero; darkest and
    brightest are three standard deviations. An output channel is a row of kernels, an input channel
    a column; of wide layers the first CHANNELS are drawn. onto: the picture of other tickets of
    these networks, in this layer, to change: a slider waits for it, and what stays takes longer.
    """
    (a, b), table = masks.values(), stats.mask_overlap(*masks.values())
    here = table[table.layer == layer].iloc[0]
    fig = onto or _two_tickets(list(masks), weights, layer, list(table.layer))
    for i, (ax, (name, mask)) in enumerate(zip(fig.axes, masks.items(), strict=False)):
        ax.images[0].set_data(_sheet(weights[name].masked_fill(~mask[layer], np.nan)))
        share = here.density_second if i else here.density_first
        ax.set_title(f"{name}\n{100 * share:.3g} % kept", fontsize=7)
    *_, both, below = fig.axes
    both.images[0].set_data(overlay(a[layer], b[layer]))
    said = f"both: overlap {100 * here.overlap:.0f} %,\n{100 * here.chance:.0f} % by chance"
    both.set_title(said, fontsize=7)
    (bars,) = below.containers
    for bar, height in zip(bars, 100 * table.overlap, strict=True):
        bar.set_height(height)
    densities = (100 * table[f"density_{side}"] for side in ("first", "second"))
    for line, heights in zip(below.lines, (100 * table.chance, *densities), strict=True):
        line.set_ydata(heights)
    title = f"sparsity {a.sparsity:.3g}; {layer.removesuffix('.weight')}{_cut(a[layer])}; kept:"
    fig.legends[0].get_title().set_text(title)
    return fig


def _two_tickets(
    names: list[str], weights: Mapping[str, Tensor], layer: str, layers: list[str]
) -> Figure:
    """The picture of `masks` but for what a move of the slider changes. Laid out by hand, for the
    layout engine takes longer than all the rest."""
    ways = [name.partition(" (")[0] for name in names]
    own = looks(ways)
    pair = [own[ways[0]], own[ways[1]]]
    if ways[0] == ways[1]:
        pair[1] = pair[1] | {"color": OTHER, "ls": "--"}
        ways[1] = "the other"
    # The second as light as no other, so that it is told apart in grey print too.
    colours = [WHITE, pair[0]["color"], paler(pair[1]["color"], 0.5), "#000000"]
    fig = grid.plain(page_width(), 5.0)
    fig.set_layout_engine("none")
    above = fig.add_gridspec(1, 3, left=0.04, right=0.99, top=0.81, bottom=0.49, wspace=0.08)
    for i, name in enumerate(names):
        large = 3 * float(weights[name].std()) or 1.0
        kernels = _sheet(weights[name])
        fig.add_subplot(above[i]).imshow(kernels, cmap=_KERNELS, vmin=-large, vmax=large)
    fig.add_subplot(above[2]).imshow(
        np.zeros(kernels.shape), cmap=colors.ListedColormap(colours), vmin=0, vmax=3
    )
    for ax in fig.axes:
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("input channels", fontsize=7)
    fig.axes[0].set_ylabel("output channels", fontsize=7)
    below = fig.add_axes((0.08, 0.25, 0.9, 0.16))
    at = np.arange(len(layers))
    greys = ["#7A7A7A" if name == layer else "#C4C4C4" for name in layers]
    below.bar(at, 0 * at, color=greys, width=0.7)
    tick: dict[str, Any] = {"marker": "_", "ms": min(12, 300 / len(layers)), "mew": 1.5, "ls": ""}
    below.plot(at, 0 * at, color="#000000", label="by chance", **tick)
    for way, look in zip(ways, pair, strict=True):
        below.plot(at, 0 * at, **look | {"label": f"density, {way}"})
    below.set_ylim(0, 100)
    below.set_ylabel("by layer (%)", fontsize=7)
    handles = [Patch(fc="#C4C4C4", label="overlap (Jaccard)"), *below.lines]
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.97)}
    below.legend(handles=handles, ncols=4, fontsize=6.5, **place)
    _layer_axis(below, layers)
    kinds = ("by neither", f"by {names[0]} alone", f"by {names[1]} alone", "by both")
    patches = [Patch(fc=c, ec="grey", label=k) for k, c in zip(kinds, colours, strict=True)]
    fig.legend(handles=patches, loc="upper center", ncols=2, title="kept:", title_fontsize=8)
    return fig


@style()
def patterns(masks: Mapping[str, Mask], layer: str, note: str = "") -> Figure:
    """One layer of several masks of one network, a panel each: black is kept.

    layer: a parameter name of all; note: of which network they are. An output channel is a row of
    kernels and an input channel a column; of wide layers the first CHANNELS are drawn.
    """
    across, shown = min(5, len(masks)), {name: mask[layer] for name, mask in masks.items()}
    drawn = [_sheet(kept) for kept in shown.values()]
    titles = [f"{name}\n{100 * float(m.float().mean()):.0f} % kept" for name, m in shown.items()]
    starts = range(0, len(masks), across)
    lines = [("", drawn[i : i + across], titles[i : i + across]) for i in starts]
    height = 0.6 + len(lines) * (0.3 + 0.92 * page_width() / across)
    black = colors.ListedColormap([WHITE, "#000000"])
    fig = grid.pictures(lines, page_width(), height, cmap=black, vmin=0, vmax=1)
    fig.suptitle(f"{note}; black: kept" if note else "black: kept", fontsize=8)
    wide = next(iter(masks.values()))[layer]
    fig.supxlabel(f"input channels of {layer.removesuffix('.weight')}{_cut(wide)}", fontsize=8)
    fig.supylabel("output channels", fontsize=8)
    return fig


@style()
def overlaps(masks: Mapping[str, Mask] | pd.DataFrame, note: str = "") -> Figure:
    """How far each two of several masks of one network keep the same weights, as a table of
    colours; the number in a cell is the overlap (Jaccard, in percent), the one in brackets that of
    chance with their densities by layer.

    masks: or their `pair_overlaps`, with columns of what they have in common; note: what that is,
    the task and the sparsity for one. More than 6 masks take the width of a page.
    """
    table = masks if isinstance(masks, pd.DataFrame) else pair_overlaps(masks)
    note = note or shared(table, "task", "sparsity", "n_train", "seed")
    masks = list(dict.fromkeys(table["first"]))
    side = len(masks)
    narrow = side <= 6
    values = 100 * table.overlap.to_numpy().reshape(side, side)
    said = [f"{100 * row.overlap:.0f}\n({100 * row.chance:.0f})" for row in table.itertuples()]
    cells = np.array(said).reshape(side, side)
    fig = grid.plain(column_width() if narrow else page_width(), 0.7 + 0.3 * side)
    ax = fig.subplots()
    colours = {"cmap": "cividis", "vmin": 0, "vmax": 100, "cbar": False}
    sns.heatmap(values, annot=cells, fmt="", annot_kws={"size": 6}, ax=ax, **colours)
    # Names once, at the rows, for a column would be as wide as its name.
    lines = [name.replace(", ", ",\n", 1) if narrow else name for name in masks]
    names = [f"{name}  {i}" for i, name in enumerate(lines, 1)]
    ax.set_xticks(np.arange(side) + 0.5, [str(i) for i in range(1, side + 1)])
    ax.set_yticks(np.arange(side) + 0.5, names, fontsize=6 if narrow else 7, rotation=0)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    fig.suptitle(
        f"{note}\noverlap of masks (Jaccard, %); in brackets: by chance".strip(), fontsize=7
    )
    return fig


def pair_overlaps(masks: Mapping[str, Mask]) -> pd.DataFrame:
    """Overlap of each two masks of one network, and that of chance with their densities by layer.
    Columns: first, second, overlap, chance."""
    rows = [
        [first, second, a.overlap(b), a.chance(b)]
        for first, a in masks.items()
        for second, b in masks.items()
    ]
    return pd.DataFrame(rows, columns=["first", "second", "overlap", "chance"])


def overlay(natural: Tensor, robust: Tensor) -> np.ndarray:
    """Two masks [O, I, K, K] as one image [O' K, I' K] of 0 neither, 1 natural, 2 robust, 3 both.

    O' and I' are O and I, but CHANNELS at most.
    """
    return _sheet(natural.int() + 2 * robust.int())


def _sheet(kernels: Tensor) -> np.ndarray:
    few = kernels[:CHANNELS, :CHANNELS]
    o, i, kh, kw = few.shape
    return few.permute(0, 2, 1, 3).reshape(o * kh, i * kw).numpy()


def _cut(mask: Tensor) -> str:
    drawn = " × ".join(str(min(n, CHANNELS)) for n in mask.shape[:2])
    whole = " × ".join(map(str, mask.shape[:2]))
    return "" if drawn == whole else f" (the first {drawn} of {whole} channels)"


def _of(rows: pd.DataFrame) -> str:
    """Where the tickets of rows come from, as far as the rows tell."""
    return f"tickets of {said}" if (said := shared(rows, "source", "seed", "scope")) else ""


def _by_layer(rows: pd.DataFrame) -> tuple[Figure, grid.Cells]:
    """Panels over the layers of a network: a row a sparsity, a column for each `what` of the
    rows."""
    names = list(dict.fromkeys(rows.layer))
    title = rows.what.where(rows.sparsity == rows.sparsity.min(), "")
    ylabel = "sparsity " + rows.sparsity.map("{:g}".format)
    rows = rows.assign(x=rows.layer.map(names.index), title=title, ylabel=ylabel)
    size = page_width(), 1.5 + 1.15 * rows.sparsity.nunique()
    fig, cells = grid.facets(rows, *size, "sparsity", "what", sharey=False)
    for ax, _ in cells:
        _layer_axis(ax, names)
    return fig, cells


def _layer_axis(ax: Axes, layers: Sequence[str]) -> None:
    every = -(-len(layers) // 24)
    names = [name.removesuffix(".weight") for name in layers[::every]]
    ax.set_xticks(range(0, len(layers), every), names, rotation=90, fontsize=6)
    ax.grid(axis="x", visible=False)
