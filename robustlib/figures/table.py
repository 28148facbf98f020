"""The table of a study: natural against robust tickets, in percent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustlib import stats

if TYPE_CHECKING:
    import pandas as pd


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Natural against robust by mode and sparsity, averaged over tasks, in percent.

    Intervals are Student's 95 % over seeds; the difference is paired by seed.
    """
    import pandas as pd

    by = ["mode", "recalibrate", "sparsity"]
    cells = [*stats.PRETRAINING, *by]
    each = stats.summary(frame, cells)
    natural = each[each.objective == "natural"].set_index(by)
    own = each.set_index(cells)
    rows = []
    for robust in stats.advantage(frame, by).to_dict("records"):
        place = tuple(robust[c] for c in by)
        rows.append(
            dict(zip(by, place, strict=True))
            | {
                "robust": f"{robust['objective']} {robust['norm']} {robust['eps']:g}",
                "natural %": _percent(natural.loc[place]),
                "robust %": _percent(own.loc[tuple(robust[c] for c in cells)]),
                "difference, points": _percent(robust, sign="+"),
                "seeds": robust["seeds"],
            }
        )
    out = pd.DataFrame(rows).sort_values([*by[:2], "robust", "sparsity"], ignore_index=True)
    return out if out.recalibrate.nunique() > 1 else out.drop(columns="recalibrate")


def _percent(cell: Any, sign: str = "") -> str:
    mean, low, high = (100 * cell[c] for c in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
