"""Sweeps: many specs at once on Dask, one process a core."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from robustlib import cluster, specs, store
from robustlib.specs import Evaluation, Spec, Ticket, Transfer

if TYPE_CHECKING:
    import pandas as pd


class SweepFailed(RuntimeError):
    """Some specs failed; the message names each with its error and traceback, the rest is stored.

    `failures` has them as data.
    """

    def __init__(self, failures: list[cluster.Failure], total: int) -> None:
        self.failures = failures
        texts = "\n".join(map(str, failures))
        super().__init__(f"{len(failures)} of {total} failed, the rest is stored:\n{texts}")


def closure(wanted: Iterable[Spec]) -> list[Spec]:
    """The specs and all they are built on, each once, what others need first."""
    found: dict[str, Spec] = {}

    def add(spec: Spec) -> None:
        if (name := specs.key(spec)) not in found:
            for below in specs.parents(spec):
                add(below)
            found[name] = spec

    for spec in wanted:
        add(spec)
    return list(found.values())


def sweep(
    wanted: Iterable[Spec], workers: int | None = None, *, scheduler: str = "", retries: int = 0
) -> pd.DataFrame:
    """Gets every spec from the store or computes it; returns their rows, in the order given.

    What is missing, and what that is built on, runs on Dask, longest first, each thing once. By
    default that is here, on `workers` processes of one thread (None: one a GPU, or else one a
    core); `scheduler` may be the address of a running Dask scheduler (tcp://HOST:PORT) or the TOML
    file of a Slurm cluster, see `cluster.connect`. A spec that fails is tried `retries` times more
    and does not stop the others. Raises SweepFailed at the end; a second call runs only what is
    missing. ValueError for bad arguments, before anything is started.
    """
    import pandas as pd

    wanted = list(wanted)
    cluster.check(workers, scheduler, retries)
    unique = {specs.key(s): s for s in wanted}
    lacking = [s for s in unique.values() if not store.has(s)]
    # A stored result needs nothing below it.
    missing = [s for s in closure(lacking) if not store.has(s)]
    if missing:
        jobs = [job(s) for s in missing]
        cached = len(unique) - len(lacking)
        if failures := cluster.compute(jobs, workers, scheduler, retries, cached):
            raise SweepFailed(failures, len(missing))
        if lost := [s for s in lacking if not store.has(s)]:
            raise RuntimeError(
                f"{len(lost)} results of workers are not in the store {store.root()}: workers must "
                "see it under the same path"
            )
    return pd.DataFrame([store.get(s).row for s in wanted])


def job(spec: Spec) -> cluster.Job:
    """What a worker is handed to get a spec stored, after what it is built on."""
    nested = (*specs.KINDS, "mask_from")
    differs = {k: v for k, v in specs.to_dict(spec, defaults=False).items() if k not in nested}
    name = " ".join([specs.kind(spec), specs.key(spec), *(f"{k}={v}" for k, v in differs.items())])
    after = tuple(specs.key(below) for below in specs.parents(spec))
    # What takes no arithmetic still takes half a second.
    return cluster.Job(specs.key(spec), name, _work, (spec,), after, cost(spec) + 1e10)


def _work(spec: Spec) -> None:
    import torch

    from robustlib.stages import run

    torch.set_num_threads(1)
    run(spec)


def cost(spec: Spec) -> float:
    """An estimate of the multiply-adds of a spec, without what it is built on.

    A training step is 3 forward passes, a step of an attack 2; pruning at once is free, and masked
    weights are multiplied like others. An image for segmentation counts as one of the source.
    """
    row = specs.columns(spec)
    forward = _forward(*(row[name] for name in ("arch", "width", "stem_stride", "stem", "size")))
    if isinstance(spec, Evaluation):
        n = _sizes(row.get("task", row["source"]))[1]
        return forward * min(n, spec.limit or n) * _passes(spec)
    if isinstance(spec, Transfer):
        n_train, n_test = _sizes(spec.task)
        return forward * (_passes(spec) * (spec.n_train or n_train) + n_test)
    if isinstance(spec, Ticket):
        own = spec.pretrain.n_train if not spec.dataset else None
        n_train = spec.n_train or own or _sizes(spec.dataset or row["source"])[0]
        return forward * _passes(spec) * n_train
    n_train, n_test = _sizes(spec.source)
    return forward * (_passes(spec) * (spec.n_train or n_train) + n_test)


def _passes(spec: Spec) -> float:
    """Forward passes, or what costs as much, for each image that a spec trains or measures on."""
    if isinstance(spec, Evaluation):
        # AutoAttack in its two versions, 75 corruptions, noisy copies; as measured or counted.
        attack = {"cheap": 250, "standard": 8_000}[spec.attack]
        return {"adversarial": attack, "certified": spec.draws, "corruption": 75}.get(spec.suite, 2)
    if isinstance(spec, Transfer):
        return 1.0 if spec.mode == "linear" else 3.0 * spec.epochs
    attack = 2.0 * spec.steps if spec.objective in ("pgd", "trades") else 0.0
    if isinstance(spec, Ticket):
        trains = spec.scheme in ("imp", "lmp") and specs.drawn_as(spec) is None
        return spec.epochs * (3.0 + attack) * trains
    if spec.checkpoint:
        return 0.0
    attack += 4.0 if spec.objective == "trades" else 0.0
    return spec.epochs * (3.0 + attack) * (spec.replays if spec.objective == "free" else 1)


@lru_cache
def _forward(arch: str, width: int, stem_stride: int, stem: str, size: int) -> int:
    from robustlib import models

    return models.multiply_adds(models.build(arch, 2, width, stem_stride, stem=stem), size)


def _sizes(name: str) -> tuple[int, int]:
    for row_name, n_train, n_test in _known():
        if row_name == name:
            return n_train, n_test
    return 0, 0


@lru_cache
def _known() -> list[tuple[str, int, int]]:
    from robustlib.data import sources

    return [(row.name, row.n_train, row.n_test) for row in sources.available()]
