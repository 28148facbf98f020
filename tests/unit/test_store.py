"""The store: an artifact is whole or absent, and comes back bit for bit."""

import errno
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustlib import files, specs, store
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.store import META, SUMS, TENSORS

SPEC = Pretrain(source="digits", lr=0.3, seed=1)
ROW = {"accuracy": 0.1 + 0.2, "n": 359, "overfitted": False, "loss": 5e-324}
EXTRA = {"curve": [{"epoch": 0, "loss": 1 / 3}], "names": ["null", "ä"], "shapes": {"w": [2, 3]}}
WEIRD = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1 / 3])
MANY = {
    "weird": WEIRD,
    "half": WEIRD.half(),
    "bf16": WEIRD.bfloat16(),
    "scalar": torch.tensor(7),
    "bits": torch.arange(256, dtype=torch.uint8),
    "mask": torch.tensor([[True, False], [False, True]]),
    "none": torch.empty(0, 3),
    "strided": torch.arange(12.0).view(3, 4).t(),
    "channels_last": torch.arange(16.0).view(1, 2, 2, 4).to(memory_format=torch.channels_last),
}


def put(spec: specs.Spec = SPEC, **more) -> store.Artifact:
    return store.put(spec, ROW | more, {"w": torch.arange(6.0)}, EXTRA)


def again() -> store.Artifact:
    """As `put`, in the place of what is there."""
    return store.put(SPEC, ROW, {"w": torch.arange(6.0)}, EXTRA, replace=True)


