"""Commands that run many specs: studies, sweeps, batches of a notebook, and your own task."""

import runpy
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from robustlib.cli.app import (
    FLAT,
    HERE,
    Where,
    Whole,
    app,
    check_csv,
    examples,
    show,
    warnings_as_lines,
)


@app.command(help_epilogue=examples("robustlib study --profile cpu --dry-run"))
def study(
    *,
    profile: str = "quick",
    out: Path | None = None,
    where: Annotated[Where, FLAT] = HERE,
    dry_run: bool = False,
) -> None:
    """Run a study: its grid of specs, then every notebook on the results.

    Args:
        profile: quick, cpu, cpu32, gpu, paper, or the path of a TOML file of yours.
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


@app.command(help_epilogue=examples("robustlib sweep cpu:patterns --workers 2 --csv rows.csv"))
def sweep(
    what: str,
    /,
    *,
    where: Annotated[Where, FLAT] = HERE,
    csv: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Compute many specs, those that are not stored, here or on a cluster; print their rows.

    Args:
        what: A profile (quick, cpu, cpu32, gpu, paper, or your TOML file), or one ablation of it
            (cpu:patterns), or a JSON file: a list of specs,
            [{"transfer": {"ticket": {...}, "task": "digits"}}, ...].
        csv: Write the rows here, all columns, instead of printing.
        dry_run: Print how many specs there are, how many are stored, and the script of a Slurm
            job, and run nothing.
    """
    from robustlib import cluster, costs, profiles, store, sweeps

    sweeps.check(**vars(where))
    check_csv(csv)
    wanted = profiles.wanted(what)
    if dry_run:
        stored, missing = sum(map(store.has, wanted)), store.lacking(wanted)
        print(f"{len(wanted)} specs, {stored} stored; {len(missing)} to compute, parents included")
        for line in costs.absent(missing):
            print(line)
        if where.scheduler == "slurm":
            with cluster.slurm() as slurm:
                print(slurm.job_script(), end="")
        return
    show(sweeps.sweep(wanted, **vars(where)), csv)


@app.command(
    help_epilogue=examples(
        "robustlib batch notebooks/03_transfer.ipynb -g n_train=50,200 -p seeds=0"
    )
)
def batch(
    notebook: Path,
    /,
    *,
    grid: Annotated[tuple[str, ...], Parameter(alias="-g", negative=())] = (),
    parameter: Annotated[tuple[str, ...], Parameter(alias="-p", negative=())] = (),
    out: Path | None = None,
    where: Annotated[Where, FLAT] = HERE,
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


@app.command(help_epilogue=examples("robustlib fit photos --bytes 250000 --latency 0.2"))
def fit(
    what: str,
    /,
    *,
    parameters: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    effort: Literal["quick", "full"] = "quick",
    out: str | None = None,
    n_train: Whole | None = None,
    workers: Whole | None = None,
) -> None:
    """Choose the best ticket of the zoo for your images and a budget, and write it as ONNX.

    It needs no network, and goes on where it was interrupted.

    Args:
        what: A folder of class folders, as `robustlib data build` takes it, or the name of a set.
        parameters: Numbers that the network may hold at most, zeros included.
        bytes: Size of its ONNX file at most, through gzip.
        latency: Milliseconds for one image at most, on one thread of this machine.
        effort: quick tries one natural and one robust network, on 1,000 images at most; full tries
            six, on all images, for longer.
        out: Folder for the network, its card and classify.py, which replace those of an earlier
            fit there (default: fit/NAME beside the store, whatever the budget).
        n_train: Training images at most, instead of those of the effort, and a quarter as many
            for validation.
        workers: Processes, one thread each (default: one a GPU, or else one a core).
    """
    from robustlib import fit as fits
    from robustlib.takeaway import told

    budget = fits.Budget(parameters, bytes, latency)
    if out is not None:
        fits.destination(out, what)
    with warnings_as_lines():
        planned = fits.plan(what, budget, effort, n_train, workers)
    found = fits.fit(planned, out)
    print(f"\n{told(found.card)}\n\n{found.folder}: card.json, classify.py and the networks")


@app.command
def bench() -> None:
    """Measure the machinery: imports, sweeps, two workers, the training loop (4 minutes)."""
    script = Path(__file__).parents[2] / "benchmarks" / "bench.py"
    if not script.exists():
        raise ValueError(f"{script}: not there; the harness runs from a clone of the project")
    runpy.run_path(str(script))["main"]()
