"""The data sets by name: where each comes from and how it becomes a pack."""

from __future__ import annotations

import os
from pathlib import Path

from robustlib.specs import one_of


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the packs: `root`, else $ROBUSTLIB_DATA, else ~/.cache/robustlib."""
    return Path(root or os.environ.get("ROBUSTLIB_DATA") or "~/.cache/robustlib").expanduser()


def find(name: str, size: int, root: str | Path | None = None) -> tuple[Path, tuple[int, int]]:
    """The pack of `name` and its stamp (time changed, bytes)."""
    folder = data_root(root)
    one_of("dataset", name, sorted(p.stem for p in folder.glob("*.npz")))
    path = folder / f"{name}.npz"
    stat = path.stat()
    return path, (stat.st_mtime_ns, stat.st_size)
