"""The paper's claims, and one of ours: what each says, what is measured for it, and the verdict.

Estimands stand in claims.toml, the test here; a verdict is computed from stored rows alone, and
docs/results.md says which of these had been seen when the tests were written. An estimand is a mean
of effects, in points, each of a seed and a task: robust minus natural, unless the claim says
otherwise. Seeds and tasks are both samples: the interval is that of a two-way layout with both
random, so it is of tasks like these.

Beside it stands what holds of these very tasks: Student's interval over seeds, of means over tasks.

verdict: "no difference" where the 90 % interval lies within MARGIN of zero (two one-sided tests of
5 %); else "supported" or "contradicted" where the 95 % interval leaves out zero; else "undecided";
"not run" where a row of the claim's grid is missing. Nothing is adjusted for the number of claims:
of twenty undecided ones in truth, one is decided by chance.
"""

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from robustlib import profiles, stats, store
from robustlib.metrics.domain_gap import rank_correlation
from robustlib.specs import Evaluation

Effects = Callable[[pd.DataFrame, pd.DataFrame], dict[str, pd.DataFrame]]
"""From the grid's rows, and those of evaluations, to {part: seed, task, effect in points}; for a
correlation: {part: task, x, y}."""
MARGIN = 1.0
"""Points: a smaller difference is none, to somebody who chooses a network."""


@dataclass(frozen=True)
class Claim:
    """What is claimed, of which rows, and the effects that are averaged."""

    name: str
    sentence: str
    estimand: str
    effects: Effects
    study: str = ""
    """The ablation of the profile whose grid it is of; empty: the profile's own grid."""


