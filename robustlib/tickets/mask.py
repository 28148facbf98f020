"""A mask: which weights of a network are kept."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
    """The weights that a ticket may remove, by name: those of convolutions of one to three
    dimensions, transposed ones, stem and downsample included; never biases, norms or the head.
    Weights that layers share are listed once. A convolution is a module of torch.nn, or derived
    from one: what a forward computes by torch.nn.functional is not seen.

    Raises ValueError, naming layer and cure, for a convolution whose weight is computed from others
    (weight_norm and its kind) or not made yet (lazy), and for a model that is wrapped.
    """
    _must_be_bare(model)
    layers = ((n, m) for n, m in model.named_modules() if isinstance(m, _ConvNd))
    convolutions = {id(parameter(m, "weight", name)) for name, m in layers}
    return {name: p for name, p in model.named_parameters() if id(p) in convolutions}


def parameter(layer: nn.Module, part: str, name: str) -> nn.Parameter:
    """A layer's `weight` or `bias`. Raises ValueError, naming the cure, where it is no parameter
    that a mask could hold at zero. name: that of the layer."""
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
    utils = ", by torch.nn.utils."
    if parametrize.is_parametrized(layer, part):
        return f"{utils}parametrize.remove_parametrizations(layer, '{part}')"
    for hook in layer._forward_pre_hooks.values():
        for kind, cure in _CURES.items():
            if isinstance(hook, kind):
                return utils + cure.format(part=part)
    return ""


def _must_be_bare(model: nn.Module) -> None:
    """Raises ValueError for a model that is wrapped, or has a part that is: its parameters have
    other names than those of the network. Says where the network is."""
    for name, m in model.named_modules():
        where = f"model.{name}".rstrip(".")
        if isinstance(m, torch.jit.ScriptModule):
            raise ValueError(f"{where}: is scripted; give the module that it was made from")
        inside, inner = where, m
        while attribute := _inner(inner):
            inside, inner = f"{inside}.{attribute}", getattr(inner, attribute)
        if inner is not m:
            raise ValueError(
                f"{where}: is wrapped ({type(m).__name__}), so its parameters have other names; "
                f"unwrap it: {'give' if m is model else 'put in its place'} {inside}"
            )


def _inner(module: nn.Module) -> str | None:
    return next((_INNER[c.__name__] for c in type(module).__mro__ if c.__name__ in _INNER), None)


class Mask(Mapping[str, Tensor]):
    """From parameter name, such as `layer1.0.conv1.weight`, to a boolean tensor, True = kept.

    Refuses anything but boolean tensors (ValueError names the parameter). Immutable by
    convention: build a new one rather than write into its tensors. Two masks are equal when they
    keep the same weights of the same parameters.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        for name, m in kept.items():
            if not isinstance(m, Tensor) or m.dtype != torch.bool:
                got = m.dtype if isinstance(m, Tensor) else type(m).__name__
                raise ValueError(f"mask of {name}: got {got}, must be a tensor of torch.bool")
        self._kept = {name: m.detach().cpu() for name, m in kept.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        # Mapping's own would ask a tensor of comparisons for its truth.
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(
            torch.equal(m, other[n]) for n, m in self.items()
        )

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

        Two random masks of one density d overlap in d / (2 - d).
        """
        self._must_match({n: m.shape for n, m in other.items()}, "the other mask")
        both = sum(int((m & other[n]).sum()) for n, m in self.items())
        either = sum(int((m | other[n]).sum()) for n, m in self.items())
        return both / either if either else 1.0

    def chance(self, other: Mask) -> float:
        """What `overlap` would be, about, of random masks that keep as much in every layer."""
        self._must_match({n: m.shape for n, m in other.items()}, "the other mask")
        kept = [(int(m.sum()), int(other[n].sum()), m.numel()) for n, m in self.items()]
        both = sum(a * b / of for a, b, of in kept)
        either = sum(a + b for a, b, _ in kept) - both
        return both / either if either else 1.0

    def apply(self, model: nn.Module) -> nn.Module:
        """Zeroes the removed weights in place and keeps them at zero; returns the model.

        The gradient of a removed weight is zeroed as it arrives, so that momentum and weight decay
        have nothing to act on and any optimizer leaves it at exactly zero; so does loading a state
        dict that has other values there. The optimizer must be new: one that has moved the weight
        before may go on by its momentum. A copy of the model (copy.deepcopy) does not carry this:
        apply the mask to the copy.
        Raises ValueError when the model lacks a masked parameter, has it in another shape or
        computes it from others, and when the model is wrapped (by DataParallel, torch.compile).
        """
        _must_be_bare(model)
        owned = dict(model.named_parameters())
        if not self.keys() <= owned.keys():
            prunable(model)  # says more, if it is reparametrised
        self._must_match({n: p.shape for n, p in owned.items()}, "the model", subset=True)
        self._zero(model)
        for name, m in self.items():
            p = owned[name]
            kept = m.to(p.device)
            trained = p.requires_grad
            # Frozen weights take no hook, and may be trained later.
            p.requires_grad_(True)
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

    def save(self, path: str | Path) -> None:
        """Writes the mask as a safetensors file of 1 bit a weight, with its checksum."""
        bits, shapes = pack(self)
        notes = {"shapes": json.dumps(shapes)}
        notes["sha256"] = _digest(bits, notes["shapes"])
        staged = Path(f"{path}.staged-{os.getpid()}")
        try:
            save_file(bits, staged, notes)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Mask:
        """The mask that `save` wrote. Raises ValueError for a file that is none, or is damaged."""
        try:
            with safe_open(path, "pt") as file:
                notes = file.metadata() or {}
                bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shapes = json.loads(notes["shapes"])
            if notes["sha256"] != _digest(bits, notes["shapes"]):
                raise ValueError("its checksum is another")
            return unpack(bits, shapes)
        except FileNotFoundError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, OSError) as e:
            raise ValueError(f"{path}: is not the file of a mask, or is damaged: {e}") from None

    def _must_match(self, shapes: Mapping[str, tuple], what: str, subset: bool = False) -> None:
        for name, m in self.items():
            if name not in shapes:
                raise ValueError(f"mask of {name}: {what} has no such parameter")
            if tuple(shapes[name]) != tuple(m.shape):
                raise ValueError(
                    f"mask of {name}: shape {tuple(m.shape)}, {what} has {tuple(shapes[name])}"
                )
        extra = set(shapes) - set(self)
        if extra and not subset:
            raise ValueError(f"mask of {min(extra)}: only {what} has it")


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


def _digest(bits: Mapping[str, Tensor], shapes: str) -> str:
    digest = hashlib.sha256(shapes.encode())
    for name in sorted(bits):
        digest.update(name.encode() + b"\0" + bits[name].numpy().tobytes())
    return digest.hexdigest()
