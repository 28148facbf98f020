"""Pretrained networks from a file or by name, and networks to a file, without running any pickle.

A checkpoint from outside is data, never a program: pickles go through torch's weights-only reader,
downloads are pinned to a revision and a checksum, and what is kept is safetensors.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from robustlib import models
from robustlib.data.sources import data_root, home
from robustlib.specs import ARCHS, integer, one_of, reason, shown

SUFFIXES = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")

# The first recipe for both (69.8 and 76.1 %): the natural counterpart of the robust networks below.
_TORCHVISION = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
}

# Salman et al., "Do adversarially robust ImageNet models transfer better?" (2020); eps of l2 on
# images in [0, 1], of linf in 255ths. The sha256 are those the hub shows for the revision; where
# one is empty, the hub is asked for it at download.
HUB = "madrylab/robust-imagenet-models"
REVISION = "3f04ac96136001cfe402022100728124cbe3fac5"
_MADRYLAB = {
    "resnet18_l2_eps0": "d762c58693a2ecaf93160060bb2c32493598540a08852fb3068e95e88f032623",
    "resnet18_l2_eps0.01": "629a82377947785e5481eeaf4e22e3ca59a2eedeb4e385730ee2392b2678407d",
    "resnet18_l2_eps0.03": "",
    "resnet18_l2_eps0.05": "00912b1aa6d60cf7536b52762ed702e0b9cae822187200f42fe4f6a678771bed",
    "resnet18_l2_eps0.1": "2477188559680d096a4eccf5bc7610317cab4b46a97094072d38a29a11bfa8fc",
    "resnet18_l2_eps0.25": "2bed566c554755a0f6f82ddbe83c707d259801308f966e787bcd287f969c7911",
    "resnet18_l2_eps0.5": "69a10462280f266ab855547fde0649ac909f06174ed8df83b8bf2ea0f6fc8150",
    "resnet18_l2_eps1": "92e6c37af550167c7c49c77ad31aad027de4e1f47fbef57546a48ef43626ebcf",
    "resnet18_l2_eps3": "b4315784a1a10257b05906aee94d6884678f7b77412d10100d7c05daa959eab0",
    "resnet18_l2_eps5": "d3ef126afdf9144a22020988dc46f552a0c39347e954c34359a3cb6bf83df186",
    "resnet18_linf_eps0.5": "48d5e933d4ec99b390a0b7c628a4303343f9517a46245cbd7d2f2c034cbd93ee",
    "resnet18_linf_eps1.0": "b49800111d38197deefb0c236055fbdd9d91a0607e55d6cc0bce15504adc9582",
    "resnet18_linf_eps2.0": "bf2611291cc5f792c7f8f17ff6f841f9a0ede32dbe575cbd5bc57233139ae8bd",
    "resnet18_linf_eps4.0": "6f8ccef1ae4958c381617081e9e0fb5f50e7cccd4965192d1caa452fd6c5cd1e",
    "resnet18_linf_eps8.0": "",
    "resnet50_l2_eps0": "72d4a99582db5d7fa86c3fd2a089f0bfd6a10f69d635bca51f6ad72ac6b458f0",
    "resnet50_l2_eps0.01": "53d7a7c09d2733b113e255ac9fc578091f44adb8d00eee274c0e71dd1f4dc41e",
    "resnet50_l2_eps0.03": "e375df3bf07bf1360c04b0aff5cc19bb215e850b1af713327c87cf0353a5598f",
    "resnet50_l2_eps0.05": "e09d8763fcf825542f07389a1904adf15930451b8661a0de209c3bc39828c2ea",
    "resnet50_l2_eps0.1": "3298f8cf689e514d096df883ab491a11ee32c3b8d456d674add29d7b50721a43",
    "resnet50_l2_eps0.25": "",
    "resnet50_l2_eps0.5": "a5fc6fcc54946b73af7bd74289b0003cc9d2744fa0ff55c1a3d9fb2bce8fbd30",
    "resnet50_l2_eps1": "09f5273a568830ae23caf9162a06f4831a920293e0da1801aa182289052dcf90",
    "resnet50_l2_eps3": "380b14e6f9750bffa1447cf7017f65da4dc5ce71a3dd112f107515dcf7b14d9d",
    "resnet50_l2_eps5": "c50db4bbd9a61bc0e0a33290e1f07a79080e16489aa5ada869efc88306f497be",
    "resnet50_linf_eps0.5": "9612d8096ef5378b4a32746072f72fedcb02c7ff4b747bc7163274f7ec2f0fd8",
    "resnet50_linf_eps1.0": "",
    "resnet50_linf_eps2.0": "59f28de783a049cb4d91ba1c0a09c314db2cc4bb1e859566e023f842b02772ac",
    "resnet50_linf_eps4.0": "9e62216975c111b8081481533b6142dec34be69abe5d90b54d7f860015c263db",
    "resnet50_linf_eps8.0": "b907957f8e3ce209816813d8811c682e965a1b0f48455def828d35a4cc2953dc",
}

NAMES = (*(f"torchvision/{n}" for n in _TORCHVISION), *(f"madrylab/{n}" for n in _MADRYLAB))


def load(
    source: str | Path, n_classes: int | None = None, stem_stride: int | None = None
) -> models.ResNet:
    """The network of a file of one of `SUFFIXES` or of a name in `NAMES`, on the CPU.

    Reads plain state_dicts, with BatchNorm's counters or, like torchvision's published files,
    without; dicts that hold one under `model`, `state_dict`, `net`, `state_dict_ema` and the like;
    and names as DataParallel, torch.compile, AveragedModel, a LightningModule (`net.`) or a
    normaliser in front of the network change them, within one another too. Of MadryLab/robustness
    it takes the normaliser and checks the second copy of the weights. What is taken is exactly one
    network: two that differ, or anything beside it, are refused by name.

    The arch is found from the shapes; mean and std come from the file, else they are ImageNet's (a
    warning says so). The network is float32, to which float64 is rounded, and in eval mode, and
    torch's generator is untouched unless a head is made: `n_classes` other than the file's puts a
    fresh head on.

    `stem_stride` is that of a small-image ResNet, which shapes do not tell: None is what `save`
    recorded, else 1. A name is downloaded once and kept as safetensors under
    $ROBUSTLIB_DATA/checkpoints, else ~/.cache/robustlib/checkpoints.

    Raises ValueError for an unknown name, a file that is damaged, that asks for code to be run, or
    that is not exactly one of `specs.ARCHS`; FileNotFoundError; ConnectionError when a name cannot
    be downloaded.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"checkpoint={shown(source)}: must be a path or a name")
    text = str(source)
    if n_classes is not None:
        n_classes = integer("n_classes", n_classes, 1, 10**6)
    if text.endswith(SUFFIXES):
        path = home(text)
    else:
        path = _fetch(one_of("checkpoint", text, (*NAMES, *(f"FILE{s}" for s in SUFFIXES))))
    if not os.path.isfile(path):  # Path's own raises for a name that is too long
        raise FileNotFoundError(f"checkpoint={shown(text)}: there is no such file")
    state, metadata = _read(path)
    if not {"mean", "std"} & state.keys():
        warnings.warn(f"{path}: has no mean and std, ImageNet's are assumed", stacklevel=2)
    model = _model(path, state, metadata, stem_stride)
    if n_classes not in (None, model.fc.out_features):
        models.swap_head(model, n_classes)
    return model


