"""The `robustlib` command: its flags are the fields of the specs."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustlib.specs import KINDS, Pretrain, Ticket, Transfer, integer

_Flat = tyro.conf.arg(name="")


def study(
    profile: str = "quick",
    out: Path | None = None,
    workers: int | None = None,
    dry_run: bool = False,
) -> None:
    """Run a study: its grid of specs, then every notebook on the results.

    Args:
        profile: quick, cpu, paper, or the path of a TOML file of yours.
        out: Folder for executed notebooks, figures and results (default: runs/PROFILE).
        workers: Processes, one thread each (default: one a core).
        dry_run: Print the grid with counts and an estimate of cost, and run nothing.
    """
    from robustlib import study as studies

    if workers is not None:
        integer("workers", workers, 1, 1024)
    if dry_run:
        print(studies.plan(profile))
        return
    out = out or Path("runs") / Path(profile).stem
    frame = studies.run_study(profile, out, workers)
    print(f"\n{studies.table(frame).to_string(index=False)}")
    print("\nMeans over tasks and seeds; [95 % interval over seeds]; differences paired by seed.")
    for what in ("notebooks", "figures", "results.csv"):
        print(f"{what}: {out / what}")


def pretrain(spec: Annotated[Pretrain, _Flat], recompute: bool = False) -> None:
    """Train a source network, natural or robust, and store it.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def ticket(spec: Annotated[Ticket, _Flat], recompute: bool = False) -> None:
    """Draw a ticket from a source network and store its mask.

    Args:
        recompute: Replace a stored result.
    """
    _run(spec, recompute)


def transfer(spec: Annotated[Transfer, _Flat], recompute: bool = False) -> None:
    """Transfer a ticket to a task and store the result.

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

    print(sources.build_folder(name, folder, size, test_fraction, seed))


def results(
    kind: Literal["pretrain", "ticket", "transfer"] = "transfer",
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

    frame = store.frame(KINDS[kind])
    if frame.empty:
        print(f"no {kind} is stored in {store.root()}")
    elif csv:
        frame.to_csv(csv, index=False)
        print(f"{len(frame)} rows: {csv}")
    else:
        varied = [c for c in frame if all_columns or frame[c].nunique(dropna=False) > 1]
        print(frame[[*varied]].to_string(index=False))


def bench() -> None:
    """Measure the training loop against a bare loop, as ratios."""
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
    commands = (study, pretrain, ticket, transfer, data, results, bench)
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
        return _say(_one_line(parsing.getvalue()), 2) if e.code else 0
    except (ValueError, OSError) as e:
        return _say(str(e), 2)
    except RuntimeError as e:
        return _say(str(e), 1)
    except KeyboardInterrupt:
        print(
            "robustlib: interrupted; what is stored stays, the same call goes on", file=sys.stderr
        )
        return 130
    return 0


def _say(message: str, code: int) -> int:
    print(f"robustlib: {message}", file=sys.stderr)
    return code


def _one_line(box: str) -> str:
    """What the parser says in a box, without box and title, and the names of its insides."""
    lines = re.sub(r"[\u2500-\u257f]|^ ?-+ ?$", " ", box, flags=re.M).splitlines()[1:]
    return re.sub(
        r"^Error parsing __tyro-dummy-inner__\S*: ", "", " ".join(" ".join(lines).split())
    )


def _fraction(argument: str) -> str:
    """ "8/255" as the decimal number it is, so that a flag of type float takes it."""
    if re.fullmatch(r"\d+/[1-9]\d*", argument):
        return repr(float(Fraction(argument)))
    return argument
