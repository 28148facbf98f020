"""What bad input is answered with: one line that names the value and what is allowed."""

import difflib
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from numbers import Real
from typing import Any


def shown(value: Any, limit: int | None = None) -> str:
    """`value` as an error message shows it: its repr on one line, cut where it is very long."""
    limit = limit or (200 if isinstance(value, str | bytes) else 450)
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # noqa: BLE001 - an int of 4,301 digits, lists a thousand deep
        text = f"<{type(value).__name__}, too large to show>"
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def plain(name: str) -> str:
    """A name out of a file, which is anybody's: it may hold line breaks, or go on for pages."""
    return name if re.fullmatch(r"[ -~]{1,100}", name) else shown(name, 100)


def printable(text: str) -> str:
    """`text` on one line, what a terminal would act on escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def reason(error: BaseException) -> str:
    """What a library says is wrong, on one line and no longer than a person would read."""
    text = printable(str(error)) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def one_of(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """`value` if it is allowed; else a ValueError that names it, the near ones and all of them."""
    allowed = list(allowed)
    if isinstance(value, str) and value in allowed:
        return value
    misspelt = isinstance(value, str) and len(value) <= 100
    near = difflib.get_close_matches(value, allowed, n=2, cutoff=0.6) if misspelt else []
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"{name}={shown(value)}{hint}: choose one of {', '.join(map(str, allowed))}")


def number(name: str, value: Any, low: float, high: float, *, open_high: bool = False) -> float:
    """`value` as a finite float in [low, high] ([low, high) if open_high); "8/255" is read too."""
    try:
        x = float(Fraction(value) if isinstance(value, str) and "/" in value else value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        x = math.nan
    fits = math.isfinite(x) and low <= x <= high and not (open_high and x == high)
    if _is_bool(value) or not fits:
        close = ")" if open_high else "]"
        raise ValueError(f"{name}={shown(value)}: must be a number in [{low:g}, {high:g}{close}")
    return x + 0.0  # -0.0 is 0.0: one experiment, one key.


def integer(name: str, value: Any, low: int, high: int = 2**31) -> int:
    """`value` as an int in [low, high]; a float with a fraction or a bool is refused."""
    whole = isinstance(value, Real) and not _is_bool(value) and value % 1 == 0
    if not whole or not low <= value <= high:
        raise ValueError(
            f"{name}={shown(value)}: must be a whole number, at least {low} and at most {high}"
        )
    return int(value)


def numbers(name: str, value: Any) -> tuple[Any, ...]:
    """`value` as a tuple, if it is a list."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}={shown(value)}: must be a list of numbers")
    return tuple(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, if it is one."""
    if not _is_bool(value):
        raise ValueError(f"{name}={shown(value)}: choose one of True, False")
    return bool(value)


def _is_bool(value: Any) -> bool:
    # By name: numpy's bool is meant too, and numpy need not be imported for that.
    return type(value).__name__ == "bool"