def save(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a network of `models.build` as safetensors, whole or not at all.

    `load` gives back the same bits. What `describe` says goes into the file's metadata, with
    `metadata`, such as where the network comes from. Raises ValueError for another suffix, a
    module that is not one of `specs.ARCHS`, or weights that are not finite or not float32.
    """
    path = Path(path).expanduser()
    one_of("suffix", path.suffix, SUFFIXES[:1])
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    for key, value in state.items():
        if value.dtype not in (torch.float32, torch.int64):
            raise ValueError(f"{key} is {value.dtype}: only float32 networks are saved")
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} holds nan or infinity: not saved")
    about = {k: str(v) for k, v in describe(model).items()}
    data = safetensors.torch.save(state, {**(metadata or {}), **about})
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        staged = Path(folder) / path.name
        with open(staged, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(staged, path)


def describe(model: nn.Module) -> dict[str, Any]:
    """The arguments of `models.build` that give a network of this shape.

    Keys: arch, n_classes, width, stem_stride. Raises ValueError when no arch fits.
    """
    state = model.state_dict()
    arch, _ = _fit("the module", {k: v.shape for k, v in state.items()}, 1)
    return {
        "arch": arch,
        "n_classes": model.fc.out_features,
        "width": model.conv1.out_channels,
        "stem_stride": model.conv1.stride[0],
    }


def _fetch(name: str) -> Path:
    """The safetensors file of a name, made from a download or from a file put there by hand."""
    family, model = name.split("/", 1)
    if family == "torchvision":
        url = _TORCHVISION[model].url
        digest = url.rpartition("-")[2].removesuffix(".pth")  # the first 8 of its sha256
    else:
        url = f"https://huggingface.co/{HUB}/resolve/{REVISION}/{model}.ckpt"
        digest = _MADRYLAB[model]
    folder = data_root() / "checkpoints" / family
    target = folder / f"{model}.safetensors"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    by_hand = folder / Path(urlsplit(url).path).name
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        raw = by_hand
        if not by_hand.exists():
            try:
                raw, digest = _download(url, digest, Path(temporary))
            except Exception as e:  # each library has its own for no network, refused, moved
                raise ConnectionError(
                    f"{name}: cannot be downloaded ({str(e).splitlines()[0] if str(e) else e!r}). "
                    f"Download {url} where there is a network and put it at {by_hand}"
                ) from e
        with open(raw, "rb") as f:
            actual = hashlib.file_digest(f, "sha256").hexdigest()
        if not actual.startswith(digest):
            raise ValueError(f"{raw}: its sha256 is {actual}, expected {digest}: not {url}")
        if not digest:
            warnings.warn(f"{raw}: no checksum is known, its sha256 is {actual}", stacklevel=3)
        save(_model(raw, *_read(raw), None), target, {"url": url, "sha256": actual})
    return target


def _download(url: str, digest: str, folder: Path) -> tuple[Path, str]:
    """Downloads into a folder; returns the file and the sha256, or its start, that it must have."""
    file = Path(urlsplit(url).path).name
    if HUB not in url:
        torch.hub.download_url_to_file(url, str(folder / file), hash_prefix=digest)
        return folder / file, digest
    # Imported here: it takes a second that nobody owes who reads a file.
    from huggingface_hub import HfApi, hf_hub_download

    if not digest:
        digest = HfApi().get_paths_info(HUB, [file], revision=REVISION)[0].lfs.sha256
    return Path(hf_hub_download(HUB, file, revision=REVISION, local_dir=folder)), digest


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors under our names, checked one by one, and its metadata."""
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, framework="pt") as f:
                state, metadata = {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}
        except Exception as e:  # bytes from outside can raise anything
            raise ValueError(f"{path}: truncated, or not safetensors ({reason(e)})") from None
        if not state:
            raise ValueError(f"{path}: holds no tensors")
        return _unwrap(path, _checked(path, state)), metadata
    content = _unpickle(path)
    found = _state_dicts(content) if isinstance(content, dict) else {}
    if not found:
        raise ValueError(f"{path}: holds no state_dict, by itself or under {_UNDER}")
    states = {at: _unwrap(path, _checked(path, state)) for at, state in found.items()}
    (at, state), *others = states.items()
    for other, weights in others:
        same = weights.keys() == state.keys() and all(
            state[k].dtype == v.dtype and torch.equal(state[k], v) for k, v in weights.items()
        )
        if not same:
            raise ValueError(
                f"{path}: holds two networks that differ, {at or 'its own'} and "
                f"{other or 'its own'}: save the one that is meant by itself"
            )
    return state, {}


