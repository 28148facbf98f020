"""The store: what was damaged, moved or written by a newer version is named, and never believed."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from robustlib import specs, store
from robustlib.specs import Pretrain
from robustlib.store import META, SUMS, TENSORS, Damaged

SPEC = Pretrain(source="digits", lr=0.3, seed=1)


def put(spec: specs.Spec = SPEC) -> store.Artifact:
    return store.put(spec, {"accuracy": 0.5}, {"w": torch.arange(6.0)}, {"curve": [1, 2]})


def rewrite(where: Path, **changes) -> None:
    """Changes the meta data of an artifact and its checksum with it."""
    meta = json.loads((where / META).read_bytes())
    data = json.dumps(meta | changes).encode()
    (where / META).write_bytes(data)
    lines = (where / SUMS).read_text().splitlines()
    others = [line for line in lines if not line.endswith(META)]
    digest = hashlib.sha256(data).hexdigest()
    (where / SUMS).write_text("\n".join([f"{digest}  {META}", *others]) + "\n")


def read_all() -> None:
    store.get(SPEC).tensors()


@pytest.mark.parametrize("name", [META, TENSORS, SUMS])
def test_a_flipped_bit_anywhere_is_an_error_that_names_the_file(name):
    file = put().path / name
    whole = file.read_bytes()
    for at in range(0, len(whole), 1 if name == SUMS else 13):
        for bit in (0x01, 0x80):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
            with pytest.raises(Damaged, match=name):
                read_all()
    file.write_bytes(whole)
    read_all()


@pytest.mark.parametrize("name", [META, TENSORS, SUMS])
@pytest.mark.parametrize("harm", ["half", "empty", "missing"])
def test_a_short_or_missing_file_is_an_error_that_names_it_and_the_cure(name, harm):
    file = put().path / name
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if harm == "half" else b"")
    with pytest.raises(Damaged, match=f"{name}.* recompute=True"):
        read_all()
    shutil.rmtree(store.path(SPEC))
    put()
    read_all()


def test_the_frame_does_not_pass_over_a_damaged_result():
    put(Pretrain(source="digits", seed=2))
    (put().path / META).write_bytes(b"{}")
    with pytest.raises(Damaged, match=f"{specs.key(SPEC)}/{META}"):
        store.frame(Pretrain)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "robustlib 9.9 in format 2; this version reads up to 1"),
        ({"spec": specs.to_dict(SPEC) | {"flavour": "new"}}, "9.9, holds .*'flavour'"),
        ({"spec": specs.to_dict(SPEC) | {"objective": "new"}}, "9.9, holds .*objective='new'"),
    ],
)
def test_what_a_newer_version_wrote_is_refused_by_that_name(changes, says):
    rewrite(put().path, versions={"robustlib_version": "9.9"}, **changes)
    with pytest.raises(Damaged, match=says):
        store.get(SPEC)


def test_a_result_in_the_place_of_another_is_refused():
    other = Pretrain(source="digits", lr=0.3, seed=2)
    shutil.copytree(put().path, store.path(other))
    with pytest.raises(Damaged, match=f"{specs.key(SPEC)}, not of {specs.key(other)}"):
        store.get(other)
