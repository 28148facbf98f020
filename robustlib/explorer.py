"""Widgets: a picture in the notebook's output, and below it the controls that redraw it.

The picture is an ordinary output, so that an executed notebook shows it without a kernel. Each
function shows it and returns the controls as a box, whose `figure` is the picture as it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.figure import Figure
from torch import nn

from robustlib import figures, tickets


def masks(
    networks: Mapping[str, nn.Module], sparsity: float = 0.9, scope: str = "global"
) -> widgets.Box:
    """Where the OMP tickets of a natural and a robust network overlap, at the sparsity of a slider.

    networks: by label (`figures.label`), the first one natural, of one architecture. Masks are
    drawn by `tickets.omp` at each move. The controls are a slider and two menus, for the layer and
    for the robust network. Raises ValueError for fewer than two networks or a bad sparsity.
    """
    if len(networks) < 2:
        raise ValueError(f"networks={list(networks)}: must be a natural and at least one robust")
    natural, *robust = networks
    layers = list(tickets.omp(networks[natural], sparsity, scope=scope))
    controls = {
        "sparsity": widgets.FloatSlider(sparsity, min=0, max=0.99, step=0.01, readout_format=".2f"),
        "layer": widgets.Dropdown(options=layers, value=layers[min(1, len(layers) - 1)]),
        "robust": widgets.Dropdown(options=robust, value=robust[-1]),
    }

    def draw(sparsity: float, layer: str, robust: str) -> Figure:
        first, other = (
            tickets.omp(networks[name], sparsity, scope=scope) for name in (natural, robust)
        )
        return figures.masks(first, other, layer, robust)

    return _live(draw, controls)


def transfers(frame: pd.DataFrame) -> widgets.Box:
    """Accuracy against sparsity, or robust minus natural, for chosen tasks, modes and seeds.

    frame: rows of `sweep`. The controls are menus of the values that the rows have; nothing chosen
    in one means all of it.
    """
    pictures = {
        "accuracy": figures.accuracy_vs_sparsity,
        "robust − natural": figures.advantage,
    }
    controls = {
        column: widgets.SelectMultiple(options=values, value=values, rows=min(4, len(values)))
        for column in ("task", "mode", "seed")
        for values in [list(dict.fromkeys(frame[column]))]
    }

    def draw(picture: str, **chosen: tuple[Any, ...]) -> Figure:
        rows = frame
        for column, values in chosen.items():
            rows = rows[rows[column].isin(values)] if values else rows
        return pictures[picture](rows)

    return _live(draw, {"picture": widgets.ToggleButtons(options=list(pictures)), **controls})


def _live(draw: Callable[..., Figure], controls: Mapping[str, widgets.Widget]) -> widgets.Box:
    handle = DisplayHandle()
    for name, control in controls.items():
        control.description = name
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
    box = widgets.HBox(list(controls.values()), layout=widgets.Layout(flex_flow="row wrap"))

    def redraw(_change: Any = None) -> None:
        box.figure = draw(**{name: control.value for name, control in controls.items()})
        (handle.display if _change is None else handle.update)(box.figure)

    redraw()
    for control in controls.values():
        control.observe(redraw, "value")
    return box
