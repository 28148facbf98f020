"""Progress bars: tqdm's on a terminal, and in a notebook a line of text that is no widget.

A widget in an executed notebook is what it was when it was made, "0/30", for nobody is left to
change it; a line of text is what it was changed to last.
"""

import io
import os
import sys
from typing import Any

from tqdm.std import tqdm


def bar(*args: Any, above: str = "", disable: bool = False, **options: Any) -> tqdm:
    """tqdm(...), which TQDM_DISABLE=1 silences; above: a line for as long as it runs.

    Of a bar that is closed a terminal keeps the last state, and a notebook nothing, or with
    leave=True a line.
    """
    # Read at each call: tqdm itself reads it when it is imported, which a worker does too early.
    disable = disable or bool(os.environ.get("TQDM_DISABLE"))
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        options = {"leave": False, "ncols": 90, "file": io.StringIO()} | options
        made: tqdm = _Line(*args, disable=disable, **options)
        made.above = above
        return made
    if above and not disable:
        tqdm.write(above)
    return tqdm(*args, disable=disable, **{"dynamic_ncols": True} | options)


class _Line(tqdm):
    above = ""
    handle: Any = None

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        from IPython.display import DisplayHandle

        text = str(self) if msg is None else msg
        if self.above and not self.disable:  # as it is once closed
            text = f"{self.above}\n{text}"
        # An empty line of text has a height, an empty page has none.
        data = {"text/plain": text} if text else {"text/html": ""}
        if self.handle:
            self.handle.update(data, raw=True)
        elif text:
            self.handle = DisplayHandle()
            self.handle.display(data, raw=True)
        return True
