"""Commands that show what there is: data sets, results and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from robustlib.cli.app import app, check_csv, show, warnings_as_lines
from robustlib.specs import KINDS

data = App(name="data", help="List the datasets, or build one from a folder of images.")
app.command(data)


@data.command(name="list")
def data_list() -> None:
    """List the datasets: where each comes from, whether it is here, sizes and licence."""
    import pandas as pd

    from robustlib.data import sources

    print(f"data root: {sources.data_root()} (set ROBUSTLIB_DATA to change it)")
    print(pd.DataFrame(sources.available()).to_string(index=False))


@data.command(name="build")
def data_build(
    name: str, folder: Path, /, *, size: int = 32, test_fraction: float = 0.2, seed: int = 0
) -> None:
    """Build a pack in the data root from a folder of class folders.

    Args:
        name: The dataset's name from now on.
        folder: FOLDER/CLASS/IMAGES, or FOLDER/train/CLASS/IMAGES and FOLDER/test/CLASS/IMAGES.
        size: Side of the images, in pixels.
        test_fraction: The part of each class that becomes the test split, if there is none.
        seed: Seeds that draw.
    """
    from robustlib.data import sources

    with warnings_as_lines():
        print(sources.build_folder(name, folder, size, test_fraction, seed))


@app.command
def results(
    *,
    kind: Literal["pretrain", "ticket", "transfer", "evaluation"] = "transfer",
    csv: Path | None = None,
    all_columns: bool = False,
) -> None:
    """Print the stored results of one kind, or write them to a CSV file.

    Args:
        kind: Which results.
        csv: Write them here, all columns, instead of printing.
        all_columns: Print the columns that are the same in every row too.
    """
    from robustlib import store

    check_csv(csv)
    frame = store.frame(KINDS[kind])
    if frame.empty:
        print(f"no {kind} is stored in {store.root()}")
    else:
        show(frame, csv, all_columns)


@app.command
def claims(*, profile: str = "cpu", csv: Path | None = None) -> None:
    """Print the verdict on each claim of the paper, from the stored rows of a profile.

    Args:
        profile: Whose grid and ablations; what is not stored whole is "not run".
        csv: Write the table here, with estimands and intervals, instead of printing.
    """
    from robustlib.claims import of_profile

    check_csv(csv)
    table = of_profile(profile)
    show(table if csv else table.drop(columns=["sentence", "estimand"]).round(2), csv)
