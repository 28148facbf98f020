"""The store: one folder an artifact, addressed by the key of its spec.

    ROOT/pretrain/3f/3f0c.../meta.json            spec, row, curve, versions
    ROOT/pretrain/3f/3f0c.../tensors.safetensors  weights, a mask, ...
    ROOT/pretrain/3f/3f0c.../SHA256SUMS           of the two, as sha256sum writes them

    ROOT/unfinished/3f0c...pt                     checkpoint of a training that goes on
    ROOT/locks/3f0c...lock                        held by the process that computes it

An artifact is written in unfinished/ and renamed to its place, so it is whole or absent. ROOT is
$ROBUSTLIB_STORE, else runs/store in the clone of the project, else ./runs/store.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from robustlib import files, specs
from robustlib.files import SUMS
from robustlib.specs import Spec

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FORMAT = 1
META, TENSORS, UNFINISHED = "meta.json", "tensors.safetensors", "unfinished"
ABANDONED_SECONDS = 86400.0
"""What a writer left unfinished and nobody touched for so long is taken for a dead one's."""


class Damaged(RuntimeError):
    """A stored file is not what was written; the message names it."""


class Superseded(Damaged):
    """What is stored was measured by an earlier edition of its measure (`specs.EDITIONS`)."""


@dataclass(frozen=True)
class Artifact:
    """What `run` returns: a stored result."""

    spec: Spec
    row: dict[str, Any]
    """Spec fields and measures, flat: a row of `frame`."""
    extra: dict[str, Any]
    """What does not fit a row: the training curve, class names, shapes."""
    path: Path

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, their checksum verified. Raises Damaged, and ValueError for a row
        that was stored without any, as one that came from another machine may be."""
        from safetensors.torch import load

        if not (self.path / TENSORS).exists() and TENSORS not in _sums(self.path):
            raise ValueError(
                f"{self.path}: is stored without its tensors, as a row that came from elsewhere; "
                f"to compute them: run({specs.as_python(self.spec)}, recompute=True)"
            )
        return load(_read(self.path, TENSORS))


def root() -> Path:
    """The folder of the store; it may not exist yet."""
    # The clone and not the current folder: a notebook and the command line share one store.
    clone = Path(__file__).parents[1]
    home = clone if (clone / "notebooks").is_dir() else Path()
    return Path(os.environ.get("ROBUSTLIB_STORE") or home / "runs" / "store").expanduser()


def path(spec: Spec) -> Path:
    """Where a spec's artifact is, or would be."""
    key = specs.key(spec)
    return root() / specs.kind(spec) / key[:2] / key


def has(spec: Spec) -> bool:
    """Whether the spec's artifact is stored."""
    return path(spec).exists()


def has_tensors(spec: Spec) -> bool:
    """Whether the spec's artifact is stored with its tensors, not as a row alone."""
    return (path(spec) / TENSORS).exists()


def lacking(wanted: Iterable[Spec]) -> list[Spec]:
    """What must be computed for specs, what they are built on first. A stored result needs nothing
    below it."""
    return [s for s in specs.closure(s for s in wanted if not has(s)) if not has(s)]


def get(spec: Spec) -> Artifact:
    """The stored artifact of a spec. Raises KeyError when there is none, Damaged when a file
    differs from its checksum or was written by a newer version of the library."""
    if not has(spec):
        raise KeyError(f"{specs.kind(spec)} {specs.key(spec)} is not in the store {root()}")
    return _load(path(spec))


def put(
    spec: Spec,
    row: dict[str, Any],
    tensors: dict[str, Tensor] | None = None,
    extra: dict[str, Any] | None = None,
    replace: bool = False,
) -> Artifact:
    """Stores a result, whole or not at all, and returns its artifact; one that is there already
    stays, or is replaced once the new one is on the disk. Hold `lock` meanwhile if other processes
    may want the same. Raises PermissionError when the store cannot be written or is full."""
    from safetensors.torch import save

    meta = {"format": FORMAT, "kind": specs.kind(spec), "key": specs.key(spec)}
    meta |= {"spec": specs.to_dict(spec), "row": row, "extra": extra or {}, "versions": versions()}
    contents = {META: json.dumps(meta, indent=1).encode()}
    if tensors:
        contents[TENSORS] = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    contents[SUMS] = files.sums(contents)
    where = path(spec)
    staged = _aside(where.name, "staged")
    with _writing():
        where.parent.mkdir(parents=True, exist_ok=True)
        try:
            for name, data in contents.items():
                with files.whole(staged / name) as file:
                    file.write(data)
            if replace and where.exists():
                # Renamed first: no reader meets a half-deleted artifact. A full disk allows it.
                doomed = _aside(where.name, "doomed")
                where.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            try:
                staged.rename(where)
            except OSError:  # onto a folder that is not empty: somebody stored it first
                if not where.exists():
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return _load(where)


@contextmanager
def lock(spec: Spec) -> Iterator[None]:
    """Held while an artifact is computed; the kernel frees it when its holder dies. Whoever takes
    it clears away what killed writers of that artifact left."""
    with _writing():
        held = FileLock(root() / "locks" / f"{specs.key(spec)}.lock").acquire()
    with held:
        _clear(specs.key(spec))
        yield