# Keys made of these words, such as "net" or "model_state_dict", hold the network in a checkpoint.
_WORDS = {"model", "net", "network", "module", "state", "dict", "ema", "weights"}
_UNDER = "model, state_dict, model_state_dict, state_dict_ema, net"


def _state_dicts(content: dict) -> dict[str, dict]:
    """The dicts of weights in a checkpoint, by where they are in it: "model, state_dict"."""
    found: dict[str, dict] = {}
    waiting: list[tuple[tuple[str, ...], dict]] = [((), content)]
    seen: set[int] = set()
    while waiting:
        at, here = waiting.pop(0)
        if id(here) in seen or len(at) > 4:  # a dict of a file may hold itself
            continue
        seen.add(id(here))
        for key, value in here.items():
            named = isinstance(key, str) and set(key.lower().split("_")) <= _WORDS
            if named and isinstance(value, dict):
                waiting.append(((*at, key), value))
        if any(isinstance(v, Tensor) and str(k).endswith("weight") for k, v in here.items()):
            found[", ".join(map(_plain, at))] = here
    return found


def _checked(path: Path, state: dict) -> dict[str, Tensor]:
    """A state_dict whose tensors are whole, dense and finite, in float32 or narrower."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or type(value) not in (Tensor, nn.Parameter):
            found = type(value).__name__
            raise ValueError(f"{path}: {shown(key, 100)}: {found}, expected a name: tensor")
        name = _plain(key)
        if value.dtype not in (*_FLOATS, *_INTEGERS) or value.layout != torch.strided:
            raise ValueError(f"{path}: {name} is {value.dtype}, {value.layout}")
        if value.is_meta:
            raise ValueError(f"{path}: {name} is {value.dtype} on {value.device}")
        if value.nbytes > value.untyped_storage().nbytes():  # a few bytes that claim to be many
            raise ValueError(f"{path}: {name} says it is {list(value.shape)}, the file holds less")
        if key.endswith(_COUNTER):
            # Read by no network with a momentum. Who makes a file half makes its counters that too.
            value = value.double().nan_to_num(0, 0, 0).clamp(0, 2**53).long()
        elif value.dtype == torch.float64:
            value = value.float()
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds nan or infinity")
        out[key] = value
    return out


_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32)
_COUNTER = "num_batches_tracked"


def _plain(key: str) -> str:
    # Names inside a file are anybody's: they may hold line breaks, or go on for pages.
    return key if re.fullmatch(r"[ -~]{1,100}", key) else shown(key, 100)


class _Ignored:
    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What a benign checkpoint may hold beside its weights: a learning rate that is a numpy scalar, the
# arguments of the command. The real constructors are not safe on hostile input and the value is not
# wanted, so classes that carry these names, which is what torch goes by, and do nothing take their
# place.
_IGNORED = [
    type(name, (_Ignored,), {"__module__": module})
    for module, name in (
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("argparse", "Namespace"),
    )
]


def _unpickle(path: Path) -> Any:
    """What torch's weights-only reader makes of a file, or a ValueError that says what is wrong."""
    refused: list[str] = []
    with torch.serialization.safe_globals(_IGNORED):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # bytes from outside can raise anything
            message = str(e) or type(e).__name__
        try:
            refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception:  # not a zip file: the older format names the first only
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
    why = reason(ValueError(*why))
    raise ValueError(f"{path}: truncated, or not a checkpoint of torch ({why})")


