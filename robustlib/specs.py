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
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, get_args

Arch = Literal["resnet10s", "resnet18s", "resnet18", "resnet50"]
Objective = Literal["natural", "pgd", "trades", "free", "smoothing"]
Norm = Literal["l2", "linf"]
Schedule = Literal["onecycle", "step"]
Augment = Literal["none", "crop", "crop-flip"]
Precision = Literal["fp32", "bf16", "fp16"]
Scheme = Literal["dense", "omp", "random", "imp", "lmp"]
Pattern = Literal["unstructured", "row", "kernel", "channel", "2:4", "1:4", "1:8"]
Scope = Literal["global", "layer"]
Score = Literal["l1", "l2"]
Control = Literal["none", "shuffle", "reinit"]
Drawing = Literal["natural", "pgd"]
Mode = Literal["finetune", "linear", "segment"]
Head = Literal["auto", "fusion", "fcn", "deeplab"]
Stem = Literal["small", "imagenet"]
Suite = Literal[
    "adversarial",
    "calibration",
    "certified",
    "corruption",
    "domain_gap",
    "ood",
    "similarity",
]
Attack = Literal["cheap", "standard"]

ARCHS: tuple[str, ...] = get_args(Arch)
OBJECTIVES: tuple[str, ...] = get_args(Objective)
NORMS: tuple[str, ...] = get_args(Norm)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
AUGMENTS: tuple[str, ...] = get_args(Augment)
PRECISIONS: tuple[str, ...] = get_args(Precision)
SCHEMES: tuple[str, ...] = get_args(Scheme)
PATTERNS: tuple[str, ...] = get_args(Pattern)
SCOPES: tuple[str, ...] = get_args(Scope)
SCORES: tuple[str, ...] = get_args(Score)
CONTROLS: tuple[str, ...] = get_args(Control)
DRAWINGS: tuple[str, ...] = get_args(Drawing)
MODES: tuple[str, ...] = get_args(Mode)
HEADS: tuple[str, ...] = get_args(Head)
STEMS: tuple[str, ...] = get_args(Stem)
SUITES: tuple[str, ...] = get_args(Suite)
ATTACKS: tuple[str, ...] = get_args(Attack)


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
    stem: Stem = "small"
    """small: that 3x3 stem; imagenet: that of ImageNet's ResNets, 7x7 with stride 2 and a 3x3 max
    pooling with stride 2, for a small-image ResNet."""
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
        if self.stem == "imagenet" and not self.arch.endswith("s"):
            raise ValueError(f"stem='imagenet': arch={self.arch!r} has that stem already")
        if self.stem == "imagenet" and self.stem_stride != Pretrain.stem_stride:
            raise ValueError(f"stem_stride={self.stem_stride}: stem='imagenet' does not use it")


