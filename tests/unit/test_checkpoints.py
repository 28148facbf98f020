"""Checkpoints: every layout reads to the same network, and nothing hostile or damaged is read."""

import argparse
import hashlib
import os
import pickle
import warnings
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from robustlib import checkpoints, models, specs, stages

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def network(arch: str = "resnet10s", n_classes: int = 7, **kwargs) -> models.ResNet:
    """A network in eval mode in which every tensor, BatchNorm's statistics too, is random."""
    torch.manual_seed(0)
    kwargs = {"width": 4, "mean": MEAN, "std": STD} | kwargs
    model = models.build(arch, n_classes, **kwargs).eval()
    for name, tensor in model.state_dict().items():
        if name not in ("mean", "std"):
            tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else torch.tensor(9))
    return model


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}


def madry(model: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """The state_dict of DataParallel(AttackerModel): two copies that share their memory."""
    normaliser = {"new_mean": model.mean, "new_std": model.std}
    parts = {
        "module.normalizer.": normaliser,
        "module.model.": weights(model),
        "module.attacker.normalize.": normaliser,
        "module.attacker.model.": weights(model),
    }
    return OrderedDict((p + k, v) for p, part in parts.items() for k, v in part.items())


def trained(model: nn.Module) -> dict:
    """What MadryLab's training stores beside the model, its learning rate a numpy scalar."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    return state | {"epoch": 90, "amp": "N/A", "nat_prec1": torch.tensor(69.8)}


def same(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


LAYOUTS = {
    "ours": lambda m: m.state_dict(),
    "ours in DataParallel": lambda m: nn.DataParallel(m).state_dict(),
    "under model": lambda m: {"model": m.state_dict(), "epoch": 3},
    "under state_dict": lambda m: {"state_dict": m.state_dict(), "epoch": 3},
    "Madry": lambda m: {"model": madry(m)} | trained(network()),
    "Madry, old": lambda m: {"state_dict": madry(m)} | trained(network()),
    "Madry without DataParallel": lambda m: {
        "model": {k.removeprefix("module."): v for k, v in madry(m).items()}
    },
    "Madry without the attacker": lambda m: {
        k: v for k, v in madry(m).items() if "attacker" not in k
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_to_the_same_network(tmp_path, layout, zipped):
    model = network()
    content = LAYOUTS[layout](model)
    path = tmp_path / "a.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoints.load(path)
    assert same(loaded, model)
    assert not loaded.training
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(x), model(x))


def test_the_normaliser_of_the_file_is_kept(tmp_path):
    torch.save({"model": madry(network())}, tmp_path / "a.pt")
    loaded = checkpoints.load(tmp_path / "a.pt")
    assert torch.equal(loaded.mean.flatten(), torch.tensor(MEAN))
    assert torch.equal(loaded.std.flatten(), torch.tensor(STD))


def test_a_file_without_normaliser_gets_imagenets_and_a_warning(tmp_path):
    torch.save(weights(network()), tmp_path / "a.pth")
    with pytest.warns(UserWarning, match=r"a\.pth: has no mean and std, ImageNet's"):
        loaded = checkpoints.load(tmp_path / "a.pth")
    assert torch.equal(loaded.mean.flatten(), torch.tensor(models.IMAGENET_MEAN))
    assert same(loaded, network(mean=models.IMAGENET_MEAN, std=models.IMAGENET_STD))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision_weights_in_madrys_layout_give_torchvisions_outputs(tmp_path, arch):
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, arch)(num_classes=10).eval()
    ours = models.build(arch, 10, mean=MEAN, std=STD)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    torch.save({"model": madry(ours)}, tmp_path / "a.ckpt")
    loaded = checkpoints.load(tmp_path / "a.ckpt")
    assert checkpoints.describe(loaded)["arch"] == arch
    x = torch.rand(1, 3, 64, 64)
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), theirs(normalised), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch, width", [("resnet10s", 4), ("resnet10s", 6), ("resnet18s", 4)])
def test_arch_and_width_are_found_from_the_shapes(tmp_path, arch, width):
    torch.save(network(arch, width=width).state_dict(), tmp_path / "a.pt")
    found = checkpoints.describe(checkpoints.load(tmp_path / "a.pt"))
    assert found == {
        "arch": arch,
        "width": width,
        "n_classes": 7,
        "stem_stride": 1,
        "stem": "small",
    }


def test_loaded_tensors_own_their_memory_and_train(tmp_path):
    model = network()
    state = model.state_dict()
    state["bn1.weight"] = state["bn1.bias"]  # one memory under two names
    torch.save(state, tmp_path / "a.pt")
    loaded = checkpoints.load(tmp_path / "a.pt")
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    with torch.no_grad():
        loaded.bn1.weight.add_(1)
    assert torch.equal(loaded.bn1.bias, model.bn1.bias)


class Normalise(nn.Module):
    """The normaliser of many robust networks, in front of them in a Sequential."""

    def __init__(self, model: models.ResNet) -> None:
        super().__init__()
        self.register_buffer("mean", model.mean.view(1, 3, 1, 1))
        self.register_buffer("std", model.std.view(1, 3, 1, 1))


def bare(model: models.ResNet) -> nn.Module:
    """The network without its normaliser."""
    del model.mean, model.std
    return model


def within(name: str, model: nn.Module) -> nn.Module:
    outer = nn.Module()
    outer.add_module(name, model)
    return outer


def layers_compiled(model: nn.Module) -> nn.Module:
    model.layer1 = torch.compile(model.layer1)
    model.layer2[0] = torch.compile(model.layer2[0])
    return model


WRAPPERS = {
    "compiled": torch.compile,
    "compiled layers": layers_compiled,
    "averaged": AveragedModel,
    "DataParallel": nn.DataParallel,
    "net": lambda m: within("net", m),
    "model": lambda m: within("model", m),
    "averaged, of DataParallel": lambda m: AveragedModel(nn.DataParallel(m)),
    "compiled, of averaged, of compiled": lambda m: torch.compile(AveragedModel(torch.compile(m))),
    "a module's, of DataParallel, compiled": lambda m: within(
        "net", nn.DataParallel(torch.compile(m))
    ),
    "DataParallel of a module's of a module's": lambda m: nn.DataParallel(
        within("model", within("backbone", m))
    ),
    "behind a normaliser": lambda m: nn.Sequential(Normalise(m), bare(m)),
    "behind a named normaliser, averaged": lambda m: AveragedModel(
        nn.Sequential(OrderedDict(normalize=Normalise(m), model=bare(m)))
    ),
}
HOLDERS = {
    "by itself": lambda s: s,
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "loss": torch.tensor(1.0)},
    "state_dict_ema": lambda s: {"state_dict_ema": s, "args": argparse.Namespace(lr=0.1)},
    "net": lambda s: {"net": s, "acc": 93.1},
    "model, state_dict": lambda s: {"model": {"state_dict": s, "depth": 18}},
    "and a loss with weights": lambda s: {"model": s, "criterion": {"weight": torch.ones(3)}},
    "and a copy under another name": lambda s: {
        "model": s,
        "best": {f"module.{k}": s[k] for k in s},
    },
    "twice the same": lambda s: {"state_dict": s, "model_ema": {f"module.{k}": s[k] for k in s}},
    "beside a description": lambda s: {"model": {"arch": "resnet18"}, "state_dict": s},
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_other_tools_wrap_reads_to_the_same_network(tmp_path, wrapper, holder):
    state = WRAPPERS[wrapper](network()).state_dict()
    assert state.keys() != network().state_dict().keys()
    suffix = checkpoints.SUFFIXES[1 + list(HOLDERS).index(holder) % 5]
    torch.save(HOLDERS[holder](state), tmp_path / f"a{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoints.load(tmp_path / f"a{suffix}")
    assert same(loaded, network())
    if holder == "by itself":
        safetensors.torch.save_file(state, tmp_path / "a.safetensors")
        assert same(checkpoints.load(tmp_path / "a.safetensors"), network())


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in network().state_dict().items()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"state_dict": renamed(""), "state_dict_ema": renamed("") | {"fc.bias": torch.ones(7)}},
            "holds two networks that differ, state_dict and state_dict_ema: save the one",
        ),
        *(
            (
                {"state_dict": renamed(""), key: value},
                rf"holds two networks that differ, state_dict and {key}",
            )
            for key, value in {
                "best_state_dict": renamed("module.") | {"module.fc.bias": torch.ones(7)},
                "teacher": {"features.0.weight": torch.ones(3, 3)},
                "models": [{"epoch": 1}, renamed("") | {"fc.bias": torch.ones(7)}],
            }.items()
        ),
        (
            {"model": {"net": renamed("")}} | renamed("") | {"fc.bias": torch.ones(7)},
            "'model': dict, expected a name: tensor",
        ),
        (renamed("model.") | renamed("ema."), r"unexpected ema.mean beside model.\*"),
        (renamed("module.net.") | {"module.loss.weight": torch.ones(3)}, "unexpected module.loss"),
        (renamed("_orig_mod.") | {"fc.bias": torch.ones(7)}, "holds fc.bias twice"),
        (
            renamed("1.") | {"0.mean": torch.ones(3), "0.std": torch.ones(3)},
            "1.mean is a second normaliser",
        ),
        (
            {"mean": torch.ones(3), "0.mean": torch.ones(3)}
            | {f"1.{k}": v for k, v in weights(network()).items()},
            "mean is a second normaliser",
        ),
        ({"generator": renamed("")}, "holds no state_dict, by itself or under model, state_dict"),
        ({"net": {"net": 3}}, "holds no state_dict"),
    ],
    ids=lambda v: "" if isinstance(v, dict) else v[:30],
)
def test_what_is_not_one_network_is_refused_by_name(tmp_path, content, says):
    torch.save(content, tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match=f"a.pth.tar: {says}") as error:
        checkpoints.load(tmp_path / "a.pth.tar")
    assert "\n" not in str(error.value)


def test_a_dict_that_holds_itself_is_no_endless_search(tmp_path):
    content = {"model": {}, "net": {"epoch": 3}}
    content["model"]["net"] = content["model"]["state_dict"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt: holds no state_dict"):
        checkpoints.load(tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_file_of_another_precision_reads_to_the_same_network(tmp_path, dtype):
    """Converted tensor by tensor, so that BatchNorm's counters are floats too, and overflow."""
    model = network()
    state = {k: v.to(dtype) for k, v in model.state_dict().items()}
    state["bn1.num_batches_tracked"] = torch.tensor(float("inf"), dtype=dtype)
    torch.save(state, tmp_path / "a.bin")
    loaded = checkpoints.load(tmp_path / "a.bin").state_dict()
    for name, value in model.state_dict().items():
        if name == "bn1.num_batches_tracked":
            assert loaded[name] == 0
        else:
            assert loaded[name].dtype == value.dtype, name
            assert torch.equal(loaded[name], value.to(dtype).to(value.dtype)), name


# As the published files are: counts of entries, names and their order


def counterless(arch: str) -> OrderedDict[str, torch.Tensor]:
    """torchvision's file: made before BatchNorm counted its batches; weights are Parameters."""
    torch.manual_seed(3)
    model = getattr(torchvision.models, arch)()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 1.5)
    state = model.state_dict(keep_vars=True)
    return OrderedDict((k, v) for k, v in state.items() if "num_batches" not in k)


