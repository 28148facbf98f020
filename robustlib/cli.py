"""The `robustlib` command: its flags are the fields of the specs."""

from __future__ import annotations

import re
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pydantic
from cyclopts import App, CycloptsError, Parameter

import robustlib
from robustlib.specs import KINDS, Evaluation, Pretrain, Ticket, Transfer, from_dict, printable

app = App(
    name="robustlib",
    help="Robust tickets: do subnetworks of robust networks transfer better?",
    version=robustlib.__version__,
    # A network of its own has no flags.
    default_parameter=Parameter(parse=re.compile("^(?!mask_from$|other$)")),
)
_FLAT = Parameter(name="*", consume_multiple=True)


@dataclass(frozen=True)
class _Where:
    """Where many things are computed."""

    workers: int | None = None
    """Processes, one thread each (default: one a GPU, or else one a core)."""
    scheduler: str = ""
    """tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue)."""
    retries: int = 0
    """How many times more is tried what failed."""


_HERE = _Where()
data = App(name="data", help="List the datasets, or build one from a folder of images.")
app.command(data)


@app.command
def study(
    *,
    profile: str = "quick",
    out: Path | None = None,
    where: Annotated[_Where, _FLAT] = _HERE,
    dry_run: bool = False,
) -> None:
    """Run a study: its grid of specs, then every notebook on the results.

    Args:
        profile: quick, cpu, paper, or the path of a TOML file of yours.
        out: Folder for executed notebooks, figures and results (default: runs/PROFILE).
        dry_run: Print the grid with counts and an estimate of cost, and run nothing.
    """
    from robustlib import batch, profiles, sweeps

    sweeps.check(**vars(where))
    if dry_run:
        print(profiles.plan(profile))
        return
    out = out or Path("runs") / Path(profile).stem
    frame = batch.run_study(profile, out, **vars(where))
    from robustlib.figures.table import table  # matplotlib: not before it is needed

    print(f"\n{table(frame).to_string(index=False)}")
    print("\nMeans over tasks and seeds; [95 % interval over seeds]; differences paired by seed.")
    for what in ("notebooks", "figures", "results.csv"):
        print(f"{what}: {out / what}")


