"""The machinery stays out of the way: each bound is far above what a busy machine takes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustlib.cli import main, studies

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("benchmarks_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_stored_is_swept_at_once_and_dask_takes_milliseconds(bench, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", "/nowhere")
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    swept, each = bench.stored_sweep(300)
    assert 0 < swept < 3 * 0.3
    assert 0 < each < 0.020
    assert os.environ["ROBUSTLIB_STORE"] == "/nowhere" and "TQDM_DISABLE" not in os.environ


def test_the_command_helps_without_what_computes(bench):
    """What it loads is counted: seconds are those of a machine, and of what else it does."""
    heavy = "torch numpy pandas scipy sklearn matplotlib distributed dask tqdm IPython".split()
    code = "import sys; from robustlib.cli import main; main(['--help']); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = out.stdout.splitlines()[-1].split()
    assert "cyclopts" in loaded and not set(heavy) & set(loaded)
    assert len(loaded) < 600
    took = bench.starts(rounds=1)
    assert took["help"] < took["torch"] < took["everything"]


def test_two_workers_are_timed_on_the_same_trainings(bench, monkeypatch):
    asked = []
    monkeypatch.setattr(bench.sweeps, "sweep", lambda specs, n: asked.append((specs, n)))
    one, two = bench.two_workers(3)
    assert one > 0 and two > 0
    assert [n for _, n in asked] == [1, 2] and asked[0][0] == asked[1][0]
    assert [s.seed for s in asked[0][0]] == [0, 1, 2]


def test_the_command_runs_the_harness_of_the_clone_and_says_where_there_is_none(
    monkeypatch, tmp_path, capsys
):
    package, harness = tmp_path / "robustlib" / "cli", tmp_path / "benchmarks"
    monkeypatch.setattr(studies, "__file__", str(package / "studies.py"))
    assert main(["bench"]) == 2
    assert "bench.py: not there; the harness runs from a clone" in capsys.readouterr().err
    harness.mkdir()
    (harness / "bench.py").write_text("def main():\n    print('measured')\n")
    assert main(["bench"]) == 0
    assert capsys.readouterr().out == "measured\n"
