"""What a grid lacks, and a sweep of it in a process of its own, so that the kernel stays free."""

from __future__ import annotations

import asyncio
import atexit
import html
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from robustlib import cluster, profiles, specs, store, sweeps
from robustlib.explorer.choices import as_json
from robustlib.explorer.panel import REFUSED, Drawn, Panel, button
from robustlib.specs import Pretrain, Spec, Ticket, Transfer

COMMAND = "import sys; from robustlib.cli import main; sys.exit(main())"
EVERY = 15.0
"""Seconds between two looks at what is new, while a sweep runs."""
AXES = ("seeds", "eps", "tasks", "modes", "sparsities")
BARS = {"running": "", "done": "success", "failed": "danger", "cancelled": "warning"}


def sort(spec: Spec) -> str:
    """The specs that take as long, by their arithmetic: "transfer linear"."""
    by = {Pretrain: "objective", Ticket: "scheme", Transfer: "mode"}.get(type(spec), "suite")
    return f"{specs.kind(spec)} {getattr(spec, by)}"


def minutes(missing: list[Spec], workers: int) -> tuple[float, list[str]]:
    """How long specs take on so many workers (0: one a GPU, or else one a core), by the seconds of
    stored results of their sort, in proportion to their arithmetic; and the sorts of which nothing
    is stored: those are guessed."""
    per: dict[str, list[float]] = {sort(spec): [] for spec in missing}
    for kind in {type(spec) for spec in missing}:
        for a in store.artifacts(kind, []):
            if len(per.get(sort(a.spec), ())) < 50 and sort(a.spec) in per:
                per[sort(a.spec)].append(a.row["seconds"] / sweeps.job(a.spec).cost)
    guess = [1 / profiles.SPEEDS["one core"]]
    pace = {name: statistics.median(found or guess) for name, found in per.items()}
    seconds = [sweeps.job(spec).cost * pace[sort(spec)] for spec in missing]
    workers = workers or len(cluster.gpus()) or os.cpu_count() or 1
    unknown = [name for name, found in per.items() if not found]
    return max(sum(seconds) / workers, *seconds, 0.0) / 60, unknown


@dataclass
class Sweep:
    """A sweep in a process of its own, whose output goes to `log`."""

    missing: list[Spec]
    process: subprocess.Popen[bytes]
    log: Path
    cancelled: bool = False

    @property
    def state(self) -> str:
        """running, done, failed or cancelled."""
        code = self.process.poll()
        if code is None:
            return "running"
        return "done" if code == 0 else "cancelled" if self.cancelled else "failed"

    def done(self) -> int:
        """How many of its specs are stored."""
        return sum(map(store.has, self.missing))

    def cancel(self) -> None:
        """Ends it; what it has stored stays, and the next one goes on from there."""
        if self.state == "running":
            self.cancelled = True
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self.process.pid, signal.SIGTERM)  # its workers too
            self.process.wait()

    def reason(self) -> str:
        """The last line of its log that says what failed, and why: not one of a traceback, nor of
        what was not begun because of it."""
        lines = [x for x in self.log.read_text("utf-8", "replace").splitlines() if x.strip()]
        own = [x for x in lines if not x.startswith(" ") and ": not done: needs " not in x]
        return own[-1] if own else "it says nothing"


_started: list[Sweep] = []


@atexit.register
def cancel_all() -> None:
    """Ends what runs in the background, as when the kernel is shut down."""
    for sweep in _started:
        sweep.cancel()


def start(wanted: list[Spec], workers: int) -> Sweep:
    """Starts a sweep of what is lacking, on so many workers (0: as many as `sweep` takes then).

    What it writes, its log among it, is in the store's folder `explorer`. Raises RuntimeError where
    one runs, ValueError where nothing is lacking.
    """
    if any(sweep.state == "running" for sweep in _started):
        raise RuntimeError("a sweep is running: wait for it, or cancel it")
    if not (missing := store.lacking(wanted)):
        raise ValueError("nothing is lacking: all of it is stored")
    root = store.root().resolve()
    file = root / "explorer" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_json(wanted), "utf-8")
    call = [sys.executable, "-c", COMMAND, "sweep", str(file)]
    call += ["--csv", str(file.with_suffix(".csv")), *(["--workers", str(workers)] * bool(workers))]
    with file.with_suffix(".log").open("wb") as log:
        env = os.environ | {"ROBUSTLIB_STORE": str(root), "TQDM_DISABLE": "1"}
        # A session of its own: an interrupt of the kernel is not meant for it.
        session: Any = {"start_new_session": True, "stdin": subprocess.DEVNULL, "env": env}
        process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT, **session)
    _started[:] = [Sweep(missing, process, file.with_suffix(".log"))]
    return _started[0]


