"""Makes the zoo: stored networks as files of the package, with what they can do in the manifest.

    python benchmarks/zoo.py robust-0=KEY natural-0=KEY [--eps 0.5] [--limit 1000]

KEY is that of a stored Pretrain, or its beginning. Weights of convolutions and of the head are
kept in half precision; norms and the normaliser, a few thousand numbers, as they are. What the
manifest says was measured on the files themselves, as anybody who loads them will find it.
"""

import argparse
import json
from typing import Any

import safetensors.torch
from torch import nn

from robustlib import checkpoints, files, specs, store
from robustlib.specs import Evaluation, Pretrain
from robustlib.stages import network, run

LICENCE = "MIT, as robustlib; terms of the images it was trained on: `robustlib data list`"


def make(
    networks: dict[str, Pretrain],
    norm: specs.Norm = "l2",
    eps: float = 0.5,
    attack: specs.Attack = "cheap",
    limit: int | None = None,
    licence: str = LICENCE,
) -> dict[str, dict[str, Any]]:
    """Writes stored networks to `checkpoints.ZOO`, which keeps what else it has; the manifest.

    Raises ValueError for a network that is not trained here or not stored, or a bad name.
    """
    for name, spec in networks.items():
        if not name or not all(c.isalnum() or c in "-_." for c in name):
            raise ValueError(f"name={name!r}: letters, digits, -, _ and . only")
        if spec.checkpoint or not store.has(spec):
            raise ValueError(f"{name}={specs.key(spec)}: not a stored network that was trained")
    for name, spec in networks.items():
        entry: dict[str, Any] = {
            "file": f"{name}.safetensors",
            "spec": specs.to_dict(spec, defaults=False),
        }
        data = _halved(network(spec), {"name": name, "licence": licence})
        with files.whole(checkpoints.ZOO / entry["file"]) as file:
            file.write(data)
        entry |= {"sha256": files.sha256(data), "licence": licence}
        _record(name, entry)
        bundled = checkpoints.pretrain(f"zoo/{name}")
        # Again: another file may have had this name.
        row = run(bundled, recompute=True).row
        entry |= {k: row[k] for k in ("accuracy", "val_accuracy", "n")}
        attacked = Evaluation(bundled, "adversarial", norm, eps, attack, limit=limit)
        row = run(attacked, recompute=True).row
        entry |= {"robust_accuracy": row["autoattack_accuracy"], "robust_n": row["n"]}
        entry["attack"] = {"norm": norm, "eps": eps, "attack": attack}
        _record(name, entry)
    return checkpoints.zoo()


def _halved(model: nn.Module, about: dict[str, str]) -> bytes:
    """The file of a network: weights with several dimensions in half precision."""
    state = {
        k: v.half() if v.ndim > 1 and k not in ("mean", "std") else v
        for k, v in model.state_dict().items()
    }
    shape = {k: str(v) for k, v in checkpoints.describe(model).items()}
    return safetensors.torch.save(state, about | shape)


def _record(name: str, entry: dict[str, Any]) -> None:
    manifest = dict(sorted({**checkpoints.zoo(), name: entry}.items()))
    with files.whole(checkpoints.ZOO / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def stored(key: str) -> Pretrain:
    """The stored Pretrain whose key begins so."""
    every = (a.spec for a in store.artifacts(Pretrain))
    found = [s for s in every if isinstance(s, Pretrain) and specs.key(s).startswith(key)]
    if len(found) != 1:
        raise ValueError(f"{key}: {len(found)} stored networks have a key that begins so, not 1")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="+", metavar="NAME=KEY")
    parser.add_argument("--norm", default="l2")
    parser.add_argument("--eps", default="0.5")
    parser.add_argument("--attack", default="cheap")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--licence", default=LICENCE)
    given = vars(parser.parse_args())
    pairs = [pair.partition("=")[::2] for pair in given.pop("networks")]
    made = make({name: stored(key) for name, key in pairs}, **given)
    for name, _ in pairs:
        print(f"zoo/{name}: {made[name]}")


if __name__ == "__main__":
    main()
