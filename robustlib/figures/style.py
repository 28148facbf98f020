"""One style for all figures: fonts, looks, and the widths of a venue.

Natural is blue with circles; robust networks run from orange to brown as eps grows, each with a
marker and a dash of its own. No text is below 6 points, on a figure as wide as the venue has it.
"""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from tueplots import axes, figsizes, fontsizes

from robustlib.specs import one_of

VENUES = sorted(
    name.removesuffix("_full")
    for name in vars(figsizes)
    if re.fullmatch(r"[a-z]+\d{4}(_full)?", name)
)
"""Whose widths tueplots knows."""
_venue = ContextVar("venue", default="icml2022")


@contextmanager
def venue(name: str) -> Iterator[None]:
    """Figures drawn meanwhile are as wide as a paper of the venue has them: one of VENUES."""
    token = _venue.set(one_of("venue", name, VENUES))
    try:
        yield
    finally:
        _venue.reset(token)


def page_width() -> float:
    """Width of a page's text, in inches."""
    return _width("full")


def column_width() -> float:
    """Width of a text column, in inches; where a page has one, 0.6 of it."""
    return _width("half")


def _width(part: str) -> float:
    name = _venue.get()
    if size := getattr(figsizes, f"{name}_{part}", None):
        return size()["figure.figsize"][0]
    return getattr(figsizes, name)(rel_width=1 if part == "full" else 0.6)["figure.figsize"][0]


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
START = "natural before training"
"""The label of the network that natural and robust pretraining of one seed both start from."""
_MARKERS = "s^Dv<>P"
# No dots: dotted is what figures explain in words.
_DASHES: list[Any] = ["--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1))]
_DASHES += [(0, (9, 2)), (0, (2, 1))]


@contextmanager
def style(names: Iterable[str] = ()) -> Iterator[None]:
    """Fonts, lines and sizes of every figure, while it is drawn. names: words from outside that it
    shows, as `written`; where the usual font lacks a letter, another installed one is used."""
    rc = {**fontsizes.icml2022(), **axes.lines()}
    rc |= {"legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7}
    rc |= {"legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
    rc |= {"axes.grid": True, "grid.alpha": 0.25, "figure.dpi": 150, "pdf.fonttype": 42}
    rc["image.interpolation"] = "nearest"
    faces = {_face(c) for name in names for c in name}
    others = {face for face in faces if face} - {plt.rcParams["font.family"][0]}
    rc |= {"font.family": [*plt.rcParams["font.family"], *sorted(others)]}
    with plt.rc_context(rc):
        yield


def paler(color: Any, share: float) -> tuple[float, ...]:
    """The colour, and as much white as `share` says."""
    return tuple((1 - share) * c + share for c in to_rgb(color))


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
    """Colour, marker and dash of each label: natural first, the others in the order given, START
    last. A way to pretrain looks the same in every figure: its family is a ramp of colours, its
    radius the place on it."""
    labels = sorted(dict.fromkeys(labels), key=lambda name: (name != "natural", name == START))
    return {name: {**_look(name), "ms": 3.0, "label": name} for name in labels}


def _look(name: str) -> dict[str, Any]:
    if name == "natural":
        return {"color": NATURAL, "marker": "o", "ls": "-"}
    if name == START:
        return {"color": OTHER, "marker": "x", "ls": "-"}
    ramp = next((r for family, r in _RAMPS.items() if name.startswith(family)), ROBUST)
    place = 0.5
    if found := re.search(r"[εσ] = ([\d.e-]+)(/255)?", name):
        # An L∞ ball holds about what an L2 one of sixteen times its radius does.
        size = float(found[1]) / (255 if found[2] else 1) * (16 if "L∞" in name else 1)
        place = min(max(math.log(max(size, 1e-9) / 0.05) / math.log(30), 0.0), 1.0)
    i = round(6 * place) + 3 * ("steps" in name)
    return {"color": ramp(place), "marker": _MARKERS[i % 7], "ls": _DASHES[i % 7]}
