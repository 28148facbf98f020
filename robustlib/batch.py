"""Everything that runs notebooks: a study, and a notebook over a grid of its parameters."""

from __future__ import annotations

import itertools
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustlib import parameters, profiles, progress, sweeps
from robustlib.files import sha256, whole
from robustlib.specs import integer

if TYPE_CHECKING:
    import pandas as pd

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NEEDS = {
    "04_segmentation": "segmentation",
    "06_properties": "properties",
    "07_edge_deployment": "patterns",
}
"""The ablation that a notebook draws; it is left out of the study of a profile without it."""
DONE, UNFINISHED = "notebook.ipynb", "unfinished.ipynb"
POINTS_MAX = 100_000


def run_study(
    name: str, out: Path, workers: int | None = None, *, scheduler: str = "", retries: int = 0
) -> pd.DataFrame:
    """Computes a study's grid, then runs every notebook on it; returns the transfers' rows.

    `workers`, `scheduler` and `retries` are those of `sweep`; the notebooks run here. Executed ones
    go to out/notebooks, figures to out/figures, the rows to out/results.csv. A notebook that fails
    does not stop the others. Raises RuntimeError at the end, which says which and why.
    """
    study = profiles.profile(name)
    if ":" in study.name:
        raise ValueError(f"profile={name!r}: a study has all ablations; `robustlib sweep` has one")
    if not NOTEBOOKS.is_dir():
        raise ValueError(f"{NOTEBOOKS}: not there; a study runs from a clone of the project")
    frame = sweeps.sweep(profiles.grid(study), workers, scheduler=scheduler, retries=retries)
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "results.csv", index=False)
    given = {"profile": name, "figures": str((out / "figures").resolve()), "workers": workers or 0}
    given["seed"] = study.seeds[0]
    here, failed = ["", *profiles.ablations(name)], []
    for notebook in (bar := progress.bar(sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), unit="notebook")):
        bar.set_description(notebook.stem)
        if (needed := NEEDS.get(notebook.stem, "")) not in here:
            bar.write(f"{notebook.stem}: left out, {name} has no [ablation.{needed}]")
            continue
        known = parameters.types(notebook)
        own = {k: v for k, v in given.items() if k in known}
        try:
            execute(notebook, out / "notebooks" / notebook.name, own)
        except RuntimeError as e:
            # What failed in a sweep has its traceback in the message; the notebook has it too.
            told = f"{notebook.stem}: {e}".splitlines()
            failed.append("\n".join(line for line in told if not line.startswith(" ")))
    if failed:
        many = f"{len(failed)} notebook{'s' * (len(failed) > 1)} failed"
        raise RuntimeError(
            "\n".join([f"{many}; executed ones, these too, are in {out / 'notebooks'}:", *failed])
        )
    return frame