@dataclass(frozen=True)
class Ticket:
    """A subnetwork of a pretrained network: a mask, and the weights that it is put on."""

    pretrain: Pretrain = field(default_factory=Pretrain)
    """Whose weights, and whose mask unless mask_from says otherwise."""
    scheme: Scheme = "omp"
    """omp: one-shot magnitude; imp: iterative magnitude, in rounds of training and pruning; lmp: a
    mask learned with the weights frozen; random: a control; dense: no pruning."""
    pattern: Pattern = "unstructured"
    """What is removed as one: a weight, a kernel row, a kernel, an output channel; n:m keeps n of
    every m weights along the input."""
    sparsity: float = 0.0
    """The fraction of convolution weights removed, in [0, 1); 1 - n/m for a pattern n:m."""
    scope: Scope = "global"
    """Whether weights are ranked across all layers or within each."""
    score: Score = "l1"
    """What ranks a group of weights: the mean of their magnitudes, or their root mean square."""
    min_channels: int = 1
    """Output channels that a layer keeps at least (channel)."""
    mask_from: Pretrain | None = None
    """Draw the mask from this network, and put it on the weights of `pretrain`."""
    control: Control = "none"
    """shuffle: the mask, its groups shuffled within each layer; reinit: the mask, on fresh weights
    instead of pretrained ones."""
    dataset: str = ""
    """What imp and lmp train on: empty for the source (upstream), or a task (downstream)."""
    n_train: int | None = None
    """Number of images that imp and lmp train on, class-balanced; None: those of the source, or all
    of a task."""
    objective: Drawing = "natural"
    """natural, or pgd: adversarial training (A-IMP)."""
    norm: Norm = "l2"
    """Norm of that attack."""
    eps: float = 0.0
    """Radius of that attack, in pixel units of [0, 1] images."""
    steps: int = 1
    """Steps of that attack."""
    rate: float = 0.2
    """The fraction of what remains that a round of imp removes."""
    rounds: tuple[float, ...] = ()
    """The sparsities of the rounds of imp before the last, in place of `rate`."""
    rewind: int = 0
    """Epochs of training the dense network after which imp takes the weights that each round starts
    from and that the ticket has; 0: the pretrained ones."""
    epochs: int = 2
    """Passes over the images: of a round of imp, or of lmp."""
    lr: float = 0.05
    """Peak learning rate of imp and lmp."""
    batch_size: int = 128
    """Images per step of imp and lmp."""
    weight_decay: float = 5e-4
    """L2 penalty of imp and lmp."""
    augment: Augment = "crop"
    """Augmentation of the images of imp and lmp."""
    precision: Precision = "fp32"
    """Of imp and lmp: fp32, or mixed precision in bf16 or fp16."""
    seed: int = 0
    """Seeds random masks, shuffles, fresh weights and the training of imp and lmp."""

    def __post_init__(self) -> None:
        _coerce(self)
        _nested("pretrain", self.pretrain, Pretrain)
        if self.mask_from is not None:
            _nested("mask_from", self.mask_from, Pretrain)
        self._check_mask()
        self._check_training()
        # What says nothing must not make a second key of one experiment.
        if self.mask_from == self.pretrain:
            object.__setattr__(self, "mask_from", None)

    def _check_mask(self) -> None:
        if self.scheme == "dense" and self.sparsity != 0:
            raise ValueError(f"sparsity={self.sparsity:g}: scheme='dense' removes nothing")
        if self.scheme == "dense" and self.control == "shuffle":
            raise ValueError("control='shuffle': scheme='dense' has nothing to shuffle")
        if self.scheme in ("dense", "omp") and self.control == "none" and self.seed != 0:
            raise ValueError(f"seed={self.seed}: scheme={self.scheme!r} draws nothing, seed is 0")
        if self.pattern != "channel" and self.min_channels != 1:
            raise ValueError(
                f"min_channels={self.min_channels}: pattern={self.pattern!r} removes no channel"
            )
        if blocks := n_of_m(self.pattern):
            n, m = blocks
            if self.scheme != "dense" and self.sparsity != 1 - n / m:
                raise ValueError(
                    f"sparsity={self.sparsity:g}: pattern={self.pattern!r} has sparsity {1 - n / m}"
                )

    def _check_training(self) -> None:
        own = {
            "imp": ("rate", "rounds", "rewind"),
            "both": ("dataset", "n_train", "objective", "norm", "eps", "steps", "epochs", "lr")
            + ("batch_size", "weight_decay", "augment", "precision"),
        }
        default = {f.name: f.default for f in fields(self)}
        for owner, names in own.items():
            if self.scheme == "imp" or (owner == "both" and self.scheme == "lmp"):
                continue
            for name in names:
                if getattr(self, name) != default[name]:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r}: scheme={self.scheme!r} does not use it, "
                        f"{'imp does' if owner == 'imp' else 'imp and lmp do'}"
                    )
        if (self.objective == "pgd") != (self.eps > 0):
            raise ValueError(
                f"eps={self.eps:g} with objective={self.objective!r}: pgd needs an eps above 0, "
                "natural has no attack"
            )
        if self.rounds and n_of_m(self.pattern):
            raise ValueError(f"rounds={self.rounds}: pattern={self.pattern!r} has one round")
        if list(self.rounds) != sorted(set(self.rounds)) or 0 in self.rounds:
            raise ValueError(f"rounds={self.rounds}: must be growing sparsities in (0, 1)")
        if self.rounds and self.rate != Ticket.rate:
            raise ValueError(f"rate={self.rate:g}: rounds={self.rounds} are given in its place")
        if self.scheme == "imp" and self.rate == 0:
            raise ValueError("rate=0.0: a round of imp must remove something")
        # Rounds beyond this one are another ticket's: one experiment, one key.
        before = tuple(s for s in self.rounds if s < self.sparsity)
        if self.rounds and not before and self.sparsity > 0:
            object.__setattr__(self, "rate", self.sparsity)  # The first: no round before it.
        object.__setattr__(self, "rounds", before)


