"""Deployment: what a finetuned ticket costs on this machine, over the dense network's cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import devices, models, specs, stats, training
from robustlib.data.splits import balanced, take
from robustlib.export import Quantised, export, file_sizes, latencies, logits, quantise, seconds
from robustlib.specs import Ticket, Transfer, integer, shown
from robustlib.stages import network, run, transfer

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION = 200
"""Training images of the task, at most, that the activations of an int8 file are ranged on."""


@dataclass(frozen=True)
class _Form:
    """A network in one form."""

    spec: Transfer
    row: dict[str, Any]
    shapes: tuple
    """Of its parameters and buffers, by name."""
    group: tuple
    """Size and shapes of its dense network: what has them in common is timed in one run."""
    file: Path | None
    """Its ONNX file; None where zeros stay in place, for one such file is enough."""


def dense(spec: Transfer) -> Transfer:
    """The transfer that a ticket is compared with: the whole network, finetuned alike."""
    return replace(spec, ticket=Ticket(spec.ticket.pretrain))


def measure(
    transfers: Iterable[Transfer],
    folder: str | Path | None = None,
    rounds: int = 30,
    batch_sizes: Sequence[int] = (1, 64),
) -> pd.DataFrame:
    """What finetuned tickets cost, and the dense networks they are drawn from, a row each; those
    that are dense or smaller (channel) a second time as int8.

    Columns: those of the spec; `form` (fp32 or int8), `weight_bits`, and `instructions`, those for
    int8 of this CPU (`devices.instructions`); accuracy (int8: in onnxruntime) and n; what is not
    zero of `parameters` and `multiply_adds` (int8: of the fp32 network); `bytes_dense`,
    `bytes_compressed`, `bytes_bitmap` as `export.file_sizes` counts them; `stored_as`, the one of
    these that the pattern can use (channel: dense; others a bitmap, n:m too), or the ONNX file, and
    its `bytes`. For each batch size B, `latency_B` is the median of milliseconds in onnxruntime on
    one thread. NAME_ratio is that over the dense network's (of times: the median of ratios within
    rounds, and their quartiles _low and _high; of int8 files: over the dense ONNX file).

    Of networks of the same shapes one is timed, all in turn in one run: `timed_as` says which. Of
    those whose zeros stay in place ("zeros") that is the sparsest.
    ONNX files go to `folder`; None: to none that stays. Raises ValueError, before any work, for
    what is not a finetuned Transfer and for bad numbers.
    """
    import pandas as pd

    wanted, rounds = _checked(transfers), integer("rounds", rounds, 1)
    sizes = list(dict.fromkeys(integer("batch_sizes", b, 1, 2**16) for b in batch_sizes))
    if not sizes:
        raise ValueError(f"batch_sizes={shown(batch_sizes)}: must name at least one")
    found: list[_Form] = []
    with TemporaryDirectory(prefix="robustlib-") as unnamed:
        where = Path(unnamed if folder is None else folder)
        for whole in dict.fromkeys(map(dense, wanted)):
            first = _forms(whole, None, where)
            found += first
            for spec in wanted:
                if dense(spec) == whole and spec != whole:
                    found += _forms(spec, first[0], where)
        for group in dict.fromkeys(form.group for form in found):
            _time([form for form in found if form.group == group], sizes, rounds, where)
    return pd.DataFrame([form.row for form in found])


def training_steps(
    transfers: Iterable[Transfer], rounds: int = 10, batch_size: int = 64
) -> pd.DataFrame:
    """What a training step takes of channel tickets as the small networks that they are, over the
    same tickets as masks on the dense network; a row each.

    Columns: those of the spec, and `training_step_ratio` as in `measure`: processor time of
    forward, backward and SGD in fp32, one thread, the two timed in turn. Raises as `measure`, and
    ValueError for other tickets.
    """
    import pandas as pd

    wanted = _checked(transfers)
    rounds, batch_size = integer("rounds", rounds, 1), integer("batch_size", batch_size, 2, 2**16)
    for spec in wanted:
        if spec.ticket.pattern != "channel" or spec.ticket.sparsity == 0:
            raise ValueError(
                f"pattern={spec.ticket.pattern!r}, sparsity={spec.ticket.sparsity:g}: only a "
                "channel ticket becomes a smaller network"
            )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [
            (_step(_masked(s), s, batch_size), _step(network(s), s, batch_size)) for s in wanted
        ]
        # One round more, to warm up.
        taken = [[[seconds(step) for step in pair] for pair in pairs] for _ in range(rounds + 1)]
    finally:
        torch.set_num_threads(threads)
    timed = zip(wanted, 1000 * np.array(taken[1:]).transpose(1, 2, 0), strict=True)
    return pd.DataFrame(
        specs.columns(spec) | _timed("training_step", small, masked)
        for spec, (masked, small) in timed
    )


def channels(frame: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Channel tickets, rows of `measure` and `training_steps`: time beside arithmetic, as fractions
    of dense (of masked for the training step)."""
    shared = [c for c in steps if c in frame and not c.startswith("training_step")]
    rows = frame[frame.form == "fp32"].merge(steps, on=shared)
    named = ["task", "seed", "scope", "sparsity", *stats.PRETRAINING, "multiply_adds_ratio"]
    times = [c for c in rows if c.endswith("_ratio") and c.startswith(("latency", "training"))]
    out = rows[[*named, *times]].rename(columns=lambda c: c.removesuffix("_ratio"))
    return out.sort_values(["scope", "sparsity", "objective", "eps"], ignore_index=True).round(3)


