"""What tests have other processes do: a module that imports little, which each of them would."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# For processes that import a test file by its name, as the workers of a sweep do.
PATH = os.pathsep.join(map(str, [*sorted(p for p in TESTS.iterdir() if p.is_dir()), TESTS, ROOT]))


def note(file: Path, text: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    with open(file, "a") as f:
        f.write(f"{text}\n")


def tell(file: Path, *names: str) -> None:
    note(file, " ".join(f"{n}={os.environ.get(n)}" for n in names), 0.5)


def fail_until(file: Path, times: int) -> None:
    note(file, "try")
    if len(Path(file).read_text().splitlines()) <= times:
        raise OSError(f"no luck, {times} times")


def hog() -> None:
    got = []
    while True:
        got.append(bytearray(os.urandom(2**20)) * 32)
        time.sleep(0.01)


def failing(how: str) -> None:
    """Of two processes that train together one fails."""
    import torch
    import torch.distributed as dist

    if dist.get_rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("lr=3: too much")
    dist.all_reduce(torch.zeros(1))  # for ever, if nobody ended it
