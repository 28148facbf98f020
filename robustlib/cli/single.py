"""Commands that run one spec: their flags are its fields."""

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import pydantic

import robustlib
from robustlib.cli.app import FLAT, app, examples
from robustlib.specs import KINDS, Evaluation, Pretrain, Ticket, Transfer, from_dict


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
