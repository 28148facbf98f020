"""Commands that show what there is: data sets, results and verdicts."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from robustlib.cli.app import Whole, app, arranged, check_csv, examples, show, warnings_as_lines
from robustlib.specs import KINDS, number, one_of

data = App(name="data", help="List the datasets, or build one from a folder of images.")
app.command(data)


@data.command(name="list")
def data_list() -> None:
    """List the datasets: where each comes from, whether it is here, sizes and licence."""
    import pandas as pd

    from robustlib.data import sources

    print(f"data root: {sources.data_root()} (set ROBUSTLIB_DATA to change it)")
    print(pd.DataFrame(sources.available()).to_string(index=False))


@data.command(
    name="build", help_epilogue=examples("robustlib data build leaves ~/leaves --size 64")
)
def data_build(
    name: str, folder: Path, /, *, size: Whole = 32, test_fraction: float = 0.2, seed: Whole = 0
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


@app.command(
    help_epilogue=examples(
        "robustlib results --where task=cifar10,mnist --where sparsity=0.9 --sort accuracy",
        "robustlib results --columns task,eps,seed,accuracy --latex > rows.tex",
    )
)
def results(
    *,
    kind: Literal["pretrain", "ticket", "transfer", "evaluation"] = "transfer",
    where: Annotated[tuple[str, ...], Parameter(alias="-w", negative=())] = (),
    sort: str = "",
    columns: str = "",
    csv: Path | None = None,
    latex: bool = False,
    all_columns: bool = False,
) -> None:
    """Print the stored results of one kind, or write them to a CSV file.

    Args:
        kind: Which results.
        where: COLUMN=VALUE,VALUE,...: only rows of these values, as printed or as 8/255; may be
            repeated.
        sort: Columns to sort by, comma-separated; COLUMN:down is from the largest.
        columns: Columns to print, comma-separated, instead of those that tell rows apart.
        csv: Write the rows here, all columns, instead of printing.
        latex: Print a LaTeX table, for the package booktabs.
        all_columns: Print every column.
    """
    from robustlib import batch, store

    check_csv(csv)
    wanted, frame = batch.parse(where), store.frame(KINDS[kind])
    by = [name.partition(":") for name in sort.split(",") if sort]
    chosen = columns.split(",") if columns else []
    for name in (*wanted, *(name for name, *_ in by), *chosen):
        one_of("column", name, list(frame))
    for column, values in wanted.items():
        frame = frame[[any(_is(v, text) for text in values) for v in frame[column]]]
    if by:
        up = [one_of("sort", way or "up", ("up", "down")) == "up" for _, _, way in by]
        frame = frame.sort_values([name for name, *_ in by], ascending=up, kind="stable")
    if frame.empty:
        such = f" with {' and '.join(where)}" if where else ""
        print(f"no {kind}{such} is stored in {store.root()}")
    elif latex:
        from robustlib.figures.table import latex as as_latex  # matplotlib: not before it is needed

        print(as_latex(frame[chosen] if chosen else arranged(frame, all_columns)), end="")
    else:
        show(frame[chosen] if chosen and not csv else frame, csv, all_columns or bool(chosen))


def _is(value: Any, text: str) -> bool:
    """Whether a value is what --where says: 0.50 is 0.5, 8/255 and 0.031373, as the table prints
    it, are one, True is true, and a missing one None or NaN."""
    if value is None or value != value:
        return text in ("None", "NaN", "nan")
    if str(value) == (text.capitalize() if isinstance(value, bool) else text):
        return True
    try:
        if isinstance(value, float):
            wanted = number(text, text, -math.inf, math.inf)
            # pandas prints six decimals, of what is small in scientific notation.
            printed = round(value, 6), float(f"{value:.6e}")
            return wanted == value or (wanted != 0 and wanted in printed)
        return isinstance(value, int) and Decimal(text) == value  # exactly, however long
    except (ValueError, ArithmeticError):
        return False


@app.command(
    help_epilogue=examples(
        "robustlib figures",
        "robustlib figures detail masks --venue neurips2024 --out paper",
        "robustlib figures --profile cpu --out runs/cpu/figures",
    )
)
def figures(
    names: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    rows: Path = Path("figures"),
    profile: str = "",
    venue: str = "icml2022",
    out: Path | None = None,
) -> None:
    """Draw figures and tables by name: PDF, PNG, CSV, the caption, and tables as LaTeX.

    Args:
        names: Which (default: all that there are rows of).
        rows: The folder of the CSVs that they are drawn from.
        profile: Draw them from its stored results instead.
        venue: Whose widths they have, as tueplots knows them.
        out: Folder to write to (default: that of the rows).
    """
    from robustlib import figures

    out, drawn = out or rows, False
    for name, _, said in figures.write(names, out, rows, profile, venue):
        files = ", ".join(map(str, sorted(out.glob(f"{name}.*"))))
        print(said if said.startswith(f"{name}: ") else f"{name}: {files}")
        drawn = True
    if not drawn:
        where = f"the store, profile {profile}" if profile else rows
        print(f"nothing to draw: no rows of a figure are in {where}")


@app.command(help_epilogue=examples("robustlib claims --profile cpu --csv claims.csv"))
def claims(*, profile: str = "cpu", csv: Path | None = None) -> None:
    """Print the verdict on each claim of the paper, from the stored rows of a profile.

    Args:
        profile: Whose grid and ablations; what is not stored whole is "not run".
        csv: Write the table here, with estimands and intervals, instead of printing.
    """
    from robustlib.claims import of_profile

    check_csv(csv)
    table = of_profile(profile)
    show(table if csv else table.drop(columns=["sentence", "estimand"]).round(2), csv, True)