@pytest.mark.parametrize(("arch", "entries"), [("resnet18", 102), ("resnet50", 267)])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torchvisions_published_files_read_to_torchvisions_network(tmp_path, arch, entries, zipped):
    state = counterless(arch)
    assert len(state) == entries
    path = tmp_path / "a.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.warns(UserWarning, match="ImageNet's are assumed"):
        loaded = checkpoints.load(path)
    assert checkpoints.describe(loaded) | {"stem_stride": 0} == {
        "arch": arch,
        "width": 64,
        "n_classes": 1000,
        "stem_stride": 0,
        "stem": "imagenet",
    }
    theirs = getattr(torchvision.models, arch)()
    theirs.load_state_dict(state)  # torch fills in the counters
    found = weights(loaded)
    assert found.keys() == theirs.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in theirs.state_dict().items())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), theirs.eval()((x - loaded.mean) / loaded.std))


@pytest.mark.parametrize(("arch", "entries"), [("resnet18", 248), ("resnet50", 644)])
@pytest.mark.parametrize("collection", ["robustness", "robust-models-transfer"])
def test_the_robust_collections_files_read_to_their_network(tmp_path, arch, entries, collection):
    """MadryLab/robustness (.pt, the arguments in it) and microsoft/robust-models-transfer (.ckpt)
    are of one trainer: DataParallel of an AttackerModel, which holds its network twice."""
    model = network(arch, 1000, width=64)
    state = madry(model)
    assert len(state) == entries
    assert [
        next(k for k in state if k.startswith(f"module.{part}")) for part in ("n", "m", "a")
    ] == [
        "module.normalizer.new_mean",
        "module.model.conv1.weight",
        "module.attacker.normalize.new_mean",
    ]
    assert {"module.model.layer1.0.conv1.weight", "module.attacker.model.fc.bias"} <= state.keys()
    beside = trained(network())
    path = tmp_path / ("a.pt" if collection == "robustness" else "a.ckpt")
    if collection == "robustness":
        beside["args"] = argparse.Namespace(adv_train=1, eps="3", nested=argparse.Namespace())
    torch.save({"model": state} | beside, path)
    assert same(checkpoints.load(path), model)


