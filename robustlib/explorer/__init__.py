"""The dashboard: widgets over everything that is stored, each a `Panel` to put last in a cell.

`tradeoff`, `ticket`, `attack` and `runner` are the parts of notebook 00; `masks` and `transfers`
look at what a notebook has at hand.
"""

from __future__ import annotations

from robustlib.explorer.background import runner
from robustlib.explorer.networks import attack, masks, ticket
from robustlib.explorer.panel import Panel
from robustlib.explorer.tradeoff import tradeoff, transfers

__all__ = ["Panel", "attack", "masks", "runner", "ticket", "tradeoff", "transfers"]
