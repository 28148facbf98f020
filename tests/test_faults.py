"""Faults, made on purpose: after each, nothing that is stored is wrong or lost, the next run
completes, and the final table is that of a run that nothing happened to, byte for byte.

Each fault is a point that is counted; `pytest` prints how many were tried and survived. The column
`seconds` is wall time, so it is left out of the tables; the tensors are compared bit for bit.

Jobs run in processes that a nursery forks: it has torch imported and runs nothing itself, so a fork
is cheap and sound. Where a store must be kept from being finished too soon, the test holds a lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from robustlib import specs, store
from robustlib.specs import Pretrain, Ticket, Transfer
from robustlib.sweeps import closure

HERE = Path(__file__).parent
NATURAL = Pretrain(
    **{"source": "digits", "width": 4, "stem_stride": 1, "size": 8},
    **{"n_train": 100, "epochs": 2, "batch_size": 25},
)
ROBUST = replace(NATURAL, objective="pgd", eps=0.3)
TICKET = Ticket(ROBUST, sparsity=0.5)
LINEAR, FINETUNE = (
    Transfer(TICKET, "digits", mode, n_train=50, epochs=2, batch_size=25)
    for mode in ("linear", "finetune")
)
WANTED = [LINEAR, FINETUNE, *(replace(t, ticket=Ticket(NATURAL)) for t in (LINEAR, FINETUNE))]
NAMED = {"natural": NATURAL, "robust": ROBUST, "ticket": TICKET, "finetune": FINETUNE}
ARTIFACTS = 8
STEPS = {"robust": 8, "finetune": 4}
UNSUPPORTED = 77
KILLED = -signal.SIGKILL


# Jobs: what runs in a process of its own


def study() -> None:
    from robustlib import run

    for spec in closure(WANTED):  # What a result was built on is wanted too, if it is lost.
        run(spec)


def compute(name: str) -> None:
    from robustlib import run

    run(NAMED[name])


def swept(workers: int | None, scheduler: str = "") -> None:
    from robustlib import sweep

    sweep(WANTED, workers=workers, scheduler=scheduler)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_line(name: str, function: str, n: int, nth_call: int = 1) -> None:
    """Computes, and dies before the n-th line that store.py comes to in the nth call of a function
    of its; says in a file if it got to the end of that call."""
    lines, calls, inside = itertools.count(1), itertools.count(1), []

    def trace(frame, event, arg):
        if frame.f_code.co_filename != store.__file__:
            return None
        own = frame.f_code.co_name == function
        if event == "call":
            if own and next(calls) == nth_call:
                inside.append(frame)
            return trace
        if event == "line" and inside and next(lines) == n:
            die()
        if event == "return" and inside and frame is inside[0]:
            os._exit(0)
        return trace

    checkpointing()
    sys.settrace(trace)
    compute(name)


def dies_in_write(name: str, file: str, part: float) -> None:
    """Computes, and dies when a part of a file's bytes is written."""
    real = open

    @contextmanager
    def dying(path, mode) -> Iterator:
        def write(data) -> None:
            f.write(bytes(data)[: int(part * len(data))])
            f.flush()
            die()

        with real(path, mode) as f:
            yield SimpleNamespace(write=write)

    def opened(path, mode="r"):
        return dying(path, mode) if (Path(path).name, mode) == (file, "wb") else real(path, mode)

    checkpointing()
    store.open = opened
    compute(name)


def dies_at_step(name: str, step: int) -> None:
    """Computes, a checkpoint after every step, and dies at the start of a step of the training."""
    from robustlib import training

    rate = training.learning_rate
    checkpointing()
    training.learning_rate = lambda r, s, t: die() if s == step else rate(r, s, t)
    compute(name)


def checkpointing() -> None:
    from robustlib import training

    training.CHECKPOINT_SECONDS = -1.0


def small_files(name: str, limit: int) -> None:
    """Computes where no file may be larger: to a writer, a disk that is full."""
    checkpointing()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    compute(name)


