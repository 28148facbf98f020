"""Everything that runs notebooks: a study, and a notebook over a grid of its parameters."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from robustlib import cluster, profiles, sweeps
from robustlib.specs import integer, number, one_of, shown

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
    go to out/notebooks, figures to out/figures, the rows to out/results.csv.
    """
    import papermill
    from tqdm.auto import tqdm

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
    bar = tqdm(sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), unit="notebook", dynamic_ncols=True)
    here = ["", *profiles.ablations(name)]
    for notebook in bar:
        bar.set_description(notebook.stem)
        if (needed := NEEDS.get(notebook.stem, "")) not in here:
            bar.write(f"{notebook.stem}: left out, {name} has no [ablation.{needed}]")
            continue
        papermill.execute_notebook(
            notebook,
            out / "notebooks" / notebook.name,
            parameters={k: given[k] for k in given if k in types(notebook)},
            progress_bar=False,
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

    grid: the values of each parameter that varies; fixed: those of others. A point has a folder
    under OUT/points with the executed notebook, and, where the notebook has a parameter `figures`,
    the figures and tables that it writes. Tables of one name are gathered, with the point's
    parameters as columns, and are written to OUT/NAME.csv. A notebook that has a parameter
    `workers` gets 1, since points run side by side: `workers`, `scheduler` and `retries` are those
    of `sweep`. A point that was run before, with the notebook as it is now, is not run again.
    Text is read as the parameter's type (`types`).

    Raises ValueError for what the notebook does not take, before anything is run, and SweepFailed
    when points failed: the executed notebook of each is then its folder's unfinished.ipynb.
    """
    notebook, out = Path(notebook), Path(out)
    cluster.check(workers, scheduler, retries)
    known = types(notebook)
    source = json.dumps([c["source"] for c in _cells(notebook)])
    grid = {k: [value(known, k, v) for v in values] for k, values in grid.items()}
    fixed = {k: value(known, k, v) for k, v in (fixed or {}).items()}
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
        folder = out.resolve() / "points" / _name(own, given, source)
        points[folder] = own
        if not (folder / DONE).exists():
            if "figures" in known:
                given = {"figures": str(folder)} | given
            name = f"{notebook.name} {' '.join(f'{k}={v}' for k, v in own.items())}".strip()
            args = str(notebook.resolve()), given, str(folder)
            jobs.append(cluster.Job(str(folder), name, _execute, args))
    if jobs:
        cached = len(points) - len(jobs)
        if failures := cluster.compute(jobs, workers, scheduler, retries, cached, unit="point"):
            raise sweeps.SweepFailed(failures, len(jobs))
    return _gathered(points, out)


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
        out[name] = _split(values) if several else [values]
    return out


def _name(own: dict[str, Any], given: dict[str, Any], source: str) -> str:
    """A folder's name: readable, and another one where the notebook or a parameter changes."""
    text = ",".join(f"{k}={v}" for k, v in own.items()) or "point"
    digest = hashlib.sha256((source + json.dumps(given, sort_keys=True)).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.,=-]', '-', text)[:100]}-{digest[:10]}"


def _execute(notebook: str, given: dict[str, Any], folder: str) -> None:
    import papermill

    done, running = Path(folder) / DONE, Path(folder) / UNFINISHED
    if done.exists():
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(notebook, str(running), parameters=given, progress_bar=False)
    except papermill.PapermillExecutionError as e:
        # Its own kind does not survive the way between processes.
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(e.traceback))
        raise RuntimeError(f"{e.ename}: {e.evalue} (see {running})\n{trace}") from None
    os.replace(running, done)


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
        rows.to_csv(out / f"{name}.csv", index=False)
    return gathered


# --- the parameters of a notebook: their names and types, and text read as one of these

_BAD_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
# What text can be read as, the narrowest first: anything is a str.
_TYPES = (NoneType, bool, int, float, list, tuple, dict, Literal, str, Any)
_NAMES = {t.__name__: t for t in (bool, int, float, list, tuple, dict, str)}
_NAMES |= {n: getattr(typing, n) for n in ("List", "Tuple", "Dict", "Any")}
_NAMES |= {n: getattr(typing, n) for n in ("Optional", "Union", "Literal")}
_ANNOTATION = (ast.Name, ast.Constant, ast.Subscript, ast.Tuple, ast.UnaryOp, ast.USub)
_ANNOTATION += (ast.BinOp, ast.BitOr, ast.Load)
_ARITHMETIC = (ast.Constant, ast.UnaryOp, ast.UAdd, ast.USub)
_ARITHMETIC += (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div)


def types(notebook: Path) -> dict[str, Any]:
    """The names that a notebook's first cell tagged `parameters` sets, each with its type: that of
    the annotation, else that of the default; Any where neither says.

    Raises ValueError for what is no notebook, or has no such cell.
    """
    for cell in _cells(notebook):
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            break
    else:
        raise ValueError(f"notebook={str(notebook)!r}: no cell is tagged `parameters`")
    known: dict[str, Any] = {}
    for name, annotation, default in _assigned(_parsed(notebook, "".join(cell["source"]))):
        kind = _annotated(ast.unparse(annotation)) if annotation else known.get(name)
        found = _of_default(default) if default else Any
        if kind is None:
            kind = Any if found is NoneType else found
        elif found is NoneType:
            kind = kind | None
        known[name] = kind
    return known


def value(known: Mapping[str, Any], name: str, given: Any) -> Any:
    """A value of a parameter among those of `types`: text is read as its type, a list from
    "[0, 1]" and "0,1" alike. Raises ValueError for another name, and for text that is no such
    value."""
    kind = known[one_of("parameter", name, sorted(known))]
    return _read(name, kind, given) if isinstance(given, str) else given


