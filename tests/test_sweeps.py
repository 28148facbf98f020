"""Sweeps compute each thing once, go on past a failure, and find what is stored."""

import pytest

from robustlib import Pretrain, Ticket, Transfer, specs, store, sweep
from robustlib.sweeps import SweepFailed, closure, cost

TINY = Pretrain(source="digits", width=4, n_train=100, epochs=1, batch_size=50)


def transfers(pretrain=TINY, **fields):
    tickets = [Ticket(pretrain, sparsity=s) for s in (0.0, 0.5)]
    return [Transfer(t, "digits", "linear", n_train=50, **fields) for t in tickets]


def test_closure_has_each_once_and_parents_first():
    order = closure(transfers())
    assert [specs.kind(s) for s in order].count("pretrain") == 1
    assert len(order) == 5
    seen = set()
    for spec in order:
        below = specs.parent(spec)
        assert below is None or specs.key(below) in seen
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
    store.remove(wanted[0].ticket)
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
