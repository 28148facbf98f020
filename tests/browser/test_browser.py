"""The notebooks in JupyterLab: run to the end, their widgets used, and what the page then shows.

What is looked at is the page, never the kernel: a picture is its bytes, a text what can be read.
"""

import re

import pytest
from lab import TINY, cell, changed, finish, menu, picture, ready, run_all, save, shoot


@pytest.fixture
def page(server, browser, request):
    """Opens a notebook with these parameters; its kernel ends with the test. What is seen when a
    test fails is kept as failed-TEST.png."""
    opened = []

    def opens(name, end="", width=1200, dark=False, **given):
        path = server.put(name, end, **given)
        opened.append(server.open(browser, path, width, dark))
        return opened[-1]

    yield opens
    for page in opened:
        if request.session.testsfailed:
            shoot(page, f"failed-{request.node.name}")
        page.close()
    server.end_kernels()


def test_transfer_runs_and_its_buttons_and_menus_redraw(page, server):
    lab = page("03_transfer", "![seen](../figures/detail.png)", profile=TINY, workers=1)
    menu(lab, "Run", "Run All Cells")
    # The bar while it runs, and what is left of it.
    sweep = cell(lab, "frame = sweep(")
    sweep.get_by_text(re.compile(r"^dashboard: http://.*\n?.*/22 \|")).wait_for()
    shoot(lab, "03-running")
    finish(lab)
    text = sweep.locator(".jp-OutputArea").inner_text()
    assert re.search(r"^sweep: 22/22 in \d\d:\d\d, failed 0, cached 8$", text, re.M)
    assert "dashboard" not in text and "|" not in text
    explorer = cell(lab, "explorer.transfers(")
    first = picture(explorer)
    shoot(lab, "03-accuracy", explorer)
    explorer.get_by_role("button", name="robust − natural").click()
    second = changed(explorer, first)
    shoot(lab, "03-difference", explorer)
    explorer.get_by_label("seed").select_option(index=0)
    third = changed(explorer, second)
    shoot(lab, "03-one-seed", explorer)
    explorer.get_by_label("seed").select_option(index=[0, 1])
    assert changed(explorer, third) == second
    explorer.get_by_role("button", name="accuracy").click()
    assert changed(explorer, second) == first


def test_a_link_to_figures_works(page):
    lab = page("03_transfer", "![seen](../figures/detail.png) [rows](../figures/claims.csv)")
    seen = lab.get_by_alt_text("seen")
    seen.scroll_into_view_if_needed()
    assert seen.evaluate("i => i.decode().then(() => i.naturalWidth)") > 100
    lab.get_by_role("link", name="rows").click()
    lab.locator(".jp-CSVViewer-grid").wait_for()
    shoot(lab, "link-to-figures")


def test_the_slider_and_the_menus_of_the_masks_redraw(page):
    lab = page("02_ticket_extraction", profile=TINY, epochs=1)
    run_all(lab)
    masks = cell(lab, "explorer.masks(")
    first = picture(masks)
    shoot(lab, "02-masks", masks)
    handle = masks.get_by_role("slider")
    handle.press("ArrowLeft")
    second = changed(masks, first)
    assert masks.locator(".widget-readout").inner_text() == "0.94"
    handle.press("ArrowRight")
    assert changed(masks, second) == first
    masks.get_by_label("layer").select_option("layer2.0.conv1.weight")
    assert changed(masks, first) != second
    shoot(lab, "02-another-layer", masks)
    # Finished trainings leave no bar behind.
    text = "".join(cell(lab, "cut, last =").locator(".jp-OutputArea-output").all_text_contents())
    assert not text.strip(), repr(text)


@pytest.mark.parametrize("dark", [False, True])
def test_after_a_reload_picture_and_buttons_agree(page, dark):
    """Also on a narrow page, and in the dark theme."""
    lab = page("03_transfer", profile=TINY, workers=1, width=900, dark=dark)
    run_all(lab)
    explorer = cell(lab, "explorer.transfers(")
    first = picture(explorer)
    save(lab)
    explorer.get_by_role("button", name="robust − natural").click()
    second = changed(explorer, first)
    lab.reload()
    ready(lab)
    explorer = cell(lab, "explorer.transfers(")
    pressed = explorer.locator("button.mod-active")
    pressed.wait_for()
    assert pressed.inner_text() == "robust − natural"
    assert picture(explorer) == second
    shoot(lab, f"03-reloaded-{'dark' if dark else '900px'}", explorer)
    explorer.get_by_role("button", name="accuracy").click()
    assert changed(explorer, second) == first


def test_the_explorer(page, server, tmp_path):
    lab = page("00_explorer", profile=TINY, workers=1, figures=str(tmp_path / "saved"))
    run_all(lab)
    for name in ("tradeoff = explorer", "explorer.ticket(", "explorer.attack(", "explorer.runner("):
        part = cell(lab, name)
        shoot(lab, f"00-{name.strip('(').split('.')[-1].split()[0]}", part)
        print(part.locator(".jp-OutputArea").inner_text())
