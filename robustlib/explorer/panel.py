"""What every part of the explorer is: controls, and below them the picture that they redraw."""

from __future__ import annotations

import html
import io
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import DisplayHandle, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"
LIVE = "robustlib-live"
# Where the widget lives, the static picture that follows it in the cell's output is not shown.
STYLE = (
    f"<style>.jp-OutputArea-child:has(.{LIVE}) + .jp-OutputArea-child {{ display: none }}"
    f".{LIVE} .widget-html-content {{ color: var(--jp-content-font-color1) }}"
    f".{LIVE} td, .{LIVE} th {{ padding: 0 0.8em 0 0; text-align: right }}</style>"
)
# Where it does not (another kernel), JupyterLab says "model not found" above the static picture.
QUIET = (
    "<style>.jp-OutputArea-child:has(.robustlib-panel) + "
    f".jp-OutputArea-child:not(:has(.{LIVE})) {{ display: none }}</style>"
    '<span class="robustlib-panel"></span>'
)
WRAP = widgets.Layout(flex_flow="row wrap")
REFUSED = (ValueError, RuntimeError, OSError)
"""What is said in words and not raised: bad input, a damaged store, files that are not there."""
Drawn = tuple[list[Figure], str]
"""What a panel shows: figures, one below the other, and a sentence above them."""


class Panel(widgets.VBox):
    """Controls by name, and the picture inside the widget, so that a reloaded page shows it as it
    is; a static copy follows in the output, for readers without a kernel.

    draw: gives what is shown, reading the controls; why it refuses (REFUSED) is shown in its place.
    above, below: more widgets, above and below the picture.
    """

    def __init__(
        self,
        draw: Callable[[], Drawn],
        controls: Mapping[str, widgets.Widget],
        above: Sequence[widgets.Widget] = (),
        below: Sequence[widgets.Widget] = (),
    ) -> None:
        self.draw, self.figures = draw, list[Figure]()
        self.busy = self.shown = False
        self.message, self.handle = widgets.HTML(), DisplayHandle()
        self.image = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self.row = widgets.HBox(layout=WRAP)
        self.take(controls)
        # An image's own box is as high as its row, and would stretch it.
        picture = widgets.VBox([self.image], layout=widgets.Layout(align_items="flex-start"))
        super().__init__([widgets.HTML(STYLE), self.row, *above, self.message, picture, *below])
        self.add_class(LIVE)
        self.redraw()

    def take(self, controls: Mapping[str, widgets.Widget]) -> None:
        """Makes these the controls."""
        self.controls = dict(controls)
        for name, control in self.controls.items():
            control.description = control.description or name
            if hasattr(control, "continuous_update"):
                control.continuous_update = False
            control.observe(self.redraw, "value")
        self.row.children = list(self.controls.values())

    def redraw(self, _change: Any = None) -> None:
        """Shows what the controls say now; what `draw` itself changes in them starts nothing."""
        if self.busy:
            return
        self.busy = True
        try:
            self.figures, said = self.draw()
            self.image.value = png(self.figures)
        except REFUSED as e:
            self.figures, said, self.image.value = [], str(e), b""
        finally:
            self.busy = False
        self.message.value = html.escape(said)
        self.image.layout.display = None if self.figures else "none"
        if self.shown:
            self.handle.update(self._static(), raw=True)

    @property
    def figure(self) -> Figure:
        """The first figure, as it is now."""
        return self.figures[0]

    def _static(self) -> dict[str, Any]:
        said = {"text/plain": html.unescape(self.message.value) or "the picture as it was then"}
        return said | ({"image/png": b64encode(self.image.value).decode()} if self.figures else {})

    def _ipython_display_(self) -> None:
        view = {"model_id": self.model_id, "version_major": 2, "version_minor": 0}
        display({"text/html": QUIET}, raw=True)
        display({VIEW: view, "text/plain": "The controls work where this cell is run."}, raw=True)
        self.shown = True
        self.handle.display(self._static(), raw=True)


def png(figures: Sequence[Figure]) -> bytes:
    """Figures as one picture, one below the other on white; nothing for none."""
    if not figures:
        return b""
    drawn = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba())[..., :3])
    across = max(part.shape[1] for part in drawn)
    whole = np.full((sum(map(len, drawn)), across, 3), 255, np.uint8)
    for part, end in zip(drawn, np.cumsum([len(part) for part in drawn]), strict=True):
        whole[end - len(part) : end, : part.shape[1]] = part
    out = io.BytesIO()
    Image.fromarray(whole).save(out, "png", compress_level=1)  # a slider waits for it
    return out.getvalue()


def offer(menu: widgets.Widget, values: Sequence[Any]) -> None:
    """Gives a menu its options, values or (text, value), and keeps what is chosen, where
    it is among them."""
    pairs = tuple(v if isinstance(v, tuple) else (v, v) for v in values)
    if menu.options == pairs:
        return
    chosen, left = menu.value, [value for _, value in pairs]
    menu.options = pairs
    if isinstance(menu, widgets.SelectMultiple):
        menu.value = tuple(value for value in chosen if value in left)
    elif left:
        menu.value = chosen if chosen in left else left[0]


def button(text: str, call: Callable[[], Any]) -> widgets.Button:
    """A button that calls a function."""
    made = widgets.Button(description=text, layout=widgets.Layout(width="auto"))
    made.on_click(lambda _: call())
    return made