class Runner(Panel):
    """A grid, what it lacks, and the sweep of that. after: called when more is stored."""

    def __init__(self, profile: str, workers: int, after: Callable[[], Any]) -> None:
        self.after, self.seen, self.due = after, 0, 0.0
        self.sweep: Sweep | None = None
        known = profiles.profiles()
        known += [f"{name}:{own}" for name in known for own in profiles.ablations(name)]
        self.bar, self.state, self.answer = widgets.IntProgress(), widgets.HTML(), widgets.HTML()
        buttons = [button("start", self.start), button("cancel", self.cancel), self.bar]
        controls: dict[str, Any] = {"profile": widgets.Combobox(value=profile, options=known)}
        controls |= {name: widgets.Text(placeholder="all") for name in AXES}
        controls["workers"] = widgets.BoundedIntText(workers, min=0, max=1024)
        super().__init__(self.plan, controls, [], [widgets.HBox(buttons), self.state, self.answer])

    def wanted(self) -> list[Spec]:
        """The chosen grid."""
        axes = {name: self.controls[name].value for name in AXES}
        return list(profiles.grid(self.controls["profile"].value, **axes))

    def plan(self) -> Drawn:
        """What the chosen grid lacks, and how long it takes."""
        grid, workers = self.wanted(), self.controls["workers"].value
        missing = store.lacking(grid)
        if not missing:
            return [], f"{len(grid)} transfers, all stored."
        needed, unknown = minutes(missing, workers)
        counts = Counter(specs.kind(spec) for spec in missing)
        lack = ", ".join(f"{n} {kind}" for kind, n in counts.items())
        guess = f" (a guess for {', '.join(unknown)}: none is stored)" * bool(unknown)
        said = f"{len(grid)} transfers; to compute: {lack}; about {needed:.2g} minutes, by the "
        return [], f"{said}seconds of stored results of their kind{guess}."

    def start(self) -> None:
        """Starts what is lacking, and follows it where there is an event loop, as in a kernel."""
        try:
            self.sweep = start(self.wanted(), self.controls["workers"].value)
        except REFUSED as e:
            self.answer.value = html.escape(f"not started: {e}")
            return
        self.answer.value = ""
        self.bar.max, self.seen = len(self.sweep.missing), 0
        if self.show() == "running":
            with suppress(RuntimeError):  # no loop: whoever started it asks `show`
                self.follower = asyncio.get_running_loop().create_task(self.follow())

    def cancel(self) -> None:
        """Ends the sweep that runs."""
        if self.sweep is not None:
            self.sweep.cancel()
            self.answer.value = ""
            self.show()

    async def follow(self) -> None:
        """Shows how far the sweep is until it ends. In the kernel's own loop and not in a thread,
        for matplotlib draws in one at a time."""
        while self.show() == "running":
            await asyncio.sleep(1)

    def show(self) -> str:
        """How far the sweep is, on the page; returns its state."""
        sweep = self.sweep
        if sweep is None:
            return ""
        state, done = sweep.state, sweep.done()
        self.bar.value, self.bar.bar_style = done, BARS[state]
        said = f"{state}: {done} of {len(sweep.missing)} stored"
        if state == "failed":
            said += f"; {sweep.reason()}; the traceback is in {sweep.log}"
        self.state.value = html.escape(said)
        if state != "running":
            self.redraw()
        if done != self.seen and (state != "running" or time.monotonic() > self.due):
            self.seen, self.due = done, time.monotonic() + EVERY
            self.after()
        return state


def runner(
    profile: str = "quick", workers: int = 0, after: Callable[[], Any] = lambda: None
) -> Runner:
    """The part Run. profile: the grid that is chosen first; workers: processes, 0: one a GPU, or
    else one a core; after: called when more is stored, `tradeoff(...).reload` for one."""
    return Runner(profile, workers, after)