@dataclass(frozen=True)
class Transfer:
    """A ticket on a downstream task."""

    ticket: Ticket = field(default_factory=Ticket)
    task: str = "cifar10"
    """Name of the dataset (see `robustlib data list`)."""
    mode: Mode = "finetune"
    """finetune: all weights; linear: logistic regression on frozen features; segment: all weights,
    to label every pixel."""
    n_train: int | None = 1000
    """Number of training images, class-balanced; None: all."""
    epochs: int = 30
    """Passes over the training images (not linear)."""
    lr: float = 0.05
    """Peak learning rate of SGD with Nesterov momentum (not linear)."""
    batch_size: int = 64
    """Images per step (not linear)."""
    weight_decay: float = 5e-4
    """L2 penalty, not on norms and biases (not linear)."""
    augment: Augment = "crop"
    """Augmentation of the training images (not linear); digits and signs must not be flipped."""
    detail: int | None = None
    """Side, in pixels, that the task's images are reduced to and scaled up again from, those of
    train, val and test alike (not segment); None: as they are."""
    precision: Precision = "fp32"
    """fp32, or mixed precision in bf16 or fp16."""
    recalibrate: bool = False
    """Re-estimate BatchNorm statistics on the task's training images before the transfer."""
    head: Head = "auto"
    """What labels the pixels (segment): fusion of all feature maps, or torchvision's fcn or
    deeplab on the last; auto: fusion behind a small stem, fcn behind ImageNet's."""
    seed: int = 0
    """Seeds the draw of the training images, the head, their order and the augmentation."""

    def __post_init__(self) -> None:
        _coerce(self)
        _nested("ticket", self.ticket, Ticket)
        if self.head != "auto" and self.mode != "segment":
            raise ValueError(f"head={self.head!r}: mode={self.mode!r} does not use it")
        if self.detail is not None and self.mode == "segment":
            raise ValueError(f"detail={self.detail}: mode='segment' does not use it")
        if self.detail is not None and self.detail > (size := self.ticket.pretrain.size):
            raise ValueError(f"detail={self.detail}: must be at most the source's size, {size}")
        if self.detail == self.ticket.pretrain.size:  # says nothing: one experiment, one key
            object.__setattr__(self, "detail", None)


