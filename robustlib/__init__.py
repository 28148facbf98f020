"""Robust tickets: do subnetworks of adversarially pretrained networks transfer better?"""

from __future__ import annotations

import importlib
from typing import Any

from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer

__version__ = "0.1.0"
__all__ = ["Evaluation", "Mask", "Pretrain", "Ticket", "Transfer", "network", "run", "sweep"]

# Loaded when asked for, so that the command line answers without importing torch.
_LAZY = {
    "Mask": "robustlib.tickets",
    "network": "robustlib.stages",
    "run": "robustlib.stages",
    "sweep": "robustlib.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'robustlib' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
