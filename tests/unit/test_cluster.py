"""Jobs run wherever the workers are, in order of need and cost, and no failure is passed over."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import dask
import dask_jobqueue  # noqa: F401  (its defaults enter Dask's configuration)
import distributed
import pytest
from helpers import (
    _workers_import_tests,  # noqa: F401
    transfers,
)
from jobs import fail_until, hog, note, tell

from robustlib import cluster, specs, store, sweep, sweeps
from robustlib.cli import main
from robustlib.sweeps import Job, SweepFailed


def jobs_of(file, *rows):
    return [
        Job(name, name, note, (file, name), (after,) if after else (), cost)
        for name, after, cost in rows
    ]


def test_longest_first_and_nothing_before_what_it_needs(tmp_path):
    file = tmp_path / "order"
    rows = [("s", "", 1), ("m", "", 5), ("l", "", 9), ("after-s", "s", 99), ("xl", "", 20)]
    first = Job("block", "block", note, (file, "block", 1.0), (), 100)  # while the others queue up
    assert sweeps.compute([first, *jobs_of(file, *rows)], workers=1) == []
    assert file.read_text().split() == ["block", "xl", "l", "m", "s", "after-s"]


def test_a_failure_is_retried_and_stops_only_what_needs_it(tmp_path):
    rows = [("other", "", 1), ("needs", "bad", 1), ("needs-too", "needs", 1)]
    for retries, tries in ((0, 1), (2, 3)):
        file = tmp_path / f"tries{retries}"
        bad = Job("bad", "bad thing", fail_until, (file, 9))
        good = Job("good", "good thing", fail_until, (tmp_path / f"good{retries}", retries))
        failures = sweeps.compute(
            [bad, good, *jobs_of(tmp_path / "done", *rows)], workers=1, retries=retries
        )
        by_key = {f.job.key: f for f in failures}
        assert sorted(by_key) == ["bad", "needs", "needs-too"]
        assert by_key["bad"].error == "OSError: no luck, 9 times"
        assert "in fail_until" in by_key["bad"].traceback
        assert by_key["needs"].error == "not done: needs bad thing"
        assert by_key["needs-too"].error == "not done: needs needs"
        assert file.read_text().split() == ["try"] * tries
    assert (tmp_path / "done").read_text().split() == ["other"] * 2


def test_the_bar_counts_what_is_done_running_failed_and_stored(tmp_path, capsys):
    bad = Job("bad", "bad thing", fail_until, (tmp_path / "tries", 9))
    jobs = jobs_of(tmp_path / "done", ("a", "", 1), ("b", "", 2))
    sweeps.compute([bad, *jobs], workers=1, cached=7)
    out, err = capsys.readouterr()
    assert "dashboard: http://127.0.0.1:" in out
    assert "failed: bad thing: OSError: no luck" in out
    *running, last = err.replace("\r", "\n").strip().splitlines()
    assert last.split(", ", 1)[1].strip() == "failed 1, cached 7" and "sweep: 10/10 in 00:0" in last
    assert any("9/10 |" in line and "left, running 1, failed 1" in line for line in running)


def test_a_worker_is_one_process_of_one_thread_within_its_share_of_memory():
    from distributed.system import MEMORY_LIMIT

    with cluster.connect(workers=2) as client:
        workers = client.scheduler_info()["workers"].values()
        assert [w["nthreads"] for w in workers] == [1, 1]
        assert all(0 < w["memory_limit"] <= MEMORY_LIMIT // 2 for w in workers)
        assert len(set(client.run(os.getpid).values()) - {os.getpid()}) == 2
        assert set(client.run(os.environ.get, "OMP_NUM_THREADS").values()) == {"1"}
        # Dask's own setting of it nearly doubles the time of a training on a CPU.
        assert set(client.run(os.environ.get, "MALLOC_TRIM_THRESHOLD_").values()) == {None}


def test_workers_are_copies_of_one_process_with_the_environment_of_each_sweep(
    tmp_path, monkeypatch
):
    file, names, parents = tmp_path / "told", ("ROBUSTLIB_DATA", "OTHER"), set()
    for data, other in (("/a", "1"), (None, "2"), ("/b", None)):
        for name, value in zip(names, (data, other), strict=True):
            monkeypatch.delenv(name, raising=False)
            if value:
                monkeypatch.setenv(name, value)
        job = Job("told", "told", tell, (file, *names))
        assert sweeps.compute([job], workers=1) == []
        with cluster.connect(workers=2) as client:
            parents |= set(client.run(os.getppid).values())
            assert all(client.run(lambda: "sklearn.linear_model" in sys.modules).values())
            # An interrupt of the terminal is told once, by this process.
            ignores = client.run(lambda: signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
            assert all(ignores.values())
    assert len(parents - {os.getpid()}) == 1
    # A name that is gone is empty where this library reads it.
    first, second, _ = file.read_text().splitlines()
    assert [first, second] == ["ROBUSTLIB_DATA=/a OTHER=1", "ROBUSTLIB_DATA= OTHER=2"]


def test_a_job_that_takes_more_memory_than_its_share_fails_and_the_others_do_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", 3000 * 2**20)
    jobs = [Job("hog", "hog", hog, ()), *jobs_of(tmp_path / "done", ("a", "", 1), ("b", "a", 1))]
    failures = sweeps.compute(jobs, workers=2)
    assert [f.job.key for f in failures] == ["hog"]
    assert "KilledWorker" in failures[0].error
    # What was done on a worker that dies may be done again: a job finds its result stored.
    assert set((tmp_path / "done").read_text().split()) == {"a", "b"}


def test_each_worker_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "gpus", lambda: ["3", "GPU-5a"])
    file = tmp_path / "told"
    jobs = [Job(str(i), str(i), tell, (file, "CUDA_VISIBLE_DEVICES")) for i in range(4)]
    assert sweeps.compute(jobs) == []
    assert set(file.read_text().split()) == {
        "CUDA_VISIBLE_DEVICES=3",
        "CUDA_VISIBLE_DEVICES=GPU-5a",
    }


def test_gpus_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ROBUSTLIB_DEVICE", raising=False)
    assert cluster.gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert cluster.gpus() == ["4", "7"]
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cuda:1")
    assert cluster.gpus() == ["7"]
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")
    assert cluster.gpus() == []


@pytest.mark.parametrize(("cores", "gib", "n"), [(32, 12, 12), (2, 12, 2), (4, 0.5, 1)])
def test_no_more_workers_are_started_than_have_memory(cores, gib, n, monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", int(gib * 2**30))
    started = []
    monkeypatch.setattr("distributed.SpecCluster", lambda workers, **_: started.append(workers))
    cluster._local(None, 100), cluster._local(5, 100)
    assert [len(workers) for workers in started] == [n, 5]


def test_a_sweep_leaves_nothing_in_the_workers_of_a_client(tmp_path, monkeypatch):
    """Nor does it matter in which folder they are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTLIB_DATA", "mine")
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu:0")
    names = ("ROBUSTLIB_DATA", "ROBUSTLIB_DEVICE")
    with cluster.connect(1) as client:
        client.run(lambda: [os.environ.pop(name, None) for name in names])
        for at in ("first", "second"):
            job = Job(at, at, tell, (tmp_path / at, *names))
            assert sweeps.compute([job], client=client) == []
            for name in names:
                monkeypatch.delenv(name) if at == "first" else None
    assert (tmp_path / "first").read_text() == (
        f"ROBUSTLIB_DATA={tmp_path}/mine ROBUSTLIB_DEVICE=cpu\n"
    )
    assert (tmp_path / "second").read_text() == "ROBUSTLIB_DATA=None ROBUSTLIB_DEVICE=None\n"


