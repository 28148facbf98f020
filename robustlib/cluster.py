"""Where jobs run: on this machine's cores or GPUs, on a Dask scheduler that runs, or on Slurm.

Whatever the place, a worker is one process with one thread: a job draws from the random numbers of
its process, so two in one process would give other results than one alone. The workers must see the
store under the path that this process sees it under.
"""

from __future__ import annotations

import logging
import os
import time
import tomllib
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import spawn
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from robustlib import store
from robustlib.specs import integer, one_of

if TYPE_CHECKING:
    from distributed import Client

SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
SLURM = {
    "workers": int,  # processes in all
    "processes": int,  # of a Slurm job, one thread each
    "cpus": int,  # of a Slurm job
    "memory": str,  # of a Slurm job, as "16GB"
    "walltime": str,
    "queue": str,
    "account": str,
    "directives": list,  # more of #SBATCH, as "--gres=gpu:1"
    "prologue": list,  # lines of shell before the workers start
    "interface": str,  # the network that workers reach this machine by
    "log_directory": str,
}
PASSED_ON = ("ROBUSTLIB_DATA", "ROBUSTLIB_DEVICE")


@dataclass(frozen=True)
class Job:
    """A call that a worker makes."""

    key: str
    name: str
    """What it is, in a line."""
    call: Callable[..., None]
    args: tuple[Any, ...]
    after: tuple[str, ...] = ()
    """Keys of the jobs that must be done before."""
    cost: float = 1.0
    """An estimate, in any unit: the longest goes first."""


@dataclass(frozen=True)
class Failure:
    """A job that was not done."""

    job: Job
    error: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.job.name}: {self.error}" + (f"\n{self.traceback}" if self.traceback else "")


def compute(
    jobs: list[Job],
    workers: int | None = None,
    scheduler: str = "",
    retries: int = 0,
    cached: int = 0,
    unit: str = "spec",
) -> list[Failure]:
    """Makes every call once its `after` is made, the longest first; returns those that failed.

    A failure stops only what needs it, after `retries` more tries. `cached` is how many more there
    were, done before: the bar counts them. `workers` and `scheduler` are those of `connect`.
    """
    with connect(workers, scheduler, len(jobs)) as client:
        return compute_on(client, jobs, retries, cached, unit)


def compute_on(
    client: Client, jobs: list[Job], retries: int = 0, cached: int = 0, unit: str = "spec"
) -> list[Failure]:
    """`compute` on workers that are there."""
    from distributed import as_completed

    own = uuid.uuid4().hex  # Two sweeps on one scheduler must not take each other's jobs.
    environment = {"ROBUSTLIB_STORE": str(store.root().resolve())}
    environment |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    futures: dict[str, Any] = {}
    failed: dict[str, Failure] = {}
    with _bar(jobs, cached, unit, client.dashboard_link) as (started, ended):
        client.subscribe_topic(own, lambda event: started(event[1]))
        try:
            for i, job in enumerate(jobs):
                # Dask takes the first word of a key for its kind, and shares out evenly what is of
                # one kind, by how long others of it took.
                kind = job.name.split()[0].replace("-", "_")
                futures[job.key] = client.submit(
                    _call,
                    own,
                    environment,
                    job.key,
                    job.call,
                    job.args,
                    [futures[name] for name in job.after if name in futures],
                    key=f"{kind}-{own}-{i}",
                    priority=job.cost,
                    retries=retries,
                )
            of = {futures[job.key].key: job for job in jobs}
            for future in as_completed(futures.values()):
                job = of[future.key]
                if future.status != "finished":
                    failed[job.key] = _failure(job, future, failed)
                ended(job, failed.get(job.key))
        finally:
            client.cancel([f for f in futures.values() if not f.done()])
            client.unsubscribe_topic(own)
    return list(failed.values())


def _call(topic: str, environment: dict[str, str], key: str, call: Any, args: Any, _: Any) -> None:
    from distributed import get_worker

    os.environ.update(environment)
    get_worker().log_event(topic, key)
    call(*args)


