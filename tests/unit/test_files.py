"""Whole files: a reader meets what was there before, or all of the new; nothing else is left."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from robustlib import files


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    path, synced, fsync, replace = tmp_path / "new" / "a.bin", [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), synced.append(os.fstat(fd).st_size)))

    def check(part, to) -> None:
        assert synced == [6] and not Path(to).exists() and Path(part).parent == path.parent
        replace(part, to)

    monkeypatch.setattr(os, "replace", check)
    with files.whole(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo" and os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("before", [b"old", None])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, step, before):
    path = tmp_path / "a.bin"
    if before:
        path.write_bytes(before)

    def full(*_):
        raise OSError(28, "No space left on device")

    if step != "write":
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"), files.whole(path) as file:
        file.write(b"new")
        if step == "write":
            full()
    assert os.listdir(tmp_path) == (["a.bin"] if before else [])
    assert not before or path.read_bytes() == before


def test_two_writers_of_one_file_leave_that_of_the_last(tmp_path):
    path = tmp_path / "a.bin"
    with files.whole(path) as one:
        with files.whole(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
        one.write(b"one")
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a.bin"]


def test_checksums_are_those_of_sha256sum_and_are_read_back(tmp_path):
    contents = {"a.bin": b"\x00\xff", "b": b""}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    sums = tmp_path / files.SUMS
    sums.write_bytes(files.sums(contents))
    assert files.read_sums(sums) == {n: files.sha256(tmp_path / n) for n in contents}
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", files.SUMS], cwd=tmp_path, check=True)
    sums.write_text("no checksum\n")
    with pytest.raises(ValueError):
        files.read_sums(sums)