@dataclass(frozen=True)
class Evaluation:
    """A measure beyond accuracy, of the network that a spec ends with."""

    of: Transfer | Ticket | Pretrain = field(default_factory=Transfer)
    """Whose network: on the test images of its task, or, before any transfer, of its source."""
    suite: Suite = "calibration"
    """adversarial: accuracy under AutoAttack and PGD; calibration; certified: randomized smoothing;
    corruption: accuracy on common corruptions; domain_gap: Frechet distance between source and
    `against` in this network's features; ood: telling the task from `against`; similarity: CKA with
    `other`, layer by layer."""
    norm: Norm = "l2"
    """Norm of the attack (adversarial)."""
    eps: float = 0.0
    """Radius of the attack (adversarial), in pixel units of [0, 1] images."""
    attack: Attack = "cheap"
    """standard: all of AutoAttack; cheap: a part of it (adversarial)."""
    sigma: float = 0.0
    """Standard deviation of the noise (certified), in pixel units."""
    draws: int = 1000
    """Noisy copies of an image (certified)."""
    scaled: bool = False
    """Whether the temperature is fitted on val first (calibration)."""
    against: str = ""
    """Another data set (ood, domain_gap)."""
    other: Transfer | Ticket | Pretrain | None = None
    """Whose network to compare with (similarity)."""
    limit: int | None = None
    """Test images measured on (ood, domain_gap: of each set), drawn once for all networks; None:
    all (not domain_gap)."""
    seed: int = 0
    """Seeds attack, noise, corruptions and resampling (adversarial, certified, corruption,
    domain_gap)."""

    def __post_init__(self) -> None:
        _coerce(self)
        _any_of("of", self.of)
        used = {
            "adversarial": {"norm", "eps", "attack", "seed"},
            "calibration": {"scaled"},
            "certified": {"sigma", "draws", "seed"},
            "corruption": {"seed"},
            "domain_gap": {"against", "seed"},
            "ood": {"against"},
            "similarity": {"other"},
        }[self.suite]
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in used | {"of", "suite", "limit"} and value != f.default:
                raise ValueError(f"{f.name}={shown(value)}: suite={self.suite!r} does not use it")
        for name in used & {"eps", "sigma", "against", "other"}:
            if not getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r}: suite={self.suite!r} needs it")
        if self.suite == "domain_gap" and not isinstance(self.of, Pretrain):
            raise ValueError(
                f"of={shown(self.of)}: suite='domain_gap' measures tasks from a source, in the "
                "features of a Pretrain"
            )
        if self.suite == "ood":
            start = self.of.pretrain if isinstance(self.of, Ticket) else self.of
            if self.against == (start.task if isinstance(start, Transfer) else start.source):
                raise ValueError(f"against={self.against!r}: is the network's own set")
        if self.suite == "domain_gap" and self.limit is None:
            raise ValueError(
                "limit=None: suite='domain_gap' needs one, the same for all tasks: the distance "
                "depends on the number of images"
            )
        if self.suite == "certified" and self.draws < 10:
            raise ValueError(
                f"draws={self.draws}: 10 at least, or nothing can be certified at alpha = 0.001"
            )
        least = LEAST_MEASURED.get(self.suite, 1)
        if self.limit is not None and self.limit < least:
            raise ValueError(f"limit={self.limit}: suite={self.suite!r} needs {least} images")
        if self.other is not None:
            _any_of("other", self.other)
        for name in ("of", "other"):
            if getattr(getattr(self, name), "mode", "") == "segment":
                given = shown(getattr(self, name))
                raise ValueError(f"{name}={given}: its network labels pixels, suites need images")


LEAST_MEASURED = {"domain_gap": 8, "similarity": 4}
"""Images that a suite needs, where one is not enough."""
EDITIONS = {"corruption": 2, "domain_gap": 3, "similarity": 2}
"""Of the suites that have come to measure something else: a part of their keys, so that rows of
the edition before are not taken for theirs."""
Spec = Pretrain | Ticket | Transfer | Evaluation
KINDS: dict[str, type] = {
    "pretrain": Pretrain,
    "ticket": Ticket,
    "transfer": Transfer,
    "evaluation": Evaluation,
}
TAGGED = ("of", "other")
"""Fields that may hold a spec of more than one kind: written as {kind: spec}."""


def kind(spec: Spec | type) -> str:
    """The name under which a spec's artifacts are stored: "pretrain", "ticket", ..."""
    cls = spec if isinstance(spec, type) else type(spec)
    for name, known in KINDS.items():
        if cls is known:
            return name
    names = ", ".join(known.__name__ for known in KINDS.values())
    raise ValueError(f"{cls.__name__}: not a spec; the specs are {names}")


def n_of_m(pattern: str) -> tuple[int, int] | None:
    """(n, m) of a pattern n:m; None for the others."""
    n, colon, m = pattern.partition(":")
    return (int(n), int(m)) if colon else None


def previous(ticket: Ticket) -> Ticket | None:
    """The round of imp before this ticket; None before the first, which starts from the dense
    network. A pattern n:m has one round."""
    if ticket.scheme != "imp" or ticket.sparsity == 0:
        return None
    before = 0.0
    if ticket.rounds:
        before = ticket.rounds[-1]
    elif not n_of_m(ticket.pattern):
        # Rounded, so that 1 - 0.8 ** 2 is the 0.36 that someone may ask for.
        kept = math.log(1 - ticket.sparsity) / math.log(1 - ticket.rate)
        done = math.ceil(kept - 1e-6) - 1
        before = round(1 - (1 - ticket.rate) ** done, 9)
        while before >= ticket.sparsity:  # rounds so small that rounding counts one too many
            done -= 1
            before = round(1 - (1 - ticket.rate) ** done, 9)
    if before == 0:
        return rewound(ticket)
    return replace(ticket, sparsity=before, mask_from=None, control="none")


