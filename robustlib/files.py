"""Whole files, and the checksums beside them: every file that another process may read."""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUMS = "SHA256SUMS"


@contextmanager
def whole(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end: whole, or not at all. Until
    all is on the disk, what was at `path` stays, and after a failure it does for good. The folder
    is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):  # the failure is what to tell of
            part.unlink()
        raise


def writable(name: str, folder: str | Path) -> Path:
    """A folder that `whole` can make, if need be, and write to; nothing is left in it. Raises
    ValueError that calls it `name` else."""
    try:
        path = Path(folder)
        there = next(p for p in (path, *path.parents) if p.exists() or p.is_symlink())
        tempfile.TemporaryFile(dir=there).close()
    except (OSError, TypeError) as e:
        why = getattr(e, "strerror", e)  # without the name of a file that was only a trial
        raise ValueError(f"{name}={str(folder)!r}: must be a folder to write to: {why}") from None
    return path


def sha256(data: bytes | memoryview | Path) -> str:
    """The SHA-256 of bytes, or of a file's content, in hex."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(data).hexdigest()


def sums(contents: Mapping[str, bytes | memoryview]) -> bytes:
    """Lines of a SHA256SUMS file, for contents by name, as the command sha256sum writes them."""
    return "".join(f"{sha256(data)}  {name}\n" for name, data in contents.items()).encode()


def read_sums(path: Path) -> dict[str, str]:
    """The checksums of a SHA256SUMS file by name. Raises OSError, ValueError for another file."""
    lines = path.read_text().removesuffix("\n").split("\n")
    return {name: digest for digest, name in (line.split("  ") for line in lines)}
