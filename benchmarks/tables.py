"""Puts the tables of the CSVs beside this file into docs/speed.md, between the marks of each.

    python benchmarks/tables.py

A CSV that is not there leaves its place as it is.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from robustlib import stats

ROOT = Path(__file__).resolve().parents[1]


def peers(frame: pd.DataFrame) -> str:
    """Training as a part of the bare loop; drawing and masked steps by library."""
    loops = frame[frame.section == "training"].drop_duplicates("loop").loop
    training = frame[frame.section == "training"].set_index(["what", "loop"])
    lines = []
    for what in dict.fromkeys(training.index.get_level_values(0)):
        own = training.loc[what]
        cells = [spread(own.loc[n]) if n in own.index else "-" for n in loops if n != "bare"]
        lines.append([what, f"{own.loc['bare'].value:,.0f}", *cells])
    names = ["training", "bare, images/s", *(n for n in loops if n != "bare")]
    others = frame[frame.section != "training"]
    rest = [
        [f"{r.section}, {r.what}", r.loop, f"{r.value:.3g} {r.unit}", f"{r.ratio:.2f}"]
        for r in others.itertuples()
    ]
    return table(names, lines) + "\n\n" + table(["masks", "by", "median", "of ours"], rest)


def spread(row: pd.Series) -> str:
    """The ratio, and how far images a second were apart between rounds."""
    return f"{row.ratio:.2f} (± {50 * (row.high - row.low) / row.value:.0f} %)"


def growth(frame: pd.DataFrame) -> str:
    """A line a curve: its ends, and its slopes."""
    lines = []
    for curve, own in frame.groupby("curve", sort=False):
        first, last = own.iloc[0], own.iloc[-1]
        lines.append(
            [
                f"{curve}",
                f"{first.axis}, {first.x:g} to {last.x:g}",
                f"{first.seconds:.3g} to {last.seconds:.3g}",
                f"{first.mib:.0f} to {last.mib:.0f}",
                *(f"{first[f'slope_{k}']:.2f}" for k in ("seconds", "mib", "work")),
            ]
        )
    slopes = ["slope of seconds", "of MiB", "of work"]
    return table(["what", "over", "seconds", "MiB", *slopes], lines)


def curve(frame: pd.DataFrame) -> str:
    """A line a piece of work, as a part of the one that it is compared with."""
    lines = [
        [r.what, f"{r.tickets}", f"{r.seconds:.3g} s", f"{r.ratio:.2f} of {r.of}"]
        for r in frame.itertuples()
        if r.what != r.of
    ]
    return table(["what", "tickets", "median", "ratio"], lines)


def front(frame: pd.DataFrame) -> str:
    """A line a way: its speed, and accuracies less those of `plain`, paired by seed."""
    what = {"accuracy": frame.accuracy, "robust accuracy": frame.robust_accuracy}
    tasks = [c for c in frame if c.startswith("linear_")]
    if tasks:
        what["linear transfer"] = frame[tasks].mean(axis=1)
    seeds = frame[["recipe", "seed"]].assign(**{k: 100 * v for k, v in what.items()})
    plain = seeds[seeds.recipe == "plain"].set_index("seed")
    lines = []
    for recipe, own in seeds.groupby("recipe", sort=False):
        same = frame[frame.recipe == recipe]
        cells = [f"{recipe}", f"{same.speed.median():.2f}", f"{same.passes.mean():.1f}"]
        for name in what:
            values = own.set_index("seed")[name]
            if recipe == "plain":
                cells.append(f"{values.mean():.1f} %")
                continue
            mean, low, high = stats.mean_interval((values - plain[name]).dropna())
            cells.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append(cells)
    return table(["way", "speed", "passes", *what], lines)


def gpu(frame: pd.DataFrame) -> str:
    """A line a training on the card: images a second of the bare loop, and ours as a part of it."""
    timed = frame[(frame.case == "images/s") & frame.loop.isin(["bare", "ours"])]
    lines = []
    for _, own in timed.groupby(["section", *CELL], sort=False):
        bare, ours = (own[own.loop == loop].iloc[0] for loop in ("bare", "ours"))
        precision = bare.precision
        if precision == "fp32":
            precision += " (TF32)" if bare.tf32 == "True" else " (TF32 off)"
        more = [bare.layout.replace("_", " ")] * (bare.layout != "channels_last")
        more += ["compiled"] * (bare.compiled == "True")
        network = f"{bare.arch}, {bare.side:g} px, {bare.batch_size:g}"
        lines.append(
            [
                network,
                bare.objective,
                ", ".join([precision, *more]),
                f"{bare.value:,.0f}",
                spread(ours.rename({"of_bare": "ratio"})),
                f"{ours.peak_mib / bare.peak_mib:.2f}",
            ]
        )
    names = ["network, side, batch", "objective", "precision", "bare, images/s", "ours", "memory"]
    return table(names, lines)


def table(names: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    names = list(names)
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *lines])


AS_TEXT = {"tf32": str, "compiled": str}
CELL = ["arch", "side", "batch_size", "objective", "precision", "tf32", "layout", "compiled"]
TABLES = {"peers": peers, "growth": growth, "curve": curve, "front": front, "gpu": gpu}


def filled(page: str, folder: Path) -> str:
    """The page with the tables of the CSVs that are in a folder."""
    for name, make in TABLES.items():
        if (file := folder / f"{name}.csv").exists():
            made = f"<!-- {name} -->\n\n{make(pd.read_csv(file, dtype=AS_TEXT))}\n\n<!-- end -->"
            page, n = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _: made, page, flags=re.S)  # noqa: B023
            if n != 1:
                raise ValueError(f"<!-- {name} -->: found {n} times in the page, must be once")
    return page


def main() -> None:
    page = ROOT / "docs" / "speed.md"
    page.write_text(filled(page.read_text("utf-8"), Path(__file__).parent), "utf-8")


if __name__ == "__main__":
    main()
