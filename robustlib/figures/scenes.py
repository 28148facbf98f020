"""Figures of dense prediction: scenes with what networks make of their pixels, and classes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import alike, labelled, ordered, shared
from robustlib.figures.style import column_width, looks, page_width, style, written

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
    maps: list[Any] = [colormaps[name] for name in ("tab20", "tab20b", "tab20c")]
    colours = [colour for part in maps for colour in part.colors]
    own = [colours[i % len(colours)] for i in range(len(class_names))]
    known = ListedColormap(own).with_extremes(bad=IGNORED)
    scale = {"cmap": known, "vmin": -0.5, "vmax": len(own) - 0.5}
    labels = [masks, *predicted.values()]
    present = [i for i in range(len(own)) if any(bool((m == i).any()) for m in labels)]
    with style(class_names):
        height = len(rows) * (page_width() / n * high / wide + 0.08) + 0.5
        fig, axes = grid.pictures(len(rows), n, page_width(), height)
        for line, (name, drawn) in zip(axes, rows.items(), strict=True):
            for ax, picture in zip(line, drawn.numpy(), strict=True):
                if name == "image":
                    ax.imshow(picture, interpolation="auto")
                else:
                    ax.imshow(np.ma.masked_equal(picture, ignore), **scale)
            line[0].set_ylabel(name)
        patches = [Patch(fc=known(i), label=written(class_names[i])) for i in present]
        fig.legend(handles=patches, loc="outside upper center", ncols=6)
    return fig


def by_class(frame: pd.DataFrame) -> Figure:
    """IoU of each class, natural against robust, one panel for each sparsity.

    frame: a row for each network and class, with the columns of its Transfer, name (of the class)
    and iou. Small dots are the seeds, large ones their means; bars the 95 % interval of the
    difference to natural, paired by seed. Classes that no test image has are left out. Raises
    ValueError for rows that differ in what has no place here, the task for one.
    """
    alike(frame, "task", "arch", "n_train", "scheme", "pattern", "scope")
    rows = labelled(frame.dropna(subset=["iou"]))
    names, natural = rows["name"].map(written), rows.label == "natural"
    rows["ahead"] = stats.beside(rows, natural, ["name", "sparsity", "seed"], "iou")
    title = "sparsity " + rows.sparsity.map("{:g}".format)
    x = pd.Categorical(names, names.unique())
    rows = grid.measured(rows, "iou", "ahead", x=x, title=title, line=rows.sparsity)
    colours, width = looks(ordered(rows)), page_width() if names.nunique() > 6 else column_width()
    with style(rows["name"].unique()):
        height = 1.2 + 1.2 * rows.sparsity.nunique()
        fig, _, bars = grid.panels(rows, width, height, colours, of=grid.TO_NATURAL)
        grid.legend(fig, colours, shared(rows, "task", "seed"), grid.DOTS, bars)
    return fig