def _cells(notebook: Path) -> list[dict[str, Any]]:
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"notebook={str(notebook)!r}: there is no such notebook")
    try:
        found = json.loads(notebook.read_text("utf-8"))["cells"]
        return [dict(c, source=c["source"]) for c in found]
    except (ValueError, LookupError, TypeError) as e:
        raise ValueError(f"notebook={str(notebook)!r}: is not a notebook ({e})") from None


def _split(text: str) -> list[str]:
    """Text cut at the commas outside of brackets, without the spaces around."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "[({") - (c in "])}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in (parts if depth == 0 else text.split(","))]


def _parsed(notebook: Path, source: str) -> ast.Module:
    from IPython.core.inputtransformer2 import TransformerManager

    try:  # lines such as %matplotlib inline are no Python yet
        return ast.parse(TransformerManager().transform_cell(source))
    except SyntaxError as e:
        raise ValueError(
            f"notebook={str(notebook)!r}: line {e.lineno} of its parameters is not Python"
        ) from None


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """The names that a cell assigns, each with its annotation and its default."""

    def pairs(target: ast.expr, default: ast.expr | None) -> Iterator[tuple]:
        if isinstance(target, ast.Name):
            yield target.id, None, default
        names, defaults = getattr(target, "elts", []), getattr(default, "elts", [])
        for i, each in enumerate(names):
            yield from pairs(each, defaults[i] if len(defaults) == len(names) else None)

    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation, node.value
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from pairs(target, node.value)


def _annotated(text: str) -> Any:
    """The type that an annotation says; None for one that text is not read as."""
    try:
        tree = ast.parse(text.replace("typing.", ""), mode="eval")
        # Names, brackets and bars alone: nothing in it can call anything.
        if not all(isinstance(n, _ANNOTATION) for n in ast.walk(tree.body)):
            return None
        kind = eval(compile(tree, "annotation", "eval"), {"__builtins__": {}}, _NAMES)
    except (NameError, *_BAD_LITERAL):
        return None
    if isinstance(kind, str):
        return _annotated(kind)
    kind = NoneType if kind is None else kind
    return kind if _readable(kind) else None


def _readable(kind: Any) -> bool:
    if (origin := get_origin(kind) or kind) is Literal:
        return True
    return origin in (Union, UnionType, ..., *_TYPES) and all(map(_readable, get_args(kind)))


def _of_default(node: ast.expr) -> Any:
    """The type of a default that is written out, arithmetic such as 8 / 255 too; else Any."""
    if isinstance(node, ast.JoinedStr):
        return str
    try:
        return _kind(ast.literal_eval(node))
    except _BAD_LITERAL:
        parts = list(ast.walk(node))
    constants = {type(p.value) for p in parts if isinstance(p, ast.Constant)}
    if not all(isinstance(p, _ARITHMETIC) for p in parts) or not constants <= {int, float}:
        return Any
    divides = any(isinstance(p, ast.Div) for p in parts)
    return float if divides or float in constants else int


def _kind(given: Any) -> Any:
    """The type of a value, with that of the elements of a list."""
    if not isinstance(given, list | tuple):
        return type(given) if type(given) in _TYPES else Any
    kinds = {_kind(v) for v in given}
    kinds = {float} if kinds == {int, float} else kinds
    return list[kinds.pop() if len(kinds) == 1 and NoneType not in kinds else Any]


def _read(name: str, kind: Any, text: str) -> Any:
    """Text as a value of a type. A tuple is a list, for papermill writes no other."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        for each in sorted(parts, key=lambda p: _TYPES.index(get_origin(p) or p)):
            try:
                return _read(name, each, text)
            except ValueError:
                continue
        names = ("None" if p is NoneType else getattr(p, "__name__", str(p)) for p in parts)
        raise ValueError(f"{name}={shown(text)}: must be {' or '.join(names)}")
    if origin is Literal:
        values = {str(p): p for p in parts}
        return values[one_of(name, text, values)]
    if kind is NoneType:
        return None if one_of(name, text, ["None"]) else text
    if kind is bool:
        return one_of(name, text.lower(), ["true", "false"]) == "true"
    if kind is int and re.fullmatch(r" *[+-]?[0-9]{1,30} *", text):
        return integer(name, int(text), -(2**63), 2**63)  # a float has 53 bits
    if kind in (int, float):
        x = number(name, text, -1e308, 1e308)
        return integer(name, x, -(2**63), 2**63) if kind is int else x
    if origin in (list, tuple, dict):
        return _contained(name, origin, parts, text)
    if kind is Any:
        from papermill.cli import _resolve_type  # as its own command reads -p

        return _resolve_type(text)
    return text


def _contained(name: str, origin: type, parts: tuple, text: str) -> Any:
    """Text as a list or a dict, as Python writes them; a list of words without quotes too."""
    try:
        given = ast.literal_eval(text.strip())
        given = given if isinstance(given, list | tuple | dict) else [text]
    except _BAD_LITERAL:
        inner = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", text, re.DOTALL)
        given = [v for v in _split(inner[1] if inner else text) if v]
    if isinstance(given, dict) != (origin is dict):
        raise ValueError(f"{name}={shown(text)}: must be a {origin.__name__}")
    if origin is dict:
        return given
    fixed = origin is tuple and parts and parts[-1] is not ...
    kinds = parts if fixed else (*parts[:1], Any)[:1] * len(given)
    if len(kinds) != len(given):
        raise ValueError(f"{name}={shown(text)}: must be {len(kinds)} values")
    return [
        v if k is Any and not isinstance(v, str) else _read(name, k, str(v))
        for k, v in zip(kinds, given, strict=True)
    ]
