"""Every committed figure is drawn again from its CSV alone, and can be printed in a paper."""

import io
import itertools
import json
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, half, inside, texts, transfer_rows

from robustlib import figures, specs, store
from robustlib.cli import main
from robustlib.figures import paper, table
from robustlib.specs import Pretrain, Ticket, Transfer

FOLDERS = ("figures", "figures/control", "figures/larger")
COMMITTED = [
    (folder, name)
    for folder in FOLDERS
    for name in figures.FIGURES
    if (ROOT / folder / f"{name}.csv").is_file() and not figures.FIGURES[name].needs
]
DRAWN = [(folder, name) for folder, name in COMMITTED if figures.FIGURES[name].draw]
TABLES = [(folder, name) for folder, name in COMMITTED if figures.FIGURES[name].table]
IDS = {"ids": lambda place: place if isinstance(place, str) else "/".join(place)}


@pytest.fixture(scope="module")
def drawn():
    """Each figure, drawn once from its rows."""
    kept = {}

    def draw(folder, name, venue="icml2022"):
        if (folder, name, venue) not in kept:
            rows = paper.read(ROOT / folder / f"{name}.csv")
            with figures.venue(venue):
                kept[folder, name, venue] = figures.FIGURES[name].draw(rows)
        return kept[folder, name, venue]

    return draw


def shown(fig, monkeypatch):
    """The texts of a figure that are drawn: an axis has ticks that are not."""
    seen = []

    def draw(text, renderer):
        if text.get_visible() and text.get_text().strip():
            seen.append(text)

    with monkeypatch.context() as patch:
        patch.setattr(plt.Text, "draw", draw)
        fig.draw_without_rendering()
    return seen


def test_every_csv_is_of_a_name():
    stems = {p.stem for folder in FOLDERS for p in (ROOT / folder).glob("*.csv")}
    # The transfers behind gap.csv are kept beside it.
    assert stems <= {*figures.FIGURES, "gap_transfers"}
    assert all(entry.shows and (entry.draw or entry.table) for entry in figures.FIGURES.values())


def bad_texts(fig, monkeypatch):
    """The texts that nobody can read: small ones, and those on another."""
    seen = shown(fig, monkeypatch)
    boxes = [
        # Names of points may come near their neighbours; names of axes, panels and ticks may not.
        (t.get_text(), t.get_window_extent().shrunk(0.98, 0.9))
        for t in seen
        if all(t not in ax.texts for ax in fig.axes) and t.get_rotation() % 90 == 0
    ]
    pairs = itertools.combinations(boxes, 2)
    crossed = [(one, other) for (one, a), (other, b) in pairs if a.overlaps(b)]
    return crossed + [t.get_text() for t in seen if t.get_fontsize() < 6]


@pytest.mark.parametrize("place", DRAWN, **IDS)
def test_no_text_is_small_or_outside_or_on_another(place, drawn, monkeypatch):
    fig = drawn(*place)
    assert bad_texts(fig, monkeypatch) == [] and inside(fig, drawn=True)
    widths = [figures.style.column_width(), figures.style.page_width()]
    assert fig.get_figwidth() in [pytest.approx(width) for width in widths]


@pytest.mark.parametrize("place", DRAWN, **IDS)
def test_no_datum_is_outside_and_only_what_is_cut_off_is_said_to_be(place, drawn):
    fig = drawn(*place)
    arrows = 0
    for ax in (ax for ax in fig.axes if ax.axison):
        low, high = sorted(ax.get_ylim())
        for line in (line for line in ax.lines if line.get_marker() in tuple("os^Dv<>Px")):
            y = np.asarray(line.get_ydata(), dtype=float)
            assert ((low <= y) & (y <= high) | np.isnan(y)).all()
        for container in (c for c in ax.containers if len(c) > 2 and c[2]):
            ends = [s[:, 1] for s in container[2][-1].get_segments() if len(s) == 2]
            arrows += sum(bool(e.min() < low or e.max() > high) for e in ends)
    said = " ".join(texts(fig))
    assert ("arrowhead" in said) == bool(arrows)
    bars = any(
        np.isfinite(s).all() and len(s) == 2
        for ax in fig.axes
        for c in ax.containers
        if len(c) > 2
        for lines in c[2]
        for s in lines.get_segments()
    )
    assert ("interval" in said) == bars


