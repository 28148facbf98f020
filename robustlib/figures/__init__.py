"""Figures: each a function from rows or plain data to a matplotlib Figure; `save` writes one.

`verdict`, `robustness`, `overlap`, `correlation` and `saved` say in a sentence what the rows of a
figure hold.
"""

# ruff: noqa: F401 (what is imported here is offered here)
from robustlib.figures.ablations import (
    by_drawing,
    by_mask,
    by_pretraining,
    drawing,
    gap,
    gap_rows,
    mask_rows,
)
from robustlib.figures.edge import channels, choice, edge, saved
from robustlib.figures.names import NotDrawn, called, label
from robustlib.figures.networks import (
    adversarial_examples,
    attacked,
    attacked_rows,
    by_class,
    curves,
    robust_accuracy,
    scenes,
)
from robustlib.figures.paper import FIGURES, caption, folder, read, save, section, stored, write
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
    correlation,
    detail,
    miou_vs_sparsity,
    overlap,
    robustness,
    verdict,
)
from robustlib.figures.style import START, VENUES, looks, venue
from robustlib.figures.tickets import (
    filters,
    layer_density,
    mask_overlap,
    masks,
    overlaps,
    overlay,
    pair_overlaps,
    patterns,
)

__all__ = [name for name, value in list(globals().items()) if callable(value)]
