"""Sweeps compute each thing once, go on past a failure, and find what is stored."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, transfers

from robustlib import Pretrain, Ticket, Transfer, costs, specs, store, sweep
from robustlib.cli import main
from robustlib.specs import closure
from robustlib.sweeps import SweepFailed, cost

ROOT = Path(__file__).parents[2]


def test_closure_has_each_once_and_parents_first():
    order = closure(transfers())
    assert [specs.kind(s) for s in order].count("pretrain") == 1
    assert len(order) == 5
    # A mask of another network, by rounds: both networks, and the rounds on the other one.
    other = Pretrain(**{**vars(TINY), "seed": 1})
    ticket = Ticket(TINY, "imp", sparsity=0.36, mask_from=other, rewind=1)
    rounds = [Ticket(other, "imp", sparsity=s, rewind=1) for s in (0.2, 0.36)]
    mixed = closure([Transfer(ticket, "digits")])
    assert {TINY, other, *rounds, *map(specs.rewound, (ticket, rounds[0]))} < set(mixed)
    assert len(mixed) == 8
    order += mixed
    seen = set()
    for spec in order:
        assert all(specs.key(below) in seen for below in specs.parents(spec))
        seen.add(specs.key(spec))


def test_sweep_computes_once_and_goes_on_past_a_failure():
    wanted = transfers()
    bad = Transfer(Ticket(TINY), "digits", "linear", n_train=10**6)
    with pytest.raises(SweepFailed, match=f"1 of 6 failed.*\n.*{specs.key(bad)}.*n_train=1000000"):
        sweep([bad, *wanted], workers=1)
    assert all(map(store.has, wanted)) and not store.has(bad)
    stamps = [store.path(s).stat().st_mtime_ns for s in closure(wanted)]
    frame = sweep(wanted, workers=1)
    assert [store.path(s).stat().st_mtime_ns for s in closure(wanted)] == stamps
    assert list(frame.sparsity) == [0.0, 0.5]
    assert list(frame.key) == [specs.key(s) for s in wanted]
    # What is stored needs nothing below it.
    shutil.rmtree(store.path(wanted[0].ticket))
    sweep(wanted, workers=1)
    assert not store.has(wanted[0].ticket)


def test_rows_are_those_of_run_whatever_the_order(monkeypatch, tmp_path):
    from robustlib import run

    wanted = transfers()
    swept = sweep(wanted[::-1], workers=2)[::-1].reset_index(drop=True)
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "other"))
    for spec, row in zip(wanted, swept.to_dict("records"), strict=True):
        again = run(spec).row
        assert {k: v for k, v in again.items() if k != "seconds"} == {
            k: v for k, v in row.items() if k != "seconds"
        }


@pytest.mark.parametrize("workers", [0, -1, 1.5])
def test_bad_workers_are_refused(workers):
    with pytest.raises(ValueError, match="workers"):
        sweep(transfers(), workers=workers)


def test_cost_orders_by_work():
    one = cost(TINY)
    robust = cost(Pretrain(**{**vars(TINY), "objective": "pgd", "eps": 0.1}))
    stronger = cost(Pretrain(**{**vars(TINY), "objective": "pgd", "eps": 0.1, "steps": 7}))
    assert 0 < one < robust < stronger
    # 3 passes to train; one step of an attack is 2 more (the test images count once).
    fixed = cost(Pretrain(**{**vars(TINY), "epochs": 0}))
    assert (robust - fixed) / (one - fixed) == pytest.approx(5 / 3)
    assert cost(Ticket(TINY, sparsity=0.5)) == 0
    assert cost(transfers()[0]) < cost(Transfer(Ticket(TINY), "digits", "finetune", n_train=50))


def test_a_data_set_is_loaded_and_scaled_once_in_a_process(monkeypatch):
    from robustlib import run
    from robustlib.data import embedded, loading

    calls, scaled = [], []
    made, resized = embedded.EMBEDDED["digits"], loading.resized
    counted = {"digits": lambda size: calls.append(size) or made(size)}
    monkeypatch.setattr(loading, "EMBEDDED", embedded.EMBEDDED | counted)
    monkeypatch.setattr(
        loading, "resized", lambda split, *to: scaled.append(to) or resized(split, *to)
    )
    loading._whole.cache_clear()
    loading._sized.cache_clear()
    for spec in transfers():
        run(spec)
    assert len(calls) == 1
    # Train, val and test, of the network's budget and of the task's.
    assert scaled == [(32, 32)] * 6


def test_two_sweeps_at_once_on_one_store_train_each_network_once(tmp_path):
    """Two transfers that share a ticket never both draw it, whoever asks for them."""
    code = "import sys; from robustlib.cli import main; sys.exit(main())"
    env, both = {**os.environ, "PYTHONPATH": str(ROOT)}, []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.json"
        file.write_text(json.dumps([{"transfer": specs.to_dict(s)} for s in transfers(seed=seed)]))
        call = [sys.executable, "-c", code, "sweep", str(file), "--workers", "1"]
        both.append(subprocess.Popen(call, env=env))
    assert [p.wait(300) for p in both] == [0, 0]
    rows = {kind: len(store.frame(cls)) for kind, cls in specs.KINDS.items()}
    assert rows == {"pretrain": 1, "ticket": 2, "transfer": 4, "evaluation": 0}
    # Nobody left what another would have to clear away.
    assert not list((tmp_path / "store" / "unfinished").iterdir())


def test_the_readmes_example_is_a_program(tmp_path):
    """Saved as a file, without a guard of its main, it runs once, and so do its networks."""
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace("epochs=3", "epochs=1, n_train=100").replace("width=16", "width=4")
    script = tmp_path / "mine.py"
    script.write_text(code + 'print("accuracies", len(frame.accuracy))\n')
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=300
    )
    first, last = done.stdout.splitlines()
    assert (done.returncode, done.stderr, last) == (0, "", "accuracies 3")
    accuracy, n, sparsity = map(float, first.split())
    assert 0 < accuracy <= 1 and n > 0 and sparsity == pytest.approx(0.9, abs=0.01)
    rows = {kind: len(store.frame(cls)) for kind, cls in specs.KINDS.items()}
    assert rows == {"pretrain": 1, "ticket": 1, "transfer": 3, "evaluation": 0}


def test_the_command_computes_a_list_of_specs_here_and_exits_by_what_failed(tmp_path, capsys):
    wanted = transfers()
    bad = Transfer(Ticket(TINY), "digits", "linear", n_train=10**6)
    file = tmp_path / "specs.json"
    file.write_text(json.dumps([{"transfer": specs.to_dict(s)} for s in [*wanted, bad]]))
    assert main(["sweep", str(file), "--dry-run"]) == 0
    assert "3 specs, 0 stored; 6 to compute" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()
    assert main(["sweep", str(file), "--workers", "1"]) == 1
    error = capsys.readouterr().err
    assert f"1 of 6 failed, the rest is stored:\ntransfer {specs.key(bad)} task=digits" in error
    assert "in _check_data" in error  # its traceback, and not that of this process
    assert all(map(store.has, wanted))
    file.write_text(json.dumps([{"transfer": specs.to_dict(s)} for s in wanted]))
    assert main(["sweep", str(file), "--csv", str(tmp_path / "rows.csv")]) == 0
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "cannot be read as JSON"),
        ("{}", "must be a list of specs"),
        ("[]", "must be a list of specs"),
        ("[1]", "spec 0: kind=1: must be a table of one of"),
        ('[{"transfr": {}}]', "did you mean 'transfer'"),
        ('[{"ticket": {}}, {"transfer": {"epochs": -1}}]', "spec 1: epochs=-1"),
    ],
)
def test_a_bad_list_of_specs_is_refused_by_place_and_value(text, says, tmp_path, capsys):
    file = tmp_path / "specs.json"
    file.write_text(text)
    assert main(["sweep", str(file)]) == 2
    error = capsys.readouterr().err
    assert says in error and "specs.json: " in error and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_sets_that_are_not_here_are_all_told_before_anything_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    source = Pretrain("my-source", size=16, width=4, epochs=0)
    drawn = Ticket(source, scheme="lmp", dataset="my-task", sparsity=0.5)
    wanted = [Transfer(drawn, "my-task", n_train=20), Transfer(Ticket(source), "digits")]
    with pytest.raises(RuntimeError) as raised:
        sweep(wanted)
    says, *names = str(raised.value).split("\n")[1:]
    assert str(tmp_path / "data") in says and names == ["  my-source", "  my-task"]
    assert not (tmp_path / "store").exists()
    # What a checkpoint was trained on is not needed, and what is published is fetched.
    published = Pretrain("my-source", checkpoint="zoo/robust-0")
    assert costs.absent([published, Pretrain("digits"), Transfer(task="cifar10")]) == []
    assert main(["study", "--profile", "cpu", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told.count("  tinyimagenet50") == 1 and len(told) < 40
