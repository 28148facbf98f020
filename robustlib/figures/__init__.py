"""Figures: each a function from rows or plain data to a matplotlib Figure; `save` writes one."""

from __future__ import annotations

from robustlib.figures.results import accuracy_vs_sparsity, advantage
from robustlib.figures.style import label, looks, save

__all__ = ["accuracy_vs_sparsity", "advantage", "label", "looks", "save"]
