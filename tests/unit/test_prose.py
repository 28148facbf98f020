"""What the pages say in words is what the committed rows say: each sentence is made from them."""

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from scipy.stats import t

from robustlib import stats
from robustlib.figures import paper

ROOT = Path(__file__).resolve().parents[2]
WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()
TINY, CIFAR = "tinyimagenet50", "cifar10"


def rows(name: str) -> pd.DataFrame:
    return paper.read(ROOT / "figures" / f"{name}.csv")


def gained(name: str, *by: str) -> pd.DataFrame:
    """Robust minus natural in points, by task and what else is named."""
    found = stats.advantage(rows(name), ["task", *by])
    return found.assign(**{c: 100 * found[c] for c in ("mean", "low", "high")})


def decided(found: pd.DataFrame) -> int:
    return int(((found.low > 0) | (found.high < 0)).sum())


def of(found: pd.DataFrame, task: str) -> pd.DataFrame:
    return found[found.task == task]


def span(values: pd.Series, places: int = 1) -> str:
    return f"{values.min():.{places}f} to {values.max():.{places}f}"


def patterns() -> list[str]:
    found = gained("patterns", "pattern", "sparsity")
    tiny, cifar = of(found, TINY), of(found, CIFAR)
    below = int((cifar["mean"] < 0).sum())
    assert (tiny["mean"] < 0).all() and len(tiny) == len(cifar) == 10
    return [
        f"in all ten panels, by {span(-tiny['mean'])} points, decided in {WORDS[decided(tiny)]};",
        f"in {WORDS[below]} of ten, decided in {'none' if not decided(cifar) else decided(cifar)}.",
    ]


def schemes() -> list[str]:
    frame = rows("schemes").astype({"dataset": str})
    way = ["scheme", "ticket_objective", "dataset"]
    found = stats.advantage(frame, ["task", *way])
    tiny, cifar = of(found, TINY), of(found, CIFAR)
    assert len(tiny) == decided(tiny) == 6 and (tiny["mean"] < 0).all() and not decided(cifar)
    level = frame.groupby(["task", "objective", *way]).accuracy.mean().rename("level").reset_index()
    omp = level[level.scheme == "omp"].set_index(["task", "objective"]).level
    level["less"] = [100 * (omp[r.task, r.objective] - r.level) for r in level.itertuples()]
    far = level[level.less.abs() > 1.15]
    assert set(far.task) == set(far.dataset) == {CIFAR} and set(far.ticket_objective) == {"pgd"}
    return [
        "decided with all six on Tiny ImageNet-50, with none on CIFAR-10",
        f"cost both networks {far.less.mean():.0f}",
    ]


def budget() -> list[str]:
    frame = rows("budget").assign(n_train=lambda d: d.n_train.fillna(0))
    mean = 100 * stats.advantage(frame, ["task", "mode", "n_train"])["mean"]
    assert len(mean) == 16 and mean.max() < 1
    return [f"of sixteen differences {WORDS[int((mean > 0).sum())]} have a mean above zero"]


def properties() -> list[str]:
    table = rows("property_table")
    more = table[table.property.str.contains("AutoAttack")].iloc[:, -1]
    more = more.str.extract(r"^\+([\d.]+) \[\+")[0].astype(float)  # decided, each of them
    assert len(more) == 4
    frame = rows("corruptions").query("sparsity == 0.9")
    each = frame.groupby(["corruption", "seed", "objective"]).accuracy.mean().unstack()
    less = (each.pgd - each.natural).unstack()
    n = less.shape[1]
    half = t.ppf(0.975, n - 1) * less.std(axis=1) / n**0.5
    noise = {f"{kind}_noise" for kind in ("gaussian", "shot", "impulse")}
    assert set(less.index[less.mean(axis=1) > half]) == {*noise, "glass_blur", "snow"}
    assert set(less.index[less.mean(axis=1) < -0.02]) == {"fog", "contrast"}
    return [f"{span(more, 0)} points more under AutoAttack", "noise, glass blur and snow"]


