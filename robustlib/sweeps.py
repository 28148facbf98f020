"""Sweeps: many specs at once on Dask. Workers must see the store under this process's path."""

from __future__ import annotations

import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robustlib import progress, specs, store
from robustlib.cluster import PASSED_ON, SCHEMES, connect
from robustlib.costs import absent, cost
from robustlib.specs import Spec, integer

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

BAR: dict[str, Any] = {"desc": "sweep", "leave": True}
BAR["bar_format"] = "{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"


@dataclass(frozen=True)
class Job:
    """A call that a worker makes. name: what it is, in a line. after: keys of the jobs that must be
    done before. cost: an estimate, in any unit, for the longest goes first."""

    key: str
    name: str
    call: Callable[..., None]
    args: tuple[Any, ...]
    after: tuple[str, ...] = ()
    cost: float = 1.0


@dataclass(frozen=True)
class Failure:
    """A job that was not done."""

    job: Job
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.job.name}: {self.error}" + (f"\n{self.traceback}" if self.traceback else "")


class SweepFailed(RuntimeError):
    """Some jobs failed: the message says which and why, `failures` has them as data."""

    def __init__(self, failures: list[Failure], total: int) -> None:
        self.failures = failures
        texts = "\n".join(map(str, failures))
        super().__init__(f"{len(failures)} of {total} failed, the rest is stored:\n{texts}")


def sweep(
    wanted: Iterable[Spec],
    workers: int | None = None,
    *,
    client: Client | None = None,
    scheduler: str = "",
    retries: int = 0,
) -> pd.DataFrame:
    """Gets every spec from the store or computes it; returns their rows, in the order given.

    What is missing, and what that is built on, runs on Dask, longest first, each thing once: on the
    workers of `client`, any Dask client, or else where `connect` says by `workers` and `scheduler`.
    A spec that fails is tried `retries` times more and does not stop the others. Raises SweepFailed
    at the end; a second call runs only what is missing. ValueError for bad arguments, and
    RuntimeError for data sets that are not here, before anything is started.
    """
    import pandas as pd

    wanted = list(wanted)
    check(workers, scheduler, retries, client)
    if missing := store.lacking(wanted):
        if lines := absent(missing):
            raise RuntimeError("\n".join(["nothing was run", *lines]))
        cached = len({specs.key(s) for s in wanted if store.has(s)})
        jobs = [job(s) for s in missing]
        if failures := compute(jobs, workers, scheduler, retries, cached, client=client):
            raise SweepFailed(failures, len(missing))
        if lost := [s for s in wanted if not store.has(s)]:
            raise RuntimeError(
                f"{len(lost)} results are not in the store {store.root()}, which workers must see "
                "under the same path"
            )
    return pd.DataFrame([store.get(s).row for s in wanted])


def job(spec: Spec) -> Job:
    """What a worker is handed to get a spec stored, after what it is built on."""
    nested = (*specs.KINDS, "mask_from")
    differs = {k: v for k, v in specs.to_dict(spec, defaults=False).items() if k not in nested}
    name = " ".join([specs.kind(spec), specs.key(spec), *(f"{k}={v}" for k, v in differs.items())])
    after = tuple(specs.key(below) for below in specs.parents(spec))
    # What takes no arithmetic still takes half a second.
    return Job(specs.key(spec), name, _work, (spec,), after, cost(spec) + 1e10)


def _work(spec: Spec) -> None:
    import torch

    from robustlib.stages import run

    torch.set_num_threads(1)
    run(spec)


