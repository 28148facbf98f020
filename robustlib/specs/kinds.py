"""The four kinds of specs: their fields, what each may be, and what goes together.

What a field may be stands in its type, so a spec is checked where it is made. A field left at its
default does not enter the key: a default, once released, never changes.
"""

from dataclasses import field
from typing import Annotated, Literal, get_args

from robustlib.specs.checks import flag, numbers, shown
from robustlib.specs.declare import Between, UsedBy, Whole, check_uses, read, spec

Count = Annotated[int, Whole(1)]
Natural = Annotated[int, Whole(0)]
Radius = Annotated[float, Between(0, 1000)]
Noise = Annotated[float, Between(0, 10)]
Share = Annotated[float, Between(0, 1, open_high=True)]
Switch = Annotated[bool, read(flag)]
Shares = Annotated[tuple[Share, ...], read(numbers)]

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
Head = Literal["auto", "fusion", "fcn", "deeplab"]
Stem = Literal["small", "imagenet"]
Suite = Literal[
    "adversarial", "calibration", "certified", "corruption", "domain_gap", "ood", "similarity"
]
Attack = Literal["cheap", "standard"]

ARCHS: tuple[str, ...] = get_args(Arch)
OBJECTIVES: tuple[str, ...] = get_args(Objective)
AUGMENTS: tuple[str, ...] = get_args(Augment)
SCHEMES: tuple[str, ...] = get_args(Scheme)
PATTERNS: tuple[str, ...] = get_args(Pattern)
SCOPES: tuple[str, ...] = get_args(Scope)
SCORES: tuple[str, ...] = get_args(Score)
SUITES: tuple[str, ...] = get_args(Suite)


_DRAWN = UsedBy("scheme", ("imp", "lmp"))
_ROUNDS = UsedBy("scheme", ("imp",))
_IMAGES = UsedBy("mode", ("finetune", "linear"))
_OTHER = UsedBy("suite", ("similarity",), needed=True)
_SEEDED = UsedBy("suite", ("adversarial", "certified", "corruption", "domain_gap"))
_ADVERSARIAL = UsedBy("suite", ("adversarial",))


@spec
class Pretrain:
    """A source network: what it is trained on, and against what."""

    source: str = "tinyimagenet200"
    """Name of the dataset (see `robustlib data list`)."""
    arch: Arch = "resnet10s"
    """resnet10s and resnet18s for small images, resnet18 and resnet50 for 224 px."""
    width: Annotated[int, Whole(1, 4096)] = 32
    """Channels of the first stage of a small-image ResNet."""
    stem_stride: Annotated[int, Whole(1, 4), UsedBy("stem", ("small",))] = 2
    """Stride of the 3x3 stem of a small-image ResNet."""
    stem: Stem = "small"
    """small: that 3x3 stem; imagenet: that of ImageNet's ResNets, 7x7 with stride 2 and a 3x3 max
    pooling with stride 2, for a small-image ResNet."""
    size: Annotated[int, Whole(8, 1024)] = 32
    """Side of the images, in pixels."""
    n_train: Count | None = None
    """Number of training images, class-balanced; None: all."""
    objective: Objective = "natural"
    """natural, or one that makes the network robust."""
    norm: Norm = "l2"
    """Norm of the attack, for pgd, trades and free."""
    eps: Annotated[Radius, UsedBy("objective", ("pgd", "trades", "free"), needed=True)] = 0.0
    """Radius of the attack, in pixel units of [0, 1] images ("8/255" is read too)."""
    steps: Count = 1
    """Steps of the attack; one step is fast adversarial training (Wong et al., 2020)."""
    step_size: Radius | None = None
    """Size of a step; None: 1.25 eps for one step, 2.5 eps / steps for more."""
    beta: Annotated[float, Between(0, 1000)] = 6.0
    """Weight of the robust term of trades."""
    replays: Count = 4
    """Replays of each batch of free; one epoch then costs as much as `replays` natural ones."""
    sigma: Annotated[Noise, UsedBy("objective", ("smoothing",), needed=True)] = 0.0
    """Standard deviation of the Gaussian noise of smoothing, in pixel units."""
    epochs: Natural = 10
    """Passes over the training images."""
    lr: Annotated[float, Between(0, 100)] = 0.2
    """Peak learning rate of SGD with Nesterov momentum."""
    schedule: Schedule = "onecycle"
    """onecycle, or step: divided by 10 at 1/2 and 3/4 of the epochs."""
    batch_size: Annotated[int, Whole(2)] = 128
    """Images per step."""
    momentum: Share = 0.9
    """Nesterov momentum."""
    weight_decay: Annotated[float, Between(0, 1)] = 5e-4
    """L2 penalty."""
    decay_norms: Switch = False
    """Whether the penalty falls on norms and biases too."""
    augment: Augment = "crop-flip"
    """Augmentation of the training images."""
    precision: Precision = "fp32"
    """fp32, or mixed precision in bf16 or fp16; weights stay fp32."""
    checkpoint: str = ""
    """Take this network (a name or path of `checkpoints.load`) instead of training one."""
    seed: Natural = 0
    """Seeds the weights, the order of the images, the augmentation and the attack."""

    def __post_init__(self) -> None:
        check_uses(self)
        if self.stem == "imagenet" and not self.arch.endswith("s"):
            raise ValueError(f"stem='imagenet': arch={self.arch!r} has that stem already")