# Put between names by torch.compile, FSDP and activation checkpointing, anywhere.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_CHILDREN = {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
_NORMALISER = {"mean": "mean", "std": "std", "new_mean": "mean", "new_std": "std"}


def _unwrap(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter names without wrappers: those are taken off one by one, from the outside, while
    all that is beside the wrapped network is a normaliser, a count of averages, or a copy of it."""
    bare: dict[str, Tensor] = {}
    for key, value in state.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in bare:
            raise ValueError(f"{path}: holds {_plain(name)} twice, once as {_plain(key)}")
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
        copies = {"attacker"} if own == "model" else set()
        odd = [k for k in state if k.partition(".")[0] not in {own, *around, *copies, "n_averaged"}]
        odd += [k for k in state if k.startswith("attacker.") and copies and not _COPY.match(k)]
        if odd:
            raise ValueError(f"{path}: unexpected {outer}{_plain(odd[0])} beside {outer}{own}.*")
        if "attacker" in parts and copies:
            _same_copies(path, outer, state)
        for head in sorted(around):
            for key, value in parts[head].items():
                name = _NORMALISER[key or head]
                if name in normaliser:
                    raise ValueError(f"{path}: {outer}{_plain(head)} is a second normaliser")
                normaliser[name] = value
        state, outer = parts[own], f"{outer}{_plain(own)}."
    if twice := normaliser.keys() & state.keys():
        raise ValueError(f"{path}: {outer}{min(twice)} is a second normaliser")
    state = normaliser | state
    return {
        # Shaped as [3] or [1, 3, 1, 1] by others.
        k: v.reshape(3, 1, 1) if k in ("mean", "std") and v.numel() == 3 else v
        for k, v in state.items()
    }


_COPY = re.compile(r"attacker\.(model|normalize)\.")


def _same_copies(path: Path, outer: str, state: dict[str, Tensor]) -> None:
    """Raises ValueError unless the attacker of MadryLab's AttackerModel has the same weights."""
    for own, copy in {"model.": "attacker.model.", "normalizer.": "attacker.normalize."}.items():
        a, b = (
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            for prefix in (own, copy)
        )
        for key in sorted(a.keys() | b.keys()) if b else ():
            one, other = a.get(key), b.get(key)
            if one is None or other is None or one.dtype != other.dtype:
                same = False
            else:
                same = torch.equal(one, other)
            if not same:
                raise ValueError(
                    f"{path}: {outer}{own}{_plain(key)} and its copy "
                    f"{outer}{copy}{_plain(key)} differ"
                )


def _fit(
    where: Path | str, shapes: Mapping[str, torch.Size], stem_stride: int
) -> tuple[str, models.ResNet]:
    """The arch whose parameters have exactly these names and shapes, and an empty network of it.
    BatchNorm's counters may be left out, as they were before torch 0.4.1."""

    def size(default: int, *keys: str) -> int:
        return next((shapes[k][0] for k in keys if shapes.get(k) and shapes[k][0] > 0), default)

    width, n_classes = size(64, "conv1.weight", "bn1.weight"), size(1000, "fc.weight", "fc.bias")
    # Beyond this the sizes of the layers overflow, and no file holds such a network.
    width, n_classes = min(width, 2**16), min(n_classes, 2**24)
    misfits = {}
    for arch in ARCHS:
        with torch.device("meta"):  # neither memory nor random numbers
            model = models.build(arch, n_classes, width, stem_stride)
        expected = {k: v.shape for k, v in model.state_dict().items()}
        if expected == {k: s for k, s in expected.items() if k.endswith(_COUNTER)} | shapes:
            return arch, model
        misfits[arch] = {
            "missing": [k for k in expected if k not in shapes and not k.endswith(_COUNTER)],
            "unexpected": [_plain(k) for k in shapes if k not in expected],
            "of a wrong shape": [
                f"{k} {list(shapes[k])} instead of {list(shape)}"
                for k, shape in expected.items()
                if shapes.get(k, shape) != shape
            ],
        }
    nearest = min(misfits, key=lambda arch: sum(map(len, misfits[arch].values())))
    reasons = [
        f"{kind}: {', '.join(keys[:4])}" + (f" and {len(keys) - 4} more" if keys[4:] else "")
        for kind, keys in misfits[nearest].items()
        if keys
    ]
    raise ValueError(
        f"{where}: not one of {', '.join(ARCHS)}; nearest is {nearest}, but {'; '.join(reasons)}"
    )


def _model(
    path: Path, state: dict[str, Tensor], metadata: Mapping[str, str], stem_stride: int | None
) -> models.ResNet:
    """The network of a checked state_dict, in eval mode."""
    if not {"mean", "std"} & state.keys():
        state["mean"] = torch.tensor(models.IMAGENET_MEAN).view(3, 1, 1)
        state["std"] = torch.tensor(models.IMAGENET_STD).view(3, 1, 1)
    recorded = metadata.get("stem_stride")
    if stem_stride is None:
        stem_stride = int(recorded) if recorded in ("1", "2", "3", "4") else 1
    integer("stem_stride", stem_stride, 1, 4)
    arch, model = _fit(path, {k: v.shape for k, v in state.items()}, stem_stride)
    counters = {k: torch.tensor(0) for k in model.state_dict() if k.endswith(_COUNTER)}
    state = counters | state
    if arch.endswith("s") and recorded not in (None, str(stem_stride)):
        raise ValueError(f"stem_stride={stem_stride}: {path} says stem_stride={shown(recorded)}")
    for k, v in model.state_dict().items():
        if state[k].is_floating_point() != v.is_floating_point():
            raise ValueError(f"{path}: {k} is {state[k].dtype}, expected {v.dtype}")
        if k.endswith("running_var") and (state[k] < 0).any():
            raise ValueError(f"{path}: {k} is below 0, and a variance is not")
    if not (state["std"] > 0).all():
        raise ValueError(f"{path}: std is {state['std'].flatten().tolist()}, must be above 0")
    # Copied, for tensors of a file may share their memory; half precision widens without loss.
    owned = {
        k: state[k].detach().to(v.dtype, copy=True).contiguous()
        for k, v in model.state_dict().items()
    }
    model.load_state_dict(owned, strict=True, assign=True)
    return model.eval()