def compute(
    jobs: list[Job],
    workers: int | None = None,
    scheduler: str = "",
    retries: int = 0,
    cached: int = 0,
    unit: str = "spec",
    client: Client | None = None,
) -> list[Failure]:
    """Makes every call once its `after` is made, the longest first; returns those that failed,
    which stop only what needs them, after `retries` more tries. cached: how many were done before,
    for the bar. The rest as in `connect`."""
    from distributed import as_completed

    from robustlib.data.sources import data_root

    own = uuid.uuid4().hex  # Two sweeps on one scheduler must not take each other's jobs.
    environment = {"ROBUSTLIB_STORE": str(store.root().resolve())}
    environment |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if "ROBUSTLIB_DATA" in environment:  # a worker may be in another folder
        environment["ROBUSTLIB_DATA"] = str(data_root().absolute())
    if "ROBUSTLIB_DEVICE" in environment:  # cuda:1 is a worker's own GPU, the first that it sees
        environment["ROBUSTLIB_DEVICE"] = environment["ROBUSTLIB_DEVICE"].partition(":")[0]
    futures: dict[str, Any] = {}
    failed: dict[str, Failure] = {}
    running: set[str] = set()
    began, total, spent = time.monotonic(), sum(job.cost for job in jobs), 0.0

    def show(event: Any = None) -> None:
        running.update([event[1]] if event else [])  # a worker has begun with it
        left = "?"
        if spent:
            left = bar.format_interval((time.monotonic() - began) * (total - spent) / spent)
        counts = f"failed {len(failed)}, cached {cached}"
        if bar.n < bar.total:
            counts = f"{left} left, running {len(running)}, {counts}"
        else:
            bar.bar_format = "{desc}: {n_fmt}/{total_fmt} in {elapsed}{postfix}"
        bar.set_postfix_str(counts)

    counted: dict[str, Any] = {"total": len(jobs) + cached, "initial": cached, "unit": unit}
    with (
        connect(workers, scheduler, len(jobs), client) as client,
        progress.bar(above=f"dashboard: {client.dashboard_link}", **BAR, **counted) as bar,
    ):
        show()
        client.subscribe_topic(own, show)
        try:
            for i, job in enumerate(jobs):
                # Dask takes the first word of a key for its kind, and shares out evenly what is of
                # one kind, by how long others of it took.
                kind = job.name.split()[0].replace("-", "_")
                after = [futures[name] for name in job.after if name in futures]
                options = {"key": f"{kind}-{own}-{i}", "priority": job.cost, "retries": retries}
                futures[job.key] = client.submit(_call, own, environment, job, after, **options)
            of = {futures[job.key].key: job for job in jobs}
            for future in as_completed(futures.values()):
                job = of[future.key]
                running.discard(job.key)
                spent += job.cost
                if future.status != "finished":
                    failed[job.key] = _failure(job, future, failed)
                    bar.write(f"failed: {job.name}: {failed[job.key].error.splitlines()[0]}")
                bar.update()
                show()
        finally:
            client.cancel([f for f in futures.values() if not f.done()])
            client.unsubscribe_topic(own)
    return list(failed.values())


def _call(topic: str, environment: dict[str, str], job: Job, _after: list[None]) -> None:
    from distributed import get_worker

    get_worker().log_event(topic, job.key)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        job.call(*job.args)
    finally:  # the worker may be another's, and its next sweep one without these
        for name, value in before.items():
            del os.environ[name]
            os.environ |= {} if value is None else {name: value}


def _failure(job: Job, future: Any, failed: dict[str, Failure]) -> Failure:
    if future.status != "error":
        return Failure(job, "not done: the connection to the scheduler was lost")
    for name in job.after:
        if name in failed:
            return Failure(job, f"not done: needs {failed[name].job.name}")
    error, trace = future.exception(), future.traceback()
    text = "".join(traceback.format_exception_only(error)).strip()
    if type(error).__name__ == "KilledWorker":
        text += " (A worker that takes more than its share of the memory is ended: try fewer.)"
    # A note is a notebook's traceback, beside which that of the call says nothing.
    own = trace is not None and not hasattr(error, "__notes__")
    return Failure(job, text, "".join(traceback.format_tb(trace)).rstrip() if own else "")


def check(
    workers: int | None, scheduler: str, retries: int = 0, client: Client | None = None
) -> None:
    """Raises ValueError for arguments that no sweep takes, before anything is started."""
    if workers is not None:
        integer("workers", workers, 1, 1024)
    integer("retries", retries, 0, 100)
    if client is not None and (workers is not None or scheduler):
        raise ValueError(f"workers={workers}, scheduler={scheduler!r}: the client has both")
    runs = scheduler.startswith(SCHEMES)
    if runs and workers is not None:
        raise ValueError(f"workers={workers}: {scheduler} has workers of its own")
    if scheduler == "slurm" and workers is None:
        raise ValueError("workers=None: must say how many processes Slurm starts")
    if scheduler and scheduler != "slurm" and not runs:
        raise ValueError(f"scheduler={scheduler!r}: must be tcp://HOST:PORT or slurm")
