"""A mask: which weights of a network are kept."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "_FabricModule": "module",
    "OptimizedModule": "_orig_mod",
}
"""Where a wrapper, by the name of its class, keeps the module that it wraps. By name, for to import
what torch.compile makes takes seconds."""

_CURES = {
    WeightNorm: "remove_weight_norm(layer)",
    SpectralNorm: "remove_spectral_norm(layer)",
    BasePruningMethod: "prune.remove(layer, '{part}')",
}
"""What undoes a hook of torch.nn.utils that computes a parameter anew before each forward pass."""


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that a ticket may remove, by name: those of `torch.nn` convolutions of any kind,
    stem and downsample included; never biases, norms or the head. Shared weights are listed once.

    Raises ValueError, naming layer and cure, for a weight that is computed from others (weight_norm
    and its kind) or not made yet (lazy), and for a model that is wrapped.
    """
    _must_be_bare(model)
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, _ConvNd))
    convolutions = {id(parameter(m, "weight", name)) for name, m in layers}
    return {name: p for name, p in model.named_parameters() if id(p) in convolutions}


def parameter(layer: nn.Module, part: str, name: str) -> nn.Parameter:
    """The `weight` or `bias` of the layer of that name. Raises ValueError, naming the cure, where
    it is no parameter that a mask could hold at zero."""
    p = layer._parameters.get(part)
    at = f"{name}.{part}".lstrip(".")
    if p is None:
        raise ValueError(
            f"{at}: is computed from other tensors ({type(layer).__name__}), so a mask cannot hold "
            f"it at zero; make it a parameter of its own{_cure(layer, part)}"
        )
    if is_lazy(p):
        raise ValueError(f"{at}: has no shape yet; run an input through the model first")
    return p


def _cure(layer: nn.Module, part: str) -> str:
    hooks = layer._forward_pre_hooks.values()
    cures = [cure for hook in hooks for kind, cure in _CURES.items() if isinstance(hook, kind)]
    if parametrize.is_parametrized(layer, part):
        cures = ["parametrize.remove_parametrizations(layer, '{part}')"]
    return f", by torch.nn.utils.{cures[0].format(part=part)}" if cures else ""


def _must_be_bare(model: nn.Module) -> None:
    """Raises ValueError, saying where the network is, for a model that is wrapped in whole or part:
    its parameters have other names than those of the network."""
    for name, m in model.named_modules():
        where = inside = f"model.{name}".rstrip(".")
        if isinstance(m, torch.jit.ScriptModule):
            raise ValueError(f"{where}: is scripted; give the module that it was made from")
        inner = m
        while attributes := [_INNER[c.__name__] for c in type(inner).mro() if c.__name__ in _INNER]:
            inside, inner = f"{inside}.{attributes[0]}", getattr(inner, attributes[0])
        if inner is not m:
            raise ValueError(
                f"{where}: is wrapped ({type(m).__name__}), so its parameters have other names; "
                f"unwrap it: {'give' if m is model else 'put in its place'} {inside}"
            )