@contextmanager
def running_scheduler(n_workers=2, nthreads=1):
    """`dask scheduler` and `dask worker` processes on loopback; yields the address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    dask = [sys.executable, "-m", "dask"]
    host = ["--host", "127.0.0.1"]
    # They know nothing of this process's store: a sweep must tell them.
    env = {k: v for k, v in os.environ.items() if k != "ROBUSTLIB_STORE"}
    options = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [
        subprocess.Popen(
            [*dask, "scheduler", *host, "--port", address.rsplit(":")[-1], "--no-dashboard"],
            **options,
        )
    ]
    try:
        started += [
            subprocess.Popen(
                [*dask, "worker", address, *host, "--nthreads", str(nthreads), "--no-dashboard"],
                **options,
            )
            for _ in range(n_workers)
        ]
        from distributed import Client

        with Client(address, timeout=60) as client:
            client.wait_for_workers(n_workers, timeout=60)
        yield address
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def test_a_running_scheduler_computes_into_the_store_of_who_asks(tmp_path):
    wanted = transfers()
    bad = transfers(lr=0.123)[0]
    bad = type(bad)(**{**vars(bad), "n_train": 10**6})
    with running_scheduler() as address:
        with pytest.raises(SweepFailed, match=f"1 of 6 .*\n.*{specs.key(bad)}(.|\n)*_check_data"):
            sweep([*wanted, bad], scheduler=address)
        assert all(map(store.has, wanted))
        # A second call runs what is missing; another's failed jobs are not its own.
        more = [type(w)(**{**vars(w), "n_train": 60}) for w in wanted]
        assert len(sweep([*wanted, *more], scheduler=address)) == 4
        with pytest.raises(ValueError, match="workers=2: tcp.* has workers of its own"):
            sweep(wanted, 2, scheduler=address)
        with cluster.connect(scheduler=address) as client:
            assert len(client.scheduler_info()["workers"]) == 2
            # A client of one's own does as well.
            last = type(wanted[0])(**{**vars(wanted[0]), "n_train": 70})
            assert list(sweep([last], client=client).key) == [specs.key(last)]
            assert client.status == "running"
            for given in ({"workers": 2}, {"scheduler": address}):
                with pytest.raises(ValueError, match="the client has both"):
                    sweep([last], client=client, **given)


def test_workers_with_several_threads_are_refused():
    with running_scheduler(1, nthreads=2) as address:
        with pytest.raises(ValueError, match="has 2 threads; start workers with --nthreads 1"):
            sweep(transfers(), scheduler=address)


def test_workers_in_this_process_are_refused():
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(processes=False, **options) as cluster:
        with distributed.Client(cluster) as client:
            with pytest.raises(ValueError, match="inproc:.* start workers with processes"):
                sweep(transfers(), client=client)


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ("tcp://127.0.0.1:1", "does not answer"),
        ("localhost:8786", "scheduler='localhost:8786': must be tcp://HOST:PORT"),
        ("slurn", "must be tcp://HOST:PORT or slurm"),
        ("slurm", "workers=None: must say how many"),
    ],
)
def test_a_place_that_is_none_is_refused_and_leaves_nothing(scheduler, says, tmp_path, monkeypatch):
    client = distributed.Client  # a twentieth of the patience
    monkeypatch.setattr(distributed, "Client", lambda a, timeout: client(a, timeout=timeout / 20))
    with pytest.raises(ValueError, match=says):
        sweep(transfers(), scheduler=scheduler)
    assert not (tmp_path / "store").exists()


SLURM = {
    "memory": "2GB",
    "cores": 1,
    "job-cpu": 3,
    "walltime": "00:10:00",
    "interface": "lo",
    "queue": "long",
    "account": "ours",
    "job-extra-directives": ["--gres=gpu:1"],
}
"""What a user writes in Dask's own configuration, under jobqueue.slurm."""


