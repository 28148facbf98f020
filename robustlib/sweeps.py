"""Sweeps: many specs at once on Dask, one process a core."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from robustlib import specs, store
from robustlib.specs import Pretrain, Spec, Ticket, Transfer

if TYPE_CHECKING:
    import pandas as pd


class SweepFailed(RuntimeError):
    """Some specs failed; the message names each with its error, the rest is stored."""


def closure(wanted: Iterable[Spec]) -> list[Spec]:
    """The specs and all they are built on, each once, what others need first."""
    found: dict[str, Spec] = {}
    for spec in wanted:
        chain = [spec]
        while (below := specs.parent(chain[-1])) is not None:
            chain.append(below)
        for s in reversed(chain):
            found.setdefault(specs.key(s), s)
    return list(found.values())


def sweep(wanted: Iterable[Spec], workers: int | None = None) -> pd.DataFrame:
    """Gets every spec from the store or computes it; returns their rows, in the order given.

    What is missing, and what that is built on, runs on a local Dask cluster of `workers`
    processes (None: one a core), one thread each, longest first. A failed spec does not stop the
    others. Raises SweepFailed at the end; a second call runs only what is missing.
    """
    import pandas as pd

    wanted = list(wanted)
    if workers is not None:
        specs.integer("workers", workers, 1, 1024)
    missing = [s for s in closure(wanted) if not store.has(s)]
    # A stored result needs nothing below it.
    needed = {specs.key(s) for s in closure(s for s in wanted if not store.has(s))}
    missing = [s for s in missing if specs.key(s) in needed]
    if missing:
        failed = _compute(missing, workers or os.cpu_count() or 1)
        if failed:
            lines = [f"{specs.kind(s)} {specs.key(s)}: {error}" for s, error in failed]
            raise SweepFailed(f"{len(failed)} of {len(missing)} failed:\n" + "\n".join(lines))
    return pd.DataFrame([store.get(s).row for s in wanted])


def _compute(missing: list[Spec], workers: int) -> list[tuple[Spec, str]]:
    from distributed import Client, LocalCluster, as_completed

    environment = {
        "ROBUSTLIB_STORE": str(store.root().resolve()),
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
    }
    failed: list[tuple[Spec, str]] = []
    with (
        LocalCluster(
            n_workers=min(workers, len(missing)),
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=":0",  # any free port: another sweep may have the usual one
            env=environment,
        ) as cluster,
        Client(cluster) as client,
        tqdm(total=len(missing), desc="sweep", unit="spec", dynamic_ncols=True) as bar,
    ):
        futures: dict[str, Any] = {}
        for spec in missing:
            below = specs.parent(spec)
            after = futures.get(specs.key(below)) if below is not None else None
            key = specs.key(spec)
            futures[key] = client.submit(_work, spec, after, key=key, priority=cost(spec))
        by_key = {specs.key(s): s for s in missing}
        for future in as_completed(list(futures.values())):
            if future.status == "error":
                error = future.exception()
                text = "".join(traceback.format_exception_only(error)).strip()
                failed.append((by_key[future.key], text))
                tqdm.write(f"failed: {specs.columns(by_key[future.key])}\n{text}")
            bar.update()
    return failed


def _work(spec: Spec, _after: Any) -> None:
    import torch

    from robustlib.stages import run

    torch.set_num_threads(1)
    run(spec)


def cost(spec: Spec) -> float:
    """An estimate of the multiply-adds of a spec, without what it is built on.

    A training step is 3 forward passes, a step of an attack 2; pruning is free, and masked
    weights are multiplied like others.
    """
    if isinstance(spec, Ticket):
        return 0.0
    pretrain = spec if isinstance(spec, Pretrain) else spec.ticket.pretrain
    forward = _forward(pretrain.arch, pretrain.width, pretrain.stem_stride, pretrain.size)
    sizes = _sizes(spec.source if isinstance(spec, Pretrain) else spec.task)
    n = spec.n_train or sizes[0]
    if isinstance(spec, Transfer):
        passes = 3.0 * spec.epochs if spec.mode == "finetune" else 1.0
    elif spec.checkpoint:
        passes = 0.0
    else:
        attack = 2.0 * spec.steps if spec.objective in ("pgd", "trades") else 0.0
        attack += 4.0 if spec.objective == "trades" else 0.0
        passes = spec.epochs * (3.0 + attack)
        passes *= spec.replays if spec.objective == "free" else 1
    return forward * (passes * n + sizes[1])


@lru_cache
def _forward(arch: str, width: int, stem_stride: int, size: int) -> int:
    from robustlib import models

    return models.multiply_adds(models.build(arch, 2, width, stem_stride), size)


def _sizes(name: str) -> tuple[int, int]:
    for row_name, n_train, n_test in _known():
        if row_name == name:
            return n_train, n_test
    return 0, 0


@lru_cache
def _known() -> list[tuple[str, int, int]]:
    from robustlib.data import sources

    return [(row.name, row.n_train, row.n_test) for row in sources.available()]
