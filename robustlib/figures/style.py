"""One style for all figures, and `save`.

Natural is blue with circles; robust networks run from orange to brown as eps grows, each with a
marker and a dash of its own. Widths are those of a text column and of a page.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
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
OTHER = "#7F7F7F"
_MARKERS, _DASHES = "s^Dv<>P", ["--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1))]
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
    others = {_face(c) for name in names for c in name} - {None, plt.rcParams["font.family"][0]}
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


def plain(width: float, height: float) -> Figure:
    """An empty figure, width and height in inches."""
    with plt.ioff():
        fig = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(fig)  # The caller shows it; pyplot would show it a second time.
    return fig


def panels(
    rows: int, across: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of rows x across panels, and its array of axes; options as in Figure.subplots."""
    fig = plain(width, height)
    return fig, fig.subplots(rows, across, squeeze=False, **options)


def label(row: Mapping[str, Any]) -> str:
    """How a way to pretrain is called: "natural", "robust, L2 ε = 0.5", "trades, L∞ ε = 8/255".

    row: anything with the columns of stats.PRETRAINING, a spec's `specs.columns` for one.
    """
    if row["objective"] == "natural":
        return "natural"
    if row["objective"] == "smoothing":
        return f"noise σ = {row['sigma']:g}"
    more = f", {row['steps']:g} steps" if row["steps"] > 1 else ""
    ball = radius(row["norm"], row["eps"]) + more
    return f"robust, {ball}" if row["objective"] == "pgd" else f"{row['objective']}, {ball}"


def radius(norm: str, eps: float) -> str:
    """A radius in words: "L2 ε = 0.5", "L∞ ε = 8/255"."""
    steps = round(255 * eps)
    if norm == "linf" and abs(255 * eps - steps) < 1e-6 and steps:
        return f"L∞ ε = {steps}/255"
    return f"{'L2' if norm == 'l2' else 'L∞'} ε = {eps:.3g}"


def told(values: Mapping[str, Any]) -> str:
    """Columns and their values in words: "linear, BN re-estimated, sparsity 0.9". Words stand for
    themselves."""
    said = []
    for column, value in values.items():
        if column == "n_train":
            said.append("all images" if pd.isna(value) else f"{value:,g} training images")
        elif column == "recalibrate":
            said += ["BN re-estimated"] if value else []
        else:
            number = f"{value:g}" if isinstance(value, float) else value
            said.append(value if isinstance(value, str) else f"{column} {number}")
    return ", ".join(said)


def shared(rows: pd.DataFrame, *columns: str) -> str:
    """What all rows are of, for a note: "cifar10, finetune, sparsity 0.9, 3 seeds": those of the
    columns that have one value, as `told`; several seeds are counted."""
    values = {c: rows[c].iloc[0] for c in columns if rows[c].nunique(dropna=False) == 1}
    if "seed" in columns and (seeds := rows.seed.nunique()) > 1:
        values["seed"] = f"{seeds} seeds"
    return told(values)


def with_way(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `way`, how the ticket was transferred: "finetune", "linear, BN
    re-estimated"."""
    return rows.assign(way=[told(r) for r in rows[["mode", "recalibrate"]].to_dict("records")])


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `label`, from stats.PRETRAINING where they have none yet."""
    if "label" in rows or rows.empty:
        return rows.assign(label=rows.get("label", ""))
    return rows.assign(label=[label(r) for r in rows[stats.PRETRAINING].to_dict("records")])


def looks(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each label, natural first, the others in the order given."""
    labels = sorted(dict.fromkeys(labels), key=lambda name: name != "natural")
    robust = [name for name in labels if name != "natural"]
    out: dict[str, dict[str, Any]] = {}
    for name in labels:
        i = robust.index(name) if name in robust else 0
        place = i / (len(robust) - 1) if len(robust) > 1 else 0.5
        plain = {"color": NATURAL, "marker": "o", "ls": "-"}
        own = {"color": ROBUST(place), "marker": _MARKERS[i % 7], "ls": _DASHES[i % 5]}
        out[name] = (plain if name == "natural" else own) | {"ms": 3.0, "label": name}
    return out


def legend(fig: Figure, looks: Mapping[str, dict[str, Any]], *notes: str) -> None:
    """One legend above all panels, where it covers no data; the notes, a line each and empty ones
    left out, say what the rows are of and explain dots and bars."""
    if not looks:
        return
    handles = [plt.Line2D([], [], **look) for look in looks.values()]
    fits = 4 if fig.get_figwidth() > COLUMN else 2
    box = fig.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(fits, len(handles)),
        title="\n".join(filter(None, notes)) or None,
        title_fontsize=6.5,
    )
    box.get_title().set_multialignment("center")


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