def drawn_as(ticket: Ticket) -> Ticket | None:
    """The ticket whose mask this one takes over, by mask_from or as a control; None: its own."""
    if ticket.mask_from is None and ticket.control == "none":
        return None
    seed = ticket.seed if ticket.scheme in ("random", "imp", "lmp") else 0
    source = ticket.mask_from or ticket.pretrain
    return replace(ticket, pretrain=source, mask_from=None, control="none", seed=seed)


def rewound(ticket: Ticket) -> Ticket | None:
    """The ticket, of sparsity 0, that holds the weights which `rewind` names; None: the pretrained
    ones."""
    if ticket.rewind == 0 or ticket.control == "reinit":
        return None
    # One for all masks: how they are drawn does not enter it.
    own = ("pattern", "scope", "score", "min_channels", "rate", "rounds", "epochs")
    default = {f.name: f.default for f in fields(ticket) if f.name in own}
    return replace(ticket, **default, sparsity=0.0, mask_from=None, control="none")


def parents(spec: Spec) -> tuple[Spec, ...]:
    """The specs that this one is built on."""
    if isinstance(spec, Transfer):
        return (spec.ticket,)
    if isinstance(spec, Ticket):
        above = (spec.pretrain, rewound(spec), drawn_as(spec) or previous(spec))
        return tuple(dict.fromkeys(s for s in above if s is not None and s != spec))
    if isinstance(spec, Evaluation):
        return (spec.of,) if spec.other is None else (spec.of, spec.other)
    return ()


def to_dict(spec: Spec, *, defaults: bool = True) -> dict[str, Any]:
    """The spec as nested plain data; without the fields left at their default if not `defaults`."""
    out = {}
    for f in fields(spec):
        value = getattr(spec, f.name)
        if hasattr(value, "__dataclass_fields__"):
            nested = to_dict(value, defaults=defaults)
            if f.name in TAGGED and (
                nested or f.default is None or not isinstance(value, Transfer)
            ):
                out[f.name] = {kind(value): nested}
            elif f.name not in TAGGED and (defaults or nested or f.default is None):
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
    nested = {"pretrain": Pretrain, "ticket": Ticket, "mask_from": Pretrain}
    values = {}
    for name, value in data.items():
        if name in ("mask_from", "other") and value is None:
            continue
        if name in TAGGED:
            if not isinstance(value, dict) or len(value) != 1:
                raise ValueError(
                    f"{name}={shown(value)}: must be a table of one of {', '.join(KINDS)}"
                )
            ((tag, value),) = value.items()
            values[name] = from_dict(KINDS[one_of(name, tag, KINDS)], value)
        else:
            values[name] = from_dict(nested[name], value) if name in nested else value
    return cls(**values)


def key(spec: Spec) -> str:
    """The content address of a spec: 20 hex digits of the SHA-256 of its canonical JSON."""
    if isinstance(spec, type):
        raise ValueError(
            f"{spec.__name__}: is a kind of spec, not a spec; did you mean () after it?"
        )
    return _key(spec, EDITIONS.get(spec.suite, 1) if isinstance(spec, Evaluation) else 1)


def earlier_keys(spec: Spec) -> list[str]:
    """The keys that a spec had in the earlier editions of its suite (EDITIONS)."""
    current = EDITIONS.get(spec.suite, 1) if isinstance(spec, Evaluation) else 1
    return [_key(spec, edition) for edition in range(1, current)]


def _key(spec: Spec, edition: int) -> str:
    content: dict[str, Any] = {kind(spec): to_dict(spec, defaults=False)}
    if edition > 1:
        content["edition"] = edition
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:20]