def pretraining() -> list[str]:
    found = gained("pretraining", "mode")
    most = found[(found.objective == "pgd") & (found.norm == "l2") & (found.eps == 2)]
    least = found[(found.objective == "pgd") & (found.norm == "l2") & (found.eps == 0.1)]
    best = found.groupby(["task", "mode"])["mean"].transform("max")
    assert (least["mean"] == best[least.index]).all() and not decided(least)
    quiet = found[found.objective.isin(["trades", "smoothing"])]
    linf = found[found.norm == "linf"]
    told = linf[(linf.high < 0) | (linf.low > 0)]
    assert not decided(quiet)
    assert told[["task", "mode"]].to_numpy().tolist() == [[TINY, "finetune"]]
    return [f"the largest is decidedly behind in {WORDS[decided(most)]} of four panels"]


def masks() -> list[str]:
    worth = 100 * rows("mask_effects").set_index("mode")["mean"]
    tuned, linear = (span(worth[mode], 0) for mode in ("finetune", "linear"))
    return [f"{tuned} points when finetuned and {linear} under linear evaluation."]


def main_grid() -> list[str]:
    frame = rows("accuracy_vs_sparsity")
    found = stats.advantage(frame, ["mode", "sparsity"]).set_index("mode")
    mean = 100 * found["mean"]
    assert mean["finetune"].between(-0.75, -0.25).all() and not decided(found.loc["linear"])
    each = stats.advantage(frame[frame.sparsity > 0], ["mode", "task"])
    own = each[(each.low > 0) | (each.high < 0)]
    ahead = own.set_index(["task", "mode"])["mean"].sort_index()
    assert set(ahead.index) == {
        *((TINY, mode) for mode in ("finetune", "linear")),
        ("omniglot_small", "linear"),
        ("brain_mri4", "finetune"),
    }
    assert (ahead[TINY] < 0).all() and (ahead.drop(TINY) > 0).all()
    assert 0 < ahead["brain_mri4", "finetune"] < 0.01
    return ["ahead by about half a point when finetuned, and nothing is decided under linear"]


def detail() -> list[str]:
    frame = rows("detail")
    frame = frame.assign(detail=frame.detail.fillna(frame["size"]))
    found = of(stats.advantage(frame, ["task", "mode", "sparsity", "detail"]), TINY)
    wide = found.pivot(index=["mode", "sparsity"], columns="detail", values="mean")
    assert (wide[64] < wide[16]).all() and (wide[64] < 0).all()
    assert not decided(found[found.detail == 16])
    return ["at 16 px nothing is left of it that five seeds could tell from zero"]


def larger() -> list[str]:
    claims = rows("larger/claims").set_index(["claim", "part"])
    assert set(claims.loc["C7"].verdict) == {"supported"}
    rho = claims.loc["C7"]["mean"]
    assert (claims.loc[["C1", "C2"]].xs("full tasks", level=1).these_tasks == "contradicted").all()
    same = claims.loc[["C1", "C2"]].xs("coarse tasks", level=1).these_tasks
    assert (same == "no difference").all() and rho.round(2).nunique() == 1
    worth = 100 * rows("larger/mask_effects").query("mode == 'finetune'")["mean"]
    return [f"correlation of {rho.iloc[0]:.2f}", f"{span(worth, 0)} points over another one"]


PAGES = {
    "docs/results.md": (main_grid, detail, patterns, schemes, budget, properties, pretraining),
    "docs/larger.md": (larger,),
    "notebooks/05_ablations.ipynb": (masks,),
}


def words(page: str) -> str:
    """The text of a page or of a notebook, its lines joined."""
    path = ROOT / page
    if path.suffix == ".md":
        return " ".join(path.read_text("utf-8").split())
    cells = nbformat.read(path, 4).cells
    return " ".join(" ".join(cell.source for cell in cells if cell.cell_type == "markdown").split())


@pytest.mark.parametrize(
    ("page", "told"),
    [(page, told) for page, all_told in PAGES.items() for told in all_told],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_page_says_what_its_rows_say(page, told):
    for sentence in told():
        assert sentence in words(page)
