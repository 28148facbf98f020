"""The measurements of a GPU: every section runs on a CPU too, and what goes wrong is a row."""

import argparse
import csv
import importlib.util
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from robustlib.data import Split, batches

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def measured(tmp_path: Path, *options: str) -> list[dict[str, str]]:
    out = tmp_path / "gpu.csv"
    call = [sys.executable, str(SCRIPT), "--smoke", "--out", str(out), *options]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return rows(out)


@pytest.mark.slow
def test_every_section_runs_and_only_what_a_cpu_cannot_do_fails(gpu, tmp_path, monkeypatch):
    """One after the other in this process: that each has a process of its own is tested below."""

    def together(names, args, seconds):
        for name in names:
            gpu.section(name, args.device, args.smoke, time.monotonic() + seconds, args.out)

    monkeypatch.setattr(gpu, "together", together)
    for name, value in {"ROBUSTLIB_DEVICE": "cpu", "TQDM_DISABLE": "1"}.items():
        monkeypatch.setenv(name, value)
    wanted = {"device": torch.device("cpu"), "smoke": True, "seconds": 520.0, "only": None}
    args = argparse.Namespace(**wanted, out=tmp_path / "gpu.csv", logs=None)
    assert gpu.everything(args) == 1
    found = rows(args.out)
    by = {name: [r for r in found if r["section"] == name] for name in gpu.SECTIONS}
    assert all(by.values()) and sum(map(len, by.values())) == len(found)
    (failed,) = [r for r in found if r["passed"] == "False"]
    assert failed["precision"] == "fp16" and "needs a GPU" in failed["note"]
    for row in by["throughput"] + by["more"]:
        if row != failed:
            assert 0 < float(row["low"]) <= float(row["value"]) <= float(row["high"])
            assert float(row["of_bare"]) > 0 and float(row["peak_mib"]) > 0
    assert {r["loop"] for r in by["throughput"]} > {"bare", "ours"}
    for name in ("repeatability", "resume"):
        assert {r["passed"] for r in by[name]} == {"True"}
    assert len(by["repeatability"]) > 2 and {r["objective"] for r in by["resume"]} == {"free"}
    assert {r["passed"] for r in by["agreement"]} == {"True"}
    verdicts = {"True"} if torch.cuda.is_available() else {""}
    assert {r["passed"] for r in by["tests"]} <= verdicts | {""} and len(by["tests"]) > 10


def test_what_finds_no_time_left_is_a_row_too(tmp_path):
    found = measured(tmp_path, "--seconds", "0", "--only", "agreement")
    assert {r["section"] for r in found} == {"machine", "agreement"}
    for row in found[1:]:
        assert "not measured" in row["note"] or "killed after" in row["note"], row


def test_an_error_and_a_hang_cost_their_case_alone(gpu, tmp_path, monkeypatch):
    def broken() -> list:
        raise RuntimeError("the card fell out,\nof the machine")

    cases = [
        ({"case": "broken"}, broken),
        ({"case": "hangs"}, partial(time.sleep, 60)),
        ({"case": "fine"}, lambda: [{"value": 1}, {"value": 2}]),
    ]
    monkeypatch.setitem(gpu.SECTIONS, "more", lambda device, smoke: cases)
    monkeypatch.setattr(gpu, "CASE_SECONDS", 0.2)
    out = tmp_path / "gpu.csv"
    out.write_text(",".join(gpu.COLUMNS) + "\n")
    gpu.section("more", torch.device("cpu"), True, time.monotonic() + 30, out)
    broke, hung, *fine = rows(out)
    assert broke["passed"] == hung["passed"] == "False"
    assert "fell out" in broke["note"] or "machine" in broke["note"]
    assert hung["note"].startswith("TimeoutError") and float(hung["seconds"]) < 5
    assert [r["value"] for r in fine] == ["1", "2"]


def test_bits_that_differ_are_seen(gpu):
    a = {"w": torch.ones(3), "b": torch.zeros(2)}
    b = {"w": torch.tensor([1.0, 1.0, 1.0000001]), "b": torch.zeros(2)}
    assert gpu.verdict("x", a, a, True)["passed"]
    assert not gpu.verdict("x", a, a, False)["passed"]
    row = gpu.verdict("x", a, b, True)
    assert not row["passed"] and row["value"] == 1
    assert not gpu.verdict("x", a, {"w": a["w"]}, True)["passed"]


def test_the_indices_of_a_crop_are_made_where_the_images_are():
    x = torch.zeros((6, 16, 16, 3), dtype=torch.uint8, device="meta")  # stands for a card
    split, draws = Split(x, torch.arange(6)), torch.Generator().manual_seed(0)
    made, y = batches.gather(split, torch.arange(4), "crop-flip", draws)
    assert made.device.type == "meta" and made.shape == (4, 16, 16, 3) and len(y) == 4
