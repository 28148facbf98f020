"""How a field of a spec says what it may be, and what a bad value is answered with."""

import functools
from collections.abc import Callable
from dataclasses import field, is_dataclass
from typing import Any, NamedTuple, dataclass_transform, get_args, get_type_hints

import pydantic

from robustlib.specs.checks import integer, number, one_of, shown


def read(check: Callable[..., Any], *limits: float, **more: bool) -> pydantic.BeforeValidator:
    """A check as what reads a field, whose name it is given."""
    return pydantic.BeforeValidator(lambda v, info: check(info.field_name, v, *limits, **more))


Whole, Between = functools.partial(read, integer), functools.partial(read, number)
"""An int, a float in [low, high]; "8/255" is a float too."""


class UsedBy(NamedTuple):
    """A field that says something only where the field `by` has one of these values, and that must
    say something there if `needed`."""

    by: str
    values: tuple[str, ...]
    needed: bool = False


def _one_line(cls: type, given: dict[str, Any], error: Any) -> str:
    """What pydantic found first, as a message that names the field, its value and what is allowed.

    Raises it itself where a choice was misspelt.
    """
    if "error" in (context := error.get("ctx", {})):
        return str(context["error"])
    hints = get_type_hints(cls)
    name = error["loc"][0] if error["loc"] else ""
    if isinstance(name, int) and name < len(hints):  # given by its place
        name = list(hints)[name]
    if error["type"] == "unexpected_keyword_argument":
        one_of(f"{cls.__name__} field", name, hints)
    if name not in given:
        return f"{cls.__name__}: {error['msg']}"
    value, hint = given[name], hints[name]
    if error["type"] == "literal_error":
        one_of(name, value, get_args(hint))
    if hint is str:
        return f"{name}={shown(value)}: must be text"
    kinds = [c.__name__ for c in get_args(hint) or (hint,) if c is not type(None)]
    whole = 1000 if is_dataclass(value) and len(kinds) == 1 else None
    allowed = " or a ".join(filter(None, (", a ".join(kinds[:-1]), kinds[-1])))
    return f"{name}={shown(value, whole)}: must be a {allowed}"


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def spec(cls: type) -> Any:
    """A frozen pydantic dataclass that refuses bad values with a ValueError of one line."""
    # strict: what is not of a field's type is refused; the validators read what may be read.
    config = pydantic.ConfigDict(strict=True, extra="forbid")
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=config)(cls)
    validated = made.__init__

    @functools.wraps(validated)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except pydantic.ValidationError as e:
            given = dict(zip(made.__dataclass_fields__, args, strict=False)) | kwargs
            first = e.errors(include_url=False, include_input=False)[0]
            raise ValueError(_one_line(made, given, first)) from None

    made.__init__ = init
    return made


def check_uses(spec: Any) -> None:
    """Raises ValueError where a field is given and nothing uses it, or is needed and missing."""
    cls: Any = type(spec)
    for name, default, use in _uses(cls):
        value, chosen = getattr(spec, name), getattr(spec, use.by)
        used, says = chosen in use.values, value != default
        if used is says or (used and not use.needed):
            continue
        start = f"{name}={shown(value)}: {use.by}={chosen!r}"
        if used:
            raise ValueError(f"{start} needs it{' above 0' if value == 0 else ''}")
        *others, last = use.values
        users = f"{', '.join(others)} and {last} do" if others else f"{last} does"
        raise ValueError(f"{start} does not use it, must be {default!r}; {users}")


@functools.cache
def _uses(cls: Any) -> list[tuple[str, Any, UsedBy]]:
    declared = cls.__pydantic_fields__.items()
    return [(n, f.default, u) for n, f in declared for u in f.metadata if isinstance(u, UsedBy)]
