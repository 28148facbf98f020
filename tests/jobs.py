"""Jobs of tests that workers run: a module without robustlib and torch, which take them seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path


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
