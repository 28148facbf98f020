"""The command itself, and what its commands share."""

import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import App, Parameter

import robustlib
from robustlib.specs import printable

app = App(
    name="robustlib",
    help="Robust tickets: do subnetworks of robust networks transfer better?",
    version=robustlib.__version__,
    # A network of its own has no flags.
    default_parameter=Parameter(parse=re.compile("^(?!mask_from$|other$)")),
)
app.register_install_completion_command(
    add_to_startup=False, help="Write the completion script of this shell, and say where."
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


def examples(*lines: str) -> str:
    """What stands at the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"    {line}" for line in lines)])


def arranged(frame: Any, all_columns: bool = False) -> Any:
    """The rows, what they are of first; without the columns that do not tell them apart."""
    from robustlib import stats

    if all_columns or len(frame) == 1:
        return frame
    varied = [c for c in frame if frame[c].nunique(dropna=False) > 1]
    return stats.arranged(frame[varied])


def show(frame: Any, csv: Path | None, all_columns: bool = False) -> None:
    """Prints rows, or writes them to a file; printed are the columns that tell rows apart, as many
    as the terminal has room for."""
    if csv:
        frame.to_csv(csv, index=False)
        print(f"{len(frame)} rows: {csv}")
        return
    frame = arranged(frame, all_columns)
    lines = frame.to_string(index=False).splitlines()
    kept = names = list(frame)
    while not all_columns and len(kept) > 1 and len(lines[0]) > shutil.get_terminal_size().columns:
        kept = kept[:-1]
        lines = frame[kept].to_string(index=False).splitlines()
    print("\n".join(lines))
    if left := names[len(kept) :]:
        print(f"{len(left)} more columns (--csv FILE has all): {', '.join(left)}")


def refuse(message: str) -> int:
    """Says why on stderr, on one line, whatever a path or another library put into it; in a
    terminal broken between words. Returns the exit code."""
    text = printable(message)
    # The beginning names what is bad, the end says what is allowed.
    text = text if len(text) <= 2_500 else f"{text[:1_500]} [...] {text[-800:]}"
    text = f"robustlib: {text}"
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_on_hyphens=False)
    print(text, file=sys.stderr)
    return 2
