"""What may be chosen among stored transfers, which rows that leaves, and how they leave the page:
plain functions, without a widget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from robustlib import specs, stats, store
from robustlib.figures.names import labelled
from robustlib.figures.results import panel_columns
from robustlib.specs import Spec, Transfer, columns

Chosen = Mapping[str, Sequence[str]]
"""The values chosen of each facet, as texts; none means all."""
FIRST = ["source", "robust", "scheme", "pattern", "detail", "task", "mode", "n_train", "seed"]
TRAINED = ["epochs", "lr", "batch_size", "weight_decay", "augment"]
PANELS, TASKS = 24, 4
NOTHING = (
    "No transfer is stored in {}. Run first: `robustlib study --profile quick`, or the part Run."
)


def load() -> tuple[pd.DataFrame, dict[str, Transfer], str]:
    """The rows of all stored transfers, their specs by key, and what to say of them: that there are
    none, or that damaged ones are left out."""
    damaged: list[store.Damaged] = []
    found: list[Any] = list(store.artifacts(Transfer, damaged))
    frame = pd.DataFrame([a.row for a in found], columns=None if found else [*columns(Transfer())])
    said = "" if found else NOTHING.format(store.root())
    if damaged:
        said = f"{len(damaged)} left out, the first: {damaged[0]}. {said}".strip()
    return frame, {a.row["key"]: a.spec for a in found}, said


def facets(frame: pd.DataFrame) -> pd.DataFrame:
    """What may be chosen, as texts: for each row and facet its value. Facets are FIRST, whose mask
    it is, and what else must be known to tell rows apart; values are in their order.

    What says nothing of a row is missing, and goes with any choice: the way to pretrain (`robust`)
    of a natural row, what is TRAINED of a linear one.
    """
    own = [f"mask_{c}" for c in stats.PRETRAINING]
    labels = labelled(frame).label
    table = frame.assign(robust=labels.where(frame.objective != "natural"), mask="own")
    if set(own) <= set(frame):
        masks = labelled(frame[own].rename(columns=lambda c: c.removeprefix("mask_"))).label
        table["mask"] = table["mask"].where(labels == masks, masks)
    for name in TRAINED:
        if name in table:
            table[name] = table[name].where(table["mode"] != "linear")
    names = [name for name in [*FIRST, "mask"] if name in table]
    said = {*stats.PRETRAINING, "sparsity", *own}
    cell = table.assign(labels=labels)
    for name in columns(Transfer()):
        if name in table and name not in {*said, *names} and table[name].nunique(False) > 1:
            groups = cell.groupby(["labels", "sparsity", *names], dropna=False)
            if groups[name].nunique(False).max() > 1:
                names.append(name)
    return pd.DataFrame({name: _texts(name, table[name]) for name in names}, index=frame.index)


def _texts(name: str, values: pd.Series) -> pd.Categorical:
    unused = None if name in (*TRAINED, "robust") else "none"
    absent = {"n_train": "all", "detail": "as they are"}.get(name, unused)
    known = sorted(values.dropna().unique())
    said = {v: f"{v:g}" if isinstance(v, float) else str(v) for v in known}
    texts = [absent if pd.isna(v) else said[v] for v in values]
    order = dict.fromkeys([*said.values(), absent])
    return pd.Categorical(texts, [text for text in order if text and text in texts])


def matching(table: pd.DataFrame, chosen: Chosen, but: str = "") -> pd.Series:
    """Which rows the chosen values leave, those of the facet `but` not asked."""
    out = pd.Series(True, table.index)
    for name, values in chosen.items():
        if values and name in table and name != but:
            out &= table[name].isin(values) | table[name].isna()
    return out


def options(table: pd.DataFrame, chosen: Chosen) -> dict[str, list[tuple[str, str]]]:
    """What each facet offers beside what is chosen in the others: (value with its count, value).
    What is chosen stays, if with a count of 0."""
    out = {}
    for name in table:
        counts = table[name][matching(table, chosen, but=name)].value_counts()
        kept = [v for v in table[name].cat.categories if counts[v] or v in chosen.get(name, ())]
        out[name] = [(f"{value} ({counts[value]})", value) for value in kept]
    return out


def start(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """A first choice that makes one picture: of each facet the commonest value, or of the tasks the
    commonest, and all seeds."""
    chosen: dict[str, tuple[str, ...]] = {}
    for name in sorted(table, key=lambda n: (n == "task", n not in FIRST, n == "mode")):
        counts = table[name][matching(table, chosen)].value_counts()
        if name != "seed" and (counts > 0).sum() > (n := TASKS * (name == "task")):
            chosen[name] = tuple(counts.index[: n or 1])
    return chosen


def partners(rows: pd.DataFrame) -> pd.Series:
    """For each robust row that has a natural partner, the index of that row."""
    twin = [c for c in columns(Transfer()) if c in rows and c not in stats.RECIPE]
    natural = rows[rows.objective == "natural"].drop_duplicates(twin).reset_index(names="partner")
    robust = rows[rows.objective != "natural"].reset_index(names="own")
    pairs = robust.merge(natural[[*twin, "partner"]], on=twin)
    return pairs.set_index("own").partner


def drawable(rows: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """The rows that a picture can compare, the measure that it shows, and what is left out of it.

    Raises ValueError where nothing can be compared, or more than can be read.
    """
    value = "miou" if set(rows["mode"]) == {"segment"} else "accuracy"
    kept = rows[rows[value].notna()] if value in rows else rows[:0]
    if (pairs := partners(kept)).empty:
        raise ValueError("No robust row with its natural partner is among them: choose others.")
    lonely = (kept.objective != "natural") & ~kept.index.isin(pairs.index)
    kept = kept[~lonely]
    if (n := kept.groupby([*panel_columns(kept), "task"], dropna=False).ngroups) > PANELS:
        raise ValueError(f"{n} panels, at most {PANELS} can be read: choose fewer tasks or ways.")
    left = {"robust rows without a natural partner": int(lonely.sum())}
    left["rows of another measure"] = len(rows) - len(kept) - int(lonely.sum())
    return kept, value, " ".join(f"Left out: {n} {what}." for what, n in left.items() if n)


def as_json(wanted: Iterable[Spec]) -> str:
    """Specs as `robustlib sweep FILE.json` takes them."""
    rows = [{specs.kind(s): specs.to_dict(s, defaults=False)} for s in wanted]
    return json.dumps(rows, indent=1)
