"""Parameters of notebooks: their names and types, read from the cell that sets them, and values of
these types, read from text."""

import ast
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from robustlib.specs import integer, number, one_of, shown

_BAD = (ValueError, TypeError, NameError, SyntaxError, ArithmeticError, MemoryError, RuntimeError)
# What text can be read as, the narrowest first: anything is a str.
_TYPES = (NoneType, bool, int, float, list, tuple, dict, Literal, str, Any)
_NAMES = vars(typing) | {t.__name__: t for t in (bool, int, float, list, tuple, dict, str)}
_CHOICES: dict[Any, dict] = {NoneType: {"None": None}, bool: {"true": True, "false": False}}
_ARITHMETIC = (ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div)
_TYPED = (ast.Name, ast.Load, ast.Subscript, ast.BitOr)
_HARMLESS = (ast.Constant, ast.List, ast.Tuple, ast.Dict, *_ARITHMETIC, *_TYPED)


def types(notebook: Path) -> dict[str, Any]:
    """The names that a notebook's first cell tagged `parameters` sets, each with its type: that of
    the annotation, else that of the default; Any where neither says.

    Raises ValueError for what is no notebook, or has no such cell.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    start = f"notebook={str(notebook)!r}"
    tagged = [c for c in cells(notebook) if "parameters" in c.get("metadata", {}).get("tags", [])]
    if not tagged:
        raise ValueError(f"{start}: no cell is tagged `parameters`")
    try:  # lines such as %matplotlib inline are no Python yet
        tree = ast.parse(TransformerManager().transform_cell("".join(tagged[0]["source"])))
    except SyntaxError as e:
        raise ValueError(f"{start}: line {e.lineno} of its parameters is not Python") from None
    known: dict[str, Any] = {}
    for name, annotation, default in _assigned(tree):
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


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook. Raises ValueError for what is none."""
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        raise ValueError(f"notebook={str(notebook)!r}: there is no such notebook")
    try:
        found = json.loads(notebook.read_text("utf-8"))["cells"]
        return [dict(c, source=c["source"]) for c in found]
    except (ValueError, LookupError, TypeError) as e:
        raise ValueError(f"notebook={str(notebook)!r}: is not a notebook ({e})") from None


def split(text: str) -> list[str]:
    """Text cut at the commas outside of brackets, without the spaces around."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "[({") - (c in "])}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in (parts if depth == 0 else text.split(","))]


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


def _evaluated(node: ast.expr) -> Any:
    """What literals, arithmetic such as 8 / 255 and names of types say: nothing is called. Raises
    one of _BAD for all else."""
    if not all(isinstance(n, _HARMLESS) for n in ast.walk(node)):
        raise ValueError("more than literals and types")
    return eval(compile(ast.Expression(node), "cell", "eval"), {"__builtins__": {}}, _NAMES)


def _annotated(text: str) -> Any:
    """The type that an annotation says; None for one that text is not read as."""
    try:
        kind = _evaluated(ast.parse(text.replace("typing.", ""), mode="eval").body)
    except _BAD:
        return None
    if isinstance(kind, str):
        return _annotated(kind)
    kind = NoneType if kind is None else kind
    return kind if _readable(kind) else None


def _readable(kind: Any) -> bool:
    known = (get_origin(kind) or kind) in (Union, UnionType, ..., *_TYPES)
    return get_origin(kind) is Literal or (known and all(map(_readable, get_args(kind))))


def _of_default(node: ast.expr) -> Any:
    """The type of a default that is written out; else Any."""
    try:
        return str if isinstance(node, ast.JoinedStr) else _kind(_evaluated(node))
    except _BAD:
        return Any


def _kind(given: Any) -> Any:
    """The type of a value, with that of the elements of a list."""
    if not isinstance(given, list | tuple):
        return type(given) if type(given) in _TYPES else Any
    kinds = {_kind(v) for v in given}
    kinds = {float} if kinds == {int, float} else kinds
    inner: Any = kinds.pop() if len(kinds) == 1 and NoneType not in kinds else Any
    return list[inner]


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
    if choices := {str(p): p for p in parts} if origin is Literal else _CHOICES.get(kind):
        return choices[one_of(name, text.lower() if kind is bool else text, choices)]
    if kind in (int, float):
        exact = kind is int and re.fullmatch(r" *[+-]?[0-9]{1,30} *", text)  # beyond 53 bits too
        x = int(text) if exact else number(name, text, -1e308, 1e308)
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
    except _BAD:
        inner = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", text, re.DOTALL)
        given = [v for v in split(inner[1] if inner else text) if v]
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
