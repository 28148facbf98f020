"""Checkpoint files from outside as plain weights: read without running code, checked, unwrapped."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from robustlib.specs import plain, reason, shown

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
COUNTER = "num_batches_tracked"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32)

# Keys made of these words, such as "net" or "model_state_dict", hold the network in a checkpoint.
_WORDS = {"model", "net", "network", "module", "state", "dict", "ema", "weights"}
_UNDER = "model, state_dict, model_state_dict, state_dict_ema, net"
# Put between names by torch.compile, FSDP and activation checkpointing, anywhere.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_CHILDREN = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
_NORMALISER = {"mean": "mean", "std": "std", "new_mean": "mean", "new_std": "std"}
_COPIES = {"model.": "attacker.model.", "normalizer.": "attacker.normalize."}
"""MadryLab's AttackerModel holds its weights and its normaliser twice."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors under our names, checked one by one, and its metadata.

    Raises ValueError, naming the file, for what is damaged, asks for code to be run, or holds
    anything but one network.
    """
    metadata: dict[str, str] = {}
    if path.suffix == SUFFIXES[0]:
        try:
            with safetensors.safe_open(path, framework="pt") as f:
                metadata = f.metadata() or {}
                found = {"": {k: f.get_tensor(k) for k in f.keys()}}  # noqa: SIM118 - f is no dict
                beside: dict[str, dict] = {}
        except Exception as e:  # noqa: BLE001 - bytes from outside can raise anything
            raise ValueError(f"{path}: truncated, or not safetensors ({reason(e)})") from None
        if not found[""]:
            raise ValueError(f"{path}: holds no tensors")
    else:
        content = _unpickle(path)
        found, beside = _state_dicts(content) if isinstance(content, dict) else ({}, {})
        if not found:
            raise ValueError(f"{path}: holds no state_dict, by itself or under {_UNDER}")
    (at, state), *others = ((at, _unwrap(path, _checked(path, s))) for at, s in found.items())
    for other, weights in beside.items():
        try:
            others.append((other, _unwrap(path, _checked(path, weights))))
        except ValueError:  # another network than any of ours
            others.append((other, {}))
    for other, weights in others:
        if _differing(state, weights):
            raise ValueError(
                f"{path}: holds two networks that differ, {at or 'its own'} and "
                f"{other or 'its own'}: save the one that is meant by itself"
            )
    return state, metadata


def _differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """The names of tensors that are not in both, or not of one type and value."""
    return [
        k
        for k in sorted(one.keys() | other.keys())
        if not (k in one and k in other and one[k].dtype == other[k].dtype)
        or not torch.equal(one[k], other[k])
    ]


def _items(here: dict | list) -> Iterable[tuple[Any, Any]]:
    return here.items() if isinstance(here, dict) else enumerate(here)


def _state_dicts(content: dict) -> tuple[dict[str, dict], dict[str, dict]]:
    """The dicts of weights in a checkpoint, by where they are in it, "model, state_dict": those
    that keys say hold the network, and others, which may be another network."""
    found: tuple[dict[str, dict], dict[str, dict]] = {}, {}
    waiting: list[tuple[tuple[Any, ...], Any, bool]] = [((), content, False)]
    seen: set[int] = set()
    while waiting:
        at, here, other = waiting.pop(0)
        if id(here) in seen or len(at) > 4:  # a dict of a file may hold itself
            continue
        seen.add(id(here))
        for key, value in _items(here):
            named = isinstance(key, str) and set(key.lower().split("_")) <= _WORDS
            if isinstance(value, dict | list):
                waiting.append(((*at, key), value, other or not named))
        end = ".weight" if other else "weight"  # that of a loss is none of a network
        if any(isinstance(v, Tensor) and str(k).endswith(end) for k, v in _items(here)):
            found[other][", ".join(plain(str(key)) for key in at)] = here
    return found


def _checked(path: Path, state: dict) -> dict[str, Tensor]:
    """A state_dict whose tensors are whole, dense and finite, in float32 or narrower."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or type(value) not in (Tensor, nn.Parameter):
            found = type(value).__name__
            raise ValueError(f"{path}: {shown(key, 100)}: {found}, expected a name: tensor")
        name = plain(key)
        known = value.dtype in (*_FLOATS, *_INTEGERS) and value.layout == torch.strided
        if not known or value.is_meta:
            raise ValueError(f"{path}: {name} is {value.dtype}, {value.layout} on {value.device}")
        if value.nbytes > value.untyped_storage().nbytes():  # a few bytes that claim to be many
            raise ValueError(f"{path}: {name} says it is {list(value.shape)}, the file holds less")
        if key.endswith(COUNTER):
            # Read by no network with a momentum. Who makes a file half makes its counters that too.
            own = value.double().nan_to_num(0, 0, 0).clamp(0, 2**53).long()
        else:
            own = value.float() if value.dtype == torch.float64 else value
        if not torch.isfinite(own).all():
            raise ValueError(f"{path}: {name} holds nan or infinity")
        out[key] = own
    return out


