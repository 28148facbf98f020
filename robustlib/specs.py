"""The specs: frozen dataclasses that say everything about a run, with their checks and their key.

A field left at its default does not enter the key, so a new field with a default never orphans a
stored result; for the same reason a default, once released, never changes. This module does not
import torch: the command line answers from it alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, get_args

Arch = Literal["resnet10s", "resnet18s", "resnet18", "resnet50"]
Objective = Literal["natural", "pgd", "trades", "free", "smoothing"]
Norm = Literal["l2", "linf"]
Schedule = Literal["onecycle", "step"]
Augment = Literal["none", "crop", "crop-flip"]
Precision = Literal["fp32", "bf16", "fp16"]
Scheme = Literal["dense", "omp", "random"]
Pattern = Literal["unstructured"]
Scope = Literal["global", "layer"]
Mode = Literal["finetune", "linear"]

ARCHS: tuple[str, ...] = get_args(Arch)
OBJECTIVES: tuple[str, ...] = get_args(Objective)
NORMS: tuple[str, ...] = get_args(Norm)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
AUGMENTS: tuple[str, ...] = get_args(Augment)
PRECISIONS: tuple[str, ...] = get_args(Precision)
SCHEMES: tuple[str, ...] = get_args(Scheme)
PATTERNS: tuple[str, ...] = get_args(Pattern)
SCOPES: tuple[str, ...] = get_args(Scope)
MODES: tuple[str, ...] = get_args(Mode)


def shown(value: Any, limit: int | None = None) -> str:
    """`value` as an error message shows it: its repr on one line, cut where it is very long."""
    limit = limit or (200 if isinstance(value, str | bytes) else 450)
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # such as an int of over 4,300 digits, or lists nested a thousand deep
        text = f"<{type(value).__name__}, too large to show>"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """`text` on one line, what a terminal would act on escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def reason(error: BaseException, limit: int = 300) -> str:
    """What a library says is wrong, on one line and no longer than a person would read."""
    text = printable(str(error)) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def one_of(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """`value` if it is allowed; else a ValueError that names it, the near ones and all of them."""
    allowed = list(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    misspelt = isinstance(value, str) and len(value) <= 100
    near = difflib.get_close_matches(value, allowed, n=2, cutoff=0.6) if misspelt else []
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"{name}={shown(value)}{hint}: choose one of {', '.join(map(str, allowed))}")


def number(name: str, value: Any, low: float, high: float, *, open_high: bool = False) -> float:
    """`value` as a finite float in [low, high] ([low, high) if open_high); "8/255" is read too."""
    try:
        x = float(Fraction(value) if isinstance(value, str) and "/" in value else value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        x = math.nan
    fits = math.isfinite(x) and low <= x <= high and not (open_high and x == high)
    if _is_bool(value) or not fits:
        close = ")" if open_high else "]"
        raise ValueError(f"{name}={shown(value)}: must be a number in [{low:g}, {high:g}{close}")
    return x + 0.0  # -0.0 is 0.0: one experiment, one key.


def integer(name: str, value: Any, low: int, high: int = 2**31) -> int:
    """`value` as an int in [low, high]; a float with a fraction or a bool is refused."""
    whole = isinstance(value, Real) and not _is_bool(value) and value % 1 == 0
    if not whole or not low <= value <= high:
        raise ValueError(
            f"{name}={shown(value)}: must be a whole number, at least {low} and at most {high}"
        )
    return int(value)


def _is_bool(value: Any) -> bool:
    # By name: numpy's bool is meant too, and numpy need not be imported for that.
    return type(value).__name__ == "bool"


@dataclass(frozen=True)
class Pretrain:
    """A source network: what it is trained on, and against what."""

    source: str = "tinyimagenet200"
    """Name of the dataset (see `robustlib data list`)."""
    arch: Arch = "resnet10s"
    """resnet10s and resnet18s for small images, resnet18 and resnet50 for 224 px."""
    width: int = 32
    """Channels of the first stage of a small-image ResNet."""
    stem_stride: int = 2
    """Stride of the 3x3 stem of a small-image ResNet."""
    size: int = 32
    """Side of the images, in pixels."""
    n_train: int | None = None
    """Number of training images, class-balanced; None: all."""
    objective: Objective = "natural"
    """natural, or one that makes the network robust."""
    norm: Norm = "l2"
    """Norm of the attack, for pgd, trades and free."""
    eps: float = 0.0
    """Radius of the attack, in pixel units of [0, 1] images ("8/255" is read too)."""
    steps: int = 1
    """Steps of the attack; one step is fast adversarial training (Wong et al., 2020)."""
    step_size: float | None = None
    """Size of a step; None: 1.25 eps for one step, 2.5 eps / steps for more."""
    beta: float = 6.0
    """Weight of the robust term of trades."""
    replays: int = 4
    """Replays of each batch of free; one epoch then costs as much as `replays` natural ones."""
    sigma: float = 0.0
    """Standard deviation of the Gaussian noise of smoothing, in pixel units."""
    epochs: int = 10
    """Passes over the training images."""
    lr: float = 0.2
    """Peak learning rate of SGD with Nesterov momentum."""
    schedule: Schedule = "onecycle"
    """onecycle, or step: divided by 10 at 1/2 and 3/4 of the epochs."""
    batch_size: int = 128
    """Images per step."""
    momentum: float = 0.9
    """Nesterov momentum."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    decay_norms: bool = False
    """Whether the penalty falls on norms and biases too."""
    augment: Augment = "crop-flip"
    """Augmentation of the training images."""
    precision: Precision = "fp32"
    """fp32, or mixed precision in bf16 or fp16; weights stay fp32."""
    checkpoint: str = ""
    """Take this network (a name or path of `checkpoints.load`) instead of training one."""
    seed: int = 0
    """Seeds the weights, the order of the images, the augmentation and the attack."""

    def __post_init__(self) -> None:
        _coerce(self)
        attacked = self.objective in ("pgd", "trades", "free")
        if attacked and self.eps == 0:
            raise ValueError(f"eps=0.0: objective={self.objective!r} needs an eps above 0")
        if not attacked and self.eps != 0:
            raise ValueError(
                f"eps={self.eps:g}: objective={self.objective!r} has no attack, eps must be 0; "
                "pgd, trades and free have one"
            )
        if (self.objective == "smoothing") != (self.sigma > 0):
            raise ValueError(
                f"sigma={self.sigma:g} with objective={self.objective!r}: "
                "smoothing needs a sigma above 0, every other objective needs sigma 0"
            )


@dataclass(frozen=True)
class Ticket:
    """A subnetwork of a pretrained network."""

    pretrain: Pretrain = field(default_factory=Pretrain)
    scheme: Scheme = "omp"
    """omp: one-shot magnitude pruning; random: a control; dense: no pruning."""
    pattern: Pattern = "unstructured"
    """What is removed as one."""
    sparsity: float = 0.0
    """The fraction of convolution weights removed, in [0, 1)."""
    scope: Scope = "global"
    """Whether weights are ranked across all layers or within each."""
    seed: int = 0
    """Seeds the random scheme; 0 for the others, which draw nothing."""

    def __post_init__(self) -> None:
        _coerce(self)
        _nested("pretrain", self.pretrain, Pretrain)
        if self.scheme == "dense" and self.sparsity != 0:
            raise ValueError(f"sparsity={self.sparsity:g}: scheme='dense' removes nothing")
        if self.scheme != "random" and self.seed != 0:
            raise ValueError(f"seed={self.seed}: scheme={self.scheme!r} draws nothing, seed is 0")


@dataclass(frozen=True)
class Transfer:
    """A ticket on a downstream task."""

    ticket: Ticket = field(default_factory=Ticket)
    task: str = "cifar10"
    """Name of the dataset (see `robustlib data list`)."""
    mode: Mode = "finetune"
    """finetune: all weights; linear: logistic regression on frozen features."""
    n_train: int | None = 1000
    """Number of training images, class-balanced; None: all."""
    epochs: int = 30
    """Passes over the training images (finetune)."""
    lr: float = 0.05
    """Peak learning rate of SGD with Nesterov momentum (finetune)."""
    batch_size: int = 64
    """Images per step (finetune)."""
    weight_decay: float = 5e-4
    """L2 penalty, not on norms and biases (finetune)."""
    augment: Augment = "crop"
    """Augmentation of the training images (finetune); digits and signs must not be flipped."""
    precision: Precision = "fp32"
    """fp32, or mixed precision in bf16 or fp16."""
    recalibrate: bool = False
    """Re-estimate BatchNorm statistics on the task's training images before the transfer."""
    seed: int = 0
    """Seeds the draw of the training images, the head, their order and the augmentation."""

    def __post_init__(self) -> None:
        _coerce(self)
        _nested("ticket", self.ticket, Ticket)


Spec = Pretrain | Ticket | Transfer
KINDS: dict[str, type] = {"pretrain": Pretrain, "ticket": Ticket, "transfer": Transfer}


def kind(spec: Spec | type) -> str:
    """The name under which a spec's artifacts are stored: "pretrain", "ticket" or "transfer"."""
    cls = spec if isinstance(spec, type) else type(spec)
    for name, known in KINDS.items():
        if cls is known:
            return name
    raise ValueError(f"{cls.__name__}: not a spec; the specs are Pretrain, Ticket, Transfer")


def parent(spec: Spec) -> Spec | None:
    """The spec that this one is built on, if any."""
    return getattr(spec, "ticket", None) or getattr(spec, "pretrain", None)


def to_dict(spec: Spec, *, defaults: bool = True) -> dict[str, Any]:
    """The spec as nested plain data; without the fields left at their default if not `defaults`."""
    out = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if hasattr(value, "__dataclass_fields__"):
            nested = to_dict(value, defaults=defaults)
            if defaults or nested:
                out[f.name] = nested
        elif defaults or value != f.default:
            out[f.name] = value
    return out


def from_dict(cls: type, data: dict[str, Any]) -> Any:
    """The inverse of `to_dict`. Raises ValueError for an unknown field or a bad value."""
    known = [f.name for f in fields(cls)]
    if not isinstance(data, dict):
        raise ValueError(f"{cls.__name__}={shown(data)}: must be a table of {', '.join(known)}")
    for name in data:
        one_of(f"{cls.__name__} field", name, known)
    nested = {"pretrain": Pretrain, "ticket": Ticket}
    return cls(**{k: from_dict(nested[k], v) if k in nested else v for k, v in data.items()})


def key(spec: Spec) -> str:
    """The content address of a spec: 20 hex digits of the SHA-256 of its canonical JSON."""
    if isinstance(spec, type):
        raise ValueError(
            f"{spec.__name__}: is a kind of spec, not a spec; did you mean () after it?"
        )
    canonical = json.dumps(
        {kind(spec): to_dict(spec, defaults=False)}, sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def columns(spec: Spec) -> dict[str, Any]:
    """The spec as one flat row, columns named as the fields are.

    Where two levels share a name, the transfer's keeps it, then the pretraining's; the other gets
    its level in front: `seed` is the transfer's, `pretrain_seed` and `ticket_seed` the others'.
    """
    chain: list[Spec] = [spec]
    while (below := parent(chain[-1])) is not None:
        chain.append(below)
    own = {kind(s): s for s in chain}
    row: dict[str, Any] = {}
    for level in ("transfer", "pretrain", "ticket"):
        if level in own:
            for f in fields(own[level]):
                if f.name not in KINDS:
                    name = f"{level}_{f.name}" if f.name in row else f.name
                    row[name] = getattr(own[level], f.name)
    return row


# What the numbers of the specs may be: at least, at most. No number may be infinite or nan.
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "replays", "n_train"), (1, 2**31)),
    "width": (1, 4096),
    **dict.fromkeys(("epochs", "seed"), (0, 2**31)),
    "stem_stride": (1, 4),
    "size": (8, 1024),
    "batch_size": (2, 2**31),
    "eps": (0, 1000),
    "step_size": (0, 1000),
    "beta": (0, 1000),
    "sigma": (0, 10),
    "lr": (0, 100),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "sparsity": (0, 1),
}
_BELOW = ("momentum", "sparsity")
"""Those that must stay below their limit."""

