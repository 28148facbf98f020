"""A notebook runs once for each point of a grid, side by side, and the rows of all are gathered."""

import json
import re

import nbformat
import pandas as pd
import pytest
from helpers import _workers_import_tests  # noqa: F401 - a fixture

from robustlib import batch as batches
from robustlib import parameters, sweeps
from robustlib.batch import batch
from robustlib.cli import main
from robustlib.sweeps import SweepFailed

PARAMETERS = """task: str = "digits"  # the data set
sparsity: float = 0.5  # what is removed
n_train: int = 50  # images
workers: int = 0  # processes
figures: str = ""  # folder
strict: bool = False  # whether to fail"""
BODY = """from pathlib import Path
import pandas as pd
from robustlib import Pretrain, Ticket, Transfer, run
if strict and sparsity > 0.8:
    raise KeyError("too much\\nto lose")
source = Pretrain(source="digits", width=4, n_train=100, epochs=1, batch_size=50)
wanted = Transfer(Ticket(source, sparsity=sparsity), task, "linear", n_train=n_train)
frame = pd.DataFrame([run(wanted).row])
frame.to_csv(Path(figures) / "rows.csv", index=False)
frame.assign(used=workers)[["accuracy", "used"]].to_csv(Path(figures) / "other.csv", index=False)"""
QUICK = """from pathlib import Path
if strict and sparsity > 0.8:
    raise KeyError("too much\\nto lose")
Path(figures, "rows.csv").write_text(f"task,sparsity\\n{task},{sparsity}\\n")"""
"""Computes nothing: for what is asked of whoever runs it."""


def notebook(path, parameters=PARAMETERS, body=BODY, tags=("parameters",)):
    cells = [nbformat.v4.new_code_cell(text) for text in (parameters, body)]
    cells[0].metadata["tags"] = list(tags)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(made, path)
    return path


def test_every_point_is_run_once_and_its_rows_are_those_of_run(tmp_path, capsys, monkeypatch):
    from robustlib import Pretrain, Ticket, Transfer, run

    monkeypatch.chdir(tmp_path)
    book = notebook(tmp_path / "mine.ipynb")
    arguments = ["-g", "sparsity=0.5,0.9", "-g", "task=digits", "-p", "n_train=40"]
    assert main(["batch", str(book), *arguments, "--workers", "2"]) == 0
    assert "2 rows: runs/batch/mine/rows.csv" in capsys.readouterr().out
    rows = pd.read_csv("runs/batch/mine/rows.csv")
    points = list(zip(rows.sparsity, rows.task, strict=True))
    assert points == [(0.5, "digits"), (0.9, "digits")]
    source = Pretrain(source="digits", width=4, n_train=100, epochs=1, batch_size=50)
    for sparsity, task, accuracy in zip(rows.sparsity, rows.task, rows.accuracy, strict=True):
        spec = Transfer(Ticket(source, sparsity=sparsity), task, "linear", n_train=40)
        assert run(spec).row["accuracy"] == accuracy
    # What the point was is in every row, where the notebook's own rows do not say it.
    other = pd.read_csv("runs/batch/mine/other.csv")
    assert list(other) == ["sparsity", "task", "accuracy", "used"]
    assert set(other.used) == {1}


def test_a_second_call_runs_only_what_is_new(tmp_path):
    book, out = notebook(tmp_path / "mine.ipynb", body=QUICK), tmp_path / "out"
    batch(book, {"sparsity": [0.5], "task": ["digits"]}, out, {"n_train": 40})
    executed = {p: p.stat().st_mtime_ns for p in out.glob("points/*/notebook.ipynb")}
    assert len(executed) == 1
    # Another value is another point; a changed notebook runs anew.
    axes = {"sparsity": [0.5], "task": ["glyphs", "digits"]}
    rows = batch(book, axes, out, {"n_train": 40}, workers=2)["rows"]
    assert list(rows.task) == ["glyphs", "digits"]
    assert len(list(out.glob("points/*/notebook.ipynb"))) == 2
    assert all(p.stat().st_mtime_ns == t for p, t in executed.items())
    notebook(book, body=QUICK + "\nchanged = True")
    batch(book, {"sparsity": [0.5], "task": ["digits"]}, out, {"n_train": 40})
    assert len(list(out.glob("points/*/notebook.ipynb"))) == 3