class _Ignored:
    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What a benign checkpoint may hold beside its weights: a learning rate that is a numpy scalar, the
# arguments of the command. The real constructors are not safe on hostile input and the value is not
# wanted, so classes that carry these names, which is what torch goes by, and do nothing take their
# place.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_BENIGN = {"numpy": "dtype", "argparse": "Namespace"} | dict.fromkeys(_MULTIARRAY, "scalar")
_IGNORED: list[Any] = [type(n, (_Ignored,), {"__module__": m}) for m, n in _BENIGN.items()]


def _unpickle(path: Path) -> Any:
    """What torch's weights-only reader makes of a file, or a ValueError that says what is wrong."""
    refused: list[str] = []
    with torch.serialization.safe_globals(_IGNORED):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # noqa: BLE001 - bytes from outside can raise anything
            message = str(e) or type(e).__name__
        try:
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # noqa: BLE001 - not a zip file: the older format names the first only
            refused = re.findall(r"GLOBAL ([\w.]+)", message)[:1]
    if refused:
        called = ", ".join(shown(name, 100) for name in sorted(refused)[:5])
        raise ValueError(
            f"{path}: refused, for reading it would call {called}; nothing was run. If you trust "
            "where it is from, convert it once on a disposable machine that holds nothing else "
            'and has no network, with python -c "'
            "import dill, torch; from safetensors.torch import save_file; "
            f"c = torch.load({path.name!r}, 'cpu', pickle_module=dill, weights_only=False); "
            "c = c.get('model', c.get('state_dict', c)); "
            f"save_file({{k: v.clone() for k, v in c.items()}}, {path.stem + SUFFIXES[0]!r})"
            '", and load the .safetensors, which cannot hold code'
        )
    # The rest of torch's message advises to read the file unsafely.
    why = message.split("WeightsUnpickler error:")[-1].strip().splitlines()[:1]
    said = reason(ValueError(*why))
    raise ValueError(f"{path}: truncated, or not a checkpoint of torch ({said})")


def _unwrap(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter names without wrappers, taken off one by one from the outside, while all that is
    beside the wrapped network is a normaliser, a count of averages, or a copy of it."""
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in bare:
            raise ValueError(f"{path}: holds {plain(name)} twice, once as {plain(key)}")
        bare[name] = value
    state, outer, normaliser = bare, "", {}
    for _ in range(16):  # names in a file may go on for pages
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            head, _, rest = key.partition(".")
            parts.setdefault(head, {})[rest] = value
        wrapped = [h for h, p in parts.items() if any(k.endswith("conv1.weight") for k in p)]
        if not wrapped or parts.keys() & _CHILDREN:
            break
        own = "model" if "model" in wrapped else wrapped[0]
        around = {h for h, p in parts.items() if {k or h for k in p} <= _NORMALISER.keys()}
        known = {own, *around, "n_averaged"}
        copies = tuple(_COPIES.values()) if own == "model" else ()
        odd = [k for k in state if k.partition(".")[0] not in known and not k.startswith(copies)]
        if odd:
            raise ValueError(f"{path}: unexpected {outer}{plain(odd[0])} beside {outer}{own}.*")
        if copies:
            _check_copies(path, outer, state)
        for head in sorted(around):
            for key, value in parts[head].items():
                name = _NORMALISER[key or head]
                if name in normaliser:
                    raise ValueError(f"{path}: {outer}{plain(head)} is a second normaliser")
                normaliser[name] = value
        state, outer = parts[own], f"{outer}{plain(own)}."
    if twice := normaliser.keys() & state.keys():
        raise ValueError(f"{path}: {outer}{min(twice)} is a second normaliser")
    state = normaliser | state
    return {
        # Shaped as [3] or [1, 3, 1, 1] by others.
        k: v.reshape(3, 1, 1) if k in ("mean", "std") and v.numel() == 3 else v
        for k, v in state.items()
    }


def _check_copies(path: Path, outer: str, state: dict[str, Tensor]) -> None:
    """Raises ValueError where the attacker of an AttackerModel has weights of its own."""
    for own, copy in _COPIES.items():
        a, b = (
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for prefix in (own, copy)
        )
        if b and (keys := _differing(a, b)):
            key = plain(keys[0])
            raise ValueError(f"{path}: {outer}{own}{key} and its copy {outer}{copy}{key} differ")
