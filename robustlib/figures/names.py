"""What figures call things: ways to pretrain, tasks, what rows have in common."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from robustlib import stats
from robustlib.specs import Transfer, columns

TASKS = {
    "brain_mri4": "Brain MRI",
    "camvid_seg": "CamVid",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "Digits",
    "dtd": "DTD",
    "eurosat": "EuroSAT",
    "fashion_mnist": "Fashion-MNIST",
    "flowers102": "Flowers-102",
    "flowers5": "Flowers",
    "glyphs": "Glyphs",
    "glyphs_seg": "Glyphs",
    "gtsrb": "GTSRB",
    "imagenet": "ImageNet",
    "kmnist": "KMNIST",
    "mnist": "MNIST",
    "omniglot": "Omniglot",
    "omniglot_small": "Omniglot",
    "oxford_iiit_pet": "Pets",
    "rsscn7": "RSSCN7",
    "svhn": "SVHN",
    "tiny_imagenet": "Tiny ImageNet",
    "tinyimagenet150": "Tiny ImageNet-150",
    "tinyimagenet200": "Tiny ImageNet",
    "tinyimagenet50": "Tiny ImageNet-50",
    "voc2012_seg": "VOC 2012",
}
"""Data sets that are written otherwise than they are named in specs."""


def called(task: str) -> str:
    """A data set's name as figures and tables write it: "CIFAR-10" for cifar10."""
    return TASKS.get(task, task)


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


def in_words(values: Mapping[str, Any]) -> str:
    """Columns and their values in words: "linear, BN re-estimated, sparsity 0.9"."""
    parts = []
    for column, value in values.items():
        if column == "n_train":
            parts.append("all images" if pd.isna(value) else f"{value:,g} training images")
        elif column == "detail":
            parts += [] if pd.isna(value) else [f"images of {value:g} px"]
        elif column == "recalibrate":
            parts += ["BN re-estimated"] if value else []
        elif isinstance(value, str):
            parts.append(called(value))
        else:
            parts.append(f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}")
    return ", ".join(parts)


def shared(rows: pd.DataFrame, *names: str) -> str:
    """What all rows are of, for a note: "CIFAR-10, finetune, sparsity 0.9, 3 seeds": those of the
    columns that have one value, `in_words`; several seeds are counted."""
    names = tuple(c for c in names if c in rows)
    values = {c: rows[c].iloc[0] for c in names if rows[c].nunique(dropna=False) == 1}
    if "seed" in names and (seeds := rows.seed.nunique()) > 1:
        values["seed"] = f"{seeds} seeds"
    return in_words(values)


def with_way(rows: pd.DataFrame, ways: list[str]) -> pd.DataFrame:
    """The rows with a column `way`, the columns `ways` in words: "linear, BN re-estimated"."""
    return rows.assign(way=[in_words(r) for r in rows[ways].to_dict("records")])


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `label`, from stats.PRETRAINING where they have none yet."""
    if "label" in rows or rows.empty:
        return rows.assign(label=rows.get("label", ""))
    return rows.assign(label=[label(r) for r in rows[stats.PRETRAINING].to_dict("records")])


def ordered(rows: pd.DataFrame) -> list[str]:
    """The labels of rows by objective and strength."""
    by = [c for c in ("objective", "norm", "eps", "sigma", "steps") if c in rows]
    return list((rows.sort_values(by) if by else rows).label.unique())


def native(rows: pd.DataFrame) -> pd.Series:
    """The detail of the task's images as they are, their side where the rows do not tell."""
    return rows["native_detail" if "native_detail" in rows else "size"]


def titles(rows: pd.DataFrame) -> dict[str, str]:
    """The tasks of rows and what their panels are called: those whose images have the detail that
    the source's have first, by name, where the rows tell (`native_detail`)."""
    tasks = rows.drop_duplicates("task")
    if "native_detail" not in rows:
        return {task: called(task) for task in tasks.task}
    kind = (tasks.native_detail >= tasks["size"]).map({True: "full", False: "coarse"})
    tasks = tasks.assign(kind=kind).sort_values(["kind", "task"], ascending=[False, True])
    return {
        row.task: f"{called(row.task)}\n{row.kind}, {row.native_detail:g} px"
        for row in tasks.itertuples()
    }


class NotDrawn(ValueError):
    """A figure has no place for what its rows hold; others of the study may have."""


def alike(frame: pd.DataFrame, *names: str) -> None:
    """Refuses rows that differ in what a figure has no place for: it would average over it."""
    for column in names:
        if frame[column].nunique(dropna=False) > 1:
            values = ", ".join(map(str, frame[column].unique()))
            raise NotDrawn(f"{column}: the rows have {values}; this figure draws one at a time")


def distinct(rows: pd.DataFrame, *place: str) -> None:
    """Refuses several rows of one seed in one place: a figure would average over what they differ
    in, and nothing would show it."""
    cells = [*place, "seed"]
    twice = rows[rows.duplicated(cells, keep=False)]
    if len(twice):
        same = twice[(twice[cells] == twice[cells].iloc[0]).all(axis=1)]
        names = [c for c in columns(Transfer()) if c in same and same[c].nunique(False) > 1]
        where = ", ".join(f"{c}={same[c].iloc[0]}" for c in cells)
        values = "; ".join(f"{c} {', '.join(map(str, same[c].unique()))}" for c in names)
        raise NotDrawn(f"{len(same)} rows at {where}, of {values or 'one spec'}: must be one")