def _failure(job: Job, future: Any, failed: dict[str, Failure]) -> Failure:
    if future.status != "error":
        return Failure(job, "not done: the connection to the scheduler was lost")
    for name in job.after:
        if name in failed:
            return Failure(job, f"not done: needs {failed[name].job.name}")
    error, trace = future.exception(), future.traceback()
    text = "".join(traceback.format_exception_only(error)).strip()
    return Failure(job, text, "".join(traceback.format_tb(trace)).rstrip() if trace else "")


@contextmanager
def _bar(jobs: list[Job], cached: int, unit: str, dashboard: str) -> Iterator[tuple[Any, Any]]:
    """The progress bar, and what to call when a job starts and when it ends."""
    running: set[str] = set()
    failed, spent, began = 0, 0.0, time.monotonic()
    total = sum(job.cost for job in jobs)
    bar = tqdm(
        total=len(jobs) + cached,
        initial=cached,
        desc="sweep",
        unit=unit,
        dynamic_ncols=True,
        disable=bool(os.environ.get("TQDM_DISABLE")),
        bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}",
    )

    def show() -> None:
        left = "?"
        if spent:
            left = tqdm.format_interval((time.monotonic() - began) * (total - spent) / spent)
        counts = f"running {len(running)}, failed {failed}, cached {cached}"
        bar.set_postfix_str(f"{left} left, {counts}")

    def started(key: str) -> None:
        running.add(key)
        show()

    def ended(job: Job, failure: Failure | None) -> None:
        nonlocal failed, spent
        running.discard(job.key)
        spent += job.cost
        if failure:
            failed += 1
            bar.write(f"failed: {job.name}: {failure.error}")
        bar.update()
        show()

    with bar:
        if not bar.disable:
            bar.write(f"dashboard: {dashboard}")
        show()
        yield started, ended


@contextmanager
def connect(workers: int | None = None, scheduler: str = "", jobs: int = 10**6) -> Iterator[Client]:
    """A Dask client with workers behind it, for as long as the context lasts.

    scheduler: "" starts `workers` processes here (None: one a GPU, or else one a core), never more
    than there are jobs, each bounded to its share of the memory; "tcp://HOST:PORT" is a running
    scheduler with workers of its own; FILE.toml describes a Slurm cluster (see `slurm`). Raises
    ValueError for anything else, and for a scheduler that does not answer or whose workers have
    several threads.
    """
    from distributed import Client

    check(workers, scheduler)
    with ExitStack() as stack:
        if scheduler.startswith(SCHEMES):
            try:
                client = stack.enter_context(Client(scheduler, timeout=10))
            except (OSError, ValueError) as e:
                raise ValueError(f"scheduler={scheduler!r}: does not answer ({e})") from None
            for address, worker in client.scheduler_info()["workers"].items():
                if worker["nthreads"] != 1:
                    raise ValueError(
                        f"scheduler={scheduler!r}: its worker {address} has {worker['nthreads']} "
                        "threads; start workers with --nthreads 1"
                    )
        else:
            cluster = _slurm(scheduler, workers) if scheduler else _local(workers, jobs)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
        yield client


def check(workers: int | None, scheduler: str, retries: int = 0) -> None:
    """Raises ValueError for arguments that `compute` would refuse, before anything is started."""
    if workers is not None:
        integer("workers", workers, 1, 1024)
    integer("retries", retries, 0, 100)
    if scheduler.startswith(SCHEMES):
        if workers is not None:
            raise ValueError(f"workers={workers}: {scheduler} has workers of its own")
    elif scheduler.endswith(".toml"):
        slurm(scheduler)
    elif scheduler:
        raise ValueError(
            f"scheduler={scheduler!r}: must be tcp://HOST:PORT, or the TOML file of a Slurm cluster"
        )


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if os.environ.get("ROBUSTLIB_DEVICE", "cuda").startswith("cpu"):
        return []
    named = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    count = torch.cuda.device_count()
    return named[:count] or [str(i) for i in range(count)]


