"""Figures: each a function from rows or plain data to a matplotlib Figure; `save` writes one.

`verdict`, `robustness`, `overlap` and `saved` say in a sentence what the rows of a figure hold.
"""

from __future__ import annotations

from robustlib.figures.ablations import by_mask, by_pretraining, gap, gap_rows, mask_rows
from robustlib.figures.drawings import by_drawing, drawing
from robustlib.figures.edge import channels, edge, saved
from robustlib.figures.networks import adversarial_examples, curves, robust_accuracy
from robustlib.figures.properties import (
    certified,
    corruptions,
    layers,
    properties,
    property_rows,
    property_table,
    reliability,
    table_rows,
)
from robustlib.figures.results import (
    accuracy_vs_labels,
    accuracy_vs_sparsity,
    advantage,
    advantage_vs_labels,
)
from robustlib.figures.scenes import by_class, scenes
from robustlib.figures.style import folder, label, looks, save, section
from robustlib.figures.tickets import (
    START,
    filters,
    layer_density,
    mask_overlap,
    masks,
    overlaps,
    overlay,
    pair_overlaps,
    patterns,
)
from robustlib.figures.words import overlap, robustness, verdict

__all__ = [
    "START",
    "accuracy_vs_labels",
    "accuracy_vs_sparsity",
    "adversarial_examples",
    "advantage",
    "advantage_vs_labels",
    "by_class",
    "by_drawing",
    "by_mask",
    "by_pretraining",
    "certified",
    "channels",
    "corruptions",
    "curves",
    "drawing",
    "edge",
    "filters",
    "folder",
    "gap",
    "gap_rows",
    "label",
    "layer_density",
    "layers",
    "looks",
    "mask_overlap",
    "mask_rows",
    "masks",
    "overlap",
    "overlaps",
    "overlay",
    "pair_overlaps",
    "patterns",
    "properties",
    "property_rows",
    "property_table",
    "reliability",
    "robust_accuracy",
    "robustness",
    "save",
    "saved",
    "scenes",
    "section",
    "table_rows",
    "verdict",
]