# By the name of the type that a field declares.
_CHOICES = {
    **{"Arch": ARCHS, "Objective": OBJECTIVES, "Norm": NORMS, "Schedule": SCHEDULES},
    **{"Augment": AUGMENTS, "Precision": PRECISIONS, "Scheme": SCHEMES, "Pattern": PATTERNS},
    **{"Scope": SCOPES, "Mode": MODES},
}


def _coerce(spec: Any) -> None:
    """Refuses what a field's declared type does not allow, and gives every field that type, so that
    1 and 1.0 are one experiment and one key."""
    for f in fields(spec):
        value, declared = getattr(spec, f.name), f.type
        if value is None and "None" in declared:
            continue
        if declared in _CHOICES:
            one_of(f.name, value, _CHOICES[declared])
        elif declared.startswith("float"):
            value = number(f.name, value, *_LIMITS[f.name], open_high=f.name in _BELOW)
        elif declared.startswith("int"):
            value = integer(f.name, value, *_LIMITS[f.name])
        elif declared == "bool":
            if not _is_bool(value):
                raise ValueError(f"{f.name}={shown(value)}: choose one of True, False")
            value = bool(value)
        elif declared == "str" and not isinstance(value, str):
            raise ValueError(f"{f.name}={shown(value)}: must be text")
        object.__setattr__(spec, f.name, value)


def _nested(name: str, value: Any, cls: type) -> None:
    if not isinstance(value, cls):
        limit = 1000 if hasattr(value, "__dataclass_fields__") else None  # a spec is shown whole
        raise ValueError(f"{name}={shown(value, limit)}: must be a {cls.__name__}")
