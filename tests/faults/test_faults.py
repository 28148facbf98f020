"""Faults, made on purpose: after each, nothing that is stored is wrong or lost, the next run
completes, and the final table is that of a run that nothing happened to, byte for byte.

Each fault is a point that is counted; `pytest` prints how many were tried and survived. The column
`seconds` is wall time, so it is left out of the tables; the tensors are compared bit for bit.

Jobs run in processes that a nursery forks: it has torch imported and runs nothing itself, so a fork
is cheap and sound. Where a store must be kept from being finished too soon, the test holds a lock.
"""

import ctypes
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from jobs import PATH

from robustlib import files, specs, store
from robustlib.specs import Pretrain, Ticket, Transfer, closure

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


def compute(name: str, recompute: bool = False) -> None:
    from robustlib import run

    run(NAMED[name], recompute=recompute)


def swept(workers: int | None, scheduler: str = "") -> None:
    from robustlib import sweep

    sweep(WANTED, workers=workers, scheduler=scheduler)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_line(name: str, function: str, n: int, nth_call: int = 1) -> None:
    """Computes, and dies before the n-th line that the nth call of a function of store.py comes to,
    those of files.py in it counted; ends well if that call has fewer lines."""
    lines, calls, within = itertools.count(1), itertools.count(1), []

    def trace(frame, event, arg):
        code = frame.f_code
        if within and code.co_filename == files.__file__:
            return inside
        if (code.co_filename, code.co_name) != (store.__file__, function):
            return None
        if next(calls) == nth_call:
            within.append(frame)
            return inside
        return None

    def inside(frame, event, arg):
        if event == "line" and next(lines) == n:
            die()
        if event == "return" and frame is within[0]:
            os._exit(0)
        return inside

    checkpointing()
    sys.settrace(trace)
    compute(name)


def dies_in_write(name: str, file: str, part: float) -> None:
    """Computes, and dies when a part of a file's bytes is written."""
    real = Path.open

    @contextmanager
    def dying(path) -> Iterator:
        def write(data) -> None:
            f.write(bytes(data)[: int(part * len(data))])
            f.flush()
            die()

        with real(path, "wb") as f:
            yield SimpleNamespace(write=write)

    def opened(path, mode="r", *rest, **more):
        named = re.fullmatch(re.escape(file) + r"\.[0-9a-f]{8}\.part", path.name)
        return dying(path) if named and mode == "wb" else real(path, mode, *rest, **more)

    checkpointing()
    Path.open = opened
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


def small_files(name: str, limit: int, recompute: bool = False) -> None:
    """Computes where no file may be larger: to a writer, a disk that is full."""
    checkpointing()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        compute(name, recompute)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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


def executes(notebook: str, out: str) -> None:
    import papermill

    papermill.execute_notebook(notebook, out, progress_bar=False)


# The nursery


