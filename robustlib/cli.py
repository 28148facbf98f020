"""The `robustlib` command: its flags are the fields of the specs."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustlib.specs import KINDS, Evaluation, Pretrain, Ticket, Transfer, printable

_Flat = tyro.conf.arg(name="")
_Repeated = tyro.conf.UseAppendAction


def study(
    profile: str = "quick",
    out: Path | None = None,
    workers: int | None = None,
    scheduler: str = "",
    retries: int = 0,
    dry_run: bool = False,
) -> None:
    """Run a study: its grid of specs, then every notebook on the results.

    Args:
        profile: quick, cpu, paper, or the path of a TOML file of yours.
        out: Folder for executed notebooks, figures and results (default: runs/PROFILE).
        workers: Processes, one thread each (default: one a GPU, or else one a core).
        scheduler: tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue).
        retries: How many times more a spec is tried that failed.
        dry_run: Print the grid with counts and an estimate of cost, and run nothing.
    """
    from robustlib import study as studies
    from robustlib import sweeps

    sweeps.check(workers, scheduler, retries)
    if dry_run:
        print(studies.plan(profile))
        return
    out = out or Path("runs") / Path(profile).stem
    frame = studies.run_study(profile, out, workers, scheduler=scheduler, retries=retries)
    print(f"\n{studies.table(frame).to_string(index=False)}")
    print("\nMeans over tasks and seeds; [95 % interval over seeds]; differences paired by seed.")
    for what in ("notebooks", "figures", "results.csv"):
        print(f"{what}: {out / what}")


def sweep(
    what: Annotated[str, tyro.conf.Positional],
    workers: int | None = None,
    scheduler: str = "",
    retries: int = 0,
    csv: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Compute many specs, those that are not stored, here or on a cluster; print their rows.

    Args:
        what: A profile (quick, cpu, paper, or your TOML file), or a JSON file: a list of specs,
            [{"transfer": {"ticket": {...}, "task": "digits"}}, ...].
        workers: Processes, one thread each (default: one a GPU, or else one a core).
        scheduler: tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue).
        retries: How many times more a spec is tried that failed.
        csv: Write the rows here, all columns, instead of printing.
        dry_run: Print how many specs there are, how many are stored, and the script of a Slurm
            job, and run nothing.
    """
    from robustlib import store, sweeps
    from robustlib import study as studies

    sweeps.check(workers, scheduler, retries)
    _check_csv(csv)
    wanted = studies.wanted(what)
    if dry_run:
        stored = sum(map(store.has, wanted))
        missing = [s for s in sweeps.closure(wanted) if not store.has(s)]
        print(f"{len(wanted)} specs, {stored} stored; {len(missing)} to compute, parents included")
        if scheduler == "slurm":
            with sweeps.slurm() as slurm:
                print(slurm.job_script(), end="")
        return
    _show(sweeps.sweep(wanted, workers, scheduler=scheduler, retries=retries), csv)


def batch(
    notebook: Annotated[Path, tyro.conf.Positional],
    grid: Annotated[tuple[str, ...], _Repeated, tyro.conf.arg(aliases=["-g"])] = (),
    parameter: Annotated[tuple[str, ...], _Repeated, tyro.conf.arg(aliases=["-p"])] = (),
    out: Path | None = None,
    workers: int | None = None,
    scheduler: str = "",
    retries: int = 0,
) -> None:
    """Run a notebook once for every point of a grid of its parameters, and gather the rows.

    Args:
        notebook: The notebook; one of its cells is tagged `parameters`.
        grid: NAME=VALUE,VALUE,... of a parameter that varies (lists in brackets); may be repeated.
        parameter: NAME=VALUE of one that does not; may be repeated.
        out: Folder for executed notebooks, figures and rows (default: runs/batch/NOTEBOOK).
        workers: Processes, one thread each (default: one a GPU, or else one a core).
        scheduler: tcp://HOST:PORT of a running Dask scheduler, or slurm (see dask-jobqueue).
        retries: How many times more a point is tried that failed.
    """
    from robustlib import batch as batches

    out = out or Path("runs") / "batch" / notebook.stem
    fixed = {name: value for name, (value,) in batches.parse(parameter, split=False).items()}
    tables = batches.batch(
        notebook,
        batches.parse(grid),
        out,
        fixed,
        workers,
        scheduler=scheduler,
        retries=retries,
    )
    print(f"executed notebooks: {out / 'points'}")
    for name, rows in tables.items():
        print(f"{len(rows)} rows: {out / name}.csv")


