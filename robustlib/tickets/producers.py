"""Which convolution a norm is fed by, found by tracing the model (torch.fx)."""

import inspect
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from robustlib.tickets.mask import prunable

_CHANNELWISE = frozenset(
    "relu leakyrelu prelu rrelu elu celu selu gelu silu mish hardswish hardtanh tanh softsign "
    "tanhshrink hardshrink softshrink threshold sigmoid hardsigmoid logsigmoid softplus clamp "
    "identity dropout featuredropout alphadropout featurealphadropout instancenorm maxpool avgpool "
    "lppool fractionalmaxpool adaptiveavgpool adaptivemaxpool upsample interpolate pad zeropad "
    "constantpad reflectionpad replicationpad circularpad flatten contiguous clone detach float "
    "double half bfloat to add iadd sub isub mul imul truediv itruediv div neg abs".split()
)
"""Modules, functions and methods that keep the channels apart, as `_kind` writes them. An image
that is flattened has as many features as channels only where one pixel is left of it."""

_MIXED = "several"
_FUNCTIONS = frozenset({"batchnorm", "groupnorm", "layernorm", "rmsnorm"})


@dataclass(frozen=True)
class Producers:
    """What the convolutions of a model feed; they are named by their weights, as in a mask."""

    norms: dict[str, list[str]] = field(default_factory=dict)
    """The norms that each alone feeds, with a scale and a shift for each of its channels."""
    alone: frozenset[str] = frozenset()
    """Those that feed these norms and nothing else: a channel is silent where its scale and shift
    are zero, and no other channel feels it (as in the groups of GroupNorm)."""
    left: list[str] = field(default_factory=list)
    """Norms that a convolution feeds, or may feed, and that are listed with none."""
    why: str = ""
    """What they are left for."""


def producers(model: nn.Module) -> Producers:
    """Finds the norms (BatchNorm, InstanceNorm, GroupNorm) that one convolution alone feeds,
    directly or through what keeps channels apart (activations, pooling, another norm).

    Left are norms that several convolutions feed (of a sum or a concatenation), that have no scale
    and shift for each channel (LayerNorm), and all of a model that cannot be traced.
    """
    weights = {id(p): name for name, p in prunable(model).items()}
    norms = {m: name for name, m in model.named_modules() if _is_norm(m)}
    if not norms:
        return Producers()
    taken = list(inspect.signature(model.forward).parameters.values())[1:]
    given = {p.name: p.default for p in taken if p.default is not p.empty}
    try:
        with torch.random.fork_rng(devices=[]):
            graph = _Tracer().trace(model, given or None)
    except Exception as e:  # noqa: BLE001 - what the model's own code raises on no tensor
        why = f"the model cannot be traced: {type(e).__name__}: {str(e).split(chr(10))[0]}"
        return Producers(left=list(norms.values()), why=why)
    source: dict[fx.Node, str | None] = {}
    fed: dict[nn.Module, set[str | None]] = defaultdict(set)
    width: dict[str | None, int] = {}
    called = {n: model.get_submodule(n.target) for n in graph.nodes if n.op == "call_module"}
    functions = []
    for node in graph.nodes:
        feeding = {source[n] for n in node.all_input_nodes} - {None}
        one = (feeding.pop() if len(feeding) == 1 else _MIXED) if feeding else None
        source[node] = one
        module = called.get(node)
        kind = _kind(node, module)
        if isinstance(module, _ConvNd):
            source[node] = weights[id(module.weight)]
            width[source[node]] = module.out_channels
        elif module is not None and module in norms:
            fed[module].add(one)
            if one is not None and not _fits(module, width.get(one)):
                source[node] = _MIXED
        elif kind == "linear":
            source[node] = None
        elif one is not None and kind not in _CHANNELWISE:
            source[node] = _MIXED
            functions += [node.name] if kind in _FUNCTIONS else []
    after: dict[str, list[str]] = defaultdict(list)
    for norm, name in norms.items():
        layer = next(iter(fed[norm])) if len(fed[norm]) == 1 else None
        if layer is not None and _fits(norm, width.get(layer)):
            after[layer].append(name)
    paired = {name for names in after.values() for name in names}
    left = [name for m, name in norms.items() if name not in paired and fed[m] != {None}]
    shared = {
        source[node]
        for node, module in called.items()
        if isinstance(module, _ConvNd)
        for user in node.users
        if norms.get(called.get(user)) not in paired or isinstance(called[user], nn.GroupNorm)
    }
    why = "each is fed by several, or reached by no trace, or has no scale and shift a channel"
    return Producers(dict(after), frozenset(set(after) - shared), left + functions, why)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return isinstance(m, _ConvNd) or _is_norm(m) or super().is_leaf_module(m, name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        # Past hooks, and past what Module.compile puts before the forward.
        return super().call_module(m, m.forward, args, kwargs)


def _is_norm(m: nn.Module) -> bool:
    """Whether a channel that is zero may come out of it as another constant. By its name too: norms
    of other libraries, such as torchvision's LayerNorm2d and FrozenBatchNorm2d."""
    if isinstance(m, nn.modules.instancenorm._InstanceNorm):
        return m.affine or m.track_running_stats
    other = "Norm" in type(m).__name__ and not any(m.children()) and bool(m.state_dict())
    return isinstance(m, _NormBase) or other


def _fits(norm: nn.Module, channels: int | None) -> bool:
    """Whether it has a scale and a shift, parameters, for each of so many channels."""
    if not isinstance(norm, _NormBase | nn.GroupNorm):
        return False
    own = [norm._parameters.get(part) for part in ("weight", "bias")]
    return all(p is not None and p.shape == (channels,) for p in own)


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    """What a node computes, in one word: relu for nn.ReLU, F.relu6 and Tensor.relu_."""
    name = type(module).__name__ if module is not None else node.target
    name = name if isinstance(name, str) else getattr(name, "__name__", str(name))
    return re.sub(r"_|\d+d?", "", name.lower())