def test_a_failed_point_is_told_with_its_traceback_and_only_it_is_run_again(tmp_path, capsys):
    book, out = notebook(tmp_path / "mine.ipynb", body=QUICK), tmp_path / "out"
    axes = {"sparsity": [0.5, 0.9]}
    with pytest.raises(SweepFailed, match="1 of 2 failed") as failure:
        batch(book, axes, out, {"strict": True}, workers=2)
    text = str(failure.value)
    assert "mine.ipynb sparsity=0.9: RuntimeError: KeyError: 'too much" in text
    assert text.count("Cell In[") == text.count("KeyError: 'too much") - 1 == 1
    assert "\x1b" not in text and "batch.py" not in text  # its own traceback, once
    assert capsys.readouterr().err.count("Cell In[") == 0
    assert set(pd.read_csv(out / "rows.csv").sparsity) == {0.5}  # what was done is not lost
    (folder,) = out.glob("points/sparsity=0.9-*")
    assert not (folder / "notebook.ipynb").exists()
    executed = json.loads((folder / "unfinished.ipynb").read_text())
    assert "KeyError" in json.dumps(executed)
    arguments = ["batch", str(book), "-g", "sparsity=0.5,0.9", "-p", "strict=true"]
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 1
    assert "1 of 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-g", "sparsitty=0.5"], "did you mean 'sparsity'"),
        (["-g", "sparsity"], "'sparsity': must be NAME=VALUE,VALUE..."),
        (["-g", "sparsity=0.5,a"], "sparsity='a': must be a number"),
        (["-g", "n_train=1.5"], "n_train=1.5: must be a whole number"),
        (["-g", "strict=perhaps"], "strict='perhaps'"),
        (["-g", "task=a", "-g", "task=b"], "task is given twice"),
        (["-g", "task=a", "-p", "task=b"], "task='b': is in the grid too"),
        (["-p", "nothing=1"], "parameter='nothing'"),
        (["--workers", "0"], "workers=0"),
        (["--retries", "-1"], "retries=-1"),
        (["--scheduler", "here"], "scheduler='here'"),
    ],
)
def test_what_a_notebook_does_not_take_is_refused_and_leaves_nothing(
    arguments, says, tmp_path, monkeypatch, capsys
):
    book = notebook(tmp_path / "mine.ipynb")
    monkeypatch.chdir(tmp_path)
    assert main(["batch", str(book), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("robustlib: ") and error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine.ipynb"]


@pytest.mark.parametrize("folder", ["t", "t" * 90])
def test_a_notebook_that_runs_says_nothing_on_the_terminal(folder, tmp_path, monkeypatch, capfd):
    """Nor does it leave anything but what it was to write, where temporary folders have long
    names too."""
    temporary = tmp_path / folder
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(temporary)
    # What a kernel logs where the signal that ends it comes while it answers its last message.
    log = "from traitlets.config import Application\nApplication.instance().log.error('caught')\n"
    book = notebook(tmp_path / "mine.ipynb", body=log + "print(n_train)")
    batches.execute(book, tmp_path / "out.ipynb", {"n_train": 7})
    assert capfd.readouterr() == ("", "")
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert cells[-1].outputs[0].text == "7\n"
    assert list(temporary.iterdir()) == []


def test_what_is_no_notebook_with_parameters_is_refused(tmp_path):
    for text, says in (("", "is not a notebook"), ("{}", "is not a notebook")):
        (tmp_path / "bad.ipynb").write_text(text)
        with pytest.raises(ValueError, match=f"bad.ipynb.*{says}"):
            batch(tmp_path / "bad.ipynb", {}, tmp_path / "out")
    with pytest.raises(ValueError, match="no cell is tagged `parameters`"):
        batch(notebook(tmp_path / "untagged.ipynb", tags=()), {}, tmp_path / "out")
    with pytest.raises(ValueError, match="there is no such notebook"):
        batch(tmp_path / "gone.ipynb", {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


KINDS = """%matplotlib inline
# n_hidden = 3: not a parameter
recalibrate = True
epochs = 1  # passes: more = better
shift = -1
eps = 8 / 255
name = ("long"
        "er")
limit: int | None = None  # images; None = all
most: Optional[int] = 5
pair: str = "a=b"
either: "float | str" = 0.5
layers: list[int] = [
    1,  # the first
    2,
]
rates = [0.1, 1]
sizes: tuple[int, ...] = (3, 4)
order: Literal["up", 3] = "up"
where: Path = "runs"
low, high = 0, 1.0
folder = os.environ["HOME"]
anything = None
options = {"a": 1}
if epochs > 1:
    hidden = 2"""


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("recalibrate=false", False),
        ("recalibrate=True", True),
        ("epochs=3", 3),
        ("shift=-2", -2),
        ("eps=4/255", 4 / 255),
        ("eps=1", 1.0),
        ("name=3", "3"),
        ("limit=5", 5),
        ("limit=-5", -5),
        ("limit=None", None),
        ("limit=9007199254740993", 9007199254740993),
        ("most=None", None),
        ("pair=c=d", "c=d"),
        ("pair=3", "3"),
        ("pair=None", "None"),
        ("either=1/4", 0.25),
        ("either=half", "half"),
        ("layers=[3, 4]", [3, 4]),
        ("layers=3,4", [3, 4]),
        ("layers=3", [3]),
        ("layers=[]", []),
        ("rates=1/2,1", [0.5, 1.0]),
        ("sizes=(5,)", [5]),
        ("order=3", 3),
        ("where=7", "7"),
        ("low=2", 2),
        ("high=2", 2.0),
        ("folder=x", "x"),
        ("folder=0.5", 0.5),
        ("anything=True", True),
        ("anything=None", None),
        ("anything=3", 3),
        ("anything=x", "x"),
        ("options={'b': [1]}", {"b": [1]}),
    ],
)
def test_text_is_read_as_annotation_default_or_papermill_say(given, value, tmp_path):
    known = parameters.types(notebook(tmp_path / "mine.ipynb", KINDS))
    ((name, (text,)),) = batches.parse([given], several=False).items()
    found = parameters.value(known, name, text)
    assert (found, type(found)) == (value, type(value))
    assert repr(found) == repr(value)  # the elements' types too


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("recalibrate=0", "recalibrate='0'.*choose one of true, false"),
        ("epochs=1.5", "epochs=1.5: must be a whole number"),
        ("limit=a", "limit='a': must be int or None"),
        ("limit=1.5", "limit='1.5': must be int or None"),
        ("layers=1.5,2", "layers=1.5: must be a whole number"),
        ("layers={}", r"layers='\{\}': must be a list"),
        ("options=1", "options='1': must be a dict"),
        ("order=down", "order='down'.*choose one of up, 3"),
        ("hidden=3", "parameter='hidden'"),
        ("n_hidden=3", "parameter='n_hidden'"),
    ],
)
def test_text_of_another_type_is_refused(given, says, tmp_path):
    known = parameters.types(notebook(tmp_path / "mine.ipynb", KINDS))
    ((name, (text,)),) = batches.parse([given], several=False).items()
    with pytest.raises(ValueError, match=says):
        parameters.value(known, name, text)