@app.command
def sweep(
    what: str,
    /,
    *,
    where: Annotated[_Where, _FLAT] = _HERE,
    csv: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Compute many specs, those that are not stored, here or on a cluster; print their rows.

    Args:
        what: A profile (quick, cpu, paper, or your TOML file), or a JSON file: a list of specs,
            [{"transfer": {"ticket": {...}, "task": "digits"}}, ...].
        csv: Write the rows here, all columns, instead of printing.
        dry_run: Print how many specs there are, how many are stored, and the script of a Slurm
            job, and run nothing.
    """
    from robustlib import profiles, store, sweeps

    sweeps.check(**vars(where))
    _check_csv(csv)
    wanted = profiles.wanted(what)
    if dry_run:
        stored = sum(map(store.has, wanted))
        missing = [s for s in sweeps.closure(wanted) if not store.has(s)]
        print(f"{len(wanted)} specs, {stored} stored; {len(missing)} to compute, parents included")
        if where.scheduler == "slurm":
            with sweeps.slurm() as slurm:
                print(slurm.job_script(), end="")
        return
    _show(sweeps.sweep(wanted, **vars(where)), csv)


@app.command
def batch(
    notebook: Path,
    /,
    *,
    grid: Annotated[tuple[str, ...], Parameter(alias="-g", negative=())] = (),
    parameter: Annotated[tuple[str, ...], Parameter(alias="-p", negative=())] = (),
    out: Path | None = None,
    where: Annotated[_Where, _FLAT] = _HERE,
) -> None:
    """Run a notebook once for every point of a grid of its parameters, and gather the rows.

    Args:
        notebook: The notebook; one of its cells is tagged `parameters`.
        grid: NAME=VALUE,VALUE,... of a parameter that varies (lists in brackets); may be repeated.
        parameter: NAME=VALUE of one that does not; may be repeated.
        out: Folder for executed notebooks, figures and rows (default: runs/batch/NOTEBOOK).
    """
    from robustlib import batch as batches

    out = out or Path("runs") / "batch" / notebook.stem
    fixed = {name: value for name, (value,) in batches.parse(parameter, several=False).items()}
    tables = batches.batch(notebook, batches.parse(grid), out, fixed, **vars(where))
    print(f"executed notebooks: {out / 'points'}")
    for name, rows in tables.items():
        print(f"{len(rows)} rows: {out / name}.csv")


@dataclass(frozen=True)
class _Measure(Evaluation):
    """An evaluation as flags say it: of a transfer."""

    of: Transfer = field(default_factory=Transfer)


def _add(name: str, cls: type, about: str, called: str = "") -> None:
    """The command that runs a spec, of which every field is a flag."""

    def command(*, spec: Any = None, recompute: bool = False) -> None:
        artifact = robustlib.run(spec or KINDS[name](), recompute)
        for column, value in artifact.row.items():
            print(f"{column:22} {value}")
        print(f"{'stored in':22} {artifact.path}")

    read = pydantic.PlainValidator(partial(_read, KINDS[name], cls))
    command.__annotations__["spec"] = Annotated[cls, _FLAT, read]
    command.__doc__ = f"{about}\n\nArgs:\n    recompute: Replace a stored result.\n"
    app.command(command, name=called or name)


def _read(kind: type, cls: type, values: Any) -> Any:
    of = values.pop("of", None) if cls is _Measure else None
    typed = _typed(cls, values)
    if of is not None:
        typed["of"] = {"transfer": _typed(Transfer, of)}
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


_add("pretrain", Pretrain, "Train a source network, natural or robust, and store it.")
_add(
    "ticket",
    Ticket,
    "Draw a ticket from a source network and store its mask.\n\n"
    "The field mask_from, a network of its own, has no flag: `robustlib sweep FILE.json` takes it.",
)
_add("transfer", Transfer, "Transfer a ticket to a task and store the result.")
_add(
    "evaluation",
    _Measure,
    "Measure a transferred ticket beyond accuracy and store the result.\n\n"
    "Networks before any transfer, and the field other, have no flags: `robustlib sweep FILE.json` "
    "takes them.",
    called="evaluate",
)


@data.command(name="list")
def data_list() -> None:
    """List the datasets: where each comes from, whether it is here, sizes and licence."""
    import pandas as pd

    from robustlib.data import sources

    print(f"data root: {sources.data_root()} (set ROBUSTLIB_DATA to change it)")
    print(pd.DataFrame(sources.available()).to_string(index=False))


@data.command(name="build")
def data_build(
    name: str, folder: Path, /, *, size: int = 32, test_fraction: float = 0.2, seed: int = 0
) -> None:
    """Build a pack in the data root from a folder of class folders.

    Args:
        name: The dataset's name from now on.
        folder: FOLDER/CLASS/IMAGES, or FOLDER/train/CLASS/IMAGES and FOLDER/test/CLASS/IMAGES.
        size: Side of the images, in pixels.
        test_fraction: The part of each class that becomes the test split, if there is none.
        seed: Seeds that draw.
    """
    from robustlib.data import sources

    with warnings.catch_warnings():
        # A line, as errors are: what was found and is not read.
        warnings.showwarning = lambda text, *_, **__: print(f"robustlib: {text}", file=sys.stderr)
        print(sources.build_folder(name, folder, size, test_fraction, seed))


@app.command
def results(
    *,
    kind: Literal["pretrain", "ticket", "transfer", "evaluation"] = "transfer",
    csv: Path | None = None,
    all_columns: bool = False,
) -> None:
    """Print the stored results of one kind, or write them to a CSV file.

    Args:
        kind: Which results.
        csv: Write them here, all columns, instead of printing.
        all_columns: Print the columns that are the same in every row too.
    """
    from robustlib import store

    _check_csv(csv)
    frame = store.frame(KINDS[kind])
    if frame.empty:
        print(f"no {kind} is stored in {store.root()}")
    else:
        _show(frame, csv, all_columns)


@app.command
def claims(*, profile: str = "cpu", csv: Path | None = None) -> None:
    """Print the verdict on each claim of the paper, from the stored rows of a profile.

    Args:
        profile: Whose grid and ablations; what is not stored whole is "not run".
        csv: Write the table here, with estimands and intervals, instead of printing.
    """
    import pandas as pd

    from robustlib import claims, profiles, store

    _check_csv(csv)
    rows = {}
    for ablation in {claim.study for claim in claims.CLAIMS} & {"", *profiles.ablations(profile)}:
        grid = profiles.grid(f"{profile}:{ablation}" if ablation else profile)
        grid = [spec for spec in grid if ablation or not spec.recalibrate]
        whole = all(map(store.has, grid))
        rows[ablation] = pd.DataFrame([store.get(s).row for s in grid]) if whole else None
    table = claims.table(rows, store.frame(Evaluation))
    _show(table if csv else table.drop(columns=["sentence", "estimand"]).round(2), csv)


@app.command
def bench() -> None:
    """Measure the machinery: imports, sweeps, two workers, the training loop (2 minutes)."""
    from robustlib import bench

    bench.main()


def _check_csv(csv: Path | None) -> None:
    """Before hours of work, and not after them."""
    if csv and not csv.parent.is_dir():
        raise ValueError(f"csv={str(csv)!r}: its folder is not there")


def _show(frame: Any, csv: Path | None, all_columns: bool = False) -> None:
    if csv:
        frame.to_csv(csv, index=False)
        print(f"{len(frame)} rows: {csv}")
    else:
        several = len(frame) > 1 and not all_columns
        varied = [c for c in frame if not several or frame[c].nunique(dropna=False) > 1]
        print(frame[varied].to_string(index=False))


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code.

    Bad input is a line on stderr and exit code 2; work that failed says why and exits with 1.
    """
    try:
        given = sys.argv[1:] if argv is None else argv
        if not given:
            raise ValueError(f"which command? {', '.join(n for n in app if n[0] != '-')}")
        call, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
        call(*bound.args, **bound.kwargs)
    except CycloptsError as e:
        cause = e.__cause__  # what a spec refused, which pydantic has packed
        refused = cause.errors()[0]["ctx"] if isinstance(cause, pydantic.ValidationError) else {}
        return _refuse(str(refused.get("error", e)))
    except (ValueError, OSError) as e:
        return _refuse(str(e))
    except RuntimeError as e:
        print(f"robustlib: {e}", file=sys.stderr)  # whole: what failed, and where, may take lines
        return 1
    except KeyboardInterrupt:
        print(
            "robustlib: interrupted; what is stored stays, the same call goes on", file=sys.stderr
        )
        return 130
    return 0


def _refuse(message: str) -> int:
    """Says why on one line, whatever a path or another library put into it."""
    text = printable(message)
    # The beginning names what is bad, the end says what is allowed.
    text = text if len(text) <= 2_500 else f"{text[:1_500]} [...] {text[-800:]}"
    print(f"robustlib: {text}", file=sys.stderr)
    return 2
