"""Accuracy against sparsity, and robust minus natural, of the stored rows that menus choose."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd

from robustlib import figures, files, specs, stats, store
from robustlib.explorer import choices
from robustlib.explorer.panel import REFUSED, WRAP, Drawn, Panel, button, offer

ROWS = 200
"""Rows of the table that are shown."""
ABOVE, BELOW = "accuracy", "robust − natural"
PYTHON = "from robustlib import Pretrain, Ticket, Transfer, run\n\nrun({}).row"


def _menu() -> widgets.SelectMultiple:
    style = {"description_width": "60px"}
    return widgets.SelectMultiple(rows=4, style=style, layout=widgets.Layout(width="215px"))


def _chosen(menus: dict[str, widgets.SelectMultiple]) -> dict[str, tuple[str, ...]]:
    return {name: menu.value for name, menu in menus.items()}


def _narrow(menus: dict[str, widgets.SelectMultiple], table: pd.DataFrame) -> None:
    for name, values in choices.options(table, _chosen(menus)).items():
        offer(menus[name], values)


def _pictures(rows: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame, str, str]:
    """The two pictures, not drawn yet, of the rows that can be compared."""
    kept, value, said = choices.drawable(rows)
    draw = {
        ABOVE: lambda: figures.accuracy_vs_sparsity(kept, value),
        BELOW: lambda: figures.advantage(kept, value),
    }
    return draw, kept, value, said


def transfers(frame: pd.DataFrame) -> Panel:
    """Accuracy against sparsity, or robust minus natural, for chosen tasks, modes and seeds.

    frame: rows of `sweep`. The controls are menus of the values that the rows have; nothing chosen
    in one means all of it. Of many tasks a few are chosen first.
    """
    table = choices.facets(frame)[["task", "mode", "seed"]]
    menus = {name: _menu() for name in table}
    _narrow(menus, table)
    if table.task.nunique() > choices.TASKS:  # all of them would be more than can be read
        for name, texts in choices.start(table).items():
            menus[name].value = texts
    picture = widgets.ToggleButtons(options=[ABOVE, BELOW])

    def draw() -> Drawn:
        _narrow(menus, table)
        pictures, *_, said = _pictures(frame[choices.matching(table, _chosen(menus))])
        return [pictures[picture.value]()], said

    return Panel(draw, {"picture": picture, **menus})


class Tradeoff(Panel):
    """The trade-off over the store, its rows as a table, and what can be saved of it."""

    def __init__(self, folder: str) -> None:
        wide = widgets.Layout(min_width="350px")
        self.sort = widgets.Dropdown(description="sort by")
        self.down = widgets.Checkbox(True, description="largest first")
        self.listing = widgets.HTML(layout=widgets.Layout(max_height="260px", overflow="auto"))
        self.one = widgets.Dropdown(description="row", layout=wide)
        self.python = widgets.Textarea(layout=widgets.Layout(width="98%", height="90px"))
        self.name = widgets.Text("tradeoff", description="name")
        self.folder = widgets.Text(folder, description="folder", layout=wide)
        self.saved = widgets.HTML()
        self.frame = self.table = self.rows = pd.DataFrame()
        self.said = ""
        for control in (self.sort, self.down):
            control.observe(lambda _: None if self.busy else self.tabulate(), "value")
        self.one.observe(lambda _: self.spell(), "value")
        rows = (
            [button("choose all", self.clear), button("reload", self.reload)],
            [self.sort, self.down],
            [self.name, self.folder, button("save", self.save)],
        )
        bar, order, keep = (widgets.HBox(row, layout=WRAP) for row in rows)
        below = [order, self.listing, self.one, self.python, keep, self.saved]
        super().__init__(self.show, {}, [bar], below)
        self.reload()

    def reload(self) -> None:
        """Reads the store again; what was chosen stays so."""
        before, self.busy = _chosen(self.controls), True
        self.frame, self.specs, self.said = choices.load()
        self.table = choices.facets(self.frame)
        menus = {name: self.controls.get(name) or _menu() for name in self.table}
        for name, values in choices.options(self.table, {}).items():
            offer(menus[name], values)
            # One value is no choice.
            menus[name].layout.display = None if len(values) > 1 else "none"
        if not before:
            for name, texts in choices.start(self.table).items():
                menus[name].value = texts
        self.take(menus)
        self.busy = False
        self.redraw()

    def show(self) -> Drawn:
        """The pictures of what is chosen; the menus and the table follow."""
        if self.frame.empty:
            raise ValueError(self.said)
        _narrow(self.controls, self.table)
        self.rows = self.frame[choices.matching(self.table, _chosen(self.controls))]
        own = self.table.loc[self.rows.index]
        differ = [name for name in own if name == "robust" or own[name].nunique() > 1]
        measures = [c for c in ("accuracy", "miou") if c in self.rows and any(self.rows[c].notna())]
        offer(self.sort, [*measures, "sparsity", *differ, "n", "seconds", "key"])
        self.tabulate()
        pictures, *_, said = _pictures(self.rows)
        said = f"{len(self.rows)} of {len(self.frame)} rows. {said} {self.said}"
        return [draw() for draw in pictures.values()], said

    def tabulate(self) -> None:
        """The table of what is chosen, in the order that is chosen."""
        shown = [value for _, value in self.sort.options]
        facets = self.table[[c for c in shown if c in self.table]].loc[self.rows.index]
        rows = self.rows.assign(**{name: facets[name] for name in facets})
        rows = rows.sort_values(self.sort.value, ascending=not self.down.value, kind="stable")
        cut = f"the first {ROWS} of {len(rows)} rows" * (len(rows) > ROWS)
        rows = rows[:ROWS].reset_index(drop=True)
        rows["robust"] = rows.robust.astype(object).fillna("natural")
        text = rows[shown].to_html(border=0, na_rep="", float_format="{:.4g}".format)
        self.listing.value = f"{text}{cut}"
        offer(self.one, [(f"{i}: {key}", key) for i, key in rows.key.items()])
        self.spell()

    def spell(self) -> None:
        """The spec of one row, as Python to copy."""
        spec = self.specs.get(self.one.value)
        self.python.value = "" if spec is None else PYTHON.format(specs.as_python(spec))

    def clear(self) -> None:
        """Chooses nothing, which is all."""
        self.busy = True
        for menu in self.controls.values():
            menu.value = ()
        self.busy = False
        self.redraw()

    def save(self) -> None:
        """Writes both pictures, the rows behind each, and the specs of all rows that are chosen."""
        try:
            name = self.name.value
            if not name or Path(name).name != name:
                raise ValueError(f"name={name!r}: must be the name of a file, without a folder")
            pictures, kept, value, _ = _pictures(self.rows)
            pairs = stats.differences(kept, value)
            out = figures.folder(self.folder.value or ".")
            figures.save(pictures[ABOVE](), out, name, kept)
            figures.save(pictures[BELOW](), out, f"{name}_advantage", pairs)
            file = Path(self.folder.value, f"{name}.json")
            with files.whole(file) as to:
                to.write(choices.as_json(self.specs[key] for key in self.rows.key).encode())
            self.saved.value = f"{file.with_suffix('')}: .pdf, .png, .csv; robustlib sweep {file}"
        except REFUSED as e:
            self.saved.value = html.escape(str(e))


def tradeoff(folder: str = "") -> Tradeoff:
    """The trade-off over all stored transfers. folder: where *save* writes to; empty: `explorer` in
    the store's folder."""
    return Tradeoff(folder or str(store.root() / "explorer"))
