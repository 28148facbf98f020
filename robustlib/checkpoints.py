"""Pretrained networks by name or from a file, and networks to a file, without running any pickle.

A checkpoint from outside is data, never a program (`foreign`): pickles go through torch's
weights-only reader, downloads are pinned to a revision and a checksum, and what is kept is
safetensors. The zoo is a few small networks inside the package, in half precision.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from robustlib import files, foreign, models, specs
from robustlib.data.sources import data_root, home
from robustlib.foreign import COUNTER, SUFFIXES
from robustlib.specs import ARCHS, Pretrain, integer, one_of, plain, shown

# The first recipe for both (69.8 and 76.1 %): the natural counterpart of the robust networks below.
_TORCHVISION = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
}

ZOO = Path(__file__).with_name("zoo")
"""The folder of the networks that come with the package."""

# Salman et al., "Do adversarially robust ImageNet models transfer better?" (2020); eps of l2 on
# images in [0, 1], of linf in 255ths. The checksums are those the hub shows for the revision; where
# there is none, the hub is asked for it at download.
HUB = "madrylab/robust-imagenet-models"
REVISION = "3f04ac96136001cfe402022100728124cbe3fac5"
_EPS = {"l2": "0 0.01 0.03 0.05 0.1 0.25 0.5 1 3 5", "linf": "0.5 1.0 2.0 4.0 8.0"}
_SUMS = files.read_sums(ZOO / "madrylab.SHA256SUMS")
_MADRYLAB = {
    (name := f"{arch}_{norm}_eps{eps}"): _SUMS.get(f"{name}.ckpt", "")
    for arch in _TORCHVISION
    for norm, radii in _EPS.items()
    for eps in radii.split()
}


def zoo() -> dict[str, dict[str, Any]]:
    """What comes with the package, by name: `spec`, `accuracy`, `val_accuracy`, `n`,
    `robust_accuracy` with its `attack`, `licence`, and the `file` with its `sha256`."""
    file = ZOO / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def names() -> tuple[str, ...]:
    """All names that `load` takes: FAMILY/NETWORK."""
    families = {"torchvision": _TORCHVISION, "madrylab": _MADRYLAB, "zoo": zoo()}
    return tuple(f"{family}/{name}" for family, known in families.items() for name in known)


NAMES = names()


def pretrain(name: str) -> Pretrain:
    """The spec that takes a network of the zoo: that of its training, with it as the checkpoint."""
    entries = {f"zoo/{n}": entry for n, entry in zoo().items()}
    spec = entries[one_of("checkpoint", name, entries)]["spec"]
    return specs.from_dict(Pretrain, {**spec, "checkpoint": name})


def load(source: str | Path, stem_stride: int | None = None) -> models.ResNet:
    """The network of a file of one of `SUFFIXES` or of a name in `NAMES`, on the CPU.

    Reads plain state_dicts, with BatchNorm's counters or without; dicts that hold one under
    `model`, `state_dict`, `net`, `state_dict_ema` and the like; and names as DataParallel,
    torch.compile, AveragedModel, a LightningModule (`net.`), MadryLab/robustness or a normaliser in
    front of the network change them, within one another too. What is taken is exactly one network:
    two that differ, or anything beside it, are refused by name.

    Arch and stem are found from the shapes; mean and std come from the file, else they are
    ImageNet's (a warning says so). The network is float32, to which float64 is rounded and half
    precision widened, and in eval mode. `stem_stride` is that of a small-image ResNet, which shapes
    do not tell: None is what `save` recorded, else 1.

    A name of the zoo is a file of the package; others are downloaded once, their checksums
    verified, and kept as safetensors in checkpoints/ below the data root.

    Raises ValueError for an unknown name, a file that is damaged, that asks for code to be run, or
    that is not exactly one of `specs.ARCHS`; FileNotFoundError; ConnectionError when a name cannot
    be downloaded.
    """
    if not isinstance(source, str | Path):
        raise ValueError(f"checkpoint={shown(source)}: must be a path or a name")
    text = str(source)
    if text.endswith(SUFFIXES):
        path = home(text)
    else:
        path = _fetch(one_of("checkpoint", text, (*names(), *(f"FILE{s}" for s in SUFFIXES))))
    if not os.path.isfile(path):  # noqa: PTH113 - Path's own raises for a name too long
        raise FileNotFoundError(f"checkpoint={shown(text)}: there is no such file")
    state, metadata = foreign.read(path)
    if not {"mean", "std"} & state.keys():
        warnings.warn(f"{path}: has no mean and std, ImageNet's are assumed", stacklevel=2)
    return _model(path, state, metadata, stem_stride)


def save(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a network of `models.build` as safetensors, whole or not at all; `load` gives back the
    same bits. What `describe` says goes into the file's metadata, with `metadata`. Raises
    ValueError for another suffix, a module that is not one of `specs.ARCHS`, or weights that are
    not finite or not float32."""
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
    with files.whole(path) as file:
        file.write(data)


