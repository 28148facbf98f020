"""Robust tickets: do subnetworks of adversarially pretrained networks transfer better?"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer

__version__ = "0.1.0"
__all__ = ["Evaluation", "Mask", "Pretrain", "Ticket", "Transfer", "network", "run", "sweep"]

# Loaded when asked for: the command line answers without torch, and what is not used costs nothing.
_LAZY = {
    **dict.fromkeys(("Evaluation", "Pretrain", "Ticket", "Transfer"), "robustlib.specs"),
    "Mask": "robustlib.tickets",
    "network": "robustlib.stages",
    "run": "robustlib.stages",
    "specs": "robustlib.specs",
    "sweep": "robustlib.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'robustlib' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
