"""The command that makes a network from your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from robustlib.cli.app import app, warnings_as_lines


@app.command
def fit(
    what: str,
    /,
    *,
    parameters: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    effort: Literal["quick", "full"] = "quick",
    out: Path | None = None,
    n_train: int | None = None,
    workers: int | None = None,
) -> None:
    """Choose the best ticket of the zoo for your images and a budget, and write it as ONNX.

    It needs no network, and goes on where it was interrupted. For example:

        robustlib fit photos --bytes 250000 --latency 0.2

    Args:
        what: A folder of class folders, as `robustlib data build` takes it, or the name of a set.
        parameters: Numbers that the network may hold at most, zeros included.
        bytes: Size of its ONNX file at most, through gzip.
        latency: Milliseconds for one image at most, on one thread of this machine.
        effort: quick tries one natural and one robust network, on 1,000 images at most; full tries
            six, on all images, for longer.
        out: Folder for the network, its card and classify.py (default: fit/NAME
            beside the store).
        n_train: Training images at most, instead of those of the effort.
        workers: Processes, one thread each (default: one a GPU, or else one a core).
    """
    from robustlib import fit as fits
    from robustlib.takeaway import told

    budget = fits.Budget(parameters, bytes, latency)
    with warnings_as_lines():
        planned = fits.plan(what, budget, effort, n_train, workers)
    found = fits.fit(planned, out)
    print(f"\n{told(found.card)}\n\n{found.folder}: card.json, classify.py and the networks")
