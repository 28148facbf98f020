"""Transfer: what a ticket is worth on a downstream task."""

from pathlib import Path
from typing import Any

from robustlib import models, training
from robustlib.data import Dataset, batches
from robustlib.models import ResNet
from robustlib.objectives import Objective, natural
from robustlib.specs import Transfer
from robustlib.transfer.linear import linear
from robustlib.transfer.segment import segment

__all__ = ["finetune", "linear", "segment"]


def finetune(
    model: ResNet, data: Dataset, spec: Transfer, checkpoint: Path | None = None
) -> tuple[ResNet, dict[str, Any]]:
    """Trains a ticket's network, its mask applied, in place, with a fresh head on the task's
    training images. Returns it, removed weights exactly zero, and the measures: val_correct and
    test_correct (counts) and the curve."""
    models.swap_head(model, data.n_classes, batches.seed_for(spec.seed, "head"))
    curve = training.fit(
        model, data.train, Objective(natural), spec, checkpoint=checkpoint, label="finetune"
    )
    val, test = (training.correct(model, split) for split in (data.val, data.test))
    return model, {"val_correct": val, "test_correct": test, "curve": curve}