def test_half_precision_widens_without_loss(tmp_path):
    half = network().half()
    torch.save(half.state_dict(), tmp_path / "a.pt")
    loaded = checkpoints.load(tmp_path / "a.pt")
    assert loaded.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.conv1.weight, half.conv1.weight.float())


def test_loading_leaves_the_generator_alone(tmp_path):
    checkpoints.save(network(), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    checkpoints.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


# save


@pytest.mark.parametrize("stride", [1, 2])
def test_save_and_load_give_the_same_bits(tmp_path, stride):
    model = network(stem_stride=stride)
    with torch.no_grad():
        model.conv1.weight[0] = 0.0
        model.conv1.weight[1] = -0.0
    path = tmp_path / "new" / "a.safetensors"
    checkpoints.save(model.to(memory_format=torch.channels_last), path, {"from": "a test"})
    loaded = checkpoints.load(path)
    assert same(loaded, model)
    assert torch.equal(loaded.conv1.weight.signbit(), model.conv1.weight.signbit())
    assert loaded.conv1.stride == (stride, stride)
    with safetensors.safe_open(path, "pt") as f:
        assert f.metadata() == {
            "arch": "resnet10s",
            "width": "4",
            "n_classes": "7",
            "stem_stride": str(stride),
            "stem": "small",
            "from": "a test",
        }
    assert checkpoints.load(path, stem_stride=stride).conv1.stride == (stride, stride)
    with pytest.raises(
        ValueError, match=f"stem_stride={3 - stride}: .* says stem_stride='{stride}'"
    ):
        checkpoints.load(path, stem_stride=3 - stride)


def test_stem_stride_is_the_callers_where_the_file_does_not_say(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pt")
    assert checkpoints.load(tmp_path / "a.pt").conv1.stride == (1, 1)
    assert checkpoints.load(tmp_path / "a.pt", stem_stride=2).conv1.stride == (2, 2)
    with pytest.raises(ValueError, match="stem_stride=0"):
        checkpoints.load(tmp_path / "a.pt", stem_stride=0)


@pytest.mark.parametrize(("arch", "width"), [("resnet10s", 4), ("resnet18s", 6), ("resnet18s", 64)])
def test_imagenets_stem_is_found_from_the_shape_of_the_first_convolution(tmp_path, arch, width):
    model = network(arch, width=width, stem="imagenet")
    checkpoints.save(model, tmp_path / "a.safetensors")
    torch.save(model.state_dict(), tmp_path / "a.pt")
    x = torch.rand(2, 3, 32, 32)
    for file in ("a.safetensors", "a.pt"):
        loaded = checkpoints.load(tmp_path / file)
        assert same(loaded, model) and torch.equal(loaded(x), model(x))
        assert isinstance(loaded.maxpool, nn.MaxPool2d)
        found = checkpoints.describe(loaded)
        # To the last weight the same network, which has a plain name.
        assert found.pop("arch") == ("resnet18" if width == 64 else arch)
        assert found == {"width": width, "n_classes": 7, "stem_stride": 2, "stem": "imagenet"}
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as f:
        assert f.metadata()["stem"] == "imagenet" and f.metadata()["stem_stride"] == "2"


def test_a_stem_that_is_not_the_recorded_one_is_refused(tmp_path):
    model = network(stem="imagenet")
    about = {"stem": "small", "stem_stride": "2"}
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors", about)
    with pytest.raises(ValueError, match=r"stem='imagenet': .*a.safetensors says stem='small'"):
        checkpoints.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("stem", ["imagenet", "small"])
@pytest.mark.parametrize("arch", ["resnet10s", "resnet18s"])
def test_a_spec_takes_a_checkpoint_of_its_stem_and_no_other(tmp_path, arch, stem):
    path = tmp_path / "a.safetensors"
    width = 64 if arch == "resnet18s" else 4
    torch.manual_seed(0)
    model = models.build(arch, 10, width, 2, MEAN, STD, stem).eval()
    checkpoints.save(model, path)
    spec = specs.Pretrain("digits", arch, width, stem=stem, size=16, checkpoint=str(path))
    assert same(stages.network(spec), model)
    other = "small" if stem == "imagenet" else "imagenet"
    with pytest.raises(ValueError, match=rf"(arch|stem)='({arch}|{other})': checkpoint"):
        stages.run(replace(spec, stem=other))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a.safetensors"
    checkpoints.save(network(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(network(n_classes=9), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_save_refuses_what_load_would_not_give_back(tmp_path):
    broken = network()
    with torch.no_grad():
        broken.fc.bias[0] = float("nan")
    for model, path, reason in (
        (network(), "a.pt", r"suffix='\.pt'.*\.safetensors"),
        (network().double(), "a.safetensors", "float64: only float32"),
        (broken, "a.safetensors", "fc.bias holds nan"),
        (nn.Linear(2, 2), "a.safetensors", "the module: not one of resnet10s"),
    ):
        with pytest.raises(ValueError, match=reason):
            checkpoints.save(model, tmp_path / path)
    assert not list(tmp_path.iterdir())


# Hostile, damaged and unfitting files


class Payload:
    """Unpickles to a call that creates a file."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["the whole", "model", "a weight", "beside"])
@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("way", ["os", "builtins"])
def test_a_hostile_pickle_is_refused_and_its_payload_not_run(
    tmp_path, way, zipped, place, protocol
):
    proof, path = tmp_path / "proof", tmp_path / "a.ckpt"
    code = f"open({str(proof)!r}, 'w')"
    payload = Payload(os.mkdir, str(proof)) if way == "os" else Payload(eval, code)
    state = network().state_dict()
    content = {
        "the whole": payload,
        "model": {"model": payload},
        "a weight": {"model": state | {"conv1.weight": payload}},
        "beside": {"model": state, "optimizer": payload},
    }[place]
    if zipped is None:
        path.write_bytes(pickle.dumps(payload, protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"a\.ckpt: ") as error:
        checkpoints.load(path)
    assert not proof.exists()
    if zipped is not None and protocol == 2:
        called = "posix.mkdir|nt.mkdir" if way == "os" else "eval"
        assert error.match(f"refused, for reading it would call '.*({called})'; nothing was run")
    # The same bytes do run in a plain unpickler: the payload is live.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if zipped is None:
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
    assert proof.exists()


def test_code_saved_with_dill_is_refused_with_the_way_to_convert_it(tmp_path):
    path = tmp_path / "cifar_l2.pt"
    content = {"model": network().state_dict(), "f": Payload(eval, "0")}
    torch.save(content, path, _use_new_zipfile_serialization=False, pickle_protocol=2)
    # dill is not needed to write what it writes: the name of a function, in a pickle of protocol 2.
    stock, dills = b"c__builtin__\neval\n", b"cdill._dill\n_create_function\n"
    data = path.read_bytes()
    assert data.count(stock) == 1
    data = data.replace(stock, dills)
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        checkpoints.load(path)
    for part in (
        "cifar_l2.pt: refused",
        "'dill._dill._create_function'",
        "disposable machine",
        "torch.load('cifar_l2.pt', 'cpu', pickle_module=dill, weights_only=False)",
        "'cifar_l2.safetensors'",
    ):
        assert part in str(error.value)
    assert "add_safe_globals" not in str(error.value)


def test_a_whole_module_is_refused(tmp_path):
    torch.save(network(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="refused.*'robustlib.models.ResNet'"):
        checkpoints.load(tmp_path / "a.pt")


def test_the_conversion_that_the_error_tells_of_works(tmp_path):
    model = network()
    state = madry(model)
    safetensors.torch.save_file(
        {k: v.clone() for k, v in state.items()}, tmp_path / "a.safetensors"
    )
    assert same(checkpoints.load(tmp_path / "a.safetensors"), model)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, kind):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        checkpoints.save(network(), path)
    else:
        content = network().state_dict()
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for size in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"{path.name}: truncated, or not"):
            checkpoints.load(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_an_error_page_instead_of_a_file_is_an_error_that_names_it(tmp_path, name):
    (tmp_path / name).write_text("<!DOCTYPE html><html><body>404</body></html>")
    with pytest.raises(ValueError, match=f"{name}: truncated, or not"):
        checkpoints.load(tmp_path / name)


def edited(**changes) -> dict:
    """Madry's layout with some entries replaced, or removed where they are None."""
    state = madry(network()) | {k.replace("__", "."): v for k, v in changes.items()}
    return {"model": {k: v for k, v in state.items() if v is not None}}


COPY = "module.attacker.model.layer1.0.conv1.weight"


@pytest.mark.parametrize(
    "content, reason",
    [
        (
            edited(**{COPY: torch.zeros(4, 4, 3, 3)}),
            "module.model.layer1.0.conv1.weight and its copy " + COPY + " differ",
        ),
        (edited(**{COPY: None}), "its copy " + COPY + " differ"),
        (edited(**{COPY: torch.zeros(4)}), "its copy " + COPY + " differ"),
        (edited(**{COPY: network().layer1[0].conv1.weight.half()}), "its copy " + COPY),
        (
            edited(**{"module.attacker.normalize.new_std": torch.ones(3, 1, 1)}),
            "module.normalizer.new_std and its copy module.attacker.normalize.new_std differ",
        ),
        (edited(**{"module.other": torch.ones(1)}), "unexpected module.other beside module.model"),
        (
            {"model": {k: v for k, v in madry(network()).items() if ".model." in k}}
            | {"model": weights(network()) | {"std": torch.ones(3, 1, 1)}},
            "missing: mean",
        ),
    ],
    ids=["differs", "lost", "shape", "dtype", "std", "odd", "half a normaliser"],
)
def test_copies_that_disagree_are_an_error_that_names_the_key(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"a\.ckpt: .*{reason}"):
        checkpoints.load(tmp_path / "a.ckpt")


INNER = "layer1.module.model.x"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"conv1.weight": None}, "missing: conv1.weight$"),
        ({"fc.weight": None, "fc.bias": None}, "missing: fc.weight, fc.bias$"),
        ({INNER: torch.ones(1)}, f"nearest is resnet10s, but unexpected: {INNER}$"),
        ({"module.conv1.weight": torch.ones(1)}, "unexpected: module.conv1.weight$"),
        ({"fc.bias": torch.ones(8)}, r"of a wrong shape: fc.bias \[8\] instead of \[7\]$"),
        ({"conv1.weight": torch.ones(())}, r"conv1.weight \[\] instead of \["),
        ({"mean": torch.ones(4)}, r"mean \[4\] instead of \[3, 1, 1\]$"),
        ({f"extra{i}": torch.ones(1) for i in range(6)}, "extra3 and 2 more$"),
        ({"std": torch.zeros(3, 1, 1)}, r"std is \[0.0, 0.0, 0.0\], must be above 0"),
        ({"fc.bias": torch.full((7,), float("inf"))}, "fc.bias holds nan or infinity"),
        ({"fc.bias": torch.ones(7).double() * 1e39}, "fc.bias holds nan or infinity"),
        ({"fc.bias": torch.ones(7, dtype=torch.complex64)}, "fc.bias is torch.complex64"),
        ({"fc.bias": torch.ones(7).to_sparse()}, "fc.bias is torch.float32, torch.sparse_coo"),
        ({"fc.bias": torch.ones(7, device="meta")}, "fc.bias is .* on meta"),
        ({"conv1.weight": torch.ones(1).expand(2**40, 3, 7, 7)}, "the file holds less"),
        ({"fc.bias": 3.0}, "'fc.bias': float, expected a name: tensor"),
        ({"fc.bias": np.float64(3.0)}, "'fc.bias': scalar, expected a name: tensor"),
        ({3: torch.ones(7)}, "3: Tensor, expected a name: tensor"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_does_not_fit_is_named(tmp_path, change, reason):
    state = network().state_dict() | change
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=reason):
        checkpoints.load(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [None, 3, [1], {}, {"epoch": 3}, torch.ones(3)], ids=str)
def test_a_file_without_a_state_dict_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: .*(holds no state_dict|expected a name: tensor)"):
        checkpoints.load(tmp_path / "a.pt")


# Names


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "checkpoints"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[tuple]:
    """A hub that serves one fabricated checkpoint, and the requests it got."""
    served = tmp_path / "served.ckpt"
    torch.save({"model": madry(network())}, served)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    monkeypatch.setitem(checkpoints._MADRYLAB, "resnet18_l2_eps3", digest)
    requests = []

    def download(repo, file, revision, local_dir):
        requests.append((repo, file, revision))
        to = Path(local_dir) / file
        to.write_bytes(served.read_bytes())
        return str(to)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return requests


def no_network(*_args, **_kwargs):
    raise OSError("Name or service not known")


def test_names_are_those_of_the_papers():
    published = [n for n in checkpoints.NAMES if not n.startswith("zoo/")]
    assert len(published) == 2 + 2 * (10 + 5)
    for arch in ("resnet18", "resnet50"):
        assert f"torchvision/{arch}" in checkpoints.NAMES
        for eps in ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5"):
            assert f"madrylab/{arch}_l2_eps{eps}" in checkpoints.NAMES
        for eps in ("0.5", "1.0", "2.0", "4.0", "8.0"):
            assert f"madrylab/{arch}_linf_eps{eps}" in checkpoints.NAMES
    known = [d for d in checkpoints._MADRYLAB.values() if d]
    assert len(set(known)) == len(known) and all(len(bytes.fromhex(d)) == 32 for d in known)
    assert len(bytes.fromhex(checkpoints.REVISION)) == 20


@pytest.mark.parametrize("bad", ["madrylab/resnet18_l2_eps4", "resnet18", "", "weights.onnx"])
def test_an_unknown_name_lists_the_near_ones(bad, root):
    with pytest.raises(ValueError, match=r"checkpoint=.*torchvision/resnet18.*FILE\.bin") as error:
        checkpoints.load(bad)
    if bad.startswith("madrylab"):
        assert "did you mean 'madrylab/resnet18_l2_eps" in str(error.value)
    assert not root.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        checkpoints.load(tmp_path / "nowhere.ckpt")


def test_a_name_is_downloaded_once_pinned_and_kept_as_safetensors(root, hub):
    for _ in range(2):
        assert same(checkpoints.load("madrylab/resnet18_l2_eps3"), network())
    pinned = ("madrylab/robust-imagenet-models", "resnet18_l2_eps3.ckpt", checkpoints.REVISION)
    assert hub == [pinned]
    folder = root / "madrylab"
    assert [p.name for p in folder.iterdir()] == ["resnet18_l2_eps3.safetensors"]
    with safetensors.safe_open(folder / "resnet18_l2_eps3.safetensors", "pt") as f:
        assert f.metadata()["sha256"] == checkpoints._MADRYLAB["resnet18_l2_eps3"]
        assert checkpoints.REVISION in f.metadata()["url"]


def test_a_download_with_another_checksum_is_refused(root, hub, monkeypatch):
    monkeypatch.setitem(checkpoints._MADRYLAB, "resnet18_l2_eps3", "0" * 64)
    with pytest.raises(ValueError, match="its sha256 is [0-9a-f]{64}, expected 0{64}"):
        checkpoints.load("madrylab/resnet18_l2_eps3")
    assert not list((root / "madrylab").iterdir())


def test_where_no_checksum_is_recorded_the_hubs_own_is_asked_for(root, hub, monkeypatch):
    digest = checkpoints._MADRYLAB["resnet18_l2_eps3"]
    monkeypatch.setitem(checkpoints._MADRYLAB, "resnet18_l2_eps3", "")

    class Info:
        class lfs:
            sha256 = digest

    def infos(_self, repo, paths, revision):
        assert (repo, revision) == (checkpoints.HUB, checkpoints.REVISION)
        return [Info]

    monkeypatch.setattr(huggingface_hub.HfApi, "get_paths_info", infos)
    assert same(checkpoints.load("madrylab/resnet18_l2_eps3"), network())
    Info.lfs.sha256 = "1" * 64
    (root / "madrylab" / "resnet18_l2_eps3.safetensors").unlink()
    with pytest.raises(ValueError, match="expected 1{64}"):
        checkpoints.load("madrylab/resnet18_l2_eps3")


def test_offline_the_error_says_what_to_download_and_where_to_put_it(root, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_network)
    place = root / "madrylab" / "resnet18_l2_eps3.ckpt"
    with pytest.raises(ConnectionError) as error:
        checkpoints.load("madrylab/resnet18_l2_eps3")
    url = f"https://huggingface.co/{checkpoints.HUB}/resolve/{checkpoints.REVISION}/{place.name}"
    assert url in str(error.value) and str(place) in str(error.value)
    # Doing as it says is all it takes, and another file there is refused.
    place.write_bytes(b"something else")
    with pytest.raises(ValueError, match="its sha256 is"):
        checkpoints.load("madrylab/resnet18_l2_eps3")
    torch.save({"model": madry(network())}, place)
    actual = hashlib.sha256(place.read_bytes()).hexdigest()
    monkeypatch.setitem(checkpoints._MADRYLAB, "resnet18_l2_eps3", actual)
    assert same(checkpoints.load("madrylab/resnet18_l2_eps3"), network())


def test_a_file_put_by_hand_without_a_known_checksum_is_read_with_a_warning(root, monkeypatch):
    monkeypatch.setitem(checkpoints._MADRYLAB, "resnet18_l2_eps3", "")
    place = root / "madrylab" / "resnet18_l2_eps3.ckpt"
    place.parent.mkdir(parents=True)
    torch.save({"model": madry(network())}, place)
    with pytest.warns(UserWarning, match="no checksum is known, its sha256 is [0-9a-f]{64}"):
        assert same(checkpoints.load("madrylab/resnet18_l2_eps3"), network())


def test_torchvisions_weights_by_name(root, tmp_path, monkeypatch):
    theirs = torchvision.models.resnet18().eval()
    served = tmp_path / "served.pth"
    torch.save(counterless("resnet18"), served)
    theirs.load_state_dict(torch.load(served))
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    url = f"https://download.pytorch.org/models/resnet18-{digest[:8]}.pth"

    class Weights:
        pass

    Weights.url = url
    monkeypatch.setitem(checkpoints._TORCHVISION, "resnet18", Weights)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    place = root / "torchvision" / f"resnet18-{digest[:8]}.pth"
    with pytest.raises(ConnectionError) as error:
        checkpoints.load("torchvision/resnet18")
    assert url in str(error.value) and str(place) in str(error.value)

    def download(asked, to, hash_prefix):
        assert (asked, hash_prefix) == (url, digest[:8])
        Path(to).write_bytes(served.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoints.load("torchvision/resnet18")
    assert weights(loaded).keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in weights(loaded).items())
    assert torch.equal(loaded.std.flatten(), torch.tensor(models.IMAGENET_STD))
