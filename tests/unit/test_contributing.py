"""The recipes of CONTRIBUTING.md, followed to the letter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import robustlib
from robustlib import figures
from robustlib.cli import main
from robustlib.data import load

PACKAGE = Path(robustlib.__file__).parent


def test_a_folder_of_class_folders_is_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    for k, name in enumerate(("dark", "light")):
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for i in range(10):
            pixels = np.full((12, 16, 3), 200 * k + i, np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    assert main(["data", "build", "mine", str(tmp_path / "mine"), "--size", "8"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "data" / "mine@8.npz")
    data = load("mine", size=8)
    assert data.class_names == ("dark", "light")
    assert [len(data.train) + len(data.val), len(data.test)] == [16, 4]
    for split in (data.train, data.val, data.test):
        assert ((split.x.float().mean((1, 2, 3)) >= 200) == (split.y == 1)).all()


SOFTENED = '''

def softened(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy with softened labels."""
    print("a loss in train mode:", model.training)
    return F.cross_entropy(model(x), y, label_smoothing=0.1)
'''
TRAINED = """
from robustlib import Pretrain, run, specs
small = dict(source="digits", width=4, stem_stride=1, size=8, n_train=20, epochs=1, batch_size=20)
assert specs.key(Pretrain(**small)) == {key!r}
result = run(Pretrain(**small, objective="softened"))
print(result.row["objective"], len(result.row) > 3)
"""


def edited(path: Path, old: str, new: str) -> None:
    """Replaces what a regular expression finds once in a file."""
    text, n = re.subn(old, lambda m: m.expand(new), path.read_text("utf-8"), flags=re.MULTILINE)
    assert n == 1, path
    path.write_text(text, "utf-8")


def test_a_function_a_name_and_a_branch_are_a_new_objective(tmp_path):
    """In a copy of the package, since a name must be known where the specs are declared."""
    from robustlib import Pretrain, specs

    small = {"source": "digits", "width": 4, "stem_stride": 1, "size": 8}
    small |= {"n_train": 20, "epochs": 1, "batch_size": 20}
    copy = tmp_path / "robustlib"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (declared,) = (
        path
        for path in [*copy.glob("specs.py"), *copy.glob("specs/*.py")]
        if re.search(r"^Objective = Literal\[", path.read_text("utf-8"), re.MULTILINE)
    )
    edited(declared, r"^(Objective = Literal\[.*)\]$", r'\1, "softened"]')
    objectives = copy / "objectives.py"
    edited(
        objectives,
        r'^    if spec.objective == "natural":$',
        r'    if spec.objective == "softened":\n        return Objective(softened)\n\g<0>',
    )
    objectives.write_text(objectives.read_text("utf-8") + SOFTENED, "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", TRAINED.format(key=specs.key(Pretrain(**small)))],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "TQDM_DISABLE": "1"},
        **{"cwd": tmp_path, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    # One step, in train mode; the keys of what is stored stay.
    assert done.stdout.splitlines() == ["a loss in train mode: True", "softened True"]


def test_a_function_of_rows_is_a_new_figure(tmp_path):
    grid = pytest.importorskip("robustlib.figures.grid")

    def by_labels(frame):
        fig, cells = grid.facets(frame, 3.25, 2.0, across="task")
        for ax, rows in cells:
            ax.plot(rows.n_train, 100 * rows.accuracy)
            ax.set_title(rows.task.iloc[0])
        return fig

    lines = [("digits", 10, 0.5), ("digits", 100, 0.8), ("mnist", 10, 0.4), ("mnist", 100, 0.7)]
    frame = pd.DataFrame(lines, columns=["task", "n_train", "accuracy"])
    fig = by_labels(frame)
    for ax, (task, rows) in zip(fig.axes, frame.groupby("task"), strict=True):
        (line,) = ax.lines
        assert ax.get_title() == task
        assert list(line.get_ydata()) == pytest.approx(list(100 * rows.accuracy))
    assert figures.save(fig, tmp_path, "by_labels", frame) == tmp_path / "by_labels.pdf"
    assert {p.name for p in tmp_path.glob("by_*")} == {
        f"by_labels.{s}" for s in ("csv", "pdf", "png", "txt")
    }
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "by_labels.csv")[list(frame)], frame, check_like=True
    )
