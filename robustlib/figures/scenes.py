"""Figures of dense prediction: scenes with what networks make of their pixels, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from robustlib.figures.ablations import beside, single
from robustlib.figures.style import (
    COLUMN,
    PAGE,
    labelled,
    legend,
    looks,
    panels,
    shared,
    style,
    written,
)

IGNORED = "#FFFFFF"


def scenes(
    images: Tensor,
    masks: Tensor,
    predicted: Mapping[str, Tensor],
    class_names: Sequence[str],
    ignore: int = 255,
) -> Figure:
    """Images, their masks, and what each network predicts, a row each; white has no class.

    images: uint8 [N, H, W, 3]; masks, predicted: integers [N, H, W], labels of class_names.
    """
    rows = {"image": images, "truth": masks, **predicted}
    n, (high, wide) = len(images), images.shape[1:3]
    # 60 colours: VOC has 21 classes, and twenty would give two of them one.
    colours = [c for name in ("tab20", "tab20b", "tab20c") for c in colormaps[name].colors]
    shown = [colours[i % len(colours)] for i in range(len(class_names))]
    known = ListedColormap(shown).with_extremes(bad=IGNORED)
    height = len(rows) * (PAGE / n * high / wide + 0.08) + 0.5
    labels = [masks, *predicted.values()]
    present = [i for i in range(len(class_names)) if any(bool((m == i).any()) for m in labels)]
    with style(class_names):
        fig, grid = panels(len(rows), n, PAGE, height)
        for line, (name, pictures) in zip(grid, rows.items(), strict=True):
            for ax, picture in zip(line, pictures, strict=True):
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                if name == "image":
                    ax.imshow(picture.numpy())
                    continue
                labels = np.ma.masked_equal(picture.numpy(), ignore)
                ax.imshow(
                    labels,
                    cmap=known,
                    vmin=-0.5,
                    vmax=len(class_names) - 0.5,
                    interpolation="nearest",
                )
            line[0].set_ylabel(name)
        patches = [Patch(fc=known(i), label=written(class_names[i])) for i in present]
        fig.legend(handles=patches, loc="outside upper center", ncols=6)
    return fig


def by_class(frame: pd.DataFrame) -> Figure:
    """IoU of each class, natural against robust, one panel for each sparsity.

    frame: a row for each network and class, with the columns of its Transfer, name (of the class)
    and iou. Small dots are the seeds, large ones their means. Raises ValueError for rows that
    differ in what has no place here, the task for one.
    """
    single(frame, "task", "arch", "n_train", "scheme", "pattern", "scope")
    rows = labelled(frame)
    rows = rows.assign(place=rows["name"].map(written))
    places = list(dict.fromkeys(rows.place))
    colours = looks(rows.sort_values(["objective", "eps"]).label)
    sparsities = sorted(rows.sparsity.unique())
    with style(rows["name"].unique()):
        size = PAGE if len(places) > 6 else COLUMN, 1.2 + 1.2 * len(sparsities)
        fig, grid = panels(len(sparsities), 1, *size, sharex=True, sharey=True)
        for (ax,), sparsity in zip(grid, sparsities, strict=True):
            here = rows[rows.sparsity == sparsity]
            beside(ax, here, "iou", colours, "place", places)
            ax.set(title=f"sparsity {sparsity:g}", ylim=(-2, 102))
            ax.set_ylabel("IoU (%)")
        whose = shared(rows, "task", "seed")
        legend(fig, colours, f"{whose}\nsmall dots: single seeds; large: their means")
    return fig