def int8(frame: pd.DataFrame) -> pd.DataFrame:
    """What int8 adds: rows of `measure` that have both forms, accuracies in percent, bytes and
    latencies of the int8 file as fractions of the dense fp32 one, and what CPU they are of."""
    own = [c for c in frame.columns if c in specs.columns(Transfer())]
    both = frame[frame.form == "int8"].merge(
        frame[frame.form == "fp32"][[*own, "accuracy"]], on=own, suffixes=("_int8", "_fp32")
    )
    both.loc[both.sparsity == 0, "pattern"] = "dense"
    percent = {f"accuracy {f} %": 100 * both[f"accuracy_{f}"] for f in ("fp32", "int8")}
    ratios = [c for c in both if c.endswith("_ratio") and c.startswith(("bytes", "latency"))]
    named = ["pattern", "sparsity", "objective", "eps", *percent, *ratios, "instructions"]
    out = both.assign(**percent)[named].rename(columns=lambda c: c.removesuffix("_ratio"))
    return out.sort_values(["sparsity", "objective", "eps"], ignore_index=True).round(3)


def _checked(transfers: Iterable[Transfer]) -> list[Transfer]:
    wanted = [transfers] if isinstance(transfers, Transfer) else list(transfers)
    if not wanted:
        raise ValueError("transfers: there are none")
    for spec in wanted:
        if not isinstance(spec, Transfer):
            raise ValueError(f"transfers: {shown(spec)} must be a Transfer")
        if spec.mode != "finetune":
            raise ValueError(f"mode={spec.mode!r}: must be 'finetune', whose network is deployed")

    def is_dense(t: Ticket) -> bool:
        return t.scheme in ("dense", "omp") and t.control == "none" and t.sparsity == 0

    return list(dict.fromkeys(dense(s) if is_dense(s.ticket) else s for s in wanted))


