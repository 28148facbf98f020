"""The pages build without a warning, show every module, and link to what is there."""

import io
import pkgutil
import re
import runpy
import subprocess
import sys
from base64 import b64encode
from functools import partial
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat import v4 as nbf
from PIL import Image

import robustlib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.md"))
MODULES = [m.name for m in pkgutil.iter_modules(robustlib.__path__) if m.name[0] != "_"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of HTML that `make docs` would write, in a place of its own."""
    out = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(out / "trees"), "docs", str(out / "html")],
        **{"cwd": ROOT, "capture_output": True, "text": True},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return out / "html"


def test_the_pages_build_and_the_api_has_a_section_for_every_module(built):
    page = (built / "api.html").read_text("utf-8")
    sections = set(re.findall(r'id="module-robustlib\.(\w+)"', page))
    assert sections == set(MODULES)
    # The way in, with its docstring and its parameters, from the code.
    assert re.search(r'id="robustlib\.stages\.(\w+\.)?run"', page) and "recompute" in page
    assert {page.stem for page in PAGES[2:]} <= {html.stem for html in built.glob("*.html")}


def links(text: str) -> list[str]:
    """Where links and pictures of a page lead to in the repository, without their anchors."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(<?([^)>\s]+)", text) + re.findall(r'\bsrc="([^"]+)"', text)
    paths = [link.partition("#")[0] for link in found if not re.match(r"[a-z]+:", link)]
    return [path for path in paths if path]


@pytest.mark.parametrize("page", PAGES + GALLERY, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page):
    text = page.read_text("utf-8")
    missing = [link for link in links(text) if not (page.parent / link).exists()]
    assert not missing


def test_links_are_found_wherever_they_stand():
    text = "[a](b.md) ![c](d/e.png), [f](g.md#h) [i](https://j) [k](#l)\n```\n[m](n)\n```\n"
    assert links(text + '<img src="o.png">') == ["b.md", "d/e.png", "g.md", "o.png"]


def test_the_tables_of_the_pages_are_those_of_the_rows():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for name, folder in tables["PAGES"].items():
        page = (ROOT / name).read_text("utf-8")
        assert tables["filled"](page, folder) == page, "python docs/tables.py"
        assert "<!-- /verdicts" in page or folder == "figures/control"


def test_a_table_changes_with_its_rows(monkeypatch):
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    page = (ROOT / "README.md").read_text("utf-8")
    moved = tables["rows"]("figures", "claims").assign(verdict="supported")
    monkeypatch.setitem(tables["filled"].__globals__, "rows", lambda *_: moved)
    assert tables["filled"](page, "figures") != page


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8192


def executed(path: Path, *cells) -> Path:
    """A notebook of code cells (source, outputs) as it is after a run."""
    links = "[Own](01_own.ipynb), [next](02_next.ipynb), [rows](../figures/a.csv)"
    made = [nbf.new_markdown_cell(f"## A section\n\n{links}")]
    for i, (source, outputs) in enumerate(cells):
        made.append(nbf.new_code_cell(source, outputs=outputs, execution_count=i + 1))
    nbformat.write(nbf.new_notebook(cells=made), path)
    return path


def test_the_gallery_shows_what_an_executed_notebook_shows(tmp_path, capsys):
    tool = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(png := io.BytesIO(), "png")
    show = partial(nbf.new_output, "display_data")
    bundle = {"image/png": b64encode(png.getvalue()).decode(), "text/plain": "<Figure>"}
    cells = [
        ('profile = "cpu"\nfigures = "/home/me/runs"', []),
        ("# comment\ndraw()", [show(data={"text/html": ""}), show(data=bundle)]),
        ("frame", [show(data={"text/html": "<style scoped>td {}</style><table></table>"})]),
        ("print(1)", [nbf.new_output("stream", text="one\n")]),
    ]
    notebook = nbformat.read(executed(tmp_path / "01_own.ipynb", *cells), 4)
    notebook.cells[1].metadata["tags"] = ["injected-parameters"]
    given = {"execution_count": 9, "outputs": [show(data=bundle)], "id": "examples"}
    notebook.cells.append(nbf.new_code_cell("images", **given))
    nbformat.write(notebook, tmp_path / "01_own.ipynb")
    tool["main"](tmp_path, tmp_path / "out")
    assert "1 pages written" in capsys.readouterr().out
    page = (tmp_path / "out" / "01_own.md").read_text("utf-8")
    assert "[Own](01_own.md), [next](../../notebooks/02_next.ipynb)" in page
    assert "[rows](../../figures/a.csv)" in page
    assert 'profile = "cpu"' in page and "/home/me" not in page and "<style" not in page
    assert "terms of its own" in page  # and its picture is not the one that is found below
    assert "<table></table>" in page and "    one\n" in page
    (name,) = re.findall(r"!\[A section\]\((.+)\)", page)
    seen = Image.open(tmp_path / "out" / name)
    assert seen.size == (80, 60) and seen.mode == "P"
    assert np.abs(np.asarray(seen.convert("RGB"), float) - noise).mean() < 30


def test_the_gallery_takes_no_notebook_that_failed_or_has_not_run(tmp_path):
    tool = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    error = nbf.new_output("error", ename="ValueError", evalue="bad", traceback=[])
    with pytest.raises(ValueError, match="01_own.ipynb: a cell failed: 'run"):
        tool["page"](executed(tmp_path / "01_own.ipynb", ("run()", [error])))
    with pytest.raises(ValueError, match="a cell has not run"):
        tool["page"](ROOT / "notebooks" / "03_transfer.ipynb")
    with pytest.raises(SystemExit, match="no executed notebooks"):
        tool["main"](tmp_path / "none", tmp_path / "out")


def test_the_committed_gallery_is_light_and_tells_of_no_machine():
    files = [path for path in (ROOT / "docs" / "gallery").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    for page in GALLERY:
        text = page.read_text("utf-8")
        assert not re.search(r"/(tmp|work|home|root)/|127\.0\.0\.1", text), page.name
        assert "HBox(" not in text and "model not found" not in text
