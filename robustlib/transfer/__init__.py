"""Transfer: what a ticket is worth on a downstream task."""

from robustlib.transfer.finetune import finetune
from robustlib.transfer.linear import linear
from robustlib.transfer.segment import segment

__all__ = ["finetune", "linear", "segment"]