class Mask(UserDict[str, Tensor]):  # noqa: PLW1641 - as a dict it has no hash
    """From parameter name, such as `layer1.0.conv1.weight`, to a boolean tensor, True = kept; of
    anything else a ValueError. Immutable by convention: build a new one rather than write into its
    tensors. Masks are equal when they keep the same weights."""

    def __setitem__(self, name: str, m: Tensor) -> None:
        if not isinstance(m, Tensor) or m.dtype != torch.bool:
            got = m.dtype if isinstance(m, Tensor) else type(m).__name__
            raise ValueError(f"mask of {name}: got {got}, must be a tensor of torch.bool")
        super().__setitem__(name, m.detach().cpu())

    def __eq__(self, other: object) -> bool:
        # A dict's own would ask a tensor of comparisons for its truth.
        if not isinstance(other, Mask) or self.keys() != other.keys():
            return False
        return all(torch.equal(m, other[n]) for n, m in self.items())

    def __repr__(self) -> str:
        return f"Mask({len(self)} layers, sparsity {self.sparsity:.4f})"

    @property
    def sparsity(self) -> float:
        """The fraction of prunable weights removed, as counted."""
        total = sum(m.numel() for m in self.values())
        return 1 - sum(int(m.sum()) for m in self.values()) / max(1, total)

    def density(self) -> dict[str, float]:
        """The fraction kept, by layer."""
        return {name: float(m.float().mean()) for name, m in self.items()}

    def overlap(self, other: Mask) -> float:
        """Jaccard index of the kept sets: kept in both / kept in either; 1.0 for two empty ones.
        Two random masks of one density d overlap in d / (2 - d)."""
        return self._jaccard(other, lambda a, b: int((a & b).sum()))

    def chance(self, other: Mask) -> float:
        """What `overlap` would be, about, of random masks that keep as much in every layer."""
        return self._jaccard(other, lambda a, b: int(a.sum()) * int(b.sum()) / a.numel())

    def _jaccard(self, other: Mask, common: Callable[[Tensor, Tensor], float]) -> float:
        self._must_match(other, "the other mask")
        if extra := other.keys() - self.keys():
            raise ValueError(f"mask of {min(extra)}: only the other mask has it")
        both = sum(common(m, other[n]) for n, m in self.items())
        either = sum(int(m.sum()) + int(other[n].sum()) for n, m in self.items()) - both
        return both / either if either else 1.0

    def apply(self, model: nn.Module) -> nn.Module:
        """Zeroes the removed weights in place and keeps them at zero; returns the model.

        The gradient of a removed weight is zeroed as it arrives, so momentum and weight decay have
        nothing to act on and any new optimizer leaves it at exactly zero; so does loading a state
        dict. A copy of the model (copy.deepcopy) needs the mask anew. Raises ValueError for a
        masked parameter that the model has not, or in another shape, or computes from others, and
        for a model that is wrapped (by DataParallel, torch.compile).
        """
        _must_be_bare(model)
        owned = dict(model.named_parameters())
        if not self.keys() <= owned.keys():
            prunable(model)  # says more, if it is reparametrised
        self._must_match(owned, "the model")
        self._zero(model)
        for name, m in self.items():
            p, kept = owned[name], m.to(owned[name].device)
            trained = p.requires_grad
            p.requires_grad_(True)  # Frozen weights take no hook, and may be trained later.
            p.register_hook(lambda grad, kept=kept: torch.where(kept.to(grad.device), grad, 0))
            p.requires_grad_(trained)
        model.register_load_state_dict_post_hook(self._zero)
        return model

    @torch.no_grad()
    def _zero(self, model: nn.Module, _loaded: object = None) -> None:
        owned = dict(model.named_parameters())
        for name, m in self.items():
            # A copy of the model carries the hook, and may have been cut to another shape.
            if name in owned and owned[name].shape == m.shape:
                # Selected, not multiplied: what is not finite times zero would be nan.
                owned[name].masked_fill_(~m.to(owned[name].device), 0)

    def _must_match(self, others: Mapping[str, Tensor], what: str) -> None:
        for name, m in self.items():
            if name not in others:
                raise ValueError(f"mask of {name}: {what} has no such parameter")
            if (shape := tuple(others[name].shape)) != tuple(m.shape):
                raise ValueError(f"mask of {name}: shape {tuple(m.shape)}, {what} has {shape}")


def pack(mask: Mask) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """A mask as bits: one uint8 tensor a layer, 8 weights a byte, and the shapes to unpack with."""
    bits = {n: torch.from_numpy(np.packbits(m.numpy().reshape(-1))) for n, m in mask.items()}
    return bits, {n: list(m.shape) for n, m in mask.items()}


def unpack(bits: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> Mask:
    """The inverse of `pack`."""
    kept = {}
    for name, shape in shapes.items():
        flat = np.unpackbits(bits[name].numpy(), count=math.prod(shape)).astype(bool)
        kept[name] = torch.from_numpy(flat.reshape(shape))
    return Mask(kept)
