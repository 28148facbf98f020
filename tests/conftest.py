"""What every test stands on: a store of its own, one thread, and data packs if there are any."""

import gc
import os
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers share two cores, and sums do not depend on how many cores there are."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found or left in a store that outlives the test; its subprocesses included."""
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of data packs that ROBUSTLIB_DATA names; without it the test is skipped."""
    root = os.environ.get("ROBUSTLIB_DATA")
    if not root:
        pytest.skip("needs data packs: set ROBUSTLIB_DATA to their folder")
    if not Path(root).is_dir():
        pytest.fail(f"ROBUSTLIB_DATA={root!r} is not a folder")
    return Path(root)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives notebooks their parameters, as papermill does after the cell with the defaults.

    `pytest notebooks` does not come by here: it runs them as they are committed."""
    from helpers import parameters_of, small_profile

    folder = Path(tempfile.mkdtemp())
    config.add_cleanup(lambda: shutil.rmtree(folder))
    profile = folder / "small.toml"
    profile.write_text(small_profile(), "utf-8")
    for item in items:
        if "parameters" in getattr(item, "cell", {}).get("metadata", {}).get("tags", ()):
            defaults = re.findall(r"^\w+", item.cell.source, re.MULTILINE)
            values = parameters_of(item.path.stem, defaults, profile).items()
            item.cell.source += "".join(f"\n{name} = {value!r}" for name, value in values)


def pytest_collection_finish() -> None:
    """What was imported is never garbage: to look for it takes a twentieth of the time of tests."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter) -> None:
    """How many faults were made (tests/faults/test_faults.py), of each kind, and survived."""
    tried, survived = Counter(), Counter()
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        if getattr(report, "when", "") == "call":
            for name, value in report.user_properties:
                if name == "faults":
                    kind, points, passed = value
                    tried[kind] += points
                    survived[kind] += passed
    if tried:
        each = ", ".join(f"{kind} {n}" for kind, n in tried.items())
        terminalreporter.write_line(
            f"faults: {tried.total()} points tried, {survived.total()} survived ({each})"
        )