def configured(**more):
    return dask.config.set({f"jobqueue.slurm.{k}": v for k, v in {**SLURM, **more}.items()})


def test_the_slurm_script_asks_for_what_the_configuration_says(tmp_path, capsys):
    file = tmp_path / "specs.json"
    file.write_text(json.dumps([{"transfer": specs.to_dict(s)} for s in transfers()]))
    with configured(**{"job-script-prologue": ["source /some/venv/bin/activate"]}):
        dry = ["sweep", str(file), "--scheduler", "slurm", "--workers", "2", "--dry-run"]
        assert main(dry) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 specs, 0 stored; 5 to compute, parents included"
    for option in ("-p long", "-A ours", "-n 1", "--cpus-per-task=3", "--mem=2G", "-t 00:10:00"):
        assert f"#SBATCH {option}" in lines
    assert "#SBATCH --gres=gpu:1" in lines
    assert lines.index("source /some/venv/bin/activate") < len(lines) - 1
    assert "export OMP_NUM_THREADS=1" in lines
    assert "--nthreads 1" in lines[-1] and "dask" in lines[-1]


def test_a_slurm_job_of_several_cores_has_as_many_processes_of_one_thread():
    with configured(cores=4, processes=2), cluster.slurm() as started:
        last = started.job_script().splitlines()[-1]
    assert "--nworkers 4" in last and "--nthreads 1" in last


@pytest.mark.parametrize("lacking", ["cores", "memory"])
def test_a_slurm_configuration_that_lacks_something_is_refused_by_name(lacking, tmp_path):
    with configured(**{lacking: None}):
        with pytest.raises(ValueError, match=f"lacks jobqueue.slurm.{lacking}$"):
            sweep(transfers(), 2, scheduler="slurm")
    assert not (tmp_path / "store").exists()


def test_a_slurm_cluster_computes_and_its_jobs_are_cancelled(tmp_path, monkeypatch):
    """Slurm's commands are played by scripts: sbatch runs the job here, scancel ends it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "log"
    (programs / "sbatch").write_text(
        # A copy, as Slurm takes one: the script is deleted once sbatch has returned.
        f'#!/bin/bash\ncp "$1" "{log}.$$"\nsetsid bash "{log}.$$" >/dev/null 2>&1 &\n'
        f'echo "submitted $!" >> {log}\necho "Submitted batch job $!"\n'
    )
    (programs / "scancel").write_text(f'#!/bin/bash\necho "cancelled $1" >> {log}\nkill -- -"$1"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    wanted = transfers()
    with configured():
        frame = sweep(wanted, 2, scheduler="slurm")
    assert list(frame.key) == [specs.key(w) for w in wanted]
    lines = log.read_text().splitlines()
    jobs = [line.split()[1] for line in lines if line.startswith("submitted")]
    assert len(jobs) == 2
    assert sorted(lines) == sorted(
        [f"submitted {j}" for j in jobs] + [f"cancelled {j}" for j in jobs]
    )
