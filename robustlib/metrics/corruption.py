"""Accuracy on the common corruptions of Hendrycks and Dietterich (2019), each set made once."""

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from robustlib import store, training
from robustlib.data.splits import Split, seed_for
from robustlib.metrics.distortions import CORRUPTIONS, VERSION, as_bytes, floats
from robustlib.metrics.sample import Measured, Table, in_memory, sample
from robustlib.specs import Evaluation

SEVERITIES = (1, 2, 3, 4, 5)
CHUNK_PIXELS = 500 * 32 * 32
"""How many are corrupted together; the random draws follow from it."""


def measure(model: nn.Module, data: Any, spec: Evaluation, **_: Any) -> Measured:
    """Accuracy on 15 corruptions at 5 severities.

    What they are, and where they depart from CIFAR-10-C, says `distortions`. The row: n (images),
    clean_accuracy, and corruption_accuracy, the mean over all 75. The table `corruptions`:
    `corruption`, `severity`, `accuracy` and `correct` (a count).
    """
    split = sample(data.test, spec.limit)
    table: Table = []
    for name, severity, damaged in corrupted_sets(split, spec.seed):
        right = training.correct(model, damaged)
        line = {"corruption": name, "severity": severity, "accuracy": right / len(split)}
        table.append(line | {"correct": right})
    mean = sum(line["accuracy"] for line in table) / len(table)
    clean = training.correct(model, split) / len(split)
    row = {"n": len(split), "clean_accuracy": clean, "corruption_accuracy": mean}
    return row, {"corruptions": table}


def corrupted(split: Any, name: str, severity: int, seed: int = 0) -> Split:
    """The split with every image corrupted, in the same order. `name` is one of
    `distortions.CORRUPTIONS`, severity 1 to 5; all severities of a name and seed have the same
    random draws."""
    split = in_memory(split)
    out = torch.empty(split.x.shape, dtype=torch.uint8)
    step = max(1, CHUNK_PIXELS // (split.x.shape[1] * split.x.shape[2]))
    for start in range(0, len(split), step):
        draws = torch.Generator().manual_seed(seed_for("corruption", name, seed, start))
        x = floats(split.x[start : start + step])
        out[start : start + step] = as_bytes(CORRUPTIONS[name](x, severity, draws))
    return Split(out, split.y)


def corrupted_sets(split: Any, seed: int = 0) -> Iterator[tuple[str, int, Split]]:
    """(name, severity, corrupted split) for all 75, from the store, and made for it where needed:
    every network is measured on the same ones. A file holds the 5 severities of one corruption,
    under the checksum of the images, the seed and VERSION; a damaged one is made again, with a
    warning."""
    split = in_memory(split)
    images = hashlib.sha256(repr(tuple(split.x.shape)).encode())
    images.update(split.x.contiguous().numpy())
    for name in CORRUPTIONS:
        key = repr((images.hexdigest(), name, seed, VERSION))
        x = _stored(hashlib.sha256(key.encode()).hexdigest()[:20], split, name, seed)
        for severity in SEVERITIES:
            yield name, severity, Split(x[str(severity)], split.y)


def _stored(key: str, split: Split, name: str, seed: int) -> dict[str, Tensor]:
    from safetensors.torch import load, save

    file = store.root() / "corruptions" / f"{key}.checked"
    lock = store.root() / "locks" / f"{key}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if file.exists():
            try:
                return load(store.read_checked(file))
            except store.Damaged as e:
                warnings.warn(f"{e}: it is made again", stacklevel=3)
        x = {str(s): corrupted(split, name, s, seed).x for s in SEVERITIES}
        store.write_checked(file, save(x))
    return x
