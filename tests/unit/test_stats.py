"""Intervals and paired differences against worked cases and scipy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from helpers import rows
from scipy import stats as scipy_stats

from robustlib import stats


def test_mean_interval_is_scipys_t_interval():
    x = np.random.default_rng(0).normal(size=7)
    mean, low, high = stats.mean_interval(x)
    want = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert mean == pytest.approx(x.mean())
    assert (low, high) == pytest.approx((want.low, want.high))


def test_mean_interval_of_few_values_claims_nothing():
    assert stats.mean_interval([0.3])[0] == 0.3
    assert all(map(math.isnan, stats.mean_interval([0.3])[1:]))
    assert all(map(math.isnan, stats.mean_interval([])))


def test_mean_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = [
        low <= 0 <= high for _, low, high in map(stats.mean_interval, rng.normal(size=(2000, 3)))
    ]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)


def test_accuracy_interval_worked_cases():
    # All right of n: the lower bound is (0.05 / 2) ** (1 / n).
    assert stats.accuracy_interval(1.0, 100) == pytest.approx((0.025 ** (1 / 100), 1.0))
    assert stats.accuracy_interval(0.0, 100) == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))
    low, high = stats.accuracy_interval(0.5, 2000)
    assert low < 0.5 < high and high - low == pytest.approx(
        2 * 1.96 * math.sqrt(0.25 / 2000), rel=0.03
    )


def test_advantage_is_paired_so_what_seeds_share_does_not_widen_it():
    out = stats.advantage(rows(effect=0.05))
    assert out["mean"].to_numpy() == pytest.approx(0.05)
    # Seeds differ by 10 points, the difference by none.
    assert (out["high"] - out["low"]).to_numpy() == pytest.approx(0.0, abs=1e-9)
    assert set(out["seeds"]) == {3}


def test_advantage_interval_is_the_paired_t_test():
    frame = rows(effect=0.02, noise=0.01)
    out = stats.advantage(frame, by=["mode"])
    wide = frame.groupby(["objective", "seed"]).accuracy.mean().unstack("objective")
    want = scipy_stats.ttest_rel(wide["pgd"], wide["natural"]).confidence_interval(0.95)
    assert (out.low[0], out.high[0]) == pytest.approx((want.low, want.high))
    assert (out.seeds[0], out.pairs[0]) == (3, 12)


def test_advantage_refuses_rows_without_a_partner():
    frame = rows()
    lonely = frame[~((frame.objective == "natural") & (frame.seed == 1) & (frame.task == "a"))]
    with pytest.raises(ValueError, match="2 robust rows have no natural partner.*task=a"):
        stats.advantage(lonely)


def test_advantage_refuses_two_partners():
    frame = rows()
    for side in ("natural", "robust"):
        twice = frame[(frame.objective == "natural") == (side == "natural")]
        with pytest.raises(ValueError, match=f"several {side} rows"):
            stats.advantage(pd.concat([frame, twice[:1]]))


@pytest.mark.parametrize("lost", ["a row", "its accuracy"])
def test_means_over_other_tasks_in_another_seed_are_refused(lost):
    frame = rows()
    one = frame.index[(frame.objective == "pgd") & (frame.seed == 1) & (frame.task == "a")][0]
    frame = (
        frame.drop(one)
        if lost == "a row"
        else frame.assign(accuracy=frame.accuracy.where(frame.index != one))
    )
    assert len(stats.advantage(frame)) == len(stats.advantage(rows()))  # of one task each
    with pytest.raises(ValueError, match="sparsity=0.0: a seed lacks rows that another has"):
        stats.advantage(frame, ["sparsity"])
    with pytest.raises(ValueError, match="objective=pgd.*a seed lacks rows that another has"):
        stats.summary(frame, ["objective", "sparsity"])


def test_advantage_pairs_alike_in_all_but_the_recipe():
    """Two widths, each with its own effect: pairs must not cross."""
    frame = pd.concat([rows(0.1).assign(width=16), rows(-0.1).assign(width=32)])
    out = stats.advantage(frame, by=["width"])
    assert dict(zip(out.width, out["mean"], strict=True)) == pytest.approx({16: 0.1, 32: -0.1})


def test_summary_averages_tasks_within_a_seed():
    out = stats.summary(rows(), ["objective", "sparsity"])
    cell = out[(out.objective == "natural") & (out.sparsity == 0.0)].iloc[0]
    mean, low, high = stats.mean_interval([0.6, 0.7, 0.8])
    assert (cell["mean"], cell.low, cell.high) == pytest.approx((mean, low, high))
    assert cell.seeds == 3


def masked_rows() -> pd.DataFrame:
    """Own masks are worth 0.1 over the other network's and 0.2 over shuffled ones, 0.01 more in
    seed 1; the seeds themselves differ a lot."""
    out = []
    ways = {"natural": 0.0, "pgd": 0.5}
    for seed, weights, mask, control in itertools.product((0, 1), ways, ways, ("none", "shuffle")):
        lost = (0.1 + 0.01 * seed) * (mask != weights) + 0.2 * (control == "shuffle")
        row = {"task": "a", "mode": "linear", "recalibrate": True, "sparsity": 0.9, "seed": seed}
        row |= {"objective": weights, "eps": ways[weights], "accuracy": 0.9 - 0.3 * seed - lost}
        row |= {"mask_objective": mask, "mask_eps": ways[mask], "control": control}
        for side in ("", "mask_"):
            row |= {f"{side}norm": "l2", f"{side}sigma": 0.0, f"{side}steps": 1}
        out.append(row | {"n_train": None})
    return pd.DataFrame(out)


def test_what_an_own_mask_is_worth_is_paired_by_seed():
    found = stats.mask_effects(masked_rows())
    assert len(found) == 6 and set(found.seeds) == {2}
    own = found[found.objective == "pgd"].set_index(["mask_objective", "control"])
    assert own["mean"].to_dict() == {
        ("natural", "none"): pytest.approx(0.105),
        ("natural", "shuffle"): pytest.approx(0.305),
        ("pgd", "shuffle"): pytest.approx(0.2),
    }
    # What the seeds share is gone; what is left is theirs: 0.1 and 0.11.
    low, high = stats.mean_interval([0.1, 0.11])[1:]
    row = own.loc[("natural", "none")]
    assert (row.low, row.high) == pytest.approx((low, high))


def test_a_mask_without_its_partner_or_with_two_is_refused():
    frame = masked_rows()
    own = (frame.objective == frame.mask_objective) & (frame.control == "none")
    with pytest.raises(ValueError, match="no row of its network's own mask"):
        stats.mask_effects(frame[~own | (frame.seed == 0)])
    with pytest.raises(ValueError, match="several rows of an own mask"):
        stats.mask_effects(pd.concat([frame, frame[own]]))


def test_what_a_row_is_beside_its_reference():
    frame = pd.DataFrame(
        {"who": ["a", "b", "a", "b", "b"], "seed": [0, 0, 1, 1, 2], "v": [1.0, 3, 5, 4, 9]},
        index=[7, 7, 8, 9, 9],  # as rows that were put together have it
    )
    found = stats.beside(frame, frame.who == "a", ["seed"], "v")
    assert found.fillna(-99).tolist() == [-99, 2, -99, -1, -99]
    twice = pd.concat([frame, frame], ignore_index=True)
    with pytest.raises(ValueError, match="not unique"):
        stats.beside(twice, twice.who == "a", ["seed"], "v")
