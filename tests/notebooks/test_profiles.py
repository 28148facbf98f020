"""Profiles become grids of specs; a bad one is refused before anything runs."""

import itertools

import pandas as pd
import pytest
from helpers import rows

from robustlib import profiles, specs, stats
from robustlib.figures.table import table
from robustlib.specs import columns

GOOD = """
about = "a test"
seeds = [0, 1]
[pretrain]
source = "glyphs"
width = 4
[[objective]]
objective = "natural"
[[objective]]
objective = "pgd"
eps = [0.1, "8/255"]
[ticket]
sparsity = [0.0, 0.9]
[[transfer]]
mode = "finetune"
task = "digits"
epochs = 1
[[transfer]]
mode = "linear"
task = ["digits", "glyphs"]
n_train = "all"
recalibrate = [false, true]
"""


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return str(path)


@pytest.mark.parametrize("name", profiles.profiles())
def test_every_profile_parses_and_pairs(name):
    transfers = profiles.grid(name)
    assert len({specs.key(t) for t in transfers}) == len(transfers) > 0
    frame = pd.DataFrame([specs.columns(t) for t in transfers])
    from robustlib.stats import advantage

    paired = advantage(frame.assign(accuracy=0.5), by=["task", "mode"])
    n_robust = (frame.objective != "natural").sum()
    assert paired.pairs.sum() == n_robust > 0


def test_grid_is_the_product_and_one_seed_drives_the_chain(good):
    transfers = profiles.grid(good)
    # 2 seeds, 3 ways to pretrain, 2 sparsities, (1 finetune + 2 tasks * 2 recalibrations).
    assert len(transfers) == 2 * 3 * 2 * (1 + 4)
    assert all(t.seed == t.ticket.pretrain.seed for t in transfers)
    assert {t.ticket.pretrain.eps for t in transfers} == {0.0, 0.1, 8 / 255}
    assert {t.n_train for t in transfers if t.mode == "linear"} == {None}


def test_one_ticket_table_is_a_list_of_one(good, tmp_path):
    several = tmp_path / "several.toml"
    several.write_text(GOOD.replace("[ticket]", "[[ticket]]"))
    assert profiles.grid(str(several)) == profiles.grid(good)
    several.write_text(
        GOOD.replace(
            "sparsity = [0.0, 0.9]",
            'sparsity = [0.0, 0.9]\n[[ticket]]\nscheme = ["imp", "lmp"]\nsparsity = 0.5\n'
            'dataset = "task"\n[[ticket]]\ncontrol = "shuffle"\npattern = "row"\nsparsity = 0.5',
        ).replace("[ticket]", "[[ticket]]", 1)
    )
    drawn = {t.ticket for t in profiles.grid(str(several))} - {
        t.ticket for t in profiles.grid(good)
    }
    assert {t.scheme for t in drawn} == {"imp", "lmp", "omp"}
    for ticket in drawn:
        # One seed drives the chain: each draws with that of its network.
        assert ticket.seed == ticket.pretrain.seed
        assert (ticket.control, ticket.pattern) == (
            ("shuffle", "row") if ticket.scheme == "omp" else ("none", "unstructured")
        )


def test_a_ticket_of_the_task_takes_its_name_its_images_and_its_seed(tmp_path):
    path = tmp_path / "task.toml"
    path.write_text(
        GOOD.replace("[ticket]", '[ticket]\nscheme = "imp"\nrate = 0.5\ndataset = "task"')
        .replace("[0.0, 0.9]", "0.5")
        .replace('n_train = "all"', 'n_train = ["all", 50]')
    )
    transfers = profiles.grid(str(path))
    assert {(t.task, t.n_train) for t in transfers} == {
        *(("digits", 1000), ("digits", None), ("digits", 50), ("glyphs", None), ("glyphs", 50)),
    }
    for t in transfers:
        own = t.ticket
        assert (own.dataset, own.n_train, own.seed) == (t.task, t.n_train, t.seed)


