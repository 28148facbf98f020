"""Claims: simulated rows of a known truth get its verdict; false verdicts are as rare as said."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from robustlib import claims, profiles, specs, store
from robustlib.cli import main
from robustlib.figures import paper
from robustlib.specs import Evaluation, Transfer

ABLATIONS = ("patterns", "schemes", "segmentation", "pretraining", "properties", "masks", "detail")


def effects(table: np.ndarray) -> pd.DataFrame:
    seed, task = np.indices(table.shape)
    return pd.DataFrame({"seed": seed.ravel(), "task": task.ravel(), "effect": table.ravel()})


def draws(rng, seeds, tasks, mean, by_seed, by_task, noise, n):
    for _ in range(n):
        table = mean + noise * rng.standard_normal((seeds, tasks))
        table += by_seed * rng.standard_normal((seeds, 1))
        yield effects(table + by_task * rng.standard_normal((1, tasks)))


def test_of_one_task_the_interval_is_students_over_seeds():
    x = np.random.default_rng(0).normal(size=(5, 1))
    ci = scipy_stats.ttest_1samp(x[:, 0], 0).confidence_interval(0.95)
    assert claims.interval(effects(x)) == pytest.approx((x.mean(), ci.low, ci.high))


def test_tasks_that_disagree_widen_the_interval_and_those_that_agree_do_not():
    agree, disagree = np.full((5, 4), 1.0), np.tile([3.0, -1.0, 4.0, -2.0], (5, 1))
    agree, disagree = (t + np.arange(5)[:, None] * 1e-3 for t in (agree, disagree))
    assert claims.verdict(effects(agree + 1)) == "supported"
    assert claims.verdict(effects(disagree + 1)) == "undecided"
    assert claims.verdict(claims.of_these_tasks(effects(disagree + 1))) == "supported"


def test_several_effects_of_a_cell_are_one():
    table = np.random.default_rng(1).normal(size=(4, 3))
    twice = pd.concat([effects(table - 1), effects(table + 1)])
    assert claims.interval(twice) == pytest.approx(claims.interval(effects(table)))


def test_one_seed_decides_nothing_and_a_missing_task_is_refused():
    assert claims.verdict(effects(np.full((1, 3), 5.0))) == "undecided"
    with pytest.raises(ValueError, match="a seed lacks a task"):
        claims.interval(effects(np.ones((3, 2))).iloc[:-1])


@pytest.mark.parametrize(
    ("seeds", "tasks", "by_seed", "by_task", "noise", "most"),
    [
        (5, 4, 1, 2, 1, 0.05),
        (3, 2, 0, 2, 1, 0.05),
        # Student's test alone is exact: the rate itself varies over draws, by 0.7 % here.
        (5, 1, 1, 0, 1, 0.07),
    ],
)
def test_false_verdicts_are_rare(seeds, tasks, by_seed, by_task, noise, most):
    own = (by_seed, by_task, noise, 1_000)
    null = draws(np.random.default_rng(0), seeds, tasks, 0.0, *own)
    decided = [claims.verdict(d) in ("supported", "contradicted") for d in null]
    edge = draws(np.random.default_rng(1), seeds, tasks, claims.MARGIN, *own)
    none = [claims.verdict(d) == "no difference" for d in edge]
    assert np.mean(decided) <= most and np.mean(none) <= most


@pytest.mark.parametrize(
    ("mean", "found"),
    [(3, "supported"), (-3, "contradicted"), (0, "no difference"), (0.5, "no difference")],
)
def test_what_is_plain_is_found(mean, found):
    own = draws(np.random.default_rng(2), 5, 6, mean, 0.1, 0.2, 0.2, 100)
    assert np.mean([claims.verdict(d) == found for d in own]) > 0.95


def simulated(grid: list[Transfer], accuracy) -> pd.DataFrame:
    """Rows of a grid as if run: `accuracy` of a spec, and noise that pairs of a seed share."""
    rows = []
    for spec in grid:
        shared = np.random.default_rng(spec.seed).normal(0, 0.02)
        own = np.random.default_rng(int(specs.key(spec), 16) % 2**32).normal(0, 0.002)
        fine = spec.task in ("tinyimagenet50", "rsscn7", "flowers5", "brain_mri4")
        value = 0.5 + accuracy(spec) + shared + own
        measured = {"accuracy": value, "miou": value, "native_detail": 64 if fine else 32}
        rows.append(specs.columns(spec) | measured)
    return pd.DataFrame(rows)


def robust(spec: Transfer) -> bool:
    return spec.ticket.pretrain.objective != "natural"


@pytest.fixture(scope="module")
def grids() -> dict[str, list[Transfer]]:
    small = {"seeds": [0, 1, 2]}
    own = {name: profiles.grid(f"cpu:{name}", **small) for name in ABLATIONS}
    main = profiles.grid("cpu", **small, sparsities=[0, 0.9])
    return own | {"": [s for s in main if not s.recalibrate]}


def verdicts(rows, evaluations=None) -> dict[tuple[str, str], str]:
    none = pd.DataFrame(columns=[*specs.columns(Evaluation()), "frechet_infinity"])
    table = claims.table(rows, none if evaluations is None else evaluations)
    found = table.these_tasks.astype(object).fillna(table.verdict)
    return dict(zip(zip(table.claim, table.part, strict=True), found, strict=True))


def test_what_is_missing_is_not_run():
    table = claims.table({}, pd.DataFrame())
    assert set(table.verdict) == {"not run"} and set(table.claim) == {c.name for c in claims.CLAIMS}
    assert table["mean"].isna().all()


def test_the_command_says_of_an_empty_store_that_nothing_was_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    assert main(["claims", "--profile", "quick", "--csv", str(tmp_path / "claims.csv")]) == 0
    assert set(pd.read_csv(tmp_path / "claims.csv").verdict) == {"not run"}
    assert main(["claims", "--profile", "quik"]) == 2
    assert "quick" in capsys.readouterr().err


def test_full_and_coarse_tasks_are_told_apart(grids):
    coarse = {"cifar10", "gtsrb", "fashion_mnist", "mnist", "omniglot_small", "digits"}
    rows = simulated(grids[""], lambda s: robust(s) * (0.03 if s.task in coarse else -0.03))
    found = verdicts({"": rows})
    assert found["C1", "coarse tasks"] == found["C2", "coarse tasks"] == "supported"
    assert found["C1", "full tasks"] == found["C2", "full tasks"] == "contradicted"


def test_the_dense_network_is_not_a_ticket(grids):
    rows = simulated(grids[""], lambda s: robust(s) * (0.2 if s.ticket.sparsity == 0 else 0.0))
    assert verdicts({"": rows})["C1", "coarse tasks"] == "no difference"


def test_each_pattern_has_its_verdict(grids):
    better = {"channel": 0.03, "row": -0.03}
    rows = simulated(grids["patterns"], lambda s: robust(s) * better.get(s.ticket.pattern, 0.0))
    found = {p: v for (c, p), v in verdicts({"patterns": rows}).items() if c == "C3"}
    assert found["channel"] == "supported" and found["row"] == "contradicted"
    assert {found[p] for p in ("unstructured", "kernel", "n:m")} == {"no difference"}


def test_a_imp_is_of_robust_networks_and_imp_of_natural_ones(grids):
    def accuracy(spec):
        ticket = spec.ticket
        attacked = ticket.objective == "pgd" and robust(spec)
        return 0.03 * attacked * (1 if ticket.dataset else -1) + 0.04 * (ticket.scheme == "lmp")

    found = verdicts({"schemes": simulated(grids["schemes"], accuracy)})
    assert (found["C4", "upstream"], found["C4", "downstream"]) == ("contradicted", "supported")
    assert found["C5", ""] == "no difference"  # both networks gain alike


def test_segmentation_is_of_mean_iou(grids):
    rows = simulated(grids["segmentation"], lambda s: 0.05 * robust(s)).assign(accuracy=math.nan)
    assert verdicts({"segmentation": rows})["C6", ""] == "supported"


def test_other_ways_to_pretrain_and_the_best_radius(grids):
    hill = {0.1: 0.0, 0.25: 0.02, 0.5: 0.04, 1.0: 0.02, 2.0: 0.0}

    def accuracy(spec):
        own = spec.ticket.pretrain
        if own.objective == "pgd" and own.norm == "l2":
            return hill[own.eps]
        return {"natural": 0.0, "smoothing": -0.03}.get(own.objective, 0.03)

    found = verdicts({"pretraining": simulated(grids["pretraining"], accuracy)})
    assert found["C8a", "trades"] == found["C8a", "linf pgd"] == found["C8b", ""] == "supported"
    assert found["C8a", "smoothing"] == "contradicted"


def test_of_two_radii_none_is_the_best_one(grids):
    two = [s for s in grids["pretraining"] if s.ticket.pretrain.eps in (0, 0.1, 0.5)]
    assert verdicts({"pretraining": simulated(two, lambda s: 0.1)})["C8b", ""] == "not run"


def test_without_an_evaluation_of_a_transfer_no_property_is_run(grids):
    gaps = pd.DataFrame(
        [specs.columns(Evaluation(specs.Pretrain(), "domain_gap", against="digits", limit=9))]
    )
    frame = simulated(grids["properties"], lambda s: 0.0)
    assert (
        verdicts({"properties": frame}, gaps.assign(frechet_infinity=1.0))["C9b", ""] == "not run"
    )


def test_transfers_without_any_evaluation_are_no_properties():
    grid = profiles.grid("quick:properties")
    rows = simulated(grid, lambda s: 0.0).to_dict("records")
    for spec, row in zip(grid, rows, strict=True):
        store.put(spec, row | {"key": specs.key(spec), "n": 9})
    assert set(claims.of_profile("quick").verdict) == {"not run"}


def test_properties_and_their_signs(grids):
    transfers = grids["properties"]
    asked = [e for own in profiles.evaluations("cpu:properties", transfers).values() for e in own]
    rows = []
    for spec in asked:
        up = robust(spec.of) * 0.05 + 0.001 * spec.of.seed
        measured = ["autoattack_accuracy", "corruption_accuracy", "ece", "msp_auroc"]
        rows.append(specs.columns(spec) | dict.fromkeys(measured, 0.3 + up))
    frame = simulated(transfers, lambda s: 0.0)
    found = verdicts({"properties": frame}, pd.DataFrame(rows))
    assert found["C9a", ""] == found["C9b", ""] == found["C9d", ""] == "supported"
    assert found["C9c", ""] == "contradicted"  # a higher calibration error is worse
    # No distance of a task is among them.
    main = simulated(grids[""], lambda s: 0.0)
    assert verdicts({"": main}, pd.DataFrame(rows))["C7", ""] == "not run"


def test_mask_and_weights_are_told_apart(grids):
    def accuracy(spec):
        mask = spec.ticket.mask_from or spec.ticket.pretrain
        return 0.03 * (mask.objective == "pgd") - 0.03 * robust(spec)

    found = verdicts({"masks": simulated(grids["masks"], accuracy)})
    assert (found["C10", "mask"], found["C10", "weights"]) == ("supported", "contradicted")


def test_detail_is_a_difference_of_differences(grids):
    def accuracy(spec):
        least = spec.detail == 16
        gain = 0.03 if spec.mode == "linear" else 0.0
        return -0.2 * least + robust(spec) * (-0.04 + gain * least)

    found = verdicts({"detail": simulated(grids["detail"], accuracy)})
    assert (found["C11", "linear"], found["C11", "finetune"]) == ("supported", "no difference")


def test_the_gap_is_a_rank_correlation_over_tasks(grids):
    tasks = sorted({s.task for s in grids[""]})
    far = {task: i for i, task in enumerate(tasks)}
    rows = simulated(
        grids[""], lambda s: robust(s) * 0.01 * far[s.task] * (-1 if s.mode == "linear" else 1)
    )
    source = grids[""][0].ticket.pretrain
    source = replace(source, objective="natural", eps=0.0)
    asked = [Evaluation(source, "domain_gap", against=t, limit=300) for t in tasks]
    gaps = pd.DataFrame([specs.columns(e) | {"frechet_infinity": far[e.against]} for e in asked])
    table = claims.table({"": rows}, gaps).set_index(["claim", "part"]).loc["C7"]
    assert table.verdict.to_dict() == {"finetune": "supported", "linear": "contradicted"}
    assert table["mean"].abs().min() > 0.9
    # A network whose distance to a task is missing is left out; without any there is no verdict.
    other = gaps.assign(seed=1, frechet_infinity=-gaps.frechet_infinity)[:-1]
    again = claims.table({"": rows}, pd.concat([gaps, other])).set_index(["claim", "part"])
    pd.testing.assert_frame_equal(again.loc["C7"], table)
    assert claims.table({"": rows}, other).set_index("claim").verdict["C7"] == "not run"


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C5", "C6"])
def test_means_over_sparsities_above_zero_leave_out_zero(claim, grids):
    (own,) = [c for c in claims.CLAIMS if c.name == claim]
    assert "above 0" in own.estimand
    grid = [s for s in grids[own.study] if s.ticket.sparsity > 0]
    even = [s for s in grid if ":" not in s.ticket.pattern]  # 2:4 has a sparsity of its own
    dense = [replace(s, ticket=replace(s.ticket, sparsity=0.0)) for s in even]
    rows = simulated([*grid, *dense], lambda s: 0.2 * robust(s) * (s.ticket.sparsity == 0))
    found = {k: v for k, v in verdicts({own.study: rows}).items() if k[0] == claim}
    assert set(found.values()) == {"no difference"}


def test_the_distances_of_a_profile_are_those_of_its_own_networks(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path))
    tasks = ["mnist", "cifar10", "gtsrb", "rsscn7", "digits", "glyphs"]
    (tmp_path / "own.toml").write_text(
        f"seeds = [0]\n[pretrain]\nwidth = 8\n[[objective]]\nobjective = 'natural'\n[[objective]]\n"
        f"objective = 'pgd'\neps = 0.5\n[ticket]\nsparsity = [0.9]\n[[transfer]]\ntask = {tasks}\n"
        "mode = 'linear'\n[ablation.gap]\nabout = 'the same'\n"
    )
    own = str(tmp_path / "own.toml")
    far = {task: i for i, task in enumerate(tasks)}
    grid = profiles.grid(own)
    for spec, row in zip(
        grid,
        simulated(grid, lambda s: robust(s) * 0.02 * far[s.task]).to_dict("records"),
        strict=True,
    ):
        store.put(spec, row | {"key": specs.key(spec), "n": 9})
    asked = profiles.gaps(own)
    assert {e.of for e in asked} == {s.ticket.pretrain for s in grid} and len(asked) == 12
    others = [replace(e, of=replace(e.of, width=16)) for e in asked]
    assert verdict_on_gap(own) == "not run"
    for order, each in ((-1, others), (1, asked)):
        for e in each:
            value = float(order * far[e.against])
            row = specs.columns(e) | {"frechet_infinity": value, "low": value, "high": value}
            store.put(e, row | {"key": specs.key(e), "n": 9})
        assert verdict_on_gap(own) == ("not run" if each is others else "supported")
        # The figure and the table of a profile as well, whatever else is stored.
        table, points = (paper.stored(name, own) for name in ("domain_gap", "gap"))
        if each is others:
            assert table is None and points is None
        else:
            assert set(table.width) == {8} and len(table) == 12
            assert list(points.task) == tasks and points["mean"].is_monotonic_increasing


def verdict_on_gap(profile: str) -> str:
    found = claims.of_profile(profile).set_index("claim").verdict
    return str(found["C7"])