@spec
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
    sparsity: Annotated[Share, UsedBy("scheme", ("omp", "random", "imp", "lmp"))] = 0.0
    """The fraction of convolution weights removed, in [0, 1); 1 - n/m for a pattern n:m."""
    scope: Scope = "global"
    """Whether weights are ranked across all layers or within each."""
    score: Score = "l1"
    """What ranks a group of weights: the mean of their magnitudes, or their root mean square."""
    min_channels: Annotated[Count, UsedBy("pattern", ("channel",))] = 1
    """Output channels that a layer keeps at least (channel)."""
    mask_from: Pretrain | None = None
    """Draw the mask from this network, and put it on the weights of `pretrain`."""
    control: Literal["none", "shuffle", "reinit"] = "none"
    """shuffle: the mask, its groups shuffled within each layer; reinit: the mask, on fresh weights
    instead of pretrained ones."""
    dataset: Annotated[str, _DRAWN] = ""
    """What imp and lmp train on: empty for the source (upstream), or a task (downstream)."""
    n_train: Annotated[Count | None, _DRAWN] = None
    """Number of images that imp and lmp train on, class-balanced; None: those of the source, or all
    of a task."""
    objective: Annotated[Literal["natural", "pgd"], _DRAWN] = "natural"
    """natural, or pgd: adversarial training (A-IMP)."""
    norm: Annotated[Norm, _DRAWN] = "l2"
    """Norm of that attack."""
    eps: Annotated[Radius, _DRAWN, UsedBy("objective", ("pgd",), needed=True)] = 0.0
    """Radius of that attack, in pixel units of [0, 1] images."""
    steps: Annotated[Count, _DRAWN] = 1
    """Steps of that attack."""
    rate: Annotated[Share, _ROUNDS] = 0.2
    """The fraction of what remains that a round of imp removes."""
    rounds: Annotated[Shares, _ROUNDS] = ()
    """The sparsities of the rounds of imp before the last, in place of `rate`."""
    rewind: Annotated[Natural, _ROUNDS] = 0
    """Epochs of training the dense network after which imp takes the weights that each round starts
    from and that the ticket has; 0: the pretrained ones."""
    epochs: Annotated[Natural, _DRAWN] = 2
    """Passes over the images: of a round of imp, or of lmp."""
    lr: Annotated[float, Between(0, 100), _DRAWN] = 0.05
    """Peak learning rate of imp and lmp."""
    batch_size: Annotated[int, Whole(2), _DRAWN] = 128
    """Images per step of imp and lmp."""
    weight_decay: Annotated[float, Between(0, 1), _DRAWN] = 5e-4
    """L2 penalty of imp and lmp."""
    augment: Annotated[Augment, _DRAWN] = "crop"
    """Augmentation of the images of imp and lmp."""
    precision: Annotated[Precision, _DRAWN] = "fp32"
    """Of imp and lmp: fp32, or mixed precision in bf16 or fp16."""
    seed: Natural = 0
    """Seeds random masks, shuffles, fresh weights and the training of imp and lmp."""

    def __post_init__(self) -> None:
        check_uses(self)
        if self.scheme == "dense" and self.control == "shuffle":
            raise ValueError("control='shuffle': scheme='dense' has nothing to shuffle")
        if self.scheme in ("dense", "omp") and self.control == "none" and self.seed != 0:
            raise ValueError(f"seed={self.seed}: scheme={self.scheme!r} draws nothing, seed is 0")
        blocks = n_of_m(self.pattern)
        only = 1 - blocks[0] / blocks[1] if blocks and self.scheme != "dense" else self.sparsity
        if self.sparsity != only:
            raise ValueError(
                f"sparsity={self.sparsity:g}: pattern={self.pattern!r} has sparsity {only}"
            )
        if self.rounds and blocks:
            raise ValueError(f"rounds={self.rounds}: pattern={self.pattern!r} has one round")
        if list(self.rounds) != sorted(set(self.rounds)) or 0 in self.rounds:
            raise ValueError(f"rounds={self.rounds}: must be growing sparsities in (0, 1)")
        if self.rounds and self.rate != Ticket.rate:
            raise ValueError(f"rate={self.rate:g}: rounds={self.rounds} are given in its place")
        if self.scheme == "imp" and self.rate == 0:
            raise ValueError("rate=0.0: a round of imp must remove something")
        # What says nothing must not make a second key of one experiment: the network's own mask,
        # and rounds beyond this one, which are another ticket's.
        if self.mask_from == self.pretrain:
            object.__setattr__(self, "mask_from", None)
        before = tuple(s for s in self.rounds if s < self.sparsity)
        if self.rounds and not before and self.sparsity > 0:
            object.__setattr__(self, "rate", self.sparsity)  # The first: no round before it.
        object.__setattr__(self, "rounds", before)