def describe(model: nn.Module) -> dict[str, Any]:
    """The arguments of `models.build` that give a network of this shape: arch, n_classes, width,
    stem_stride, stem. A resnet18s of width 64 behind ImageNet's stem is a resnet18. Raises
    ValueError when no arch fits."""
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    arch, fitting = _fit("the module", shapes, 1)
    conv1: Any = model.conv1
    return {
        "arch": arch,
        "n_classes": fitting.fc.out_features,
        "width": fitting.conv1.out_channels,
        "stem_stride": conv1.stride[0],
        "stem": _stem(shapes),
    }


def _fetch(name: str) -> Path:
    """The safetensors file of a name: bundled, or made from a download or of one put there."""
    family, model = name.split("/", 1)
    if family == "zoo":
        entry = zoo()[model]
        path = ZOO / entry["file"]
        if path.is_file() and (found := files.sha256(path)) != entry["sha256"]:
            raise ValueError(f"{path}: its sha256 is {found}, expected {entry['sha256']}")
        return path
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
        actual = files.sha256(raw)
        if not actual.startswith(digest):
            raise ValueError(f"{raw}: its sha256 is {actual}, expected {digest}: not {url}")
        if not digest:
            warnings.warn(f"{raw}: no checksum is known, its sha256 is {actual}", stacklevel=3)
        save(_model(raw, *foreign.read(raw), None), target, {"url": url, "sha256": actual})
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
        about: Any = HfApi().get_paths_info(HUB, [file], revision=REVISION)[0]
        digest = about.lfs.sha256
    return Path(hf_hub_download(HUB, file, revision=REVISION, local_dir=folder)), digest


def _stem(shapes: Mapping[str, torch.Size]) -> str:
    """ImageNet's stem is 7x7, that for small images 3x3."""
    return "imagenet" if tuple(shapes.get("conv1.weight", ())[2:]) == (7, 7) else "small"


def _empty(arch: str, n_classes: int, width: int, stem: str, stem_stride: int = 1) -> models.ResNet:
    """A network of neither memory nor random numbers."""
    with torch.device("meta"):
        return models.build(arch, n_classes, width, stem_stride, stem=stem)


@lru_cache(maxsize=64)
def _shapes(arch: str, n_classes: int, width: int, stem: str) -> dict[str, torch.Size]:
    """What the state_dict of a network holds. Kept: many networks of a study are alike."""
    return {k: v.shape for k, v in _empty(arch, n_classes, width, stem).state_dict().items()}


def _fit(
    where: Path | str, shapes: dict[str, torch.Size], stem_stride: int
) -> tuple[str, models.ResNet]:
    """The arch whose parameters have exactly these names and shapes, and an empty network of it.
    BatchNorm's counters may be left out, as they were before torch 0.4.1."""

    def size(default: int, *keys: str) -> int:
        return next((shapes[k][0] for k in keys if shapes.get(k) and shapes[k][0] > 0), default)

    width, n_classes = size(64, "conv1.weight", "bn1.weight"), size(1000, "fc.weight", "fc.bias")
    # Beyond this the sizes of the layers overflow, and no file holds such a network.
    width, n_classes = min(width, 2**16), min(n_classes, 2**24)
    misfits, stem = {}, _stem(shapes)
    # A resnet18s can be a resnet18 to the last weight: then it is called by the plain name.
    for arch in sorted(ARCHS, key=lambda a: a.endswith("s") == (stem == "imagenet")):
        expected = _shapes(arch, n_classes, width, stem)
        misfits[arch] = misfit = {
            "missing": [k for k in expected if k not in shapes and not k.endswith(COUNTER)],
            "unexpected": [plain(k) for k in shapes if k not in expected],
            "of a wrong shape": [
                f"{k} {list(shapes[k])} instead of {list(shape)}"
                for k, shape in expected.items()
                if shapes.get(k, shape) != shape
            ],
        }
        if not any(misfit.values()):
            return arch, _empty(arch, n_classes, width, stem, stem_stride)
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
    shapes = {k: v.shape for k, v in state.items()}
    arch, model = _fit(path, shapes, stem_stride)
    counters = {k: torch.tensor(0) for k in model.state_dict() if k.endswith(COUNTER)}
    state = counters | state
    found = {"stem_stride": model.conv1.stride[0], "stem": _stem(shapes)}
    for name, value in found.items() if arch.endswith("s") else ():
        if metadata.get(name) not in (None, str(value)):
            raise ValueError(f"{name}={shown(value)}: {path} says {name}={shown(metadata[name])}")
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
