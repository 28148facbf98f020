"""The command itself, and what its commands share."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

import robustlib

app = App(
    name="robustlib",
    help="Robust tickets: do subnetworks of robust networks transfer better?",
    version=robustlib.__version__,
    # A network of its own has no flags.
    default_parameter=Parameter(parse=re.compile("^(?!mask_from$|other$)")),
)
FLAT = Parameter(name="*", consume_multiple=True)


@dataclass(frozen=True)
class Where:
    """Where many things are computed."""

    workers: int | None = None
    """Processes, one thread each (default: one a GPU, or else one a core)."""
    scheduler: str = ""
    """tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue)."""
    retries: int = 0
    """How many times more is tried what failed."""


HERE = Where()


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Shows warnings as errors are: what was found and is not read."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda text, *_, **__: print(f"robustlib: {text}", file=sys.stderr)
        yield


def check_csv(csv: Path | None) -> None:
    """Before hours of work, and not after them."""
    if csv and not csv.parent.is_dir():
        raise ValueError(f"csv={str(csv)!r}: its folder is not there")


def show(frame: Any, csv: Path | None, all_columns: bool = False) -> None:
    """Prints rows, or writes them to a file; printed columns are those that tell rows apart."""
    if csv:
        frame.to_csv(csv, index=False)
        print(f"{len(frame)} rows: {csv}")
    else:
        several = len(frame) > 1 and not all_columns
        varied = [c for c in frame if not several or frame[c].nunique(dropna=False) > 1]
        print(frame[varied].to_string(index=False))
