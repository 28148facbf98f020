"""Data sets as in-memory uint8 tensors, by name, and the batches made from them."""

from robustlib.data.loading import load, load_segmentation
from robustlib.data.splits import Dataset, Split

__all__ = ["Dataset", "Split", "load", "load_segmentation"]