def _forms(spec: Transfer, whole: _Form | None, where: Path) -> list[_Form]:
    """A network in fp32 and, if its shapes are not those of a network with zeros, in int8. `whole`
    is its dense network, None if it is one."""
    model, size = network(spec), spec.ticket.pretrain.size
    shapes = tuple((name, tuple(t.shape)) for name, t in model.state_dict().items())
    small = whole is None or shapes != whole.shapes
    stored_as = "dense" if small else "bitmap"
    sizes, result = file_sizes(model), run(spec).row
    row = specs.columns(spec) | {
        "form": "fp32",
        "weight_bits": 32,
        "instructions": devices.instructions(),
        **{c: result[c] for c in ("accuracy", "n", "parameters", "multiply_adds")},
        **{f"bytes_{name}": n for name, n in sizes.items()},
        "stored_as": stored_as,
        "bytes": sizes[stored_as],
    }
    before = whole.row if whole else row
    row |= {f"{c}_ratio": row[c] / before[c] for c in ("parameters", "multiply_adds", "bytes")}
    group = whole.group if whole else (size, shapes)
    if not small:
        return [_Form(spec, row, shapes, group, None)]
    file, task = export(model, where / f"{specs.key(spec)}.onnx", size), transfer.images(spec)
    made = calibrated(file, task.train, spec.seed)
    row_8 = {c: v for c, v in row.items() if not c.startswith("bytes")} | {
        "form": "int8",
        "weight_bits": made.weight_bits,
        "accuracy": float(right(made.path, task.test).mean()),
        "stored_as": "onnx",
        "bytes": (size_8 := made.path.stat().st_size),
        "bytes_ratio": size_8 / ((whole and whole.file) or file).stat().st_size,
    }
    forms = ((row, file), (row_8, made.path))
    return [_Form(spec, own, shapes, group, of) for own, of in forms]


def calibrated(file: Path, train: Any, seed: int) -> Quantised:
    """The int8 form of a network's ONNX file, beside it, ranged on the task's training images."""
    few = balanced(train.y.numpy(), min(CALIBRATION, len(train)), seed)
    return quantise(file, take(train, few), file.with_suffix(".int8.onnx"))


def right(file: str | Path, split: Any) -> np.ndarray:
    """Which images of a split an ONNX file has right: bools [N]."""
    return (logits(file, split).argmax(1) == split.y).numpy()


def _time(own: list[_Form], sizes: list[int], rounds: int, where: Path) -> None:
    """Gives the rows of a group their latencies, each graph timed once, in turn."""
    files: dict[str, Path] = {}
    names: dict[tuple, str] = {}
    for form in own:
        name = "zeros"
        if form.file is not None:
            name = names.setdefault(form.shapes, f"small {len(names)}" if names else "dense")
            name += "" if form.row["form"] == "fp32" else ", int8"
            files.setdefault(name, form.file)
        form.row["timed_as"] = name
    size = own[0].group[0]
    if zeros := [form.spec for form in own if form.file is None]:
        spec = max(zeros, key=lambda s: s.ticket.sparsity)  # the first of several
        files["zeros"] = export(network(spec), where / f"{specs.key(spec)}.onnx", size)
    for b in sizes:
        times = latencies(files, size, b, rounds)
        for form in own:
            of = times[form.row["timed_as"]]
            form.row.update(_timed(f"latency_{b}", of, times["dense"]))


def _timed(name: str, times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.quantile(np.divide(times, reference), [0.25, 0.5, 0.75])
    ratios = {f"{name}_ratio": middle, f"{name}_ratio_low": low, f"{name}_ratio_high": high}
    return {name: float(np.median(times))} | {k: float(v) for k, v in ratios.items()}


def _masked(spec: Transfer) -> nn.Module:
    """The ticket as it is before compaction, with a head for the task."""
    return models.swap_head(network(spec.ticket), run(spec).extra["n_classes"])


def _step(model: nn.Module, spec: Transfer, batch_size: int) -> Any:
    """A function that does one training step."""
    head: Any = model.fc
    generator = torch.Generator().manual_seed(0)
    size = spec.ticket.pretrain.size
    images = torch.rand(batch_size, 3, size, size, generator=generator)
    labels = torch.randint(0, head.out_features, (batch_size,), generator=generator)
    lies = devices.layout(model, torch.device("cpu"))
    model.cpu().to(memory_format=lies).train()
    # The rate costs no time, and at 0 the weights cannot run off to what does (nan, denormals).
    optim = training.optimiser(model, replace(training.Recipe.of(spec), lr=0.0))

    def step() -> None:
        optim.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optim.step()

    return step
