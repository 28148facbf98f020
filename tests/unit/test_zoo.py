"""The zoo: networks that come with the package are what the manifest says, or are refused."""

import importlib.util
import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from robustlib import checkpoints, files, models, specs, stages, store, training
from robustlib.data import load
from robustlib.specs import Pretrain, Ticket, Transfer

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "zoo.py"
NATURAL = Pretrain("digits", width=4, size=16, epochs=2, n_train=200)
ROBUST = replace(NATURAL, objective="pgd", eps=0.1, stem="imagenet")
MADE = {"natural-0": NATURAL, "robust-0": ROBUST}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("zoo_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script, tmp_path_factory) -> Path:
    """A folder with a zoo of two in `zoo`, and the store that they were made from."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(folder / "store"))
        patch.setenv("TQDM_DISABLE", "1")
        patch.setattr(checkpoints, "ZOO", folder / "zoo")
        for spec in MADE.values():
            stages.run(spec)
        script.make(MADE, eps=0.1, limit=20)
    return folder


@pytest.fixture
def zoo(made, tmp_path, monkeypatch) -> Path:
    """A copy of that zoo, which the library takes for its own, and an empty store."""
    here = tmp_path / "zoo"
    here.mkdir()
    for file in (made / "zoo").iterdir():
        (here / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(checkpoints, "ZOO", here)
    return here


@pytest.mark.parametrize("name", MADE)
def test_a_network_of_the_zoo_is_the_stored_one_in_half_precision(name, zoo, made, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = checkpoints.load(f"zoo/{name}")
    assert not loaded.training
    monkeypatch.setenv("ROBUSTLIB_STORE", str(made / "store"))
    stored = store.get(MADE[name]).tensors()
    found = loaded.state_dict()
    assert found.keys() == stored.keys()
    for key, value in found.items():
        assert value.dtype == stored[key].dtype, key
        halved = value.ndim > 1 and key not in ("mean", "std")
        assert torch.equal(value, stored[key].half().float() if halved else stored[key]), key
    assert not torch.equal(loaded.mean.flatten(), torch.tensor(models.IMAGENET_MEAN))
    assert checkpoints.describe(loaded) == {
        "arch": "resnet10s",
        "n_classes": 10,
        "width": 4,
        "stem_stride": 2,
        "stem": MADE[name].stem,
    }
    with safetensors.safe_open(zoo / f"{name}.safetensors", "pt") as f:
        assert {f.get_tensor(k).dtype for k in ("conv1.weight", "fc.weight")} == {torch.float16}


@pytest.mark.parametrize("name", MADE)
def test_the_manifest_says_what_the_file_can_do(name, zoo):
    entry = checkpoints.zoo()[name]
    model, data = checkpoints.load(f"zoo/{name}"), load("digits", 16, n_train=200)
    assert entry["accuracy"] == training.correct(model, data.test) / len(data.test)
    assert entry["val_accuracy"] == training.correct(model, data.val) / len(data.val)
    assert entry["n"] == len(data.test) and entry["robust_n"] == 20
    assert 0 <= entry["robust_accuracy"] <= 1
    assert entry["attack"] == {"norm": "l2", "eps": 0.1, "attack": "cheap"}
    assert entry["sha256"] == files.sha256(zoo / entry["file"]) and "MIT" in entry["licence"]
    assert specs.from_dict(Pretrain, entry["spec"]) == MADE[name]


def test_names_of_the_zoo_are_listed_and_near_ones_are_hinted_at(zoo):
    assert [n for n in checkpoints.names() if n.startswith("zoo/")] == [f"zoo/{n}" for n in MADE]
    for call in (checkpoints.load, checkpoints.pretrain):
        with pytest.raises(ValueError, match=r"'zoo/robust-1' \(did you mean 'zoo/robust-0'"):
            call("zoo/robust-1")


@pytest.mark.parametrize("name", MADE)
def test_a_network_of_the_zoo_is_drawn_from_and_transferred(name, zoo):
    spec = checkpoints.pretrain(f"zoo/{name}")
    assert spec == replace(MADE[name], checkpoint=f"zoo/{name}")
    row = stages.run(spec).row
    assert row["accuracy"] == checkpoints.zoo()[name]["accuracy"]
    ticket = Ticket(spec, sparsity=0.5)
    assert torch.equal(stages.network(ticket).mean, checkpoints.load(f"zoo/{name}").mean)
    done = stages.run(Transfer(ticket, "digits", mode="linear", n_train=100))
    assert done.row["accuracy"] > 0.2


@pytest.mark.parametrize("name", ["natural-0", "robust-2"])
def test_a_network_whose_images_are_nowhere_is_what_the_manifest_says(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    spec, entry = checkpoints.pretrain(f"zoo/{name}"), checkpoints.zoo()[name]
    row = stages.run(spec).row
    for column in ("accuracy", "val_accuracy", "n"):
        assert row[column] == entry[column] > 0
    assert stages.run(Ticket(spec, sparsity=0.9)).row["sparsity_measured"] > 0.89
    # Another source that is not here is a slip of the pen.
    with pytest.raises(ValueError, match="dataset='tinyimagenet15'"):
        stages.run(replace(spec, source="tinyimagenet15"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stem": "small"}, "stem='small': checkpoint 'zoo/robust-0' .* stem='imagenet'"),
        ({"width": 8}, "width=8: checkpoint 'zoo/robust-0' .* width=4"),
        ({"arch": "resnet18s"}, "arch='resnet18s': .* arch='resnet10s'"),
    ],
)
def test_a_spec_that_says_another_network_is_refused(change, says, zoo):
    spec = replace(checkpoints.pretrain("zoo/robust-0"), **change)
    with pytest.raises(ValueError, match=says):
        stages.run(spec)
    assert not store.root().exists()


def test_a_spec_that_says_another_stem_stride_is_refused(zoo):
    spec = replace(checkpoints.pretrain("zoo/natural-0"), stem_stride=1)
    with pytest.raises(ValueError, match=r"stem_stride=1: .* says stem_stride='2'"):
        stages.run(spec)
    spec = replace(checkpoints.pretrain("zoo/natural-0"), stem="imagenet")
    with pytest.raises(ValueError, match=r"stem='imagenet': checkpoint .* stem='small'"):
        stages.run(spec)


@pytest.mark.parametrize("harm", ["a flipped bit", "another network", "a short file"])
def test_a_file_of_another_checksum_is_refused(harm, zoo):
    file = zoo / "robust-0.safetensors"
    data = file.read_bytes()
    bad = {
        "a flipped bit": data[:-1] + bytes([data[-1] ^ 1]),
        "another network": (zoo / "natural-0.safetensors").read_bytes(),
        "a short file": data[:-1],
    }[harm]
    file.write_bytes(bad)
    with pytest.raises(ValueError, match="robust-0.safetensors: its sha256 is .*, expected"):
        checkpoints.load("zoo/robust-0")
    with pytest.raises(ValueError, match="its sha256 is"):
        stages.run(checkpoints.pretrain("zoo/robust-0"))
    assert not store.root().exists()
    file.unlink()
    with pytest.raises(FileNotFoundError, match="zoo/robust-0"):
        checkpoints.load("zoo/robust-0")


def test_what_cannot_be_of_the_zoo_is_refused(script, zoo, made, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", str(made / "store"))
    before = (zoo / "manifest.json").read_bytes()
    for networks, says in (
        ({"../robust": ROBUST}, r"name='\.\./robust'"),
        ({"new": replace(ROBUST, seed=9)}, "new=.*: not a stored network"),
        ({"new": checkpoints.pretrain("zoo/robust-0")}, "not a stored network that was trained"),
    ):
        with pytest.raises(ValueError, match=says):
            script.make(networks)
    assert script.stored(specs.key(ROBUST)[:8]) == ROBUST
    with pytest.raises(ValueError, match=r"xyz: 0 stored networks"):
        script.stored("xyz")
    assert (zoo / "manifest.json").read_bytes() == before


def test_the_zoo_of_the_package_is_whole():
    about = checkpoints.zoo()
    assert [n for n in checkpoints.NAMES if n.startswith("zoo/")] == [f"zoo/{n}" for n in about]
    listed = {entry["file"] for entry in about.values()}
    assert {p.name for p in checkpoints.ZOO.glob("*.safetensors")} == listed
    for name, entry in about.items():
        assert checkpoints.load(f"zoo/{name}").fc.out_features >= 2
        assert json.dumps(entry["spec"])
        assert checkpoints.pretrain(f"zoo/{name}").checkpoint == f"zoo/{name}"