def columns(spec: Spec) -> dict[str, Any]:
    """The spec as one flat row, columns named as the fields are.

    Where two levels share a name, the transfer's keeps it, then the pretraining's; the other gets
    its level in front: `seed` is the transfer's, `pretrain_seed` and `ticket_seed` the others'.
    mask_objective, mask_norm, mask_eps, mask_sigma, mask_steps and mask_seed say of which network a
    ticket's mask is; `rounds` is text; `of` is the kind of the spec that is evaluated, `other` the
    key of that which it is compared with.
    """
    own = {kind(spec): spec}
    if isinstance(spec, Evaluation):
        own[kind(spec.of)] = spec.of
    if "transfer" in own:
        own["ticket"] = own["transfer"].ticket
    if "ticket" in own:
        own["pretrain"] = own["ticket"].pretrain
    row: dict[str, Any] = {}
    for level in ("transfer", "pretrain", "ticket", "evaluation"):
        if level in own:
            for f in fields(own[level]):
                if f.name not in (*KINDS, "mask_from", *TAGGED):
                    name = f"{level}_{f.name}" if f.name in row else f.name
                    row[name] = getattr(own[level], f.name)
    if "ticket" in own:
        row["rounds"] = ", ".join(map(str, row["rounds"]))
        mask = own["ticket"].mask_from or own["ticket"].pretrain
        for name in ("objective", "norm", "eps", "sigma", "steps", "seed"):
            row[f"mask_{name}"] = getattr(mask, name)
    if isinstance(spec, Evaluation):
        row |= {"of": kind(spec.of), "other": "" if spec.other is None else key(spec.other)}
    return row


# What the numbers of the specs may be: at least, at most. No number may be infinite or nan.
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "replays", "n_train", "limit", "draws"), (1, 2**31)),
    "width": (1, 4096),
    **dict.fromkeys(("epochs", "seed"), (0, 2**31)),
    "stem_stride": (1, 4),
    "size": (8, 1024),
    "detail": (4, 1024),
    "batch_size": (2, 2**31),
    "eps": (0, 1000),
    "step_size": (0, 1000),
    "beta": (0, 1000),
    "sigma": (0, 10),
    "lr": (0, 100),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "sparsity": (0, 1),
    "rounds": (0, 1),
    "rate": (0, 1),
    "min_channels": (1, 2**31),
    "rewind": (0, 2**31),
}
_BELOW = ("momentum", "sparsity", "rounds", "rate")
"""Those that must stay below their limit."""

# By the name of the type that a field declares.
_CHOICES = {
    **{"Arch": ARCHS, "Objective": OBJECTIVES, "Norm": NORMS, "Schedule": SCHEDULES},
    **{"Augment": AUGMENTS, "Precision": PRECISIONS, "Scheme": SCHEMES, "Pattern": PATTERNS},
    **{"Scope": SCOPES, "Mode": MODES, "Score": SCORES, "Control": CONTROLS, "Drawing": DRAWINGS},
    **{"Suite": SUITES, "Attack": ATTACKS, "Head": HEADS, "Stem": STEMS},
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
        elif declared == "tuple[float, ...]":
            if not isinstance(value, list | tuple):
                raise ValueError(f"{f.name}={shown(value)}: must be a list of numbers")
            value = tuple(number(f.name, v, *_LIMITS[f.name], open_high=True) for v in value)
        elif declared.startswith("int"):
            value = integer(f.name, value, *_LIMITS[f.name])
        elif declared == "bool":
            if not _is_bool(value):
                raise ValueError(f"{f.name}={shown(value)}: choose one of True, False")
            value = bool(value)
        elif declared == "str" and not isinstance(value, str):
            raise ValueError(f"{f.name}={shown(value)}: must be text")
        object.__setattr__(spec, f.name, value)


def _any_of(name: str, value: Any) -> None:
    if not isinstance(value, Pretrain | Ticket | Transfer):
        raise ValueError(f"{name}={shown(value)}: must be a Pretrain, a Ticket or a Transfer")


def _nested(name: str, value: Any, cls: type) -> None:
    if not isinstance(value, cls):
        limit = 1000 if hasattr(value, "__dataclass_fields__") else None  # a spec is shown whole
        raise ValueError(f"{name}={shown(value, limit)}: must be a {cls.__name__}")