def test_arguments_narrow_and_replace(good):
    few = profiles.grid(
        good, seeds="1", eps="0.1", tasks="glyphs", modes="linear", sparsities="0.5", n_train=20
    )
    assert len(few) == 2 * 2
    assert {(t.seed, t.task, t.mode, t.ticket.sparsity, t.n_train) for t in few} == {
        (1, "glyphs", "linear", 0.5, 20)
    }
    assert profiles.grid(good, seeds=[1], modes=["linear"], eps=[0.1]) == profiles.grid(
        good, seeds="1", modes=" linear ", eps="0.1"
    )


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("seeds", "7", "seeds=7: choose among 0, 1"),
        ("eps", "0.3", "eps=0.3: choose among 0.03"),
        ("tasks", "digit", "did you mean 'digits'.*glyphs"),
        ("tasks", "glyphs_seg", "'glyphs_seg' labels each pixel, .* mode='finetune'"),
        ("modes", "segment", "choose among finetune, linear"),
        ("sparsities", "1.0", r"sparsities=1.0: must be a number in \[0, 1\)"),
        ("sparsities", "a", "'a': must be float"),
        ("n_train", -1, "n_train=-1"),
    ],
)
def test_bad_arguments_list_the_good_ones(good, argument, value, says):
    with pytest.raises(ValueError, match=says):
        profiles.grid(good, **{argument: value})


def test_segmentation_takes_sets_with_masks_alone():
    few = profiles.grid("quick:segmentation", tasks="glyphs_seg", n_train=20)
    assert {(t.task, t.mode, t.n_train) for t in few} == {("glyphs_seg", "segment", 20)}
    with pytest.raises(ValueError, match="'digits' labels each image, .* mode='segment'"):
        profiles.grid("quick:segmentation", tasks="digits")
    with pytest.raises(ValueError, match="n_train=100000: glyphs_seg has 540"):
        profiles.grid("quick:segmentation", n_train=100_000)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[ticket]", "[tickets]", "table='tickets' .did you mean 'ticket'"),
        ("width = 4", "widht = 4", "did you mean 'width'"),
        ("width = 4", "seed = 4", "field of .pretrain.='seed'"),
        ('mode = "linear"', 'mode = "lin"', "mode='lin'.*linear"),
        ("sparsity = [0.0, 0.9]", "sparsity = [0.0, 1.5]", "sparsity=1.5"),
        ("seeds = [0, 1]", "seeds = []", "seeds=.*at least one"),
        ("seeds = [0, 1]", "seeds = [0.5]", "seeds=0.5: must be a whole number"),
        ("seeds = [0, 1]", "", "'seeds' is missing"),
        ("seeds = [0, 1]", "seeds = [0,", "is not TOML"),
        ("seeds = [0, 1]", "seeds = 3", "mine.toml"),
        ("width = 4", 'checkpoint = "x_{nope}"', "checkpoint='x_{nope}'.*choose among source"),
        ("[ticket]", 'ticket = "omp"\n[other]', "table='other'"),
    ],
)
def test_bad_profiles_are_refused_with_file_and_reason(tmp_path, old, new, says):
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=says) as error:
        profiles.profile(str(path))
    assert "mine.toml" in str(error.value)


def test_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match=f"choose one of {', '.join(profiles.profiles())}"):
        profiles.profile("quik")
    with pytest.raises(ValueError, match="no such file"):
        profiles.profile("nowhere.toml")


def test_the_papers_ablations_name_published_checkpoints():
    from robustlib import checkpoints

    for name in profiles.ablations("paper"):
        networks = {t.ticket.pretrain for t in profiles.grid(f"paper:{name}")}
        assert {p.checkpoint for p in networks} <= set(checkpoints.NAMES)
        for p in networks:  # the radius that it says is the radius of the file
            kind, _, named = p.checkpoint.partition("_l")[2].partition("_eps")
            assert float(named) / (255 if kind == "inf" else 1) == pytest.approx(p.eps)
            assert (p.norm == "linf") == (kind == "inf")


