"""JupyterLab as a person has it before them: started as `make lab` does, used by mouse and keys."""

import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nbformat
import papermill
from helpers import ROOT, TESTS

TINY = str(TESTS / "browser" / "tiny.toml")
SHOTS = ROOT / "build" / "browser"
# As root, on a machine without a network, a screen or a GPU.
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SETTINGS = "@jupyterlab/apputils-extension"
RUN_SECONDS, SECONDS = 180, 40


@dataclass(frozen=True)
class Lab:
    """A server. root: the folder it serves; store: where its kernels keep results."""

    url: str
    token: str
    root: Path
    store: Path

    def put(self, name: str, end: str = "", **given: Any) -> Path:
        """A copy of a notebook with these parameters, and a text at its end, where it can be
        opened."""
        path = self.root / "notebooks" / f"{name}.ipynb"
        source = ROOT / "notebooks" / path.name
        options = {"prepare_only": True, "progress_bar": False}
        notebook = papermill.execute_notebook(source, None, parameters=given, **options)
        if end:
            notebook.cells.append(nbformat.v4.new_markdown_cell(end))
        nbformat.write(notebook, path)
        return path

    def open(self, browser: Any, path: Path, width: int = 1200, dark: bool = False) -> Any:
        """A page with the notebook, its kernel ready."""
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(1000 * SECONDS)
        theme = {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"}
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        for name, value in (("themes", theme), ("notification", quiet)):
            page.request.put(
                f"{self.url}/lab/api/settings/{SETTINGS}:{name}?token={self.token}",
                data=json.dumps({"raw": json.dumps(value)}),
            )
        where = path.relative_to(self.root)
        space = secrets.token_hex(4)  # a window of its own, without the tabs of others
        page.goto(f"{self.url}/lab/workspaces/{space}/tree/{where}?token={self.token}")
        ready(page)
        return page

    def end_kernels(self) -> None:
        """Ends what runs."""
        with self.ask("GET", "sessions") as answer:
            found = json.load(answer)
        for session in found:
            self.ask("DELETE", f"sessions/{session['id']}").close()

    def ask(self, method: str, what: str) -> Any:
        """A request to the server's own interface."""
        return urlopen(Request(f"{self.url}/api/{what}?token={self.token}", method=method))


@contextmanager
def serve(root: Path, own: Path, environment: dict[str, str]) -> Iterator[Lab]:
    """JupyterLab over `root` with the options of `make lab`; what is its own it writes to `own`."""
    dry = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True)
    (line,) = [x for x in dry.stdout.splitlines() if "-m jupyterlab" in x]
    options = shlex.split(line)[3:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options += ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={token}"]
    kinds = ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME")
    kinds += ("JUPYTERLAB_SETTINGS", "JUPYTERLAB_WORKSPACES")
    folders = {f"{kind}_DIR": str(own / kind.lower()) for kind in kinds}
    folders |= {"IPYTHONDIR": str(own / "ipython")}
    log = own / "lab.log"
    with log.open("w") as to:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            cwd=root,
            env=os.environ | folders | environment,
            stdout=to,
            stderr=subprocess.STDOUT,
        )
        lab = Lab(f"http://127.0.0.1:{port}", token, root, Path(environment["ROBUSTLIB_STORE"]))
        try:
            for _ in range(10 * 60):
                try:
                    lab.ask("GET", "status").close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.1)
            yield lab
        finally:
            process.terminate()
            process.wait(30)


def ready(page: Any) -> None:
    """Waits until the notebook is there and its kernel is idle."""
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text(re.compile(r"\| Idle$")).wait_for()


def menu(page: Any, *names: str) -> None:
    """Chooses from the menu bar: menu("Run", "Run All Cells")."""
    for name in names:
        page.get_by_role("menuitem", name=name, exact=True).click()


def run_all(page: Any) -> None:
    """Runs every cell to the end, as in `finish`."""
    menu(page, "Run", "Run All Cells")
    finish(page)


def finish(page: Any) -> None:
    """Waits until every cell has run; fails at the first red box."""
    # Not as it is seen: what is scrolled away has no text then.
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    for _ in range(5 * RUN_SECONDS):
        assert not red(page), red(page)
        found = prompts.all_text_contents()
        if found and all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in found):
            break
        time.sleep(0.2)
    else:
        raise AssertionError(f"after {RUN_SECONDS} s the cells are {found}")
    page.get_by_text(re.compile(r"\| Idle$")).wait_for()
    assert not red(page), red(page)


def save(page: Any) -> None:
    """Saves the notebook, and waits until it is on the disk."""
    page.keyboard.press("Control+s")
    page.locator(".lm-TabBar-tab.jp-mod-dirty").wait_for(state="detached")


def red(page: Any) -> list[str]:
    """What stands in red boxes: errors, and what was written to stderr."""
    kinds = ("error", "stderr")
    boxes = ", ".join(f'.jp-Notebook [data-mime-type="application/vnd.jupyter.{k}"]' for k in kinds)
    return page.locator(boxes).all_text_contents()


def cell(page: Any, start: str) -> Any:
    """The cell whose code has a line that starts so, brought into view."""
    lines = page.locator(".cm-line").filter(has_text=re.compile("^" + re.escape(start)))
    found = page.locator(".jp-CodeCell").filter(has=lines)
    found.scroll_into_view_if_needed()
    return found


def says(where: Any, text: str, seconds: float = SECONDS) -> None:
    """Waits until a text is seen there, a regular expression."""
    seen = where.get_by_text(re.compile(text)).filter(visible=True)
    seen.first.wait_for(timeout=1000 * seconds)


def picture(where: Any) -> str:
    """The one picture that is seen there, as a digest of its bytes."""
    seen = where.locator("img:visible")
    seen.first.wait_for()
    assert seen.count() == 1, f"{seen.count()} pictures"
    data = seen.evaluate(
        "async i => Array.from(new Uint8Array(await (await fetch(i.src)).arrayBuffer()))"
    )
    return hashlib.sha256(bytes(data)).hexdigest()


def changed(where: Any, before: str) -> str:
    """The picture once it is another one."""
    for _ in range(10 * SECONDS):
        if (now := picture(where)) != before:
            return now
        time.sleep(0.1)
    raise AssertionError("the picture stays as it was")


def shoot(page: Any, name: str, where: Any = None) -> None:
    """Keeps a screenshot for the contact sheet, with `where` at its top."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    for _ in range(2 if where else 0):
        where.evaluate("element => element.scrollIntoView()")
        page.wait_for_timeout(200)  # what comes into view is laid out only now
    page.screenshot(path=SHOTS / f"{name}.png")
