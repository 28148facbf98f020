"""The best ticket of the zoo for your own images and a budget, as a network to take away.

Tickets of natural and robust networks, zeros in place or whole channels gone, are ranked by linear
evaluation; the best few of either side are finetuned and written as ONNX, in fp32 and in int8; one
file is chosen on validation images (`choose`) and measured once on test images. All trainings are
specs: an interrupted call goes on from the store.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from robustlib import checkpoints, cluster, deployment, files, store, sweeps, takeaway
from robustlib.costs import cost
from robustlib.data import Dataset, load, sources
from robustlib.data.images import class_files, image_size
from robustlib.specs import Ticket, Transfer, number, one_of
from robustlib.stages import transfer

if TYPE_CHECKING:
    import pandas as pd

TICKETS: tuple[tuple[Any, float], ...] = (
    *(("unstructured", sparsity) for sparsity in (0.0, 0.8, 0.9, 0.95)),
    *(("channel", sparsity) for sparsity in (0.5, 0.75, 0.9, 0.95)),
)
"""Pattern and sparsity of the tickets that are tried, of each network. Zeros in place make a
smaller file, channels that are gone a network with fewer parameters that is faster too."""
LEAST = 5
"""Images that a class of a folder has at least: to train on, to choose by and to measure on."""
HELD_OUT = 0.2
"""The part of a folder's images that is test, and of the others that is val."""
RATE = 0.1
"""Of finetuning: the one that the study has chosen on validation images of ten tasks."""
ROOM = {"parameters": 1.0, "bytes": 1.03, "latency": 1.1}
"""How much more a finetuned ticket may cost than was estimated: by how its weights compress, and
by the clock, which is read differently each time."""
HIGH = 1.08
"""How many times too many bytes are estimated at most (measured: small channel tickets in int8)."""


@dataclass(frozen=True)
class Budget:
    """What the network may cost at most; None: as much as it likes."""

    parameters: float | None = None
    """Numbers that the network holds, zeros in place included."""
    bytes: float | None = None
    """Of the ONNX file through gzip, as classify.py reads it."""
    latency: float | None = None
    """Milliseconds of one image on one thread of this machine, in onnxruntime."""

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            object.__setattr__(self, name, number(name, value, 1e-9, 1e15))

    def given(self) -> dict[str, float]:
        """Those that are not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def met(self, forms: pd.DataFrame) -> Any:
        """Which rows of costs are within it: bools."""
        return np.all([np.ones(len(forms)), *(forms[c] <= v for c, v in self.given().items())], 0)


@dataclass(frozen=True)
class Effort:
    """How much is tried: networks of the zoo by seed and architecture, tickets of either side that
    are finetuned, training images at most, and passes over them."""

    seeds: tuple[int, ...]
    archs: tuple[str, ...]
    finetuned: int
    n_train: int | None
    epochs: int


EFFORTS = {
    "quick": Effort((0,), ("resnet10s",), 2, 1000, 20),
    "full": Effort((0, 1, 2), ("resnet10s", "resnet18s"), 3, None, 40),
}


@dataclass(frozen=True)
class Plan:
    """What a fit tries, checked."""

    images: str | Path
    """As they were given: a folder, or the name of a set."""
    task: str
    """The name of the set; a folder has become a pack in the data root."""
    detail: int
    """Side, in pixels, of what the images show, that of the zoo's at most."""
    wanted: tuple[Transfer, ...]
    """Linear evaluation of each ticket."""
    budget: Budget
    effort: str
    workers: int | None
    data: Dataset

    def __str__(self) -> str:
        counts = [f"{len(getattr(self.data, s))} {s}" for s in ("train", "val", "test")]
        what = f"{self.task}: {self.data.n_classes} classes, {self.detail} px"
        return f"{what}; images: {', '.join(counts)}; {len(self.wanted)} tickets"


@dataclass(frozen=True)
class Fitted:
    """What a fit has found."""

    card: dict[str, Any]
    """As in card.json."""
    options: pd.DataFrame
    """The finetuned tickets in both forms: what they are, costs, `val_accuracy`, `met` (within the
    budget) and `chosen`."""
    linear: pd.DataFrame
    """The rows of linear evaluation, without what they say of test images."""
    folder: Path


