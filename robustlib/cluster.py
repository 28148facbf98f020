"""Dask's workers: processes here, of a running scheduler, or of Slurm.

A worker is one process with one thread: a job draws from the random numbers of its process, so two
in one would give other results.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing import spawn
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

SCHEMES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")
PASSED_ON = ("ROBUSTLIB_DATA", "ROBUSTLIB_DEVICE")
IMPORTED = ["distributed", "pandas", "sklearn.linear_model", "robustlib.stages"]
"""Modules that workers have from the start."""
WORKER = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "ROBUSTLIB_DEVICES": "1"}
LEAST_MEMORY = 2**30
"""Bytes for each worker, unless so many are asked for that they have less: torch takes half."""


@contextmanager
def connect(
    workers: int | None = None, scheduler: str = "", jobs: int = 10**6, client: Client | None = None
) -> Iterator[Client]:
    """A Dask client with workers of one thread behind it, for as long as the context lasts.

    client: is used as it is. scheduler: "" starts `workers` processes here (None: one a GPU, or
    else one a core and LEAST_MEMORY; never more than jobs), each bounded to its share of the
    memory; "slurm" starts them there; tcp://HOST:PORT runs already, with workers. Raises ValueError
    for a scheduler that does not answer, and for workers that are threads, which share the random
    numbers of a process."""
    from distributed import Client

    with ExitStack() as stack:
        if client is None and scheduler.startswith(SCHEMES):
            try:
                client = stack.enter_context(Client(scheduler, timeout=10))
            except (OSError, ValueError) as e:
                raise ValueError(f"scheduler={scheduler!r}: does not answer ({e})") from None
        elif client is None:
            if not scheduler:
                stack.enter_context(_starting())
            cluster = slurm(workers or 0) if scheduler else _local(workers, jobs)
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            if not scheduler:
                client.run(_leave_interrupts)
        for address, n in client.nthreads().items():
            if n != 1:
                raise ValueError(f"{address}: has {n} threads; start workers with --nthreads 1")
            if address.startswith("inproc:"):
                raise ValueError(f"{address}: is in this process; start workers with processes")
        yield client


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    kind, _, index = os.environ.get("ROBUSTLIB_DEVICE", "cuda").partition(":")
    if kind == "cpu":
        return []
    named = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    count = torch.cuda.device_count()
    found = named[:count] or [str(i) for i in range(count)]
    return found[int(index) :][:1] if index else found


@cache
def _leave_main_alone() -> None:
    """From now on Dask's workers do not run this program's file again, as other processes do: a
    script without a guard of its main would start itself. Jobs name their functions by module."""
    whole = spawn.get_preparation_data

    def without_main(name: str) -> dict[str, Any]:
        ours = name.startswith("Dask Worker")
        return {k: v for k, v in whole(name).items() if not (ours and k.startswith("init_main"))}

    spawn.get_preparation_data = without_main


def _leave_interrupts() -> None:
    """A terminal interrupts all that it has started: workers end with this process, silently."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _starting() -> Any:
    """A context in which Dask's workers are copies of one process that has imported what jobs need:
    that takes seconds, and is done once for all workers and sweeps of this process."""
    import dask
    from distributed.utils import get_mp_context

    _leave_main_alone()
    # Not Dask's MALLOC_TRIM_THRESHOLD_: memory that goes back to the system after every layer makes
    # a training on a CPU take 1.8 times as long. What else Dask would set is in `environment`.
    own: dict[str, Any] = {"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": "1"}}
    # With GPUs each imports for itself: that a copy may use one was not tried.
    own["distributed.worker.multiprocessing-method"] = "spawn" if gpus() else "forkserver"
    starting = dask.config.set(own)
    get_mp_context().set_forkserver_preload(IMPORTED)
    return starting


def _local(workers: int | None, jobs: int) -> Any:
    from dask.system import CPU_COUNT
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    own = gpus()
    n = min(workers or len(own) or min(CPU_COUNT, MEMORY_LIMIT // LEAST_MEMORY or 1), jobs)
    # A worker over its share is ended, and its job tried again elsewhere. It is not paused before:
    # what it holds are the data sets that its jobs need, so it would wait for ever.
    memory = {f"distributed.worker.memory.{what}": False for what in ("pause", "spill", "target")}

    options = {"nthreads": 1, "memory_limit": MEMORY_LIMIT // n, "host": "127.0.0.1"}
    options |= {"config": memory, "silence_logs": logging.CRITICAL}
    # As it is now: what they are copies of has that of the first sweep. No name can be taken away.
    here = dict.fromkeys(PASSED_ON, "") | os.environ | WORKER
    nannies = {}
    for i in range(n):
        environment = here | ({"CUDA_VISIBLE_DEVICES": own[i % len(own)]} if own else {})
        nannies[i] = {"cls": Nanny, "options": options | {"env": environment}}
    # Any free port: another sweep may have the usual one.
    ports = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": ports}
    return SpecCluster(nannies, scheduler=scheduler, silence_logs=logging.ERROR)


def slurm(workers: int = 0) -> Any:
    """A Slurm cluster with so many processes, as dask-jobqueue's own configuration says
    (jobqueue.slurm), where `cores` are the processes of a job, one thread each. Raises ValueError
    for a configuration without cores and memory."""
    import dask
    from dask_jobqueue import SLURMCluster

    for name in ("cores", "memory"):
        if not dask.config.get(f"jobqueue.slurm.{name}"):
            raise ValueError(f"scheduler='slurm': Dask's configuration lacks jobqueue.slurm.{name}")
    cores = dask.config.get("jobqueue.slurm.cores")
    exports = [f"export {name}={value}" for name, value in WORKER.items()]
    prologue = exports + dask.config.get("jobqueue.slurm.job-script-prologue")
    cluster = SLURMCluster(job_name="robustlib", processes=cores, job_script_prologue=prologue)
    cluster.scale(workers)
    return cluster