@spec
class Transfer:
    """A ticket on a downstream task."""

    ticket: Ticket = field(default_factory=Ticket)
    task: str = "cifar10"
    """Name of the dataset (see `robustlib data list`)."""
    mode: Literal["finetune", "linear", "segment"] = "finetune"
    """finetune: all weights; linear: logistic regression on frozen features; segment: all weights,
    to label every pixel."""
    n_train: Count | None = 1000
    """Number of training images, class-balanced; None: all."""
    epochs: Natural = 30
    """Passes over the training images (not linear)."""
    lr: Annotated[float, Between(0, 100)] = 0.05
    """Peak learning rate of SGD with Nesterov momentum (not linear)."""
    batch_size: Annotated[int, Whole(2)] = 64
    """Images per step (not linear)."""
    weight_decay: Annotated[float, Between(0, 1)] = 5e-4
    """L2 penalty, not on norms and biases (not linear)."""
    augment: Augment = "crop"
    """Augmentation of the training images (not linear); digits and signs must not be flipped."""
    detail: Annotated[Annotated[int, Whole(4, 1024)] | None, _IMAGES] = None
    """Side, in pixels, that the task's images are reduced to and scaled up again from, those of
    train, val and test alike (not segment); None: as they are."""
    grey: Annotated[Switch, _IMAGES] = False
    """Take the colour from the task's images, those of train, val and test alike (not segment)."""
    precision: Precision = "fp32"
    """fp32, or mixed precision in bf16 or fp16."""
    recalibrate: Switch = False
    """Re-estimate BatchNorm statistics on the task's training images before the transfer."""
    head: Annotated[Head, UsedBy("mode", ("segment",))] = "auto"
    """What labels the pixels (segment): fusion of all feature maps, or torchvision's fcn or
    deeplab on the last; auto: fusion behind a small stem, fcn behind ImageNet's."""
    seed: Natural = 0
    """Seeds the draw of the training images, the head, their order and the augmentation."""

    def __post_init__(self) -> None:
        check_uses(self)
        if self.detail is not None and self.detail > (size := self.ticket.pretrain.size):
            raise ValueError(f"detail={self.detail}: must be at most the source's size, {size}")
        if self.detail == self.ticket.pretrain.size:  # says nothing: one experiment, one key
            object.__setattr__(self, "detail", None)


@spec
class Evaluation:
    """A measure beyond accuracy, of the network that a spec ends with."""

    of: Pretrain | Ticket | Transfer = field(default_factory=Transfer)
    """Whose network: on the test images of its task, or, before any transfer, of its source."""
    suite: Suite = "calibration"
    """adversarial: accuracy under AutoAttack and PGD; calibration; certified: randomized smoothing;
    corruption: accuracy on common corruptions; domain_gap: Frechet distance between source and
    `against` in this network's features; ood: telling the task from `against`; similarity: CKA with
    `other`, layer by layer."""
    norm: Annotated[Norm, _ADVERSARIAL] = "l2"
    """Norm of the attack (adversarial)."""
    eps: Annotated[Radius, _ADVERSARIAL._replace(needed=True)] = 0.0
    """Radius of the attack (adversarial), in pixel units of [0, 1] images."""
    attack: Annotated[Attack, _ADVERSARIAL] = "cheap"
    """standard: all of AutoAttack; cheap: a part of it (adversarial)."""
    sigma: Annotated[Noise, UsedBy("suite", ("certified",), needed=True)] = 0.0
    """Standard deviation of the noise (certified), in pixel units."""
    draws: Annotated[Count, UsedBy("suite", ("certified",))] = 1000
    """Noisy copies of an image (certified)."""
    scaled: Annotated[Switch, UsedBy("suite", ("calibration",))] = False
    """Whether the temperature is fitted on val first (calibration)."""
    against: Annotated[str, UsedBy("suite", ("domain_gap", "ood"), needed=True)] = ""
    """Another data set (ood, domain_gap)."""
    other: Annotated[Pretrain | Ticket | Transfer | None, _OTHER] = None
    """Whose network to compare with (similarity)."""
    limit: Count | None = None
    """Test images measured on (ood, domain_gap: of each set), drawn once for all networks; None:
    all (not domain_gap)."""
    seed: Annotated[Natural, _SEEDED] = 0
    """Seeds attack, noise, corruptions and resampling (adversarial, certified, corruption,
    domain_gap)."""

    def __post_init__(self) -> None:
        check_uses(self)
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
            raise ValueError(f"draws={self.draws}: 10 at least, or nothing is certified at 0.001")
        least = LEAST_MEASURED.get(self.suite, 1)
        if self.limit is not None and self.limit < least:
            raise ValueError(f"limit={self.limit}: suite={self.suite!r} needs {least} images")
        for name, of in (("of", self.of), ("other", self.other)):
            if isinstance(of, Transfer) and of.mode == "segment":
                raise ValueError(f"{name}={shown(of)}: labels pixels, suites need images")


Spec = Pretrain | Ticket | Transfer | Evaluation
KINDS: dict[str, type] = {cls.__name__.lower(): cls for cls in get_args(Spec)}
LEAST_MEASURED = {"domain_gap": 8, "similarity": 4}
"""Images that a suite needs, where one is not enough."""


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