def test_no_annotation_is_run(tmp_path):
    text = "a: __import__('os').mkdir('made') = 1\nb: (lambda: 3)() = 2\nc: ''.__class__ = 3"
    assert set(parameters.types(notebook(tmp_path / "mine.ipynb", text)).values()) == {int}
    with pytest.raises(ValueError, match="mine.ipynb': line 2 of its parameters is not Python"):
        parameters.types(notebook(tmp_path / "mine.ipynb", "a = 1\nb = = 2"))


def test_parameters_reach_the_notebook_as_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = 'strict = True\nlayers = [1]\nlimit: int | None = 1\npair: str = "a=b"\nfigures = ""'
    body = """import json
from pathlib import Path
import pandas as pd
given = json.dumps([strict, layers, limit, pair])
pd.DataFrame({"given": [given] * 2}).to_csv(Path(figures) / "rows.csv", index=False)"""
    book = notebook(tmp_path / "mine.ipynb", text, body)
    axes = ["-g", "layers=[1,2],[3]", "-p", "strict=false", "-p", "limit=None", "-p", "pair=c=d"]
    assert main(["batch", str(book), *axes, "--workers", "1"]) == 0
    rows = pd.read_csv("runs/batch/mine/rows.csv")
    expected = [[False, layers, None, "c=d"] for layers in ([1, 2], [1, 2], [3], [3])]
    assert [json.loads(g) for g in rows.given] == expected
    assert list(rows.layers) == ["[1, 2]", "[1, 2]", "[3]", "[3]"]


def test_a_finished_bar_is_a_line_or_nothing_in_an_executed_notebook(tmp_path, monkeypatch):
    """What is read years later shows no bar on its way and no link to a server that is gone."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    body = """from robustlib import Pretrain, Ticket, Transfer, run, sweep
source = Pretrain(source="digits", width=4, n_train=100, epochs=2, batch_size=50)
run(source)
wanted = [Transfer(Ticket(source, sparsity=s), "digits", "linear", n_train=50) for s in (0, 0.5)]
_ = sweep(wanted, 1)"""
    batches.execute(notebook(tmp_path / "mine.ipynb", body=body), tmp_path / "out.ipynb", {})
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert [list(o.get("data", o)) for o in outputs] == [["text/html"], ["text/plain"]]
    # Both bars were shown, and changed last to this:
    trained, swept = [next(iter(o.data.values())) for o in outputs]
    assert trained == ""
    assert re.fullmatch(r"sweep: 4/4 in \d\d:\d\d, failed 0, cached 0", swept)


def test_a_study_goes_on_after_a_notebook_that_failed(tmp_path, monkeypatch, capsys):
    (books := tmp_path / "books").mkdir()
    for i in (1, 2):
        body = "assert number == 2, 'too much\\n  File a.py, line 1\\nto lose'"
        notebook(books / f"0{i}_own.ipynb", parameters=f"number: int = {i}  # which", body=body)
    monkeypatch.setattr(batches, "NOTEBOOKS", books)
    monkeypatch.setattr(sweeps, "sweep", lambda *_, **__: pd.DataFrame({"task": ["digits"]}))
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--profile", "quick", "--out", "mine"]) == 1
    told = capsys.readouterr().err.partition("robustlib: ")[2]
    assert told.splitlines() == [
        "1 notebook failed; executed ones, these too, are in mine/notebooks:",
        "01_own: AssertionError: too much",
        "to lose (see mine/notebooks/01_own.ipynb)",
    ]
    assert len(list(tmp_path.glob("mine/notebooks/*.ipynb"))) == 2