def batch(
    notebook: str | Path,
    grid: Mapping[str, Sequence[Any]],
    out: str | Path,
    fixed: Mapping[str, Any] | None = None,
    workers: int | None = None,
    *,
    scheduler: str = "",
    retries: int = 0,
) -> dict[str, pd.DataFrame]:
    """Runs a notebook with papermill for every point of a grid; returns the rows of all points.

    grid: the values of each parameter that varies; fixed: those of others; text is read as the
    parameter's type (`parameters.types`). A point has a folder under OUT/points with the executed
    notebook, and what it writes where it has a parameter `figures`. Tables of one name are gathered
    in OUT/NAME.csv, with the point's parameters as columns. `workers`, `scheduler` and `retries`
    are those of `sweep`; a notebook that has a parameter `workers` gets 1. A point that was run
    before, with the notebook as it is now, is not run again.

    Raises ValueError for what the notebook does not take, before anything is run; SweepFailed when
    points failed, once the tables of the others are written. The executed notebook of a failed one
    is its folder's unfinished.ipynb.
    """
    notebook, out = Path(notebook), Path(out)
    sweeps.check(workers, scheduler, retries)
    known = parameters.types(notebook)
    source = json.dumps([c["source"] for c in parameters.cells(notebook)])
    grid = {k: [parameters.value(known, k, v) for v in values] for k, values in grid.items()}
    fixed = {k: parameters.value(known, k, v) for k, v in (fixed or {}).items()}
    for name, values in grid.items():
        if not values:
            raise ValueError(f"{name}: has no value")
        if name in fixed:
            raise ValueError(f"{name}={fixed[name]!r}: is in the grid too")
    integer("points of the grid", math.prod(map(len, grid.values())), 1, POINTS_MAX)
    points, jobs = {}, []
    for values in itertools.product(*grid.values()):
        own = dict(zip(grid, values, strict=True))
        given = ({"workers": 1} if "workers" in known else {}) | fixed | own
        # Readable, and another one where the notebook or a parameter changes.
        text = ",".join(f"{k}={v}" for k, v in own.items()) or "point"
        digest = sha256((source + json.dumps(given, sort_keys=True)).encode())[:10]
        text = f"{re.sub(r'[^A-Za-z0-9_.,=-]', '-', text)[:100]}-{digest}"
        folder = out.resolve() / "points" / text
        points[folder] = own
        if not (folder / DONE).exists():
            if "figures" in known:
                given = {"figures": str(folder)} | given
            name = f"{notebook.name} {' '.join(f'{k}={v}' for k, v in own.items())}".strip()
            args = str(notebook.resolve()), given, str(folder)
            jobs.append(sweeps.Job(str(folder), name, _execute, args))
    failures = []
    if jobs:
        cached = len(points) - len(jobs)
        failures = sweeps.compute(jobs, workers, scheduler, retries, cached, unit="point")
    tables = _gathered({f: own for f, own in points.items() if (f / DONE).exists()}, out)
    if failures:
        raise sweeps.SweepFailed(failures, len(jobs))
    return tables


def execute(notebook: Path | str, out: Path | str, given: Mapping[str, Any]) -> None:
    """Runs a notebook with papermill; the executed one goes to the file `out`, up to the cell that
    failed where one does. Raises RuntimeError then, which says why, and where that file is.

    Its kernel is reached by sockets in a folder of this user's alone: over TCP, Jupyter's default,
    others could read what is run. Its log is silent: told to end while it answers, it calls that an
    error.
    """
    import papermill
    from traitlets.config import Config

    # The path of a socket has 107 characters at most.
    short = None if len(tempfile.gettempdir()) < 70 else "/tmp"
    with tempfile.TemporaryDirectory(prefix="robustlib-", dir=short) as folder:
        ipc = {"transport": "ipc", "ip": str(Path(folder, "kernel"))}
        quiet = {"extra_arguments": ["--log-level=CRITICAL"]}
        config = Config(KernelManager=ipc, NotebookClient=quiet)
        try:
            papermill.execute_notebook(notebook, out, given, progress_bar=False, config=config)
        except papermill.PapermillExecutionError as e:
            # Its own kind does not survive the way between processes.
            failure = RuntimeError(f"{e.ename}: {e.evalue} (see {out})")
            failure.add_note(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(e.traceback)))
            raise failure from None


def parse(texts: Sequence[str], several: bool = True) -> dict[str, list[str]]:
    """["sparsity=0.5,0.9", ...] as names and their values, among which a list is in brackets; one
    value each if not `several`."""
    out: dict[str, list[str]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"{text!r}: must be NAME=VALUE" + ",VALUE..." * several)
        if name in out:
            raise ValueError(f"{text!r}: {name} is given twice")
        out[name] = parameters.split(values) if several else [values]
    return out


def _execute(notebook: str, given: dict[str, Any], folder: str) -> None:
    done, running = Path(folder) / DONE, Path(folder) / UNFINISHED
    if done.exists():
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    execute(notebook, running, given)
    running.replace(done)


def _gathered(points: dict[Path, dict[str, Any]], out: Path) -> dict[str, pd.DataFrame]:
    import pandas as pd

    tables: dict[str, list[pd.DataFrame]] = {}
    for folder, own in points.items():
        for file in sorted(folder.glob("*.csv")):
            rows = pd.read_csv(file)
            for name, given in reversed(own.items()):
                if name not in rows:
                    rows.insert(0, name, [given] * len(rows))  # a list is one value
            tables.setdefault(file.stem, []).append(rows)
    gathered = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    for name, rows in gathered.items():
        with whole(out / f"{name}.csv") as to:
            rows.to_csv(to, index=False, mode="wb")
    return gathered