def small_disk(name: str, free: int) -> None:
    """Computes on a disk of its own that has only so much room; copies the store back, whole."""
    home = store.root()
    disk = home.parent / "disk"
    disk.mkdir()
    _mount("tmpfs", disk, "tmpfs", 0, "size=4m")
    shutil.copytree(home, disk / "store")
    with suppress(OSError), open(disk / "filler", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    os.truncate(disk / "filler", os.path.getsize(disk / "filler") - free)
    os.environ["ROBUSTLIB_STORE"] = str(disk / "store")
    checkpointing()
    try:
        compute(name)
    finally:
        shutil.rmtree(home)
        shutil.copytree(disk / "store", home)


def read_only() -> None:
    """Uses what is stored, and wants more, where nothing can be written."""
    home = store.root()
    _mount(str(home), home, "", 4096, "")  # MS_BIND
    _mount("", home, "", 4096 | 32 | 1, "")  # MS_REMOUNT, MS_RDONLY
    from robustlib import run

    assert run(NATURAL).tensors() and len(store.frame(Transfer)) == len(WANTED) - 1
    compute("finetune")


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    """Mounts where only this process sees it, and it ends with this process; root is not needed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(_mount, "own"):
        uid, gid = os.getuid(), os.getgid()
        if libc.unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER, CLONE_NEWNS
            os._exit(UNSUPPORTED)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        _mount.own = True
    texts = [str(t).encode() for t in (source, target, kind)]
    if libc.mount(*texts, flags, options.encode()):
        os._exit(UNSUPPORTED)


def holds_the_lock(name: str) -> None:
    with store.lock(NAMED[name]):
        die()


def meets_damage(name: str, file: str) -> None:
    """What needs a damaged artifact names the file, computes nothing from it and loses nothing."""
    from robustlib import run

    spec = NAMED[name]
    above = {"natural": WANTED[2], "ticket": LINEAR}.get(name)
    uses = [lambda: run(spec).tensors()] + [lambda: run(above, recompute=True)] * bool(above)
    for use in uses:
        try:
            use()
        except store.Damaged as e:
            assert f"{store.path(spec)}/{file}" in str(e), e
        else:
            raise AssertionError("it was used")
    assert above is None or store.get(above).tensors()


def computes_again(name: str) -> None:
    from robustlib import run

    run(NAMED[name], recompute=True)


def executes(notebook: str, out: str) -> None:
    import papermill

    papermill.execute_notebook(notebook, out, progress_bar=False)


# The nursery


def nursery() -> None:
    """Forks a process for each job that is asked for on the input; says how it ended."""
    import torch

    from robustlib import run, stages, sweep
    from robustlib.data import load

    assert run and stages and sweep and load("digits", size=8)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that a checkpoint cannot be read is what some tests want
    for line in sys.stdin:
        ask = json.loads(line)
        if "pid" in ask:
            answer = _ended(ask["pid"], ask["seconds"])
        elif not (answer := os.fork()):
            _job(**ask)
        print(json.dumps(answer), flush=True)


def _job(job: str, args: list, folder: str, log: str) -> None:
    try:
        os.setsid()
        os.environ["ROBUSTLIB_STORE"] = folder
        with open(log, "w") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        globals()[job](*args)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _ended(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


@pytest.fixture(scope="module")
def forks() -> Iterator[SimpleNamespace]:
    """start(job, *args, into=folder) gives an id; end(id) its status; both in one: do(...)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    code = "import test_faults; test_faults.nursery()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)

    def ask(**what) -> int:
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def start(job: Callable, *args, into: Path) -> int:
        log = f"{into}.log"
        return ask(job=job.__name__, args=args, folder=str(into), log=log)

    def end(pid: int, seconds: float = 60) -> int:
        status = ask(pid=pid, seconds=seconds)
        assert status is not None, f"still running after {seconds} s"
        return status

    def do(job: Callable, *args, into: Path, seconds: float = 60) -> int:
        return end(start(job, *args, into=into), seconds)

    try:
        yield SimpleNamespace(start=start, end=end, do=do)
    finally:
        _killed([*psutil.Process(process.pid).children(recursive=True), process])
        process.communicate(timeout=20)


def _killed(processes: list) -> None:
    for p in processes:
        with suppress(psutil.NoSuchProcess):
            p.kill()


def said(folder: Path) -> str:
    """What the last job on a store wrote."""
    return Path(f"{folder}.log").read_text()


def error(folder: Path) -> str:
    """The last line of it: what a user reads."""
    return said(folder).strip().splitlines()[-1]


# What is compared


def outcome(folder: Path) -> dict[str, str]:
    """The tables of a store, without wall time, and the digests of its tensors, by path.

    Reading the tables checks all that is there against its checksum."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(folder))
        for name, cls in specs.KINDS.items():
            frame = store.frame(cls)
            found[name] = frame.drop(columns="seconds", errors="ignore").to_csv(index=False)
            for artifact in store.artifacts(cls):
                assert artifact.tensors()
                file = artifact.path / store.TENSORS
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                found[str(file.relative_to(folder))] = digest
    return found


def lines(found: dict[str, str]) -> set[str]:
    """An outcome as its single results, to tell whether some are part of others."""
    tables = {f"{kind}: {row}" for kind in specs.KINDS for row in found[kind].splitlines()[1:]}
    return tables | {f"{path}: {v}" for path, v in found.items() if path not in specs.KINDS}


def leftovers(folder: Path) -> list[str]:
    known = {"pretrain", "ticket", "transfer", "locks", "unfinished"}
    extra = [p.name for p in folder.iterdir() if p.name not in known]
    hidden = [p.name for kind in specs.KINDS for p in folder.glob(f"{kind}/*/.*")]
    return extra + hidden + [p.name for p in folder.glob("unfinished/*")]


@pytest.fixture(scope="module")
def reference(forks, tmp_path_factory) -> SimpleNamespace:
    """The store of a study that nothing happened to, its outcome, and how long it took."""
    folder = tmp_path_factory.mktemp("reference") / "store"
    started = time.monotonic()
    assert forks.do(study, into=folder) == 0, said(folder)
    seconds = time.monotonic() - started
    found = outcome(folder)
    assert len(found) == len(specs.KINDS) + ARTIFACTS and not leftovers(folder)
    return SimpleNamespace(folder=folder, outcome=found, seconds=seconds)


@pytest.fixture
def without(reference, tmp_path) -> Callable[[str], Path]:
    """A fresh copy of the reference's store that lacks one result."""
    count = itertools.count()

    def copy(name: str = "") -> Path:
        folder = tmp_path / str(next(count)) / "store"
        shutil.copytree(reference.folder, folder)
        if name:
            shutil.rmtree(_where(folder, name))
        return folder

    return copy


def _where(folder: Path, name: str) -> Path:
    key = specs.key(NAMED[name])
    return folder / specs.kind(NAMED[name]) / key[:2] / key


@pytest.fixture
def point(record_property) -> Callable:
    """`with point(kind):` counts a point that was tried, and that it was survived at the end."""
    counts: dict[str, list] = {}

    @contextmanager
    def counted(kind: str) -> Iterator[None]:
        if kind not in counts:
            counts[kind] = [kind, 0, 0]
            record_property("faults", counts[kind])
        counts[kind][1] += 1
        yield
        counts[kind][2] += 1

    return counted


@pytest.fixture
def recovers(forks, reference) -> Callable[[Path], None]:
    """After a fault: nothing is wrong, a run completes, and all is as if nothing had happened."""

    def check(folder: Path, job: Callable = study, *args) -> None:
        assert lines(outcome(folder)) <= lines(reference.outcome)
        assert forks.do(job, *args, into=folder) == 0, said(folder)
        assert outcome(folder) == reference.outcome
        assert leftovers(folder) == []

    return check


# Killed while it writes


@pytest.mark.parametrize("name", ["ticket"])
def test_killed_at_any_line_of_the_writing_of_an_artifact(name, forks, without, recovers, point):
    for n in itertools.count(1):
        folder = without(name)
        status = forks.do(dies_at_line, name, "put", n, into=folder)
        if status == 0:
            break
        with point("writing an artifact"):
            assert status == KILLED, said(folder)
            recovers(folder)
        shutil.rmtree(folder)
    assert n > 30


def test_killed_with_a_part_of_a_file_written(forks, without, recovers, point):
    checkpoint = store.checkpoint(ROBUST).with_suffix(".tmp").name
    files = {"ticket": (store.META, store.TENSORS, store.SUMS), "robust": (checkpoint,)}
    for name, part in itertools.product(files, (0.0, 0.5, 0.99)):
        for file in files[name]:
            folder = without(name)
            with point("writing an artifact" if name == "ticket" else "writing a checkpoint"):
                assert forks.do(dies_in_write, name, file, part, into=folder) == KILLED
                assert leftovers(folder)
                recovers(folder)


def test_killed_at_any_line_of_the_writing_of_a_checkpoint(forks, without, recovers, point):
    for n in itertools.count(1):
        folder = without("robust")
        status = forks.do(dies_at_line, "robust", "write_checked", n, 3, into=folder)
        if status == 0:
            break
        with point("writing a checkpoint"):
            assert status == KILLED, said(folder)
            # The checkpoint before this one is whole, or this one is.
            store.read_checked(folder / "unfinished" / store.checkpoint(ROBUST).name)
            recovers(folder)
    assert n > 8


# Killed while it trains


@pytest.mark.parametrize("name", sorted(STEPS))
def test_killed_at_any_step_of_a_training(name, forks, without, recovers, point):
    for step in range(STEPS[name]):
        folder = without(name)
        with point("a training, mid-epoch"):
            assert forks.do(dies_at_step, name, step, into=folder) == KILLED, said(folder)
            kept = folder / "unfinished" / store.checkpoint(NAMED[name]).name
            assert kept.exists() == (step > 0)
            recovers(folder)


def test_killed_at_any_time_of_a_study(forks, reference, tmp_path, recovers, point):
    n = 8
    for i in range(n):
        folder = tmp_path / f"store{i}"
        with point("a study, at any time"):
            pid = forks.start(study, into=folder)
            time.sleep(reference.seconds * (i + 0.5) / n)
            os.kill(pid, signal.SIGKILL)
            assert forks.end(pid) in (KILLED, 0)
            recovers(folder)


def test_two_race_for_one_artifact_and_one_is_killed(forks, without, reference, recovers, point):
    drawn = random.Random(0)
    for _ in range(8):
        folder = without("robust")
        with point("two processes racing for an artifact"):
            pair = [forks.start(compute, "robust", into=folder) for _ in range(2)]
            time.sleep(drawn.uniform(0, 0.6 * reference.seconds))
            victim = drawn.randrange(2)
            os.kill(pair[victim], signal.SIGKILL)
            assert forks.end(pair[1 - victim]) == 0, said(folder)
            assert forks.end(pair[victim]) in (KILLED, 0)
            assert outcome(folder) == reference.outcome
            recovers(folder)


@pytest.mark.parametrize("left", ["", "garbage", "1234\n"], ids=["killed holder", "text", "id"])
def test_a_stale_lock_keeps_nobody_waiting(left, forks, without, recovers, point):
    folder = without("ticket")
    with point("a stale lock"):
        assert forks.do(holds_the_lock, "ticket", into=folder) == KILLED
        for file in (folder / "locks").iterdir():
            file.write_text(left)
        started = time.monotonic()
        recovers(folder)
        assert time.monotonic() - started < 10
