"""The notebooks in JupyterLab: run to the end, their widgets used, and what the page then shows.

What is looked at is the page, never the kernel: a picture is its bytes, a text what can be read.
"""

import json
import re
import subprocess
import sys

import pytest
from lab import TINY, cell, changed, finish, menu, picture, ready, run_all, save, says, shoot
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture
def page(server, browser, request):
    """Opens a notebook with these parameters; its kernel ends with the test. What is seen when a
    test fails is kept as failed-TEST.png."""
    opened, failed = [], request.session.testsfailed

    def opens(name, end="", width=1200, dark=False, **given):
        path = server.put(name, end, **given)
        opened.append(server.open(browser, path, width, dark))
        return opened[-1]

    yield opens
    for page in opened:
        if request.session.testsfailed > failed:
            shoot(page, f"failed-{request.node.name}")
        page.close()
    server.end_kernels()


def test_transfer_runs_and_its_buttons_and_menus_redraw(page, server):
    lab = page("03_transfer", "![seen](../figures/detail.png)", profile=TINY, workers=1)
    menu(lab, "Run", "Run All Cells")
    # The bar while it runs, and what is left of it.
    sweep = cell(lab, "frame = sweep(")
    says(sweep, r"^dashboard: http://.*\n?.*/22 \|")
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
    # Finished trainings leave no bar behind, but the sweep's one line.
    text = "".join(cell(lab, "cut, last =").locator(".jp-OutputArea-output").all_text_contents())
    assert re.fullmatch(r"sweep: \d+/\d+ in [\d:]+, failed 0, cached \d+", text.strip()), repr(text)


def test_after_a_reload_picture_and_buttons_agree(page, server):
    lab = page("03_transfer", profile=TINY, workers=1, width=900)
    run_all(lab)
    explorer = cell(lab, "explorer.transfers(")
    first = picture(explorer)
    save(lab)
    explorer.get_by_role("button", name="robust − natural").click()
    second = changed(explorer, first)
    lab.reload()
    ready(lab)
    explorer = cell(lab, "explorer.transfers(")
    explorer.locator("button.mod-active", has_text="robust − natural").wait_for()
    assert picture(explorer) == second
    shoot(lab, "03-reloaded-900px", explorer)
    explorer.get_by_role("button", name="accuracy").click()
    assert changed(explorer, second) == first
    # Another kernel knows nothing of the widget: the picture stays, as it was saved.
    save(lab)
    server.end_kernels()
    lab.reload()
    ready(lab)
    explorer = cell(lab, "explorer.transfers(")
    assert picture(explorer)
    assert not explorer.get_by_text("model not found").filter(visible=True).count()
    assert not explorer.locator("button.mod-active").count()
    shoot(lab, "03-another-kernel", explorer)


def test_the_explorer_over_the_store(page, tmp_path):
    lab = page("00_explorer", profile=TINY, workers=1, figures=str(tmp_path))
    run_all(lab)
    part = cell(lab, "tradeoff = explorer")
    first = picture(part)
    says(part, r"of \d+ rows")
    shoot(lab, "00-tradeoff", part)
    some = int(re.search(r"(\d+) of \d+ rows", part.inner_text())[1])
    part.get_by_label("mode").select_option(index=[0, 1])
    second = changed(part, first)
    says(part, f"{2 * some} of ")
    part.get_by_role("button", name="save").click()
    says(part, "robustlib sweep")
    shoot(lab, "00-saved", part.get_by_label("sort by"))
    kinds = {
        f"tradeoff{end}.{kind}" for end in ("", "_advantage") for kind in ("pdf", "png", "csv")
    }
    assert {path.name for path in tmp_path.iterdir()} >= kinds
    assert len(json.loads((tmp_path / "tradeoff.json").read_text())) == 2 * some
    part.get_by_role("button", name="choose all").click()

    part = cell(lab, "explorer.ticket(")
    first = picture(part)
    part.get_by_role("slider").press("ArrowLeft")
    second = changed(part, first)
    part.get_by_label("pattern").select_option("channel")
    assert changed(part, second) != first
    shoot(lab, "00-ticket", part)

    part = cell(lab, "explorer.attack(")
    first = picture(part)
    part.get_by_role("button", name="next").click()
    second = changed(part, first)
    part.get_by_role("slider").press("Home")
    third = changed(part, second)
    shoot(lab, "00-attack-eps-0", part)
    part.get_by_role("slider").press("End")
    assert changed(part, third) not in (first, second)
    part.get_by_role("button", name="misclassified").click()
    shoot(lab, "00-attack", part)


