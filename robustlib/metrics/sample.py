"""Which images of a split a measure looks at: the same for every network and every seed."""

from typing import Any

import numpy as np
import torch

from robustlib.data import files
from robustlib.data.splits import FileSplit, Split, seed_for, take

Row = dict[str, float | int]
Table = list[dict[str, Any]]
Measured = tuple[Row, dict[str, Table]]
"""What a suite returns: its row, and its tables by name."""


def sample(split: Split | FileSplit, limit: int | None = None) -> Split | FileSplit:
    """At most `limit` images of a split, in the order they have in it; all of them for None.

    Drawn at random, since splits may be sorted by class, by a seed that is fixed, so that networks
    are compared on the same images; a smaller draw is part of every larger one.
    """
    if limit is None or limit >= len(split):
        return split
    order = np.random.default_rng(seed_for("measured")).permutation(len(split))
    return take(split, np.sort(order[:limit]))


def in_memory(split: Split | FileSplit) -> Split:
    """The split with its images decoded; itself if they are."""
    if isinstance(split, Split):
        return split
    rows = torch.arange(len(split)).split(500)
    return Split(torch.cat([x for x, _ in files.stream(split, rows)]), split.y)
