"""The same results twice from nothing: are they equal to the bit?

    ROBUSTLIB_DATA=/folder/of/packs python benchmarks/again.py --out benchmarks/again.csv

Pretrains the networks of one seed of a profile, and computes transfers of them, in two empty stores
one after the other. Writes a row a result: what it is, its accuracy and the SHA-256 of its tensors
in each run, and whether all that both stored is the same but for the seconds that it took. Exits
with 1 if anything is not.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from robustlib import files, profiles, run, specs, store
from robustlib.specs import Pretrain, Spec, Ticket


def chosen(profile: str, seed: int, tasks: str, sparsities: str) -> list[Spec]:
    """The transfers of one seed, and the networks and tickets that they are built on."""
    wanted = profiles.grid(profile, seeds=str(seed), tasks=tasks, sparsities=sparsities)
    return specs.closure([s for s in wanted if not s.recalibrate])


def once(wanted: list[Spec], folder: str) -> list[dict[str, Any]]:
    """What a run from nothing stores for each spec."""
    with mock.patch.dict(os.environ, ROBUSTLIB_STORE=folder):
        return [told(run(spec)) for spec in wanted]


def told(found: store.Artifact) -> dict[str, Any]:
    """All that an artifact has but seconds, its tensors by their checksum."""
    sums = files.read_sums(found.path / files.SUMS)
    return {"row": timeless(found.row), "extra": timeless(found.extra)} | {
        "tensors": sums.get(store.TENSORS, "")
    }


def timeless(value: Any) -> Any:
    """A value of JSON without what is called seconds, or ends so."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def compared(wanted: list[Spec], first: list[dict], second: list[dict]) -> pd.DataFrame:
    """A row a result of both runs."""
    rows = []
    for spec, a, b in zip(wanted, first, second, strict=True):
        source = spec if isinstance(spec, Pretrain) else specs.closure([spec])[0]
        ticket = spec if isinstance(spec, Ticket) else getattr(spec, "ticket", None)
        row = {"kind": specs.kind(spec), "objective": source.objective, "eps": source.eps}
        row |= {"sparsity": getattr(ticket, "sparsity", ""), "task": getattr(spec, "task", "")}
        row |= {"mode": getattr(spec, "mode", ""), "seed": getattr(spec, "seed", "")}
        for name, one in (("first", a), ("second", b)):
            row |= {f"accuracy_{name}": one["row"].get("accuracy", "")}
            row |= {f"tensors_{name}": one["tensors"][:16]}
        rows.append(row | {"equal": a == b, "key": specs.key(spec)})
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default="cifar10,tinyimagenet50")
    parser.add_argument("--sparsities", default="0,0.9")
    parser.add_argument("--out", type=Path, required=True, help="the CSV")
    args = parser.parse_args(argv)
    wanted = chosen(args.profile, args.seed, args.tasks, args.sparsities)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        table = compared(wanted, once(wanted, first), once(wanted, second))
    table.to_csv(args.out, index=False)
    print(f"{args.out}: {table.equal.sum()} of {len(table)} results are equal to the bit")
    return int(not table.equal.all())


if __name__ == "__main__":
    raise SystemExit(main())