@cache
def _leave_main_alone() -> None:
    """From now on the worker processes that Dask starts here do not run this program's file again.

    They are spawned, and a spawned process does so first: a script without a guard of its main
    would start itself. Workers need nothing of it, for jobs name their functions by module.
    """
    whole = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        ours = name.startswith("Dask Worker")
        return {k: v for k, v in whole(name).items() if not (ours and k.startswith("init_main"))}

    spawn.get_preparation_data = without_main


def _local(workers: int | None, jobs: int) -> Any:
    import dask
    from dask.system import CPU_COUNT
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    _leave_main_alone()
    own = gpus()
    n = min(workers or len(own) or CPU_COUNT, jobs)
    # A worker over its share is ended, and its job tried again elsewhere. It is not paused before:
    # what it holds are the data sets that its jobs need, so it would wait for ever.
    memory = {f"distributed.worker.memory.{what}": False for what in ("pause", "spill", "target")}

    def nanny(i: int) -> dict[str, Any]:
        environment = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "ROBUSTLIB_DEVICES": "1"}
        if own:
            environment["CUDA_VISIBLE_DEVICES"] = own[i % len(own)]
        options = {"nthreads": 1, "memory_limit": MEMORY_LIMIT // n, "host": "127.0.0.1"}
        options |= {"env": environment, "config": memory, "silence_logs": logging.CRITICAL}
        return {"cls": Nanny, "options": options}

    # Any free port: another sweep may have the usual one.
    ports = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    # Not Dask's MALLOC_TRIM_THRESHOLD_: memory that goes back to the system after every layer makes
    # a training on a CPU take 1.8 times as long. What else Dask would set is in `environment`.
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1"}}):
        return SpecCluster(
            workers={i: nanny(i) for i in range(n)},
            scheduler={"cls": Scheduler, "options": ports},
            silence_logs=logging.ERROR,
        )


def slurm(file: str | Path) -> dict[str, Any]:
    """The [slurm] table of a TOML file, its names and types checked.

    See clusters/slurm.toml, to copy from. Raises ValueError that names the file and the value.
    """
    try:
        tables = tomllib.loads(Path(file).read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{file}: cannot be read as TOML: {e}") from None
    try:
        one_of("table", next(iter(tables), ""), ["slurm"])
        table = tables["slurm"]
        for name, value in table.items():
            kind = SLURM[one_of("field of [slurm]", name, sorted(SLURM))]
            if type(value) is not kind:
                raise ValueError(f"{name}={value!r}: must be {kind.__name__}")
            if kind is int:
                integer(name, value, 1, 10**5)
        if missing := [n for n in ("workers", "memory", "walltime") if n not in table]:
            raise ValueError(f"{missing[0]!r} is missing")
    except (ValueError, AttributeError) as e:
        raise ValueError(f"{file}: {e}") from None
    return table


def _jobqueue(table: dict[str, Any]) -> dict[str, Any]:
    processes = table.get("processes", 1)
    exports = ["OMP_NUM_THREADS=1", "TQDM_DISABLE=1", "ROBUSTLIB_DEVICES=1"]
    return {
        "job_name": "robustlib",
        "cores": processes,  # Dask's word for threads
        "processes": processes,
        "job_cpu": table.get("cpus", processes),
        "memory": table["memory"],
        "walltime": table["walltime"],
        "queue": table.get("queue"),
        "account": table.get("account"),
        "interface": table.get("interface"),
        "log_directory": table.get("log_directory"),
        "job_extra_directives": table.get("directives", []),
        "job_script_prologue": [f"export {e}" for e in exports] + table.get("prologue", []),
    }


def slurm_script(file: str | Path) -> str:
    """The script that each job of the Slurm cluster in a TOML file is started with."""
    from dask_jobqueue.slurm import SLURMJob

    # The address is known only once the scheduler runs.
    return SLURMJob("tcp://SCHEDULER:PORT", "robustlib", **_jobqueue(slurm(file))).job_script()


def _slurm(file: str, workers: int | None) -> Any:
    from dask_jobqueue import SLURMCluster

    table = slurm(file)
    cluster = SLURMCluster(**_jobqueue(table))
    cluster.scale(workers or table["workers"])
    return cluster
