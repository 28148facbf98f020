"""The files of profiles: TOML, of which nothing is taken that is no field of a spec."""

import math
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from robustlib import specs
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer, one_of, reason, shown

PROFILES = Path(__file__).parent / "profiles"
REQUIRED = {"pretrain": Pretrain, "objective": Pretrain, "ticket": Ticket, "transfer": Transfer}
TABLES = REQUIRED | {"evaluation": Evaluation}
"""The tables of a profile, and the spec whose fields each holds."""
ABLATION = "ablation"
"""The table of a profile whose own tables are ablations: each replaces some of the profile's."""
MAX_BYTES = 2**20
"""Of a profile; a larger file is something else."""
MAX_GRID = 100_000
"""Specs of a profile: seconds to write down, and years of computing. More is a slip in an axis."""


@dataclass(frozen=True)
class Profile:
    """Which grid a study is: fields of the specs, where a list is an axis of the grid."""

    name: str
    about: str
    seeds: tuple[int, ...]
    pretrain: dict[str, Any]
    objectives: tuple[dict[str, Any], ...]
    tickets: tuple[dict[str, Any], ...]
    transfers: tuple[dict[str, Any], ...]
    evaluations: tuple[dict[str, Any], ...] = ()


def profiles() -> list[str]:
    """The names of the profiles that come with the library."""
    return sorted(p.stem for p in PROFILES.glob("*.toml"))


def read(name: str) -> tuple[Path, dict[str, Any], str]:
    """The file of a profile, what it holds, and the ablation that the name asks for."""
    name, ablation = str(name) if isinstance(name, Path) else name, ""
    if isinstance(name, str) and (parts := name.rpartition(":"))[1] and parts[2].isidentifier():
        name, _, ablation = parts
    if isinstance(name, str) and name.endswith(".toml"):
        path = Path(name)
        if not os.path.isfile(path):  # noqa: PTH113 - Path's own raises for a name too long
            raise ValueError(f"profile={shown(name)}: there is no such file")
    else:
        path = PROFILES / f"{one_of('profile', name, profiles())}.toml"
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{size} bytes, a profile has at most {MAX_BYTES}")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise ValueError(f"{path}: is not TOML: {reason(e)}") from None
    own = raw.get(ABLATION, {})
    if not isinstance(own, dict) or not all(isinstance(v, dict) for v in own.values()):
        raise ValueError(f"{path}: {ABLATION}={shown(own)}: must be tables, [{ABLATION}.NAME]")
    return path, raw, ablation


def checked(name: str, raw: dict[str, Any]) -> Profile:
    """The profile that tables say. Raises ValueError for what no spec has a field for."""
    for key in raw:
        one_of("table", key, sorted({"about", "seeds", *TABLES}))
    if missing := sorted({"seeds", *REQUIRED} - set(raw)):
        raise ValueError(f"table {missing[0]!r} is missing")
    raw = {"about": "", "evaluation": [], **raw}
    if isinstance(raw["ticket"], dict):
        raw["ticket"] = [raw["ticket"]]
    for table, cls in TABLES.items():
        one = table == "pretrain"
        kind = f"a table, [{table}]" if one else f"a list of tables, [[{table}]]"
        if not isinstance(raw[table], dict if one else list):
            raise ValueError(f"{table}={shown(raw[table])}: must be {kind}")
        for entry in axis(raw[table]):
            _known_fields(table, entry, cls)
    if not isinstance(raw["seeds"], list) or not raw["seeds"]:
        raise ValueError(f"seeds={shown(raw['seeds'])}: must be a list of at least one number")
    if not isinstance(raw["about"], str):
        raise ValueError(f"about={shown(raw['about'])}: must be text")
    seeds = tuple(specs.integer("seeds", s, 0) for s in raw["seeds"])
    tables = [tuple(raw[t]) for t in ("objective", "ticket", "transfer", "evaluation")]
    out = Profile(name, raw["about"], seeds, raw["pretrain"], *tables)

    def count(tables: Iterable[dict[str, Any]]) -> int:
        return sum(math.prod(len(axis(v)) for v in table.values()) for table in tables)

    # Without making them.
    size = len(seeds) * count({**out.pretrain, **entry} for entry in out.objectives)
    if (size := size * count(out.tickets) * count(out.transfers)) > MAX_GRID:
        raise ValueError(f"its grid has {shown(size)} specs, at most {MAX_GRID} are allowed")
    return out


def _known_fields(table: str, values: dict[str, Any], cls: type) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{table}={shown(values)}: must be a table of fields")
    own = {f.name for f in fields(cls)} - {*specs.KINDS, "seed"}
    for name, value in values.items():
        one_of(f"field of [{table}]", name, sorted(own))
        if name == "mask_from":
            for source in axis(value):
                _known_fields(name, source, Pretrain)


def axis(value: Any) -> list[Any]:
    """The values of a field of a profile: a list is an axis of the grid."""
    return value if isinstance(value, list) else [value]