def nursery() -> None:
    """Forks a process for each job that is asked for on the input; says how it ended."""
    import torch

    from robustlib import run

    torch.set_num_threads(1)
    # All is imported and loaded once, here. Without a step of training: a process that has gone
    # backwards once cannot be forked into ones that do.
    warm = Ticket(replace(NATURAL, epochs=0))
    for mode in ("linear", "finetune"):
        run(Transfer(warm, "digits", mode, n_train=50, epochs=0))
    print(flush=True)  # ready
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
def forks(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """start(job, *args, into=folder) gives an id; end(id) its status; both in one: do(...)."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = PATH
    code = "import test_faults; test_faults.nursery()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment["ROBUSTLIB_STORE"] = str(tmp_path_factory.mktemp("nursery") / "store")
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes)
    process.stdout.readline()

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


def where_of(folder: Path, spec: specs.Spec) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(folder))
        return store.path(spec)


def _where(folder: Path, name: str) -> Path:
    return where_of(folder, NAMED[name])


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
    for n in range(1, 200):
        folder = without(name)
        status = forks.do(dies_at_line, name, "put", n, into=folder)
        if status == 0:
            break
        with point("writing an artifact"):
            assert status == KILLED, said(folder)
            recovers(folder)
        shutil.rmtree(folder)
    assert n > 25


def test_killed_with_a_part_of_a_file_written(forks, without, recovers, point):
    checkpoint = store.checkpoint(ROBUST).name
    written = {"ticket": (store.META, store.TENSORS, store.SUMS), "robust": (checkpoint,)}
    for name, part in itertools.product(written, (0.0, 0.5, 0.99)):
        for file in written[name]:
            folder = without(name)
            with point("writing an artifact" if name == "ticket" else "writing a checkpoint"):
                assert forks.do(dies_in_write, name, file, part, into=folder) == KILLED
                assert leftovers(folder)
                recovers(folder)


def test_killed_at_any_line_of_the_writing_of_a_checkpoint(forks, without, recovers, point):
    for n in range(1, 200):
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
        with point("a training mid-epoch"):
            assert forks.do(dies_at_step, name, step, into=folder) == KILLED, said(folder)
            kept = folder / "unfinished" / store.checkpoint(NAMED[name]).name
            assert kept.exists() == (step > 0)
            recovers(folder)


def test_killed_at_any_time_of_a_study(forks, reference, tmp_path, recovers, point):
    n, killed = 12, 0
    for i in range(n):
        folder = tmp_path / f"store{i}"
        pid = forks.start(study, into=folder)
        time.sleep(reference.seconds * (i + 0.5) / n)
        os.kill(pid, signal.SIGKILL)
        if forks.end(pid) == KILLED:
            killed += 1
            with point("a study at any time"):
                recovers(folder)
    assert killed >= n / 2, "the others had ended before"


def test_two_race_for_one_artifact_and_one_is_killed(forks, without, reference, recovers, point):
    drawn, n, killed, tried = random.Random(0), 12, 0, 0
    # How many end before they are killed depends on what else the machine does: not on n tries.
    while killed < n / 2 or tried < n:
        tried += 1
        assert tried <= 4 * n, "the others had ended before"
        folder = without("robust")
        pair = [forks.start(compute, "robust", into=folder) for _ in range(2)]
        time.sleep(drawn.uniform(0, 0.5 * reference.seconds))
        victim = drawn.randrange(2)
        os.kill(pair[victim], signal.SIGKILL)
        survivor = forks.end(pair[1 - victim])
        assert survivor == 0, said(folder)
        if forks.end(pair[victim]) == KILLED:
            killed += 1
            with point("two processes racing for an artifact"):
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


# A disk that is full, or cannot be written


def whole_checkpoints(folder: Path) -> int:
    return sum(bool(store.read_checked(file)) for file in folder.glob("unfinished/*.pt"))


@pytest.mark.parametrize(
    ("name", "limits"), [("ticket", (0, 1000, 3000)), ("robust", (0, 40_000, 120_000))]
)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_full_disk_says_so_and_nothing_is_half_stored(
    name, limits, recompute, forks, without, reference, recovers, point
):
    for limit in limits:
        folder = without("" if recompute else name)
        with point("a full disk"):
            assert forks.do(small_files, name, limit, recompute, into=folder) == 1
            assert f"PermissionError: the store {folder} cannot be written" in error(folder)
            assert "File too large" in error(folder) and "make room" in error(folder)
            assert leftovers(folder) == []
            if recompute:
                assert outcome(folder) == reference.outcome
            recovers(folder)


@pytest.mark.parametrize(("free", "checkpoints"), [(0, 0), (60_000, 0), (300_000, 1)])
def test_a_disk_that_fills_up_in_a_training_keeps_the_checkpoint_before(
    free, checkpoints, forks, without, recovers, point
):
    folder = without("robust")
    status = forks.do(small_disk, "robust", free, into=folder)
    if status == UNSUPPORTED:
        pytest.skip("a disk of its own: this system lets a user mount nothing")
    with point("a full disk"):
        assert status == 1 and "No space left on device" in error(folder), said(folder)
        assert "PermissionError: the store" in error(folder) and "make room" in error(folder)
        assert whole_checkpoints(folder) == checkpoints == len(leftovers(folder))
        recovers(folder)


def test_a_store_that_cannot_be_written_is_read_and_says_so(forks, without, recovers, point):
    folder = without("finetune")
    status = forks.do(read_only, into=folder)
    if status == UNSUPPORTED:
        pytest.skip("a read-only mount: this system lets a user mount nothing")
    with point("a read-only store"):
        assert status == 1 and "Read-only file system" in error(folder), said(folder)
        assert f"PermissionError: the store {folder} cannot be written" in error(folder)
        recovers(folder)


# Files that are not what was written


def harmed(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "a missing file":
        file.unlink()
    elif how == "a truncated file":
        file.write_bytes(data[: len(data) // 2])
    elif how == "a flipped byte":
        file.write_bytes(data[:-3] + bytes([data[-3] ^ 0xFF]) + data[-2:])
    else:
        meta = json.loads(data) | {"format": store.FORMAT + 1, "novel": []}
        file.write_text(json.dumps(meta))
        sums = file.with_name(store.SUMS)
        digests = [hashlib.sha256(d).hexdigest() for d in (data, file.read_bytes())]
        sums.write_text(sums.read_text().replace(*digests))


HARMS = [
    (how, file)
    for how in ("a flipped byte", "a truncated file", "a missing file")
    for file in (store.META, store.TENSORS, store.SUMS)
]


@pytest.mark.parametrize("name", ["natural", "ticket", "finetune"])
def test_what_is_damaged_is_named_never_used_and_cured(
    name, forks, without, reference, recovers, point
):
    for i, (how, file) in enumerate([*HARMS, ("a newer version's store", store.META)]):
        folder = without()
        with point(how):
            harmed(_where(folder, name) / file, how)
            assert forks.do(meets_damage, name, file, into=folder) == 0, said(folder)
            if i % 2:
                shutil.rmtree(_where(folder, name))
            else:
                assert forks.do(compute, name, True, into=folder) == 0, said(folder)
                assert outcome(folder) == reference.outcome
            recovers(folder)


def test_a_damaged_checkpoint_is_not_gone_on_from(forks, without, recovers, point):
    begun = without("robust")
    assert forks.do(dies_at_step, "robust", 5, into=begun) == KILLED
    name = store.checkpoint(ROBUST).name
    data = (begun / "unfinished" / name).read_bytes()
    cut = [data[: int(len(data) * part)] for part in (0, 0.3, 0.99)]
    at = random.Random(0).sample(range(len(data)), 8)
    flipped = [data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in at]
    for kind, contents in {"a truncated file": cut, "a flipped byte": flipped}.items():
        for bad in contents:
            folder = without("robust")
            (folder / "unfinished" / name).write_bytes(bad)
            with point(kind):
                recovers(folder)
                assert f"{name} cannot be read: training starts afresh" in said(folder)


def test_what_the_dead_left_of_others_is_cleared_once_it_is_old(forks, without, recovers):
    folder = without("ticket")
    unfinished = folder / "unfinished"
    done, other = specs.key(NATURAL), "0" * 20
    (unfinished / f"{done}.doomed-1").mkdir()
    for left in (f"{done}.doomed-1/meta.json", f"{done}.pt", f"{other}.pt", f"{other}.tmp"):
        (unfinished / left).touch()
    (folder / "keep").touch()
    assert forks.do(compute, "ticket", into=folder) == 0
    assert len(list(unfinished.iterdir())) == 4, "they may be in use"
    for left in unfinished.iterdir():
        os.utime(left, (0, 0))
    assert forks.do(compute, "ticket", True, into=folder) == 0
    # A training that is to be gone on with is never taken away.
    assert [p.name for p in unfinished.iterdir()] == [f"{other}.pt"] and (folder / "keep").exists()


# Sweeps


@contextmanager
def held(folder: Path, name: str) -> Iterator[None]:
    """Keeps a store from being finished."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(folder))
        with store.lock(NAMED[name]):
            yield


def until(done: Callable[[], object], what: str, seconds: float = 180) -> object:
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, f"after {seconds} s: not {what}"
        time.sleep(0.02)
    return found


def stored(folder: Path) -> int:
    return len(list(folder.glob("[prt]*/*/*/meta.json")))


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def origin_of(pid: int) -> psutil.Process:
    """The process that the workers of a sweep are copies of."""
    (found,) = [p for p in psutil.Process(pid).children() if "forkserver" in str(p.cmdline())]
    return found


def workers_of(pid: int) -> list[psutil.Process]:
    return origin_of(pid).children()


def end_without_parent(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, 20)[1]


def test_a_sweep_outlives_its_workers_and_they_do_not_outlive_it(forks, tmp_path, recovers, point):
    folder = tmp_path / "store"
    with held(folder, "finetune"):
        pid = forks.start(swept, 1, into=folder)
        until(lambda: stored(folder) >= 2, "begun")
        with point("a sweep with its scheduler"):
            left = family(pid)
            assert len(workers_of(pid)) == 1
            os.kill(pid, signal.SIGKILL)
            assert forks.end(pid) == KILLED
            assert end_without_parent(left)
            assert 2 <= stored(folder) < ARTIFACTS and lines(outcome(folder))
    with point("all workers mid-sweep, and what they are copies of"):
        with held(folder, "finetune"):
            pid = forks.start(swept, 2, into=folder)
            until(lambda: stored(folder) == ARTIFACTS - 1, "all but one")
            left = [*workers_of(pid), origin_of(pid)]
            # One of them is at the last; which one does not show.
            for process in left:
                process.kill()
        assert forks.end(pid) == 0, said(folder)
        assert end_without_parent(left)
        recovers(folder)


@contextmanager
def dask(folder: Path) -> Iterator[SimpleNamespace]:
    """A scheduler and a worker of one thread, as somebody would start them by hand."""
    file = folder / f"scheduler-{time.monotonic_ns()}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = PATH
    options = {"env": environment, "cwd": folder, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "dask"]
    ports = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    started = [subprocess.Popen([*command, "scheduler", *ports], **options)]
    try:
        until(lambda: file.exists() and file.read_text().endswith("}"), "a scheduler")
        address = json.loads(file.read_text())["address"]
        own = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        started.append(subprocess.Popen([*command, "worker", address, *own], **options))
        yield SimpleNamespace(address=address, scheduler=started[0])
    finally:
        for process in started:
            process.kill()
            process.wait(20)


def test_a_scheduler_that_dies_ends_the_sweep_and_the_next_one_goes_on(
    forks, tmp_path, recovers, reference, point
):
    folder = tmp_path / "store"
    with point("a scheduler apart"):
        with dask(tmp_path) as running, held(folder, "finetune"):
            pid = forks.start(swept, None, running.address, into=folder)
            until(lambda: stored(folder) >= 2, "begun")
            running.scheduler.kill()
            assert forks.end(pid, 45) == 1, said(folder)
        assert "SweepFailed" in said(folder) and "connection to the scheduler" in said(folder)
        assert lines(outcome(folder)) < lines(reference.outcome)
        with dask(tmp_path) as running:
            # What is damaged is named, and does not keep the rest from being done.
            assert forks.do(compute, "natural", into=folder) == 0
            with point("a flipped byte"):
                harmed(_where(folder, "natural") / store.TENSORS, "a flipped byte")
                lacking = [_where(folder, "finetune"), where_of(folder, WANTED[2])]
                for where in lacking:
                    shutil.rmtree(where, ignore_errors=True)
                assert forks.do(swept, None, running.address, into=folder) == 1
                assert f"{_where(folder, 'natural')}/{store.TENSORS} is damaged" in said(folder)
                assert [where.exists() for where in lacking] == [True, False]
                shutil.rmtree(_where(folder, "natural"))
            assert forks.do(swept, None, running.address, into=folder) == 0, said(folder)
            recovers(folder)


def test_a_notebook_whose_kernel_is_killed_is_run_again(
    forks, tmp_path, reference, recovers, point
):
    import nbformat  # not by the processes of this module, which would take a second each

    folder, csv, path = tmp_path / "store", tmp_path / "rows.csv", str(tmp_path / "study.ipynb")
    text = (
        "from test_faults import WANTED\n"
        "from robustlib import sweep\n"
        f"sweep(WANTED, 1).drop(columns='seconds').to_csv({str(csv)!r}, index=False)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(notebook, path)
    with point("a kernel mid-study"):
        with held(folder, "finetune"):
            pid = forks.start(executes, path, path, into=folder)
            until(lambda: stored(folder) >= 2, "begun")
            left = family(pid)
            (kernel,) = (p for p in left if any("ipykernel" in word for word in p.cmdline()))
            kernel.kill()
            assert forks.end(pid) == 1 and "DeadKernelError" in said(folder), said(folder)
            assert end_without_parent(left) and not csv.exists()
        assert forks.do(executes, path, path, into=folder) == 0, said(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ROBUSTLIB_STORE", str(reference.folder))
            rows = pd.DataFrame([store.get(s).row for s in WANTED]).drop(columns="seconds")
        assert csv.read_text() == rows.to_csv(index=False)
        recovers(folder)