def plan(
    what: str | Path,
    budget: Budget | None = None,
    effort: str = "quick",
    n_train: int | None = None,
    workers: int | None = None,
) -> Plan:
    """What to try for images and a budget.

    what: a folder of class folders, as `sources.build_folder` takes it, which becomes a pack in the
    data root that is named by its content; or the name of a set. effort: one of EFFORTS; n_train:
    instead of its number of training images. workers: as in `sweeps.sweep`.

    Raises ValueError for what nothing can be trained on or is not known.
    """
    tried = EFFORTS[one_of("effort", effort, EFFORTS)]
    sweeps.check(workers, "")
    sides = [checkpoints.pretrain(f"zoo/{name}") for name in checkpoints.zoo()]
    task, detail = _task(what, sides[0].size)
    n = tried.n_train if n_train is None else n_train
    if n_train is None and n and n >= len(load(task, sides[0].size).train):
        n = None  # no label budget, so that val is whole too
    wanted = tuple(
        Transfer(Ticket(p, pattern=pattern, sparsity=s), task, "linear", n, recalibrate=True)
        for p in sides
        if p.seed in tried.seeds and p.arch in tried.archs
        for pattern, s in TICKETS
    )
    own = budget or Budget()
    return Plan(what, task, detail, wanted, own, effort, workers, transfer.data(wanted[0]))


def destination(out: str | Path, images: str | Path) -> Path:
    """The folder that the files of a fit go to, which is not made yet. images: as in `plan`.

    Raises ValueError unless they can be written there, and are not among the images.
    """
    folder, own = files.writable("out", out), sources.home(images)
    if not str(out) or (own.is_dir() and folder.resolve().is_relative_to(own.resolve())):
        raise ValueError(f"out={str(out)!r}: must be a folder outside of the images, {images}")
    if taken := [name for name in takeaway.FILES if (folder / name).is_dir()]:
        raise ValueError(f"out={str(out)!r}: must have room for a file {taken[0]}, not a folder")
    return folder


def fit(plan: Plan, out: str | Path | None = None, say: Callable[[str], None] = print) -> Fitted:
    """Chooses, finetunes and exports the best ticket of the zoo for a plan.

    out: where card.json, classify.py, the chosen network.onnx.gz, and both its forms go, in place
    of those of an earlier fit (default: fit/NAME beside the store). say: is told what each step
    costs before it begins.

    Raises ValueError as `destination` does, and for a budget that no ticket is within: before any
    training, by estimates, or after it, by the files, where estimates leave it open. SweepFailed.
    """
    data, budget, wanted, tried = plan.data, plan.budget, list(plan.wanted), EFFORTS[plan.effort]
    out = store.root().parent / "fit" / plan.task if out is None else out
    out = destination(out, plan.images)
    say(str(plan))
    if (out / takeaway.FILES[-1]).exists():
        say(f"{out}: its network will be replaced; another folder (out) keeps both")
    with cluster.connect(plan.workers) as client, TemporaryDirectory() as folder:
        if budget.given():
            say(f"costs: of {len(wanted)} tickets, in two forms; nothing is trained for them")
            wanted = _affordable(wanted, budget, data.n_classes, Path(folder) / "before", client)
            say(f"costs: {len(wanted)} tickets are within the budget, as estimated")
        linear = _computed("linear evaluation", wanted, [], client, say)
        few = [
            replace(wanted[i], mode="finetune", epochs=tried.epochs, lr=RATE, recalibrate=False)
            for own in linear.groupby(linear.objective == "natural").groups.values()
            for i in linear.val_accuracy[own].nlargest(tried.finetuned).index
        ]
        _computed("finetuning", few, wanted, client, say)
        options = takeaway.forms(few, Path(folder) / "after", client)
        right = np.array([deployment.right(file, data.val) for file in options.file])
        options = options.assign(val_accuracy=right.mean(1), n_val=len(data.val))
        options["met"] = budget.met(options)
        if not options.met.any():
            raise ValueError(_refusal(budget, options, {}))
        place = choose(options, right)
        options["chosen"] = options.index == place
        card = takeaway.card(few[options.spec[place]], data, options, right)
        card |= {"budget": budget.given(), "effort": plan.effort}
        card["expected"] = takeaway.expected(plan.task, plan.detail)
        takeaway.save(out, card, options)
    shown = linear.drop(columns=["accuracy", "n"])
    return Fitted(card, options.drop(columns="file"), shown, out)


def choose(options: pd.DataFrame, right: np.ndarray) -> int:
    """The place of the option that RULE says. right: which validation images each has right, bools
    [options, N]; the options say `bytes` and whether they have `met` the budget."""
    able = options.index[options.met]
    able = sorted(able, key=lambda i: (-right[i].mean(), options.bytes[i]))
    behind = right[able[0]].astype(float) - right[able]
    error = behind.std(1, ddof=1) / np.sqrt(right.shape[1]) if right.shape[1] > 1 else 0.0
    # One image behind is one standard error, to the last digits.
    tied = [i for i, near in zip(able, behind.mean(1) <= error + 1e-9, strict=True) if near]
    return next(i for i in tied if options.bytes[i] <= 1.05 * options.bytes[tied].min())