def test_the_explorer_computes_what_is_lacking(page):
    """Started, refused a second time, cancelled, started again; then it is in the trade-off."""
    lab = page("00_explorer", profile=f"{TINY}:detail", workers=1, width=900, dark=True)
    run_all(lab)
    save(lab)
    tradeoff, part = cell(lab, "tradeoff = explorer"), cell(lab, "explorer.runner(")
    before = picture(tradeoff)
    part.get_by_label("seeds").fill("0")
    part.get_by_label("seeds").press("Enter")
    says(part, r"^4 transfers; to compute: 4 transfer; about .* minutes")
    part.get_by_role("button", name="start").click()
    says(part, r"running: 0 of 4 stored")
    shoot(lab, "00-running-dark-900px", part)
    part.get_by_role("button", name="start").click()
    says(part, "a sweep is running: wait for it, or cancel it")
    part.get_by_role("button", name="cancel").click()
    says(part, r"cancelled: \d of 4 stored")
    part.get_by_role("button", name="start").click()
    says(part, r"done: (\d) of \1 stored", 120)
    says(part, "4 transfers, all stored.")
    shoot(lab, "00-done-dark-900px", part)
    tradeoff.get_by_role("button", name="choose all").click()
    tradeoff.get_by_label("detail").select_option(index=[0, 1])
    says(tradeoff, r"(\d+) of \1 rows")
    now = changed(tradeoff, before)
    shoot(lab, "00-tradeoff-dark-900px", tradeoff)
    lab.reload()
    ready(lab)
    tradeoff = cell(lab, "tradeoff = explorer")
    chosen = tradeoff.get_by_label("detail").evaluate("e => e.selectedOptions.length")
    assert (chosen, picture(tradeoff)) == (2, now)
    shoot(lab, "00-reloaded-dark-900px", tradeoff)


def test_a_folder_of_images_becomes_a_network(page, tmp_path):
    x, y = load_digits(return_X_y=True)
    for digit in range(3):
        (tmp_path / "photos" / str(digit)).mkdir(parents=True)
        for i, image in enumerate(x[y == digit][:40]):
            file = tmp_path / "photos" / str(digit) / f"{i}.png"
            Image.fromarray((16 * image.reshape(8, 8)).clip(0, 255).astype("uint8")).save(file)
    folder = tmp_path / "network"
    given = {"task": str(tmp_path / "photos"), "folder": str(folder)}
    lab = page("08_your_task", n_train=60, workers=1, **given)
    run_all(lab)
    part = cell(lab, "found = fit(")
    says(part, r"sweep: 4/4 in \d\d:\d\d, failed 0, cached 0")
    shoot(lab, "08-steps", part)
    part = cell(lab, "figure = draw.choice(")
    assert picture(part)
    shoot(lab, "08-choice", part)
    told = cell(lab, "print(told(")
    says(told, r"accuracy: [\d.]+ % \[.*\] of \d+ test images")
    shoot(lab, "08-told", told)
    card = json.loads((folder / "card.json").read_text())
    assert (folder / card["network"]).stat().st_size <= 250_000
    found = subprocess.run(
        [sys.executable, str(folder / "classify.py"), str(tmp_path / "photos" / "0" / "0.png")],
        capture_output=True,
        text=True,
    )
    assert re.search(r"\b[012]\b", found.stdout), found