def checkpoint(spec: Spec) -> Path:
    """Where the unfinished training of a spec is kept."""
    return root() / UNFINISHED / f"{specs.key(spec)}.pt"


def _aside(key: str, what: str) -> Path:
    return root() / UNFINISHED / f"{key}.{what}-{os.urandom(4).hex()}"


def write_checked(file: Path, data: bytes | memoryview) -> None:
    """Writes a file of the store, whole or not at all, behind a line of SHA256SUMS of its own.
    Raises PermissionError when the store cannot be written or is full; what was there stays."""
    with _writing(), files.whole(file) as out:
        out.write(files.sums({file.name: data}))
        out.write(data)


def read_checked(file: Path) -> bytes:
    """What `write_checked` wrote. Raises Damaged when it is not that."""
    line, _, data = file.read_bytes().partition(b"\n")
    if line + b"\n" != files.sums({file.name: data}):
        raise Damaged(f"{file} is damaged: its checksum is another")
    return data


def artifacts(cls: type, damaged: list[Damaged] | None = None) -> Iterator[Artifact]:
    """All stored artifacts of one kind of spec, by key; not those of an earlier edition of their
    measure. Raises Damaged, or appends it to `damaged` and goes on."""
    folder = root() / specs.kind(cls)
    for where in sorted(folder.glob("[0-9a-f]*/[0-9a-f]*")):
        try:
            yield _load(where)
        except Superseded:
            continue
        except Damaged as e:
            if damaged is None:
                raise
            damaged.append(e)


def frame(cls: type) -> pd.DataFrame:
    """The tidy table of all stored results of one kind: `store.frame(Transfer)`.

    A row a result; columns are the spec's fields, nested ones flattened (`specs.columns`), what was
    measured (none in an empty table), and the versions it was measured with.
    """
    import pandas as pd

    rows = [a.row for a in artifacts(cls)]
    return pd.DataFrame(rows, columns=None if rows else [*specs.columns(cls()), "key", *versions()])


def rows(wanted: Iterable[specs.Spec]) -> pd.DataFrame | None:
    """The rows of the results of specs, in their order; None unless all are stored."""
    import pandas as pd

    wanted = list(wanted)
    return pd.DataFrame([get(s).row for s in wanted]) if all(map(has, wanted)) else None


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from robustlib import __version__

    own = {"robustlib_version": __version__, "python_version": platform.python_version()}
    return own | {f"{name}_version": _version(name) for name in ("torch", "numpy", "scikit-learn")}


_version = cache(version)  # The description of an installed package takes 10 ms to parse.


def _sums(where: Path) -> dict[str, str]:
    try:
        return files.read_sums(where / SUMS)
    except (OSError, ValueError) as e:
        raise _damaged(where / SUMS, str(e)) from None


def _read(where: Path, name: str) -> bytes:
    expected = _sums(where).get(name)
    try:
        data = (where / name).read_bytes()
    except OSError as e:
        raise _damaged(where / name, str(e)) from None
    if (found := files.sha256(data)) != expected:
        says = f"{SUMS} says {expected[:12]}" if expected else f"{SUMS} does not list it"
        raise _damaged(where / name, f"its checksum is {found[:12]}, {says}")
    return data


def _load(where: Path) -> Artifact:
    meta = json.loads(_read(where, META))
    written = meta.get("versions", {}).get("robustlib_version", "of another kind")
    by = f"{where / META}: written by robustlib {written}"
    if meta["format"] > FORMAT:
        raise Damaged(f"{by} in format {meta['format']}; this version reads up to {FORMAT}")
    try:
        spec = specs.from_dict(specs.KINDS[meta["kind"]], meta["spec"])
    except (KeyError, ValueError) as e:
        raise Damaged(f"{by}, holds a spec that this version does not know: {e}") from None
    if where.name in specs.earlier_keys(spec):
        raise Superseded(f"{by}, is of an earlier edition of its measure")
    # A folder moved by hand, or a default that was changed: it would pass for another experiment.
    if specs.key(spec) != where.name:
        raise Damaged(f"{by}, holds the result of {specs.key(spec)}, not of {where.name}")
    row = specs.columns(spec) | meta["row"] | {"key": meta["key"]} | meta["versions"]
    return Artifact(spec, row, meta["extra"], where)


def _clear(own: str) -> None:
    """Deletes what killed writers left of the artifact whose lock is held, and of any other what
    is long abandoned. A checkpoint stays until its result is stored."""
    now = time.time()
    for left in (root() / UNFINISHED).glob("*"):
        key = left.name.split(".")[0]
        with suppress(OSError):  # what cannot be deleted is in nobody's way
            if key != own and now - left.stat().st_mtime < ABANDONED_SECONDS:
                continue
            if left.is_dir():
                shutil.rmtree(left)
            elif left.suffix != ".pt" or any(root().glob(f"*/{key[:2]}/{key}")):
                left.unlink()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        room = "make room, or " if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise PermissionError(
            f"the store {root()} cannot be written ({e}); "
            f"{room}set ROBUSTLIB_STORE to a folder where it can be"
        ) from e


def _damaged(file: Path, reason: str) -> Damaged:
    cure = "To compute it again: run(spec, recompute=True), or delete its folder"
    return Damaged(f"{file} is damaged: {reason}. {cure}")