def _task(what: str | Path, size: int) -> tuple[str, int]:
    """The name of the set, and the detail of its images in pixels, `size` at most."""
    folder = sources.home(what)
    if not folder.is_dir():
        if folder.name != str(what):
            raise ValueError(f"{what}: no such folder")
        return str(what), min(size, load(str(what), size).native)
    splits = class_files(folder, "train", "test", more=True)
    for name, found in (splits.get("all") or splits["train"]).items():
        if len(found) < LEAST:
            raise ValueError(
                f"{folder}: class {name!r} has {len(found)} images to train and choose on; "
                f"{LEAST} at least are needed"
            )
    paths = sorted(p for own in splits.values() for found in own.values() for p in found)
    content = "\n".join(f"{files.sha256(p)} {p.relative_to(folder)}" for p in paths)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-")[:40] or "folder"
    name = f"{plain}-{files.sha256(content.encode())[:10]}"
    if not sources.here(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is not read has been said
            sources.build_folder(name, folder, size, HELD_OUT, val_fraction=HELD_OUT)
    return name, min(size, round(median(min(image_size(p)) for p in paths)))


def _computed(
    step: str,
    wanted: Sequence[Transfer],
    others: Sequence[Transfer],
    client: Any,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """The rows of specs, after what they cost was said: by how long those took, or `others`, that
    are stored, and by the first of them, which is computed for it, where none is."""
    own, other = ([s for s in some if store.has(s)] for some in (wanted, others))
    todo = [s for s in wanted if s not in own]
    if todo and not (own or other):
        say(f"{step}: {len(todo)} trainings; the first one tells how long the others take")
        sweeps.sweep(todo[:1], client=client)
        return _computed(step, wanted, others, client, say)
    if todo:
        rates = [store.get(spec).row["seconds"] / cost(spec) for spec in own or other]
        # What is not arithmetic weighs less in a longer training.
        rate, about = (median(rates), "about") if own else (min(rates), "up to about")
        minutes = rate * sum(map(cost, todo)) / len(client.nthreads()) / 60
        say(f"{step}: {len(todo)} trainings, {len(own)} stored, {about} {minutes:.1f} minutes")
    return sweeps.sweep(wanted, client=client)


def _affordable(
    wanted: list[Transfer], budget: Budget, n_classes: int, folder: Path, client: Any
) -> list[Transfer]:
    """Those of which a form is within the budget, by an estimate of untrained tickets; where none
    is, those that may be. Raises ValueError that says the smallest where none may be."""
    import pandas as pd

    given = budget.given()
    rows = [row for spec in wanted for row in takeaway.estimates(spec, n_classes)]
    forms = pd.DataFrame(rows).assign(spec=np.repeat(range(len(wanted)), len(takeaway.FORMS)))
    room = {name: value / ROOM[name] for name, value in given.items()}
    if "bytes" in given and not Budget(**room | {"latency": None}).met(forms).any():
        room["bytes"] = given["bytes"] * HIGH
    able = forms[Budget(**room | {"latency": None}).met(forms)]
    if "latency" in given and len(able):
        # Zeros in place are multiplied like any number: the tickets of a network are equally fast.
        shape = able.sparsity.where(able.pattern == "channel", 0.0)
        able = able.assign(shape=able.network + shape.astype(str))
        first = able.drop_duplicates("shape")
        timed = takeaway.forms([wanted[i] for i in first.spec], folder, client)
        timed = timed.assign(shape=first["shape"].to_numpy()[timed.spec])
        forms = able.merge(timed[["shape", "form", "latency"]], on=["shape", "form"])
        able = forms[Budget(**room).met(forms)]
    if able.empty:
        raise ValueError(_refusal(budget, forms, ROOM))
    return [wanted[i] for i in able.spec.unique()]


def _refusal(budget: Budget, forms: pd.DataFrame, room: dict[str, float]) -> str:
    parts = []
    for name, value in budget.given().items():
        parts.append(f"{name}={value:g}")
        if name in forms:  # only what meets the rest is timed
            least = forms.loc[forms[name].idxmin()]
            cost = least[name] * (more := room.get(name, 1.0))
            text = f"{cost:.3f} ms" if name == "latency" else f"{math.ceil(cost):,}"
            about = "estimated at " if more > 1 else ""
            parts[-1] += f" (the least is {about}{text}: {takeaway.said(least)})"
    return f"{', '.join(parts)}: no ticket of the zoo is within the budget"
