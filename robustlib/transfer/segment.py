"""Segmentation: all weights of a ticket are trained to label every pixel."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib import heads, training
from robustlib.data import Dataset, batches
from robustlib.data.splits import FileSplit, Split
from robustlib.models import ResNet
from robustlib.objectives import pixelwise
from robustlib.specs import Transfer, number

RESAMPLES = 2_000


def segment(
    model: ResNet, data: Dataset, spec: Transfer, checkpoint: Path | None = None
) -> tuple[heads.Segmenter, dict[str, Any]]:
    """Trains a ticket with a fresh head (see `heads.segmenter`) on the task's training masks.

    model: the ticket's network, its mask applied, trained in place. Returns the network it is the
    backbone of, removed weights exactly zero, and for val and test the `measures`, named
    `val_miou`, ..., and `val_confusion`, ...: the counts of each image [N, K, K]; and the curve.
    """
    with torch.random.fork_rng():
        torch.manual_seed(batches.seed_for(spec.seed, "head"))
        network = heads.segmenter(model, data.n_classes, spec.head)
    curve = training.fit(
        network, data.train, pixelwise(data.ignore), spec, checkpoint=checkpoint, label="segment"
    )
    found: dict[str, Any] = {}
    for name, split in (("val", data.val), ("test", data.test)):
        counts = confusions(network, split, data.n_classes, data.ignore)
        found |= {f"{name}_{k}": v for k, v in (measures(counts) | {"confusion": counts}).items()}
    return network, found | {"curve": curve}


def confusions(
    model: nn.Module, split: Split | FileSplit, n_classes: int, ignore: int, batch_size: int = 16
) -> Tensor:
    """How many pixels of each image have class i and are predicted as j: [N, K, K] int32, on the
    CPU. Pixels labelled `ignore` are not counted."""
    counts = []
    for label, mask in zip(predicted(model, split, batch_size), split.y, strict=True):
        pairs = (mask.long() * n_classes + label)[mask != ignore]
        counts.append(torch.bincount(pairs, minlength=n_classes**2).view(n_classes, n_classes))
    return torch.stack(counts).to(torch.int32)


def predicted(model: nn.Module, split: Split | FileSplit, batch_size: int = 16) -> Tensor:
    """The label that the network gives each pixel of a split: uint8 [N, H, W], on the CPU."""
    with training.inference(model) as where:
        images = batches.ordered(split, batch_size, device=where)
        return torch.cat([model(x).argmax(1).to("cpu", torch.uint8) for x, _ in images])


def measures(confusion: Tensor) -> dict[str, Any]:
    """What counts [N, K, K] of a split's images (`confusions`) say, pixels of all together.

    iou: by class, true positives / (true positives + false positives + false negatives), None
    where no pixel has that class. miou: the mean over the classes that some pixel has.
    pixel_accuracy: the fraction of labelled pixels that are right. n: images.
    """
    total = confusion.sum(0).double().numpy()
    pairs = zip(_iou(total), total.sum(1), strict=True)
    return {
        "miou": float(_mean_iou(total)),
        "iou": [float(v) if n > 0 else None for v, n in pairs],
        "pixel_accuracy": float(np.trace(total) / total.sum()),
        "n": len(confusion),
    }


def iou_interval(
    confusion: Tensor, level: float = 0.95, seed: int = 0, minus: Tensor | None = None
) -> tuple[float, float, float]:
    """Mean IoU and its BCa bootstrap interval over images (Efron, 1987): (mean IoU, low, high).

    confusion: counts [N, K, K], as of `confusions`. minus: those of another network on the same
    images, for the difference of the two mean IoUs on the same resampled images. Images are
    resampled, not pixels, which are far from independent; so are frames of one drive, for which the
    interval is too narrow. A resample without some class is a mean over the others. Low and high
    are nan with fewer than two images that have a labelled pixel. Raises ValueError when `minus` is
    of other images.
    """
    from scipy import stats

    level = number("level", level, 0.5, 1, open_high=True)
    networks = [confusion] if minus is None else [confusion, minus]
    if any(not torch.equal(c.sum(-1), confusion.sum(-1)) for c in networks):
        raise ValueError("minus: its images have other labels; it must be of the same images")
    sign = np.array([1.0, -1.0])[: len(networks)]
    counts = torch.stack(networks, 1).double().numpy()
    # A resample of images without a label would have no mean.
    counts = counts[counts.sum((1, 2, 3)) > 0]
    n, shape = len(counts), counts.shape[1:]
    if n < 2:
        return float(_mean_iou(counts[0]) @ sign) if n else math.nan, math.nan, math.nan
    total = counts.sum(0)
    value = float(_mean_iou(total) @ sign)
    # BCa divides by it; where it is zero, the interval is of percentiles.
    spread = np.ptp(_mean_iou(total - counts) @ sign)
    flat = counts.reshape(n, -1)

    def of_images(rows: np.ndarray, axis: int) -> np.ndarray:
        times = np.apply_along_axis(np.bincount, axis, rows, minlength=n)
        return _mean_iou((times @ flat).reshape(*times.shape[:-1], *shape)) @ sign

    found = stats.bootstrap(
        (np.arange(n),),
        of_images,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="BCa" if spread > 1e-12 else "percentile",
        random_state=np.random.default_rng(seed),
    )
    low, high = map(float, found.confidence_interval)
    return value, low, high


def _iou(total: np.ndarray) -> np.ndarray:
    """IoU [..., K] of counts [..., K, K]; 0 where a class neither occurs nor is predicted."""
    right = np.diagonal(total, axis1=-2, axis2=-1)
    either = total.sum(-1) + total.sum(-2) - right
    return right / np.maximum(either, 1)


def _mean_iou(total: np.ndarray) -> np.ndarray:
    """The mean of `_iou` over the classes that occur: [...]; nan if none does."""
    occurs = total.sum(-1) > 0
    return (_iou(total) * occurs).sum(-1) / occurs.sum(-1)
