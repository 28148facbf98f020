"""The command, what its commands share, and those that run one spec, whose fields are flags."""

import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import pydantic
from cyclopts import App, Parameter

import robustlib
from robustlib.specs import KINDS, Evaluation, Pretrain, Ticket, Transfer, from_dict, printable

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


def _whole(_: Any, tokens: Any) -> int:
    """A flag's number as it is: cyclopts makes 31 of 30.7."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} must be a whole number") from None


Whole = Annotated[int, Parameter(converter=_whole)]


@dataclass(frozen=True)
class Where:
    """Where many things are computed."""

    workers: Whole | None = None
    """Processes, one thread each (default: one a GPU, or else one a core)."""
    scheduler: str = ""
    """tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue)."""
    retries: Whole = 0
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


@dataclass(frozen=True)
class _Measure(Evaluation):
    """An evaluation as flags say it: of a transfer."""

    of: Transfer = field(default_factory=Transfer)


def _add(name: str, cls: type, about: str, example: str, called: str = "") -> None:
    """The command that runs a spec, of which every field is a flag."""

    def command(*, spec: Any = None, recompute: bool = False) -> None:
        artifact = robustlib.run(spec or KINDS[name](), recompute)
        for column, value in artifact.row.items():
            print(f"{column:22} {value}")
        print(f"{'stored in':22} {artifact.path}")

    read = pydantic.PlainValidator(partial(_read, KINDS[name], cls))
    command.__annotations__["spec"] = Annotated[cls, FLAT, read]
    command.__doc__ = f"{about}\n\nArgs:\n    recompute: Replace a stored result.\n"
    app.command(command, name=called or name, help_epilogue=examples(f"robustlib {example}"))


def _read(kind: type, cls: type, values: Any) -> Any:
    typed = _typed(cls, values)
    if "of" in typed:
        typed["of"] = {"transfer": typed["of"]}
    return from_dict(kind, typed)


def _typed(cls: type, values: Any) -> Any:
    """Text as what the fields of a spec are; the spec refuses what is left as text."""
    hints = get_type_hints(cls)

    def typed(hint: Any, value: Any) -> Any:
        if isinstance(value, dict):
            return _typed(hint, value) if hint in KINDS.values() else value
        if value == "None" and NoneType in get_args(hint):
            return None
        for number in (int, float):
            if isinstance(value, str) and hint in (number, number | None):
                with suppress(ValueError):
                    return number(value)
        return value

    return {name: typed(hints.get(name), value) for name, value in values.items()}


_add(
    "pretrain",
    Pretrain,
    "Train a source network, natural or robust, and store it.",
    "pretrain --source digits --objective pgd --eps 0.25 --width 8 --epochs 2",
)
_add(
    "ticket",
    Ticket,
    "Draw a ticket from a source network and store its mask.\n\n"
    "The field mask_from, a network of its own, has no flag: `robustlib sweep FILE.json` takes it.",
    "ticket --pretrain.source digits --pretrain.width 8 --pretrain.epochs 2 --sparsity 0.9",
)
_add(
    "transfer",
    Transfer,
    "Transfer a ticket to a task and store the result.",
    "transfer --task digits --mode linear --n-train 200 --ticket.pretrain.source digits",
)
_add(
    "evaluation",
    _Measure,
    "Measure a transferred ticket beyond accuracy and store the result.\n\n"
    "Networks before any transfer, and the field other, have no flags: `robustlib sweep FILE.json` "
    "takes them.",
    "evaluate --suite calibration --of.task digits --of.ticket.pretrain.source digits",
    called="evaluate",
)
