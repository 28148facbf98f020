"""The pages build without a warning, show every module, and link to what is there."""

import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import robustlib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page):
    text = page.read_text("utf-8")
    missing = [link for link in links(text) if not (page.parent / link).exists()]
    assert not missing


def test_links_are_found_wherever_they_stand():
    text = "[a](b.md) ![c](d/e.png), [f](g.md#h) [i](https://j) [k](#l)\n```\n[m](n)\n```\n"
    assert links(text + '<img src="o.png">') == ["b.md", "d/e.png", "g.md", "o.png"]


def test_the_tables_of_the_pages_are_those_of_the_rows():
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    for name in tables["PAGES"]:
        page = (ROOT / name).read_text("utf-8")
        assert tables["filled"](page) == page, "python docs/tables.py"
        assert "<!-- /verdicts" in page and "undecided" in page


def test_a_table_changes_with_its_rows(monkeypatch):
    tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    page = (ROOT / "README.md").read_text("utf-8")
    moved = tables["rows"]("claims").assign(verdict="supported")
    monkeypatch.setitem(tables["filled"].__globals__, "rows", lambda name: moved)
    assert tables["filled"](page) != page


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8192
