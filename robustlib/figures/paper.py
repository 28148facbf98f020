"""Every figure by its name: how it is drawn from its rows, what its caption says, and its files."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustlib import __version__, claims, profiles, stats, store
from robustlib.figures import ablations, networks, results, table, tickets
from robustlib.figures.edge import channels, edge
from robustlib.figures.names import NotDrawn, called, in_words, labelled, ordered
from robustlib.figures.properties import (
    certified,
    corruptions,
    layers,
    properties,
    property_rows,
    property_table,
    reliability,
    table_rows,
)
from robustlib.figures.style import VENUES, style, venue
from robustlib.files import sha256, whole, writable
from robustlib.specs import Evaluation, Transfer, columns, one_of

OVER_SEEDS = "Student's t, 95 %, over seeds"
TO_NATURAL = f"{OVER_SEEDS}, of the difference to natural, paired by seed"
TO_OWN = f"{OVER_SEEDS}, of the difference to the network's own mask, paired by seed"
EXACT = "Clopper-Pearson, 95 %, over test images"


@dataclass(frozen=True)
class Named:
    """What has a name: a figure, a table, or both, of one kind of rows."""

    draw: Callable[..., Figure] | None = None
    """From its rows, or from what it needs."""
    bars: str = ""
    """Of what kind its intervals are."""
    table: Callable[[pd.DataFrame], pd.DataFrame] | None = None
    """Its rows as text, which becomes LaTeX."""
    study: str | None = None
    """The ablation of a profile that its rows are of, "" for the profile's own grid; None: they are
    not those of a grid."""
    needs: str = ""
    """Why it is not drawn from rows."""

    def latex(self, rows: pd.DataFrame) -> str:
        """The table of its rows, "" where it has none."""
        return table.latex(self.table(rows)) if self.table else ""

    @property
    def shows(self) -> str:
        """The first sentence of its caption: that of what draws it."""
        return " ".join(
            (getattr(self.draw or self.table, "__doc__", "") or "").split("\n\n")[0].split()
        )


_NETWORKS = "it needs the networks: run notebooks/{}.ipynb"
FIGURES = {
    "accuracy_vs_sparsity": Named(results.accuracy_vs_sparsity, TO_NATURAL, table.table, ""),
    "advantage": Named(results.advantage, TO_NATURAL, table.by_task, ""),
    "detail": Named(results.detail, TO_NATURAL, table.by_detail, "detail"),
    "pretraining": Named(ablations.by_pretraining, TO_NATURAL, None, "pretraining"),
    "masks": Named(ablations.by_mask, TO_OWN, None, "masks"),
    "patterns": Named(ablations.by_drawing, TO_NATURAL, None, "patterns"),
    "schemes": Named(ablations.by_drawing, TO_NATURAL, None, "schemes"),
    "budget": Named(results.accuracy_vs_labels, TO_NATURAL, None, "budget"),
    "batchnorm": Named(results.accuracy_vs_sparsity, TO_NATURAL, None, "batchnorm"),
    "ranking": Named(results.accuracy_vs_sparsity, TO_NATURAL, None, "ranking"),
    "segmentation": Named(results.miou_vs_sparsity, TO_NATURAL, None, "segmentation"),
    "segmentation_classes": Named(networks.by_class, TO_NATURAL),
    "gap": Named(
        ablations.gap, f"{OVER_SEEDS} (upwards); bootstrap over images (sideways)", study="gap"
    ),
    "properties": Named(properties, OVER_SEEDS, None, "properties"),
    "reliability": Named(reliability, study="properties"),
    "radii": Named(certified, study="properties"),
    "corruptions": Named(corruptions, TO_NATURAL, study="properties"),
    "layers": Named(layers, study="properties"),
    "edge": Named(edge, TO_NATURAL),
    "channels": Named(channels),
    "training_curves": Named(networks.curves),
    "robust_accuracy": Named(networks.robust_accuracy, EXACT),
    "layer_density": Named(tickets.layer_density),
    "mask_overlap": Named(tickets.mask_overlap),
    "masks_by_scheme": Named(tickets.overlaps),
    "masks_by_pattern": Named(tickets.patterns, needs=_NETWORKS.format("02_ticket_extraction")),
    "filters": Named(tickets.filters, needs=_NETWORKS.format("02_ticket_extraction")),
    "adversarial_examples": Named(
        networks.adversarial_examples, needs=_NETWORKS.format("01_robust_pretraining")
    ),
    "scenes": Named(networks.scenes, needs=_NETWORKS.format("04_segmentation")),
    "claims": Named(table=table.verdicts, bars="95 %, over seeds and tasks, as its estimand says"),
    "rates": Named(table=table.rates, bars=OVER_SEEDS, study="rates"),
    "grey": Named(table=table.by_colour, bars=TO_NATURAL, study="grey"),
    "domain_gap": Named(table=table.gaps, bars=OVER_SEEDS),
    "property_table": Named(table=table.properties, bars=OVER_SEEDS, study="properties"),
    "mask_effects": Named(table=table.mask_effects, bars=TO_OWN, study="masks"),
}
"""By the name of their files."""


def read(file: Path) -> pd.DataFrame:
    """The rows behind a figure, text as the specs have it."""
    frame = pd.read_csv(file, low_memory=False)
    texts = frame.select_dtypes(["object", "string"]).columns
    return frame.assign(**{c: frame[c].fillna("") for c in texts})


def stored(name: str, profile: str) -> pd.DataFrame | None:
    """The rows of a figure by its name, of a profile's stored results; None: they are not all
    stored, or are not those of a grid."""
    study = FIGURES[name].study
    if name == "claims":
        return claims.of_profile(profile)
    if name == "domain_gap":
        frame = store.rows(filter(store.has, profiles.gaps(profile)))
        return None if frame is None or frame.empty else frame.dropna(axis=1, how="all")
    if study is None or study not in ("", *profiles.ablations(profile)):
        return None
    if study == "properties":
        return _of_evaluations(name, profiles.evaluations(f"{profile}:{study}"))
    rows = claims.stored_rows(profile, study)
    if rows is None or name not in ("advantage", "mask_effects", "gap"):
        return rows
    if name == "gap":
        first = profiles.family(f"{profile}:gap")[0]
        own = store.rows(s for s in profiles.gaps(profile) if s.of == first)
        return None if own is None else ablations.gap_rows(rows, own)
    return stats.differences(rows) if name == "advantage" else ablations.mask_rows(rows)


def _of_evaluations(name: str, asked: Mapping[str, list[Evaluation]]) -> pd.DataFrame | None:
    specs = [spec for group in asked.values() for spec in group]
    if not all(map(store.has, specs)):
        return None
    if make := {"properties": property_rows, "property_table": property_table}.get(name):
        return make({what: store.rows(group) for what, group in asked.items()})
    suites = {"reliability": "calibration", "radii": "certified", "layers": "similarity"}
    suite = suites.get(name, "corruption")
    own = [spec for spec in specs if spec.suite == suite and not spec.scaled]
    return table_rows({spec: store.get(spec).extra[name] for spec in own}) if own else None


def write(
    names: Iterable[str], out: Path | None, rows: Path, profile: str = "", where: str = "icml2022"
) -> Iterator[tuple[str, Figure | None, str]]:
    """Draws figures and tables by name, from the CSVs in the folder `rows`, or from the stored
    results of a profile, and writes each to `out`. names: empty: all that there are rows of.

    Yields the name, the picture (None for a table, or where there is none), and the caption, or a
    word on why there is none. Raises ValueError for an unknown name, profile or venue, and for a
    bad folder, before anything is drawn.
    """
    names = [one_of("name", name, FIGURES) for name in names]
    one_of("venue", where, VENUES)
    if profile:
        profiles.profile(profile)
    elif not rows.is_dir():
        raise ValueError(f"rows={str(rows)!r}: must be a folder of the CSVs behind figures")

    def written() -> Iterator[tuple[str, Figure | None, str]]:
        for name in names or FIGURES:
            entry, file = FIGURES[name], rows / f"{name}.csv"
            try:
                frame = stored(name, profile) if profile else read(file) if file.is_file() else None
                drawable = frame is not None and not entry.needs
                with venue(where):
                    figure = entry.draw(frame) if entry.draw and drawable else None
            except NotDrawn as e:
                yield name, None, f"{name}: {e}"
                continue
            if frame is not None and not entry.needs:
                save(figure, out, name, frame, None if profile else file)
                yield name, figure, caption(name, frame)
            elif names:
                missing = f"not all of it is stored, profile {profile}" if profile else f"no {file}"
                yield name, None, f"{name}: {entry.needs or missing}"

    return written()


def folder(name: str) -> Path | None:
    """The folder that a notebook's figures go to, made if need be; None for "": nowhere.

    Raises ValueError when it is no folder or cannot be written to.
    """
    if not name:
        return None
    out = writable("figures", name)
    out.mkdir(parents=True, exist_ok=True)
    return out


def section(
    frames: Mapping[str, pd.DataFrame],
    name: str,
    draw: Callable[[pd.DataFrame], Figure],
    out: Path | None,
) -> Figure | str:
    """A notebook's section on one of several frames: drawn and saved under its name; a word on it
    where the frame is not there, or the figure has no place for what is in it."""
    if name not in frames:
        return f"{name}: not in the profile, or not chosen"
    try:
        figure = draw(frames[name])
    except NotDrawn as e:
        return f"{name}: {e}"
    save(figure, out, name, frames[name])
    return figure


def save(
    fig: Figure | None, out: Path | None, name: str, data: pd.DataFrame, source: Path | None = None
) -> Path | None:
    """Writes NAME.pdf, NAME.png (200 dpi), the rows behind them, NAME.csv, the caption, NAME.txt,
    and, of what FIGURES has a table for, NAME.tex; returns the PDF.

    fig: None: a table alone. out: as `folder` returns it; None: nothing is written. source: the CSV
    that the rows were read from. CSV columns are named as the fields of the specs are; the PDF's
    metadata say the specs of the rows and all versions. Each file is written beside its place and
    renamed there; the same rows give the same bytes.
    """
    if out is None:
        return None
    csv = source.read_bytes() if source else stats.arranged(data).to_csv(index=False).encode()
    tex = FIGURES.get(name, Named()).latex(data).encode()
    for suffix, content in (("csv", csv), ("txt", caption(name, data).encode()), ("tex", tex)):
        if content:
            with whole(out / f"{name}.{suffix}") as file:
                file.write(content)
    kinds: dict[str, Any] = {"png": {"dpi": 200}, "pdf": {"metadata": metadata(name, data)}}
    for kind, options in kinds.items():
        if fig:
            with style(), whole(out / f"{name}.{kind}") as file:
                fig.savefig(file, format=kind, **options)
    return out / f"{name}.pdf"


def caption(name: str, data: pd.DataFrame) -> str:
    """What a figure shows, of which rows, n, seeds and intervals: computed from the rows."""
    entry, lines = FIGURES.get(name, Named()), list[str]()
    seeds = sorted(data.seed.unique()) if "seed" in data else []
    n = len(seeds) or int(data.seeds.min()) if "seeds" in data or seeds else 0
    if n:
        which = f" ({', '.join(map(str, seeds))})" if seeds else ""
        lines.append(f"{n} seeds{which}; means over seeds." if n > 1 else f"1 seed{which}.")
    if entry.bars:
        none = n == 1 and "over seeds" in entry.bars
        lines.append(
            "Intervals: none, for there is one seed." if none else f"Intervals: {entry.bars}."
        )
    if {"label", "objective"} & set(data):
        lines.append(f"Networks: {'; '.join(ordered(labelled(data)))}.")
    if "task" in data:
        n_test = data.groupby("task", sort=False).n.max() if "n" in data else {}
        tasks = [
            called(task) + (f" ({n_test[task]:,.0f} test images)" if len(n_test) else "")
            for task in data.task.unique()
        ]
        lines.append(f"Tasks: {'; '.join(tasks)}.")
    for column in ("source", "arch", "mode", "scheme", "pattern", "sparsity", "scope", "n_train"):
        values = data[column].drop_duplicates().sort_values() if column in data else pd.Series()
        if column != "n_train":  # whose absence says "all"
            values = values.dropna()
        if 0 < len(values) <= 12:
            words = [in_words({column: v}).removeprefix(f"{column} ") for v in values]
            lines.append(f"{column}: {'; '.join(words)}.")
    lines.append(f"{len(data):,} rows; {_versions(data)}.")
    return "\n".join([*filter(None, [entry.shows]), *lines, ""])


def metadata(name: str, data: pd.DataFrame) -> dict[str, Any]:
    """Of a PDF: what it shows, the specs of its rows (each field that is not at its default, with
    its values), versions, and a digest of the rows' keys."""
    default, spec = columns(Transfer()), {}
    for column in (c for c in default if c in data):
        values = dict.fromkeys(map(_plain, data[column]))
        if list(values) != [_plain(default[column])]:
            spec[column] = ", ".join(values)
    return {
        "Title": f"{name}: {FIGURES[name].shows}" if name in FIGURES else name,
        "Subject": json.dumps(spec, ensure_ascii=False),
        "Keywords": _versions(data),
        "CreationDate": None,
    }


def _plain(value: Any) -> str:
    """A value as text, the same for one that was read from a file."""
    if value is None or value != value:
        return ""
    return str(value) if isinstance(value, str | bool | np.bool_) else f"{value:.10g}"


def _versions(data: pd.DataFrame) -> str:
    own = [f"drawn by robustlib {__version__}, matplotlib {matplotlib.__version__}"]
    by = {c.removesuffix("_version"): data[c].unique() for c in data if c.endswith("_version")}
    if by:
        own.append("computed by " + ", ".join(f"{k} {' or '.join(v)}" for k, v in by.items()))
    if "key" in data:
        keys = sorted(set(data.key.astype(str)))
        digest = sha256(" ".join(keys).encode())[:16]
        own.append(f"{len(keys)} stored results, SHA-256 of their keys {digest}")
    return "; ".join(own)
