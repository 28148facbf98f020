"""A browser, a server that has half of a tiny study, and at the end a sheet of what was seen."""

import os
import shutil

import lab
import pytest
from helpers import ROOT
from PIL import Image, ImageDraw

from robustlib import profiles, run


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, or the Chrome that is installed, started by playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: make test-browser")
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if not path:
        pytest.skip("no chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=lab.CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="session")
def server(browser, tmp_path_factory):
    """JupyterLab over a folder laid out as the clone is."""
    root, own = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("jupyter")
    (root / "notebooks").mkdir()
    for name in ("figures", "docs"):
        shutil.copytree(ROOT / name, root / name)  # no link leads out of what is served
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"ROBUSTLIB_STORE": str(own / "store"), "PYTHONPATH": path}
    environment |= {"OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", environment["ROBUSTLIB_STORE"])
        patch.setenv("TQDM_DISABLE", "1")
        for spec in profiles.grid(lab.TINY, seeds="0"):
            run(spec)
    with lab.serve(root, own, environment) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def contact_sheet():
    """Every screenshot of the session on one sheet, three in a row, named."""
    shutil.rmtree(lab.SHOTS, ignore_errors=True)
    yield
    shots = sorted(lab.SHOTS.glob("*.png"))
    if not shots:
        return
    width, height, top, across = 600, 450, 18, 3
    sheet = Image.new("RGB", (across * width, -(-len(shots) // across) * (height + top)), "white")
    for i, path in enumerate(shots):
        corner = (i % across * width, i // across * (height + top))
        ImageDraw.Draw(sheet).text((corner[0] + 4, corner[1] + 3), path.stem, "black")
        shot = Image.open(path).convert("RGB")
        shot.thumbnail((width - 4, height))
        sheet.paste(shot, (corner[0], corner[1] + top))
    sheet.save(lab.SHOTS / "contact_sheet.png")
