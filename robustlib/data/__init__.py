"""Data sets as in-memory uint8 tensors, by name, and the batches made from them."""

from robustlib.data.loading import load
from robustlib.data.segmentation import Segmentation, load_segmentation
from robustlib.data.splits import Dataset, MaskSplit, Split

__all__ = ["Dataset", "MaskSplit", "Segmentation", "Split", "load", "load_segmentation"]