def interval(effects: pd.DataFrame, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and interval of effects (columns seed, task, effect) over seeds and tasks, both random.

    Several effects of a seed and task are averaged first. With one task it is Student's over seeds,
    and of that task. Else the variance of the mean is that of the seeds' means plus that of the
    tasks' means, with the degrees of freedom of the fewer. low and high are nan where one seed is
    all there is. Raises ValueError where a seed lacks a task.
    """
    table = effects.groupby(["seed", "task"]).effect.mean().unstack().to_numpy()
    if not np.isfinite(table).all():
        raise ValueError("effects: a seed lacks a task that another has")
    seeds, tasks = table.shape
    mean = float(table.mean())
    if seeds == 1 or tasks == 1:
        return stats.mean_interval(table.mean(1), level)
    # Single effects vary both means and are counted twice, and the degrees of freedom are those of
    # the scarcer: an interval that is rather too wide than too narrow.
    error = math.sqrt(table.mean(1).var(ddof=1) / seeds + table.mean(0).var(ddof=1) / tasks)
    half = float(scipy_stats.t.ppf((1 + level) / 2, min(seeds, tasks) - 1)) * error
    return mean, mean - half, mean + half


def verdict(effects: pd.DataFrame, margin: float = MARGIN) -> str:
    """What the effects decide, as this module's first lines say."""
    _, inner_low, inner_high = interval(effects, 0.90)
    if -margin < inner_low and inner_high < margin:
        return "no difference"
    _, low, high = interval(effects)
    return "supported" if low > 0 else "contradicted" if high < 0 else "undecided"


def of_these_tasks(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects as those of one task: their mean over tasks, seed by seed."""
    means = effects.groupby(["seed", "task"]).effect.mean().groupby("seed").mean()
    return means.reset_index().assign(task="these")


def table(rows: dict[str, pd.DataFrame | None], evaluations: pd.DataFrame) -> pd.DataFrame:
    """Every claim and part with its verdict: claim, part, sentence, estimand, verdict, mean, low
    and high (95 %, points; for C7 a rank correlation), these_tasks, these_low and these_high (the
    same of these very tasks), seeds, tasks.

    rows: the transfers of the profile's grid (key "") and of each ablation by name; None or absent
    where they are not all there. evaluations: all rows of evaluations that there are.
    """
    out = []
    for claim in CLAIMS:
        base = {"claim": claim.name, "sentence": claim.sentence, "estimand": claim.estimand}
        frame = rows.get(claim.study)
        parts = {} if frame is None else claim.effects(frame, evaluations)
        for part, effects in parts.items() or {"": None}.items():
            found: dict[str, Any] = {"part": part, "verdict": "not run"}
            if effects is not None and len(effects):
                found |= _correlated(effects) if "x" in effects else _decided(effects)
            out.append(base | found)
    order = ["claim", "part", "sentence", "estimand", "verdict", "mean", "low", "high"]
    order += ["these_tasks", "these_low", "these_high", "seeds", "tasks"]
    return pd.DataFrame(out).reindex(columns=order)


def stored_rows(profile: str, study: str) -> pd.DataFrame | None:
    """The stored rows of a profile's ablation, or of its own grid (""); None: not all are there."""
    grid = profiles.grid(f"{profile}:{study}" if study else profile)
    # What is said of the main grid is said of statistics as pretraining left them.
    return store.rows(spec for spec in grid if study or not spec.recalibrate)


def of_profile(profile: str) -> pd.DataFrame:
    """The `table` of a profile, from what is stored: of a grid that is not stored whole, a claim is
    "not run"."""
    studies = {claim.study for claim in CLAIMS} & {"", *profiles.ablations(profile)}
    asked: dict[str, list[Evaluation]] = {}
    if "properties" in studies:
        for group in profiles.evaluations(f"{profile}:properties").values():
            asked.setdefault(group[0].suite, []).extend(group)
    measured = [s for group in asked.values() if all(map(store.has, group)) for s in group]
    measured += filter(store.has, profiles.gaps(profile))
    found = pd.DataFrame([store.get(s).row for s in measured])
    return table({study: stored_rows(profile, study) for study in studies}, found)


def _decided(effects: pd.DataFrame) -> dict:
    these = of_these_tasks(effects)
    names = ("mean", "low", "high", "_", "these_low", "these_high")
    own: dict[str, Any] = dict(zip(names, interval(effects) + interval(these), strict=True))
    own |= {"seeds": effects.seed.nunique(), "tasks": effects.task.nunique()}
    return own | {"verdict": verdict(effects), "these_tasks": verdict(these)}


def _correlated(pairs: pd.DataFrame) -> dict:
    rho, low, high, p = rank_correlation(pairs.x, pairs.y)
    decided = "undecided" if not p < 0.05 else "supported" if rho > 0 else "contradicted"
    return {"verdict": decided, "mean": rho, "low": low, "high": high, "tasks": len(pairs)}


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["seed", "task"]].assign(effect=100 * rows.difference)


def _advantage(rows: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    if rows.empty:  # the profile has none of what the claim is of
        return rows.assign(difference=0.0)
    return stats.differences(rows.reset_index(drop=True), value)


def _between(first: pd.DataFrame, second: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """first minus second accuracy, of rows that agree `on` columns, seed and task."""
    on = ["seed", "task", *on]
    pairs = first.merge(second[[*on, "accuracy"]], on=on, suffixes=("", "_other"))
    return _points(pairs.assign(difference=pairs.accuracy - pairs.accuracy_other))


def _tickets(mode: str) -> Effects:
    def effects(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
        own = (rows["mode"] == mode) & (rows.sparsity > 0) & ~rows.recalibrate
        pairs = _advantage(rows[own])
        full = pairs.native_detail >= pairs["size"]
        return {"full tasks": _points(pairs[full]), "coarse tasks": _points(pairs[~full])}

    return effects


def _patterns(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    pairs = _advantage(rows[rows.sparsity > 0])
    names = pairs.pattern.where(~pairs.pattern.str.contains(":"), "n:m")
    return {name: _points(pairs[names == name]) for name in names.unique()}


def _a_imp(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    own = rows[(rows.scheme == "imp") & (rows.ticket_objective == rows.objective)]
    robust, natural = (own[own.objective == objective] for objective in ("pgd", "natural"))
    upstream = _between(robust[robust.dataset == ""], natural[natural.dataset == ""], ["sparsity"])
    below = _between(robust[robust.dataset != ""], natural[natural.dataset != ""], ["sparsity"])
    return {"upstream": upstream, "downstream": below}


def _lmp(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    own = rows[(rows.scheme == "lmp") & (rows.sparsity > 0)]
    return {"": _points(_advantage(own))}


def _gap(rows: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    if "frechet_infinity" not in evaluations:
        return {}
    own = evaluations[(evaluations.suite == "domain_gap") & (evaluations.objective == "natural")]
    pairs = _advantage(rows[rows.sparsity == 0.9])
    # Means of all tasks over the same networks: those whose distance to each of them is known.
    own = own[own.against.isin(pairs.task)]
    whole = own.groupby("seed").against.transform("nunique") == pairs.task.nunique()
    x = own[whole].groupby("against").frechet_infinity.mean().rename("x")
    y = 100 * pairs.groupby(["mode", "task"]).difference.mean().rename("y")
    both = y.reset_index().merge(x, left_on="task", right_index=True)
    return dict(list(both.groupby("mode")))


def _kinds(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    pairs = _advantage(rows)
    kind = pairs.objective.where(pairs.norm != "linf", "linf " + pairs.objective)
    return {k: _points(pairs[kind == k]) for k in sorted(kind.unique()) if k != "pgd"}


def _optimum(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    pairs = _advantage(rows)
    pairs = pairs[(pairs.objective == "pgd") & (pairs.norm == "l2")]
    ends = pairs.eps.isin([pairs.eps.min(), pairs.eps.max()])
    cell = ["seed", "task", "mode"]
    inner, outer = (p.groupby(cell).difference.mean() for p in (pairs[~ends], pairs[ends]))
    return {"": _points((inner - outer).dropna().reset_index())}  # of two radii none is between


def _property(suite: str, column: str, sign: int = 1) -> Effects:
    def effects(rows: pd.DataFrame, evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
        if "sparsity" not in evaluations:  # none is of a transfer
            return {}
        own = evaluations[(evaluations.suite == suite) & evaluations.task.isin(rows.task)]
        if suite == "calibration":
            own = own[~own.scaled.astype(bool)]
        cell = ["seed", "task", "sparsity", "evaluation_norm", "evaluation_eps", "against"]
        sides = (own[own.objective == o] for o in ("pgd", "natural"))
        robust, natural = (s.groupby(cell, dropna=False)[column].mean() for s in sides)
        both = (sign * (robust - natural)).dropna().rename("difference").reset_index()
        lacking = set(rows.seed) - set(both.seed)
        return {} if lacking or both.empty else {"": _points(both)}

    return effects


def _carrier(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    own = rows[rows.control == "none"]
    by = {"mask": ("mask_objective", "objective"), "weights": ("objective", "mask_objective")}
    return {
        part: _between(own[own[what] == "pgd"], own[own[what] == "natural"], ["mode", fixed])
        for part, (what, fixed) in by.items()
    }


def _detail(rows: pd.DataFrame, _: pd.DataFrame) -> dict[str, pd.DataFrame]:
    pairs = _advantage(rows).assign(accuracy=lambda p: p.difference)
    full, coarse = pairs[pairs.detail.isna()], pairs[pairs.detail == pairs.detail.min()]
    return {
        mode: _between(coarse[coarse["mode"] == mode], full[full["mode"] == mode], ["sparsity"])
        for mode in pairs["mode"].unique()
    }


EFFECTS: dict[str, Effects] = {
    "C1": _tickets("finetune"),
    "C2": _tickets("linear"),
    "C3": _patterns,
    "C4": _a_imp,
    "C5": _lmp,
    "C6": lambda rows, _: {"": _points(_advantage(rows[rows.sparsity > 0], "miou"))},
    "C7": _gap,
    "C8a": _kinds,
    "C8b": _optimum,
    "C9a": _property("adversarial", "autoattack_accuracy"),
    "C9b": _property("corruption", "corruption_accuracy"),
    "C9c": _property("calibration", "ece", -1),
    "C9d": _property("ood", "msp_auroc"),
    "C10": _carrier,
    "C11": _detail,
}
_CLAIMS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
CLAIMS = tuple(Claim(name, effects=EFFECTS[name], **own) for name, own in _CLAIMS.items())