def forked(job: Callable[[], object]) -> int:
    """Starts a job in a process of its own, with all that is imported here; returns its id."""
    if pid := os.fork():
        return pid
    try:
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def status(pid: int) -> int:
    """How a forked job ended: 0, 1 if it raised, minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_every_line(job: Callable[[], object], look: Callable[[], object]) -> None:
    """Runs a job and looks before each line of store.py and files.py that it comes to."""

    def trace(frame, event, arg):
        if frame.f_code.co_filename not in (store.__file__, files.__file__):
            return None
        if event == "line":
            look()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        job()
    finally:
        sys.settrace(before)


def killed_at_line(n: int, job: Callable[[], object]) -> int:
    """Runs a job in a process that dies at the n-th line; its status."""
    count = itertools.count(1)
    return status(forked(lambda: at_every_line(job, lambda: next(count) == n and die())))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def whole() -> bool:
    """What a reader meets at this moment: the whole artifact, or none."""
    there = store.has(SPEC)
    if there:
        got = store.get(SPEC)
        assert got.row["loss"] == 5e-324 and torch.equal(got.tensors()["w"], torch.arange(6.0))
    assert len(store.frame(Pretrain)) == there
    return there


def test_what_is_put_is_got_bit_for_bit():
    store.put(SPEC, ROW, MANY, EXTRA)
    got = store.get(SPEC)
    assert got.spec == SPEC and got.extra == EXTRA
    assert {k: got.row[k] for k in ROW} == ROW
    tensors = got.tensors()
    assert set(tensors) == set(MANY)
    for name, t in MANY.items():
        back = tensors[name]
        assert (back.dtype, back.shape) == (t.dtype, t.shape), name
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (back, t)]
        assert torch.equal(*raw), name


def test_an_artifact_lies_under_its_key_with_checksums_that_sha256sum_reads():
    where = put().path
    key = specs.key(SPEC)
    assert where == store.root() / "pretrain" / key[:2] / key == store.path(SPEC)
    assert sorted(p.name for p in where.iterdir()) == sorted([META, TENSORS, SUMS])
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=where, check=True)


def test_a_result_that_is_there_stays():
    put(accuracy=0.5)
    assert put(accuracy=0.75).row["accuracy"] == 0.5 == store.get(SPEC).row["accuracy"]


def test_a_row_without_tensors_says_so_and_how_to_have_them():
    assert not store.has_tensors(SPEC)
    found = store.put(SPEC, ROW)
    assert not (store.path(SPEC) / TENSORS).exists() and not store.has_tensors(SPEC)
    with pytest.raises(ValueError, match="is stored without its tensors") as e:
        found.tensors()
    assert f"run({specs.as_python(SPEC)}, recompute=True)" in str(e.value)
    assert str(found.path) in str(e.value) and "\n" not in str(e.value)


def test_a_row_is_the_specs_fields_then_the_measures_then_the_versions():
    spec = Transfer(Ticket(SPEC, sparsity=0.5), task="digits", seed=2)
    row = put(spec).row
    expected = [*specs.columns(spec), *ROW, "key", *store.versions()]
    assert list(row) == expected
    assert (row["seed"], row["pretrain_seed"], row["key"]) == (2, 1, specs.key(spec))
    assert row["torch_version"] in torch.__version__


def test_frame_has_one_row_per_result_of_its_kind():
    stored = [Transfer(Ticket(SPEC), seed=i) for i in range(5)]
    for i, spec in enumerate(stored):
        put(spec, accuracy=i / 8)
    put(SPEC)
    frame = store.frame(Transfer)
    assert list(frame.columns) == list(put(stored[0]).row)
    assert dict(zip(frame["seed"], frame["accuracy"], strict=True)) == {i: i / 8 for i in range(5)}
    assert len(store.frame(Pretrain)) == 1 and len(store.frame(Ticket)) == 0


@pytest.mark.parametrize("cls", [Pretrain, Ticket, Transfer])
def test_the_frame_of_an_empty_store_can_be_worked_with(cls):
    frame = store.frame(cls)
    assert len(frame) == 0
    assert {*specs.columns(cls()), "key", "robustlib_version"} <= set(frame.columns)
    assert frame[frame["seed"] == 0].groupby("objective").size().empty
    assert not store.root().exists()


def test_asking_for_what_is_missing_creates_nothing():
    assert not store.has(SPEC)
    with pytest.raises(KeyError, match=specs.key(SPEC)):
        store.get(SPEC)
    assert list(store.artifacts(Pretrain)) == []
    store.checkpoint(SPEC)
    with pytest.raises(TypeError):
        store.put(SPEC, {"accuracy": np.int64(3)})
    for ask in (store.has, store.get, store.path):
        with pytest.raises(ValueError, match="Pretrain"):
            ask(Pretrain)
    assert not store.root().exists()


def test_a_reader_meets_a_whole_artifact_or_none_at_every_line_of_a_writer():
    """The disk is to a reader what it would be if the writer died there: buffers are lost."""
    seen: list[bool] = []
    at_every_line(put, lambda: seen.append(whole()))
    first = seen.index(True)
    assert first > 30 and all(seen[first:]) and whole()
    seen.clear()
    at_every_line(again, lambda: seen.append(whole()))
    gone = seen.index(False)
    there = gone + seen[gone:].index(True)
    assert gone > 30 and not any(seen[gone:there]) and all(seen[there:]) and whole()


def test_what_a_killed_writer_left_is_in_nobodys_way():
    lines: list[int] = []
    at_every_line(put, lambda: lines.append(1))
    for n in range(len(lines), 0, -len(lines) // 6):
        shutil.rmtree(store.path(SPEC), ignore_errors=True)
        assert killed_at_line(n, put) == -signal.SIGKILL
        whole()
        put()
        assert killed_at_line(n, again) == -signal.SIGKILL
        whole()
    put()
    assert whole()


def test_every_file_is_on_the_disk_before_the_artifact_is_there(monkeypatch):
    synced, fsync, rename = set(), os.fsync, os.rename

    def spy(fd: int) -> None:
        fsync(fd)
        synced.add(os.fstat(fd).st_ino)

    def check(src, dst) -> None:
        assert len(os.listdir(src)) == 3
        assert {p.stat().st_ino for p in Path(src).iterdir()} <= synced
        rename(src, dst)

    monkeypatch.setattr(os, "fsync", spy)
    monkeypatch.setattr(os, "rename", check)
    assert put().row["n"] == 359


def test_two_writers_at_once_leave_the_result_of_one_of_them(tmp_path):
    def writer(i: int) -> None:
        rename = os.rename

        def together(src, dst) -> None:
            (tmp_path / f"ready{i}").touch()
            while not (tmp_path / f"ready{1 - i}").exists():
                time.sleep(0.001)
            rename(src, dst)

        os.rename = together
        store.put(SPEC, {"writer": i}, {"writer": torch.tensor(i)})

    assert [status(pid) for pid in [forked(lambda i=i: writer(i)) for i in (0, 1)]] == [0, 0]
    got = store.get(SPEC)
    assert got.row["writer"] == got.tensors()["writer"] in (0, 1)
    assert [p.name for p in got.path.parent.iterdir()] == [got.path.name]


def test_a_lock_keeps_others_out_and_ends_with_its_holder(tmp_path):
    entered = tmp_path / "entered"

    def enter() -> None:
        with store.lock(SPEC):
            entered.touch()
            time.sleep(60)

    with store.lock(SPEC):
        pid = forked(enter)
        with store.lock(Pretrain(seed=2)):  # another result's lock is another lock
            time.sleep(0.3)
        assert not entered.exists()
    deadline = time.monotonic() + 20
    while not entered.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert entered.exists()
    os.kill(pid, signal.SIGKILL)
    assert status(pid) == -signal.SIGKILL
    with store.lock(SPEC):
        pass


def test_a_store_that_cannot_be_written_says_so_and_is_still_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTLIB_STORE", "kept")
    put()
    with store.lock(SPEC):
        pass
    for folder in (tmp_path, *tmp_path.rglob("kept"), *tmp_path.glob("kept/**/")):
        folder.chmod(0o555)

    def use() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write anywhere
        store.get(SPEC).tensors()
        for spec in (SPEC, Pretrain(seed=2)):
            for write in (lambda s=spec: store.lock(s).__enter__(), lambda s=spec: put(s)):
                with pytest.raises(PermissionError, match="the store kept .*ROBUSTLIB_STORE"):
                    write()

    ended = status(forked(use))
    for folder in (tmp_path, *tmp_path.glob("kept/**/")):
        folder.chmod(0o755)
    assert ended == 0


def test_a_store_below_a_file_or_on_a_full_disk_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "file" / "store"))
    assert not store.has(SPEC)
    with pytest.raises(PermissionError, match="file/store cannot be written"):
        put()
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "new"))

    def full(*_args, **_kwargs) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    with pytest.raises(PermissionError, match="No space left"):
        put()


def test_the_store_is_where_the_environment_says_else_in_the_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", "~/results")
    assert store.root() == Path.home() / "results"
    monkeypatch.setenv("ROBUSTLIB_STORE", "")
    monkeypatch.setattr(store, "__file__", str(tmp_path / "robustlib" / "store.py"))
    assert store.root() == Path("runs/store")
    (tmp_path / "notebooks").mkdir()
    assert store.root() == tmp_path / "runs/store"
