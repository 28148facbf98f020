"""Tickets: which weights of a pretrained network are kept, and how that is decided."""

from robustlib.tickets.learned import lmp
from robustlib.tickets.magnitude import dense, imp_round, omp, random
from robustlib.tickets.mask import Mask, pack, prunable, unpack
from robustlib.tickets.patterns import left_dense, masked, shuffled

__all__ = ["Mask", "dense", "imp_round", "left_dense", "lmp", "masked", "omp", "pack"]
__all__ += ["prunable", "random", "shuffled", "unpack"]