def test_checkpoint_profiles_repeat_the_transfer_not_the_network():
    from robustlib import checkpoints

    transfers = profiles.grid("paper")
    assert {t.ticket.pretrain.seed for t in transfers} == {0}
    assert {t.seed for t in transfers} == {0, 1, 2}
    names = {t.ticket.pretrain.checkpoint for t in transfers}
    assert "madrylab/resnet50_l2_eps0.03" in names
    assert names <= set(checkpoints.NAMES)


@pytest.mark.parametrize("table", ["evaluation", "ablation.patterns.evaluation"])
@pytest.mark.parametrize("ablation", ["", ":properties", ":patterns"])
def test_what_nothing_would_measure_is_refused(tmp_path, table, ablation):
    path = tmp_path / "mine.toml"
    own = "[[ablation.{}.ticket]]\nsparsity = 0.5\n"
    text = GOOD + own.format("properties") + own.format("patterns")
    path.write_text(text + f'[[{table}]]\nsuite = "calibration"\n')
    with pytest.raises(ValueError, match=r"\[\[ablation.properties.evaluation\]\]") as refused:
        profiles.profile(f"{path}{ablation}")
    assert len(str(refused.value)) < 100 + len(str(path))
    path.write_text(text + '[[ablation.properties.evaluation]]\nsuite = "calibration"\n')
    assert len(profiles.evaluations(f"{path}:properties")["calibration"]) == 30
    assert profiles.evaluations(f"{path}{ablation.replace('properties', 'patterns')}") == {}


def test_plan_counts_what_is_missing(good):
    text = profiles.plan(good)
    assert "pretrain       6 specs, 0 stored" in text
    assert "transfer      60 specs, 0 stored" in text
    assert "multiply-adds" in text


def test_plan_counts_all_that_the_study_computes():
    """The grid, those of the ablations, what is measured of one, and the gap of another; of an
    ablation by its name what is its own."""
    own = [profiles.grid(f"quick:{name}") for name in profiles.ablations("quick")]
    asked = [e for group in profiles.evaluations("quick:properties").values() for e in group]
    first = profiles.family("quick:gap")[0]
    asked += [e for e in profiles.gaps("quick") if e.of == first]
    whole = specs.closure([*profiles.grid("quick"), *itertools.chain(*own), *asked])
    text = profiles.plan("quick")
    for kind, cls in specs.KINDS.items():
        assert f"{kind:9} {sum(isinstance(s, cls) for s in whole):6} specs" in text
    assert len(asked) == 58 and "transfers: grid 54, detail 12," in text
    alone = profiles.plan("quick:patterns")
    assert "transfer      12 specs" in alone and "evaluation      0 specs" in alone


def test_table_agrees_with_the_rows():
    frame = rows(effect=0.05).assign(recalibrate=False)
    out = table(frame)
    assert list(out.sparsity) == [0.0, 0.9]
    assert "recalibrate" not in out
    assert out["natural %"][0].startswith("70.0 [") and out["robust %"][0].startswith("75.0 [")
    assert out["difference, points"][0].startswith("+5.0 [")


def test_table_keeps_recalibrated_apart():
    plain, again = rows(0.05).assign(recalibrate=False), rows(-0.05).assign(recalibrate=True)
    out = table(pd.concat([plain, again]))
    assert list(out.recalibrate) == [False, False, True, True]
    assert [d[:4] for d in out["difference, points"]] == ["+5.0", "+5.0", "-5.0", "-5.0"]


ALL = [
    p
    for name in profiles.profiles()
    for p in (name, *(f"{name}:{a}" for a in profiles.ablations(name)))
]


