"""The machinery stays out of the way: each bound is far above what a busy machine takes."""

import os
import subprocess
import sys

from robustlib import bench


def test_what_is_stored_is_swept_at_once_and_dask_takes_milliseconds(monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", "/nowhere")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    swept, each = bench.stored_sweep(1000)
    assert 0 < swept < 3
    assert 0 < each < 0.020
    assert os.environ["ROBUSTLIB_STORE"] == "/nowhere" and "TQDM_DISABLE" not in os.environ


def test_the_library_is_imported_and_helps_without_torch():
    took = bench.starts(rounds=3)
    assert took["robustlib"] - took["torch"] < 0.5
    assert 0 < took["help"] < 1
    code = "import sys, robustlib.cli, robustlib.specs; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out == "False\n"


def test_two_workers_are_timed_on_the_same_trainings(monkeypatch):
    asked = []
    monkeypatch.setattr(bench.sweeps, "sweep", lambda specs, n: asked.append((specs, n)))
    one, two = bench.two_workers(3)
    assert one > 0 and two > 0
    assert [n for _, n in asked] == [1, 2] and asked[0][0] == asked[1][0]
    assert [s.seed for s in asked[0][0]] == [0, 1, 2]
