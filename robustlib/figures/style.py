"""One style for all figures, and `save`.

Natural is blue with circles; robust networks run from orange to brown as eps grows, each with a
marker and a dash of its own. Widths are those of a text column and of a page.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from tueplots import axes, figsizes, fontsizes

from robustlib import stats
from robustlib.files import whole

COLUMN = figsizes.icml2022_half()["figure.figsize"][0]
"""Width of a text column, in inches."""
PAGE = figsizes.icml2022_full()["figure.figsize"][0]
"""Width of a page's text, in inches."""

NATURAL = "#0072B2"
# Okabe and Ito's orange and vermilion, and a brown: ordered in lightness, so in grey print too.
ROBUST = LinearSegmentedColormap.from_list("robust", ["#E69F00", "#D55E00", "#5E2A00"])
_RAMPS = {
    family: LinearSegmentedColormap.from_list(family, colours)
    for family, colours in {
        "robust, L∞": ["#DDA0C4", "#B04A86", "#4A1237"],
        "trades": ["#66C2A5", "#009E73", "#00402F"],
        "free": ["#B8B03A", "#7F7A1C", "#3A3808"],
        "noise": ["#B5A6D6", "#7A5FB0", "#33205C"],
    }.items()
}
OTHER = "#7F7F7F"
_MARKERS = "s^Dv<>P"
# No dots: dotted is what figures explain in words.
_DASHES: list[Any] = ["--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))]
_DASHES += [(0, (9, 2)), (0, (2, 1))]
_FIRST = ["task", "mode", "scheme", "pattern", "sparsity", *stats.PRETRAINING, "n_train", "seed"]
_FIRST += ["accuracy", "n"]


@contextmanager
def style(names: Iterable[str] = ()) -> Iterator[None]:
    """Fonts, lines and sizes of every figure, while it is drawn. names: words from outside that it
    shows, as `written`; where the usual font lacks a letter, another installed one is used."""
    rc = {**fontsizes.icml2022(), **axes.lines(), **figsizes.icml2022_full()}
    rc |= {"legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
    rc |= {"legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
    rc |= {"axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 150, "pdf.fonttype": 42}
    faces = {_face(c) for name in names for c in name}
    others = {face for face in faces if face} - {plt.rcParams["font.family"][0]}
    rc |= {"font.family": [*plt.rcParams["font.family"], *sorted(others)]}
    with plt.rc_context(rc):
        yield


def written(name: str) -> str:
    """A name from outside, such as a class's, as figures can show it: on one line, `$` no sign of
    mathematics, and U+732B for a letter that no installed font has."""
    known = "".join(c if _face(c) else f"U+{ord(c):04X}" for c in " ".join(name.split()))
    return known.replace("$", r"\$")


@cache
def _face(char: str) -> str | None:
    """The family of a font that has the letter, the usual one if it has; None: there is none."""
    usual = plt.rcParams["font.family"][0]
    if not char.isprintable():
        return None
    if get_font(findfont(FontProperties(family=[usual]))).get_char_index(ord(char)):
        return usual
    for family in sorted({entry.name for entry in fontManager.ttflist}):
        if family.startswith("Last Resort"):  # has a box for every letter
            continue
        try:
            font = get_font(findfont(FontProperties(family=[family])))
            if font.get_char_index(ord(char)):
                font.load_char(ord(char))
                return family
        except (OSError, RuntimeError):
            continue  # listed and gone, or coloured pictures, which matplotlib cannot draw
    return None


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each label, natural first, the others in the order given. A way to
    pretrain looks the same in every figure: its family is a ramp of colours, its radius the place
    on it."""
    labels = sorted(dict.fromkeys(labels), key=lambda name: name != "natural")
    return {name: {**_look(name), "ms": 3.0, "label": name} for name in labels}


def _look(name: str) -> dict[str, Any]:
    if name == "natural":
        return {"color": NATURAL, "marker": "o", "ls": "-"}
    ramp = next((r for family, r in _RAMPS.items() if name.startswith(family)), ROBUST)
    place = 0.5
    if found := re.search(r"[εσ] = ([\d.e-]+)(/255)?", name):
        # An L∞ ball holds about what an L2 one of sixteen times its radius does.
        size = float(found[1]) / (255 if found[2] else 1) * (16 if "L∞" in name else 1)
        place = min(max(math.log(max(size, 1e-9) / 0.05) / math.log(30), 0.0), 1.0)
    i = round(6 * place) + 3 * ("steps" in name)
    return {"color": ramp(place), "marker": _MARKERS[i % 7], "ls": _DASHES[i % 7]}


def folder(name: str) -> Path | None:
    """The folder that a notebook's figures go to, made if need be; None for "": nowhere.

    Raises ValueError when it is no folder or cannot be written to.
    """
    if not name:
        return None
    out = Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as e:
        raise ValueError(f"figures={name!r}: must be a folder to write to, or empty: {e}") from None
    return out


def section(
    frames: Mapping[str, pd.DataFrame],
    name: str,
    draw: Callable[[pd.DataFrame], Figure],
    out: Path | None,
) -> Figure | str:
    """A notebook's section on one of several frames: drawn and saved under its name; a word on it
    where the frame is not there."""
    if name not in frames:
        return f"{name}: not in the profile, or not chosen"
    figure = draw(frames[name])
    save(figure, out, name, frames[name])
    return figure


def save(fig: Figure, out: Path | None, name: str, data: pd.DataFrame) -> Path | None:
    """Writes NAME.pdf, NAME.png (200 dpi) and the rows behind them, NAME.csv; returns the PDF.

    out: as `folder` returns it; None: nothing is written. CSV columns are named as the fields of
    the specs are. Each file is written beside its place and renamed there; the same figure gives
    the same bytes.
    """
    if out is None:
        return None
    first = [c for c in _FIRST if c in data]
    data = data[[*first, *(c for c in data if c not in first)]]
    writers: dict[str, Callable[[Any], Any]] = {
        "csv": lambda file: data.to_csv(file, index=False, mode="wb"),
        "png": lambda file: fig.savefig(file, format="png", dpi=200),
        "pdf": lambda file: fig.savefig(file, format="pdf", metadata={"CreationDate": None}),
    }
    with style():
        for suffix, write in writers.items():
            with whole(out / f"{name}.{suffix}") as file:
                write(file)
    return out / f"{name}.pdf"