def pretrain(spec: Annotated[Pretrain, _Flat], recompute: bool = False) -> None:
    """Train a source network, natural or robust, and store it.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def ticket(
    spec: Annotated[Ticket, _Flat, tyro.conf.AvoidSubcommands], recompute: bool = False
) -> None:
    """Draw a ticket from a source network and store its mask.

    The field mask_from, a network of its own, has no flag: `robustlib sweep FILE.json` takes it.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def transfer(
    spec: Annotated[Transfer, _Flat, tyro.conf.AvoidSubcommands], recompute: bool = False
) -> None:
    """Transfer a ticket to a task and store the result.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def evaluate(
    spec: Annotated[Evaluation, _Flat, tyro.conf.AvoidSubcommands], recompute: bool = False
) -> None:
    """Measure a transferred ticket beyond accuracy and store the result.

    Networks before any transfer, and the field other, have no flags: `robustlib sweep FILE.json`
    takes them.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def _run(spec: Any, recompute: bool) -> None:
    from robustlib import run

    artifact = run(spec, recompute)
    for name, value in artifact.row.items():
        print(f"{name:22} {value}")
    print(f"{'stored in':22} {artifact.path}")


def data_list() -> None:
    """List the datasets: where each comes from, whether it is here, sizes and licence."""
    import pandas as pd

    from robustlib.data import sources

    print(f"data root: {sources.data_root()} (set ROBUSTLIB_DATA to change it)")
    print(pd.DataFrame(sources.available()).to_string(index=False))


def data_build(
    name: Annotated[str, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    size: int = 32,
    test_fraction: float = 0.2,
    seed: int = 0,
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


def results(
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


def bench() -> None:
    """Measure the machinery: imports, sweeps, two workers, the training loop (2 minutes)."""
    from robustlib import bench

    bench.main()


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The command with its arguments bound but not run, so that parsing can end first."""

    @functools.wraps(command)
    def later(*args: Any, **kwargs: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **kwargs)

    return later


def data(
    what: Annotated[
        Annotated[Any, tyro.conf.subcommand("list", constructor=_deferred(data_list))]
        | Annotated[Any, tyro.conf.subcommand("build", constructor=_deferred(data_build))],
        _Flat,
    ],
) -> None:
    """List the datasets, or build one from a folder of images."""
    what()


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code.

    Bad input is a line on stderr and exit code 2; work that failed says why and exits with 1.
    """
    commands = (study, sweep, batch, pretrain, ticket, transfer, evaluate, data, results, bench)
    parsing = io.StringIO()
    try:
        with contextlib.redirect_stderr(parsing):
            call = tyro.extras.subcommand_cli_from_dict(
                {command.__name__: _deferred(command) for command in commands},
                prog="robustlib",
                description="Robust tickets: do subnetworks of robust networks transfer better?",
                args=[_fraction(a) for a in (sys.argv[1:] if argv is None else argv)],
            )
        call()
    except SystemExit as e:
        return _refuse(_one_line(parsing.getvalue())) if e.code else 0
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


def _one_line(box: str) -> str:
    """What the parser says in a box, without box and title, and the names of its insides."""
    lines = re.sub(r"[\u2500-\u257f]|^ ?-+ ?$", " ", box, flags=re.M).splitlines()[1:]
    text = re.sub(r" -{9,} ", " ", " ".join(" ".join(lines).split()))  # a rule between two parts
    return re.sub(r"^Error parsing __tyro-dummy-inner__\S*: ", "", text)


def _fraction(argument: str) -> str:
    """ "8/255" as the decimal number it is, so that a flag of type float takes it."""
    if re.fullmatch(r"\d+/[1-9]\d*", argument):
        with contextlib.suppress(ValueError, OverflowError):  # the parser will name it
            return repr(float(Fraction(argument)))
    return argument