@pytest.mark.parametrize(
    ("venue", "place"),
    [
        ("neurips2024", (FOLDERS[0], "properties")),
        *itertools.product(  # the narrowest
            ["eccv2024"],
            [
                *((FOLDERS[0], name) for name in ("accuracy_vs_sparsity", "detail", "masks")),
                *itertools.product(FOLDERS[:2], ["pretraining", "properties"]),
            ],
        ),
    ],
    **IDS,
)
def test_a_figure_is_as_wide_as_the_venue_has_it(place, venue, drawn, monkeypatch):
    fig = drawn(*place, venue)
    width = {"neurips2024": 5.5, "eccv2024": 4.8}[venue]
    assert fig.get_figwidth() == pytest.approx(width)
    assert bad_texts(fig, monkeypatch) == [] and inside(fig, drawn=True)


def test_an_unknown_venue_or_name_is_refused_before_anything_is_written(tmp_path):
    rows = ROOT / "figures"
    for names, where, says in ((["detail"], "icm", "venue='icm'"), (["detial"], "icml2022", "did")):
        with pytest.raises(ValueError, match=says):
            list(figures.write(names, tmp_path / "new", rows, where=where))
    with pytest.raises(ValueError, match="must be a folder of the CSVs"):
        list(figures.write([], tmp_path / "new", tmp_path / "none"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", COMMITTED, **IDS)
def test_the_committed_caption_and_table_are_those_of_the_rows(place):
    folder, name = place
    rows = paper.read(ROOT / folder / f"{name}.csv")
    text = (ROOT / folder / f"{name}.txt").read_text("utf-8")
    assert text == figures.caption(name, rows) and "nan" not in text
    assert text.startswith(figures.FIGURES[name].shows)
    if "seed" in rows and name != "domain_gap":
        n = rows.seed.nunique()
        assert f"{n} seed{'s' * (n > 1)} (" in text
    assert f"{len(rows):,} rows" in text
    if tex := figures.FIGURES[name].latex(rows):
        assert tex == (ROOT / folder / f"{name}.tex").read_text("utf-8")


def test_what_grey_costs_is_paired_by_seed():
    robust = {False: [0.52, 0.54], True: [0.50, 0.47]}
    frame = pd.DataFrame(
        {
            **{"objective": objective, "seed": seed, "grey": grey, "task": "cifar10"},
            **{"mode": "linear", "sparsity": 0.9},
            "accuracy": robust[grey][seed] if objective == "pgd" else 0.5 - 0.1 * grey,
        }
        for objective in ("natural", "pgd")
        for seed in (0, 1)
        for grey in (True, False)
    )
    (row,) = table.by_colour(frame.sample(frac=1, random_state=0)).to_dict("records")
    # +2 and +4 in colour, +10 and +7 in grey: +8 and +3.
    assert row["in colour"].startswith("+3.0 [") and row["in grey"].startswith("+8.5 [")
    assert row["grey − colour"] == "+5.5 [-26.3, +37.3]"  # Student's, of 2


def test_one_seed_has_no_interval_and_the_caption_says_so():
    frame = transfer_rows(seeds=(4,))
    text = figures.caption("accuracy_vs_sparsity", frame)
    assert "1 seed (4).\n" in text and "Intervals: none, for there is one seed" in text
    assert "nan" not in table.table(frame).to_string()
    frame = transfer_rows(seeds=(4, 5))
    text = figures.caption("accuracy_vs_sparsity", frame)
    assert "2 seeds (4, 5); means over seeds." in text and "paired by seed" in text
    assert "MNIST (1,000 test images)" in text


@pytest.mark.parametrize(
    "name",
    ["masks", "pretraining", "corruptions", "segmentation_classes", "properties", "patterns"],
)
def test_of_one_seed_no_bar_is_drawn_or_explained(name):
    rows = paper.read(ROOT / "figures" / "control" / f"{name}.csv")
    fig = figures.FIGURES[name].draw(rows[rows.seed == rows.seed.min()])
    said = " ".join(texts(fig))
    assert "interval" not in said and "nan" not in said and "; ;" not in said
    assert "seed 0" in said and inside(fig)


def test_the_gap_of_one_seed_has_bars_to_the_side_alone():
    rows = paper.read(ROOT / "figures" / "control" / "gap.csv")
    fig = figures.gap(rows.assign(low=np.nan, high=np.nan, seeds=1))
    said = texts(fig)
    assert any(t.endswith("1 seed\nbars: 95 % interval over images") for t in said)


def pdf_text(data: bytes) -> str:
    """What a PDF's metadata say: matplotlib writes them as UTF-16."""
    found = re.findall(rb"/(?:Title|Subject|Keywords) \((.*?)(?<!\\)\)", data, re.DOTALL)
    parts = [re.sub(rb"\\([\\()])", rb"\1", part) for part in found]
    return "\n".join(
        p.decode("utf-16") if p[:2] == b"\xfe\xff" else p.decode("latin-1") for p in parts
    )


def test_a_pdf_has_truetype_fonts_its_specs_and_versions(tmp_path):
    frame = transfer_rows(seeds=(0, 1)).assign(key="k", torch_version="2.5")
    fig = figures.accuracy_vs_sparsity(frame)
    data = figures.save(fig, tmp_path, "accuracy_vs_sparsity", frame).read_bytes()
    assert b"/Subtype /Type0" in data and b"/CIDFontType2" in data and b"/Type3" not in data
    said = pdf_text(data)
    assert "accuracy_vs_sparsity: Accuracy of natural and robust tickets" in said
    spec = json.loads(said.splitlines()[1])
    assert spec["sparsity"] == "0, 0.8, 0.9" and spec["eps"] == "0, 0.15, 0.5"
    assert spec["task"] == "mnist" and "momentum" not in spec
    for word in (
        "robustlib 0.",
        f"matplotlib {plt.matplotlib.__version__}",
        "torch 2.5",
        "1 stored",
    ):
        assert word in said


def test_the_same_rows_give_the_same_bytes_in_another_process(tmp_path):
    code = (
        "from pathlib import Path; from robustlib import figures\n"
        "list(figures.write(['masks', 'rates'], Path({out!r}), Path({rows!r})))"
    )
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        made = code.format(out=str(out), rows=str(ROOT / "figures"))
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": "", "MPLCONFIGDIR": "/tmp"}
        subprocess.run([sys.executable, "-c", made], check=True, env=env)
        found.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert found[0] == found[1]
    ends = {"masks": "csv pdf png txt", "rates": "csv tex txt"}
    assert set(found[0]) == {f"{name}.{end}" for name in ends for end in ends[name].split()}
    assert found[0]["masks.csv"] == (ROOT / "figures" / "masks.csv").read_bytes()


@pytest.mark.parametrize("place", TABLES, **IDS)
def test_a_table_is_latex_of_booktabs(place):
    text = (ROOT / place[0] / f"{place[1]}.tex").read_text("utf-8")
    first, *lines, last, end = text.split("\n")
    (form,) = re.findall(r"^\\begin{tabular}{((?:l|p{[\d.]+\\linewidth})+)}$", first)
    assert last == r"\end{tabular}" and not end
    assert [line for line in lines if line.startswith("\\") and "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    across = len(re.findall(r"l(?!inewidth)|p{", form))
    for line in (line for line in lines if not line.startswith(("\\toprule", "\\mid", "\\bottom"))):
        assert line.endswith(r" \\") and len(re.split(r"(?<!\\)&", line)) == across
        assert line.count("{") == line.count("}") and not line.count("$") % 2
        assert line.isascii() or not re.search(r"[^\x00-\x7fé]", line)
        assert not re.search(r"(?<!\\)[%#_](?!\\)", re.sub(r"\$.*?\$", "", line))


def test_the_best_is_bold_and_a_difference_that_leaves_out_zero():
    columns = ["property", "sparsity", "natural", "robust", "robust − natural"]
    low = "3.0 [2.0, 4.0]", "5.0 [4.0, 6.0]", "+2.0 [+0.5, +3.5]"
    high = "60.0 [59.0, 61.0]", "62.0", "+2.0 [-0.5, +4.5]"
    lines = [("calibration error, ECE (%)", 0.9, *low), ("clean accuracy (%)", 0.9, *high)]
    frame = pd.DataFrame([*lines, ("CKA (%)", 0.9, *high)], columns=columns)
    lines = table.latex(frame).split("\n")[4:7]
    bold = [re.findall(r"\\textbf{([^}]*)}", line) for line in lines]
    assert bold == [["3.0 [2.0, 4.0]", "+2.0 [+0.5, +3.5]"], ["62.0"], []]


def test_what_needs_networks_says_where_it_is_drawn_and_what_lacks_rows_says_so(tmp_path, capsys):
    transfer_rows().to_csv(tmp_path / "accuracy_vs_sparsity.csv", index=False)
    arguments = ["--rows", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["figures", "filters", "detail", "accuracy_vs_sparsity", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("filters: it needs the networks: run notebooks/02")
    assert said[1].startswith("detail: no ") and "accuracy_vs_sparsity.pdf" in said[2]
    # All that there are rows of, and no word of the rest.
    assert main(["figures", *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {
        ".csv",
        ".pdf",
        ".png",
        ".tex",
        ".txt",
    }


def test_figures_of_a_profile_are_those_of_its_stored_rows(tmp_path, monkeypatch, capsys):
    wanted = [
        Transfer(Ticket(Pretrain(objective=o, eps=e, seed=seed), sparsity=s), "mnist", seed=seed)
        for o, e in (("natural", 0.0), ("pgd", 0.5))
        for s in (0.5, 0.9)
        for seed in (0, 1)
    ]
    lacking = set()
    monkeypatch.setattr(paper.profiles, "grid", lambda name: wanted)
    monkeypatch.setattr(paper.profiles, "ablations", lambda name: ["masks"])
    monkeypatch.setattr(store, "has", lambda spec: specs.key(spec) not in lacking)

    def get(spec):
        level = 0.5 + 0.1 * spec.seed + 0.02 * (1 + spec.seed) * (spec.ticket.pretrain.eps > 0)
        row = specs.columns(spec) | {"accuracy": level, "n": 100, "key": specs.key(spec)}
        return store.Artifact(spec, row, {}, tmp_path)

    monkeypatch.setattr(store, "get", get)
    frame = paper.stored("advantage", "quick")
    assert list(frame.difference) == pytest.approx([0.02, 0.04, 0.02, 0.04])
    ((name, fig, _),) = figures.write(["advantage"], tmp_path / "one", tmp_path, "quick")
    assert name == "advantage"
    again = paper.read(tmp_path / "one" / "advantage.csv")
    out = tmp_path / "again"
    figures.save(figures.FIGURES[name].draw(again), out, name, again)
    for kind in ("pdf", "png", "txt", "tex"):
        file = f"advantage.{kind}"
        assert (out / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert half([2, 4]) == pytest.approx(
        fig.axes[0].containers[0][2][-1].get_segments()[0][1, 1] - 3
    )
    lacking.add(specs.key(wanted[0]))
    assert main(["figures", "advantage", "--profile", "quick", "--out", str(out)]) == 0
    assert "advantage: not all of it is stored, profile quick" in capsys.readouterr().out


def test_the_kinds_of_weights_in_a_picture_of_masks_differ_in_grey_print():
    import torch

    from robustlib import models, tickets

    torch.manual_seed(0)
    networks = [models.build("resnet10s", 5, width=32, stem_stride=2) for _ in range(2)]
    pair = [tickets.omp(net, 0.8) for net in networks]
    for eps in (0.03, 0.15, 0.5, 1, 2):
        labels = ("natural", f"robust, L2 ε = {eps}")
        kernels = [net.layer2[0].conv1.weight.detach() for net in networks]
        both = (dict(zip(labels, values, strict=True)) for values in (pair, kernels))
        fig = figures.masks(*both, "layer2.0.conv1.weight")
        colours = [patch.get_facecolor()[:3] for patch in fig.legends[0].get_patches()]
        grey = sorted(float(np.dot(c, (0.299, 0.587, 0.114))) for c in colours)
        assert min(np.diff(grey)) > 0.12
    assert any("(the first 24 × 24 of 64 × 32 channels)" in t for t in texts(fig))
    fig = figures.patterns({"row": pair[0]}, "layer2.0.conv1.weight", "natural, MNIST, seed 0")
    assert any("(the first 24 × 24 of 64 × 32 channels)" in t for t in texts(fig))
    fig.savefig(io.BytesIO(), format="png")