@pytest.mark.parametrize("name", ALL)
def test_every_profile_and_ablation_pairs_robust_with_natural(name):
    transfers = profiles.grid(name)
    assert profiles.profile(name).name == name and transfers
    if not name.endswith(":masks"):  # those cross masks and weights
        assert len(
            stats.differences(pd.DataFrame([columns(t) | {"accuracy": 0.5} for t in transfers]))
        )
    profiles.evaluations(name)


def test_what_is_asked_is_called_by_suite_and_by_the_values_that_tell_it_apart():
    asked = profiles.evaluations("quick:properties")
    assert {"calibration not scaled", "calibration scaled", "similarity with dense"} <= set(asked)
    assert {spec.scaled for spec in asked["calibration scaled"]} == {True}
    assert {spec.scaled for spec in asked["calibration not scaled"]} == {False}


def test_an_ablation_replaces_tables_and_keeps_the_others(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD + "\n[ablation.few]\nseeds = [1]\nticket = [{ sparsity = 0.5 }]\n")
    few = profiles.grid(f"{path}:few")
    assert {(t.seed, t.ticket.sparsity) for t in few} == {(1, 0.5)}
    assert {t.task for t in few} == {t.task for t in profiles.grid(str(path))}
    assert profiles.ablations(str(path)) == ["few"] == profiles.ablations(str(path), "few")
    with pytest.raises(ValueError, match="ablation='fwe' .did you mean 'few'.*mine.toml|mine.toml"):
        profiles.grid(f"{path}:fwe")
    with pytest.raises(ValueError, match="ablations=fwe: choose among few"):
        profiles.ablations(str(path), "fwe")
    path.write_text(GOOD + "\n[ablation]\nfew = 3\n")
    with pytest.raises(ValueError, match="must be tables, .ablation.NAME."):
        profiles.profile(str(path))


def test_masks_of_one_network_go_on_the_weights_of_another():
    transfers = profiles.grid("quick:masks", seeds="0")
    combined = {
        (t.ticket.pretrain.objective, columns(t)["mask_objective"], t.ticket.control)
        for t in transfers
    }
    sides, controls = ("natural", "pgd"), ("none", "shuffle")
    assert combined == {(w, m, c) for w in sides for m in sides for c in controls}
    assert all(t.ticket.mask_from is None or t.ticket.mask_from.seed == 0 for t in transfers)


def test_a_pattern_n_of_m_keeps_its_sparsity():
    sparsities = {
        t.ticket.pattern: t.ticket.sparsity
        for t in profiles.grid("quick:patterns", sparsities="0.3")
    }
    assert sparsities == {"unstructured": 0.3, "channel": 0.3, "2:4": 0.5}


def test_a_profiles_own_tasks_may_be_packs_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    assert {s.task for s in profiles.grid("cpu", tasks="tinyimagenet50")} == {"tinyimagenet50"}
    with pytest.raises(ValueError, match="tasks='tinyimagenet51'"):
        profiles.grid("cpu", tasks="tinyimagenet51")
    with pytest.raises(ValueError, match="'camvid_seg' labels each pixel|tasks='camvid_seg'"):
        profiles.grid("cpu", tasks="camvid_seg")


def test_a_checkpoint_with_a_seed_in_its_name_is_a_network_for_each_seed():
    from robustlib import checkpoints

    found = profiles.pretrains("quick")
    small = [name for name in checkpoints.zoo() if not name.startswith("resnet18")]
    assert {p.checkpoint for p in found} == {f"zoo/{name}" for name in small}
    assert found == [checkpoints.pretrain(p.checkpoint) for p in found]
    for spec in profiles.grid("quick") + profiles.grid("quick:masks"):
        own = spec.ticket.mask_from or spec.ticket.pretrain
        assert own.checkpoint.endswith(f"-{spec.seed}") and own.seed == spec.seed
        assert spec.ticket.pretrain.checkpoint.endswith(f"-{spec.seed}")
