"""Figures of ablations, properties and scenes show the numbers of their rows."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import half, inside, lines, reach, small, texts

from robustlib import figures, models, specs, tickets
from robustlib.figures import drawing
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer

NATURAL, ROBUST = Pretrain(), Pretrain(objective="pgd", eps=0.15)


def rows(ways, seeds=(0, 1), value="accuracy", tasks=("mnist",), **fields):
    """Rows as sweep gives them: robust is ahead by 0.01 (1 + seed), each way by a tenth, each task
    by a twentieth; robust more so by the places of the way and of the task."""
    out = []
    for (t, task), seed, (i, way), pretrain in itertools.product(
        enumerate(tasks), seeds, enumerate(ways), (NATURAL, ROBUST)
    ):
        ticket = way(replace(pretrain, seed=seed))
        spec = Transfer(ticket, task, seed=seed, **fields)
        ahead = 0.01 * (1 + seed) * (1 + i + t) * (pretrain is ROBUST)
        level = 0.3 + 0.1 * i + 0.05 * t
        out.append(specs.columns(spec) | {value: level + ahead, "n": 100, "key": "k"})
    return pd.DataFrame(out)


def large(ax):
    """The large dots of a panel, place and height, in the order they were drawn."""
    return [(float(x), float(y)) for c in ax.containers for x, y in c[0].get_xydata()]


def heights(ax):
    return [y for _, y in large(ax)]


def bars(ax):
    """How far the bar of each large dot of a panel reaches, down and up (nan: no bar)."""
    return np.concatenate([reach(c) for c in ax.containers])


def both(halves):
    """What `bars` gives for intervals of these halves."""
    return pytest.approx(np.stack([halves, halves], axis=1))


def names(ax):
    return [t.get_text() for t in ax.get_xticklabels()]


PATTERNS = [
    lambda p: Ticket(p, sparsity=0.5),
    lambda p: Ticket(p, pattern="channel", sparsity=0.5),
    lambda p: Ticket(p, pattern="2:4", sparsity=0.5),
]
SCHEMES = [
    lambda p: Ticket(p, sparsity=0.9),
    lambda p: Ticket(p, "imp", sparsity=0.9, seed=p.seed),
    lambda p: Ticket(p, "imp", sparsity=0.9, objective="pgd", eps=0.1, dataset="mnist"),
    lambda p: Ticket(p, "lmp", sparsity=0.9, dataset="mnist", seed=p.seed),
]


@pytest.mark.parametrize(
    ("ways", "places"),
    [
        (PATTERNS, ["unstructured", "channel", "n:m"]),
        (SCHEMES, ["OMP", "IMP upstream", "A-IMP downstream", "LMP"]),
    ],
)
def test_each_way_to_draw_has_its_place_and_its_difference(ways, places):
    fig = figures.by_drawing(rows(ways, tasks=("mnist", "gtsrb")))
    assert names(fig.axes[-1]) == places and inside(fig)
    place = np.arange(len(ways))
    assert [ax.get_title().split(",")[0] for ax in fig.axes[::2]] == ["MNIST", "GTSRB"]
    for t, (above, below) in enumerate((fig.axes[:2], fig.axes[2:])):
        # Seeds are ahead by 1 and 2 points, times this.
        more = 1 + place + t
        level = 30 + 10 * place + 5 * t
        assert heights(above) == pytest.approx([*level, *(level + 1.5 * more)])
        assert heights(below) == pytest.approx(1.5 * more)
        assert small(below) == pytest.approx([d * m for m in more for d in (1, 2)])
        # Accuracies are not paired by seed, so only differences have bars.
        assert np.isnan(bars(above)).all() and bars(below) == both(half([1, 2]) * more)
        assert [round(x) for x, _ in large(above)] == [*place, *place]
        assert [round(x) for x, _ in large(below)] == [*place]


def test_a_drawing_says_scheme_control_and_pattern():
    ticket = Ticket(NATURAL, pattern="row", sparsity=0.5, control="shuffle", seed=1)
    assert drawing(specs.columns(ticket)) == "OMP, shuffled, row"


def test_the_schemes_at_two_sparsities_have_panels_of_their_own():
    ways = itertools.product((0.8, 0.9), ("omp", "imp"))
    fig = figures.by_drawing(rows([lambda p, w=w: Ticket(p, w[1], sparsity=w[0]) for w in ways]))
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == [
        "MNIST, sparsity 0.8",
        "MNIST, sparsity 0.9",
    ]
    shown = [heights(ax) for ax in fig.axes]
    assert shown[0] == pytest.approx([30, 40, 31.5, 43])
    assert shown[1] == pytest.approx([50, 60, 54.5, 66])
    assert shown[2] == pytest.approx([1.5, 3]) and shown[3] == pytest.approx([4.5, 6])


PANELS = [
    ("mnist", "finetune"),
    ("gtsrb", "finetune"),
    ("mnist", "linear"),
    ("gtsrb", "linear"),
]
"""Tasks beside each other, ways to transfer below each other."""


def panels(fig):
    """Task and way of each panel of a figure of two tasks."""
    ways = [ax.get_ylabel().split("\n")[0] for ax in fig.axes[::2]]
    return [(ax.get_title().lower(), ways[i // 2]) for i, ax in enumerate(fig.axes)]


def test_pretraining_shows_paired_differences_in_the_order_of_the_radius():
    frame = []
    pretrained = [("natural", 0.0, 1), ("pgd", 0.5, 1), ("pgd", 0.15, 1), ("pgd", 0.15, 3)]
    for (p, panel), seed, (objective, eps, steps) in itertools.product(
        enumerate(PANELS), (0, 1), pretrained
    ):
        source = Pretrain(objective=objective, eps=eps, steps=steps, seed=seed)
        spec = Transfer(Ticket(source, sparsity=0.9), *panel, seed=seed)
        ahead = (0.04 * eps + 0.01 * (steps - 1)) * (1 + seed) * (1 + p)
        frame.append(specs.columns(spec) | {"accuracy": 0.4 + 0.05 * seed + ahead})
    fig = figures.by_pretraining(pd.DataFrame(frame))
    assert panels(fig) == PANELS and inside(fig)
    assert names(fig.axes[-1]) == ["L2 ε = 0.15", "L2 ε = 0.5", "L2 ε = 0.15,\n3 steps"]
    assert "sparsity 0.9" in fig.get_supxlabel()
    for p, ax in enumerate(fig.axes):
        # In points, of the first seed; of the second it is twice that.
        ahead = np.array([0.6, 2, 2.6]) * (1 + p)
        assert large(ax) == [(x, pytest.approx(1.5 * y)) for x, y in enumerate(ahead)]
        assert small(ax) == pytest.approx([y * more for y in ahead for more in (1, 2)])
        assert bars(ax) == both(half([1, 2]) * ahead)
        # The radii of one way are joined, what has other steps is not.
        joined = [line for line in ax.lines if line.get_ls() == "-" and line.get_label()[0] == "_"]
        joined = [line.get_xydata().tolist() for line in joined if line.get_marker() == "None"]
        first, second, third = ([x, pytest.approx(1.5 * y)] for x, y in enumerate(ahead))
        assert [first, second] in joined and [third] in joined


def test_masks_are_places_and_weights_are_colours():
    def ticket(weights, mask, control):
        seed = 1 if control == "shuffle" else 0
        return Ticket(weights, sparsity=0.9, mask_from=mask, control=control, seed=seed)

    frame = []
    for (p, panel), seed, weights, mask, control in itertools.product(
        enumerate(PANELS), (0, 1), (NATURAL, ROBUST), (NATURAL, ROBUST), ("none", "shuffle")
    ):
        weights, mask = replace(weights, seed=seed), replace(mask, seed=seed)
        spec = Transfer(ticket(weights, mask, control), *panel, seed=seed)
        level = 0.4 + 0.1 * (mask.eps > 0) + 0.2 * (weights.eps > 0) - 0.3 * (control != "none")
        other = mask != weights or control != "none"
        level += 0.05 * p + 0.02 * seed * (1 + other)
        frame.append(specs.columns(spec) | {"accuracy": level})
    fig = figures.by_mask(pd.DataFrame(frame))
    assert panels(fig) == PANELS and inside(fig)
    robust = "robust, L2 ε = 0.15"
    places = ["natural", robust, "natural, shuffled", f"{robust}, shuffled"]
    assert [name.replace("\n", " ") for name in names(fig.axes[-1])] == places
    assert note(fig).startswith("sparsity 0.9, 1,000 training images, 2 seeds\n")
    for p, ax in enumerate(fig.axes):
        first = 5 * p + np.array([40, 50, 10, 20, 60, 70, 30, 40])
        other = np.array([0, 1, 1, 1, 1, 0, 1, 1])
        assert heights(ax) == pytest.approx(first + 1 + other)
        both_seeds = [(y, y + 2 + 2 * o) for y, o in zip(first, other, strict=True)]
        assert small(ax) == pytest.approx([y for pair in both_seeds for y in pair])
        assert [round(x) for x, _ in large(ax)] == [0, 1, 2, 3] * 2
        # Bars are of what another mask adds to the network's own one, by seed; that one has none.
        reached = np.where(other == 1, half([0, 2]), np.nan)
        assert bars(ax) == pytest.approx(np.stack([reached, reached], 1), nan_ok=True)
    assert "difference to the own mask, paired by seed" in " ".join(note(fig).split())


def test_what_an_own_mask_is_worth_is_said_of_whom():
    def row(weights, mask, control="none"):
        seed = 1 if control == "shuffle" else 0
        ticket = Ticket(weights, sparsity=0.9, mask_from=mask, control=control, seed=seed)
        worth = 0.1 * (mask is not weights) + 0.2 * (control == "shuffle")
        return specs.columns(Transfer(ticket, "mnist")) | {"accuracy": 0.9 - worth}

    ways = [(NATURAL, NATURAL), (NATURAL, ROBUST), (ROBUST, ROBUST), (ROBUST, ROBUST, "shuffle")]
    table = figures.mask_rows(pd.DataFrame(row(*way) for way in ways))
    robust = "robust, L2 ε = 0.15"
    assert table.set_index(["weights", "mask"])["mean"].to_dict() == {
        ("natural", robust): pytest.approx(0.1),
        (robust, f"{robust}, shuffled"): pytest.approx(0.2),
    }


def test_the_gap_stands_against_the_advantage_of_its_task():
    frame = rows([lambda p: Ticket(p, sparsity=0.9)], tasks=("near", "far"))
    gaps = pd.DataFrame({"against": ["far", "near"], "frechet_infinity": [9.0, 2.0]})
    gaps = gaps.assign(n=300, key=["f", "n"])
    gaps = gaps.assign(low=[8.0, 1.5], high=[10.5, 2.5])
    table = figures.gap_rows(frame, gaps)
    assert list(table.task) == ["near", "far"] and list(table.gap) == [2, 9]
    assert list(table["mean"]) == pytest.approx([0.015, 0.03])
    stronger = table.assign(eps=0.5, **{c: 2 * table[c] for c in ("mean", "low", "high")})
    fig = figures.gap(pd.concat([table, stronger]))
    (ax,) = fig.axes
    assert inside(fig) and len(ax.containers) == 2
    points = []
    for times, container in enumerate(ax.containers, 1):
        assert container[0].get_xdata().tolist() == [2, 9]
        assert container[0].get_ydata() == pytest.approx([1.5 * times, 3 * times])
        assert reach(container, 0).tolist() == [[0.5, 0.5], [1, 1.5]]
        assert reach(container) == both(half([1, 2]) * times * np.array([1, 2]))
        points += zip(("near", "far"), container[0].get_xydata().tolist(), strict=True)
    # A name stands at an end of its point's bar, in turn the upper and the lower one.
    ends = [
        100 * own[c].iloc[i] for own in (table, stronger) for i, c in enumerate(("high", "low"))
    ]
    assert [(t.get_text(), t.xy[0]) for t in ax.texts] == [(name, xy[0]) for name, xy in points]
    assert [t.xy[1] for t in ax.texts] == pytest.approx(ends)
    assert note(fig).startswith("finetune, sparsity 0.9, 1,000 training images, 2 seeds\n")
    with pytest.raises(ValueError, match="none is given for far"):
        figures.gap_rows(frame, gaps[gaps.against == "near"])
    with pytest.raises(ValueError, match="sparsity: the rows have 0.9, 0.5"):
        figures.gap_rows(pd.concat([frame, frame.assign(sparsity=0.5)]), gaps)
    with pytest.raises(ValueError, match="n: the rows have 300, 200"):
        figures.gap_rows(frame, gaps.assign(n=[300, 200]))
    with pytest.raises(ValueError, match="several are given for one task"):
        figures.gap_rows(frame, pd.concat([gaps, gaps]))


def test_labels_are_an_axis_and_all_of_them_a_number():
    frame = pd.concat(
        rows([lambda p: Ticket(p, sparsity=0.9)], n_train=n).assign(n_train_measured=n or 4500)
        for n in (50, 1000, None)
    )
    fig = figures.accuracy_vs_labels(frame)
    (ax,) = fig.axes
    assert names(ax) == ["50", "1000", "4500"] and ax.get_xscale() == "log" and inside(fig)


def test_another_measure_than_accuracy_is_named():
    ways = [lambda p, s=s: Ticket(p, sparsity=s) for s in (0.0, 0.9)]
    frame = rows(ways, value="miou", tasks=("glyphs_seg",))
    fig = figures.accuracy_vs_sparsity(frame, "miou")
    assert "mean IoU (%)" in fig.axes[0].get_ylabel()
    assert "mean IoU" not in figures.advantage(frame, "miou").axes[0].get_ylabel()


def test_a_section_is_drawn_and_saved_or_says_why_not(tmp_path):
    frames = {"patterns": rows(PATTERNS)}
    figures.section(frames, "patterns", figures.by_drawing, tmp_path)
    assert (tmp_path / "patterns.pdf").is_file()
    assert len(pd.read_csv(tmp_path / "patterns.csv")) == len(frames["patterns"])
    word = figures.section(frames, "schemes", figures.by_drawing, tmp_path)
    assert "schemes: not in the profile" in word


def test_a_section_says_what_its_figure_has_no_place_for_and_other_faults_fail(tmp_path):
    two = [lambda p, s=s: Ticket(p, sparsity=s) for s in (0.5, 0.9)]
    fresh = [lambda p, c=c: Ticket(p, sparsity=0.9, control=c) for c in ("none", "reinit")]
    modes = pd.concat(rows(PATTERNS, mode=mode) for mode in ("finetune", "linear"))
    frames = {"pretraining": rows(two), "masks": rows(fresh), "schemes": modes}
    for name, says in [
        ("pretraining", "sparsity: the rows have 0.5, 0.9"),
        ("masks", "control='reinit'"),
        ("schemes", "mode: the rows have finetune, linear"),
    ]:
        said = figures.section(frames, name, figures.FIGURES[name].draw, tmp_path)
        assert said.startswith(f"{name}: {says}")
        frames[name].to_csv(tmp_path / f"{name}.csv", index=False)
    # Nor do they keep the command from the others.
    told = {name: said for name, _, said in figures.write([], None, tmp_path)}
    assert set(told) == set(frames) and "control='reinit'" in told["masks"]
    with pytest.raises(ValueError, match="natural"):
        figures.section({"schemes": rows(two)[1::2]}, "schemes", figures.by_drawing, tmp_path)


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (
            figures.by_drawing,
            rows([*SCHEMES, lambda p: Ticket(p, "imp", sparsity=0.9, dataset="mnist")]),
        ),
        (figures.by_drawing, rows(PATTERNS)),
        (figures.by_pretraining, rows(SCHEMES[:1], n_train=None)),
        (figures.accuracy_vs_sparsity, rows(SCHEMES[:1], n_train=None)),
    ],
)
def test_a_figure_is_drawn_again_from_the_rows_saved_with_it(draw, frame, tmp_path):
    figures.save(draw(frame), tmp_path, "first", frame)
    again = pd.read_csv(tmp_path / "first.csv")
    figures.save(draw(again), tmp_path / "again", "first", again)
    for name in ("first.pdf", "first.png"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_names_lie_where_they_have_room():
    for ways, expected in ((PATTERNS, 0), (SCHEMES, 90)):
        ax = figures.by_drawing(rows(ways)).axes[-1]
        assert {t.get_rotation() for t in ax.get_xticklabels()} == {expected}


def test_what_rows_have_in_common_is_said_in_words():
    frame = pd.DataFrame({"task": "mnist", "sparsity": [0.5, 0.9], "n_train": 1000, "seed": 0})
    frame = frame.assign(recalibrate=True, mode="linear")
    said = figures.names.shared(frame, "task", "sparsity", "n_train", "recalibrate", "seed")
    assert said == "MNIST, 1,000 training images, BN re-estimated, seed 0"
    assert figures.names.shared(frame.assign(n_train=None), "n_train", "sparsity") == "all images"


def test_masks_of_each_pattern_and_their_overlaps_are_drawn():
    torch.manual_seed(0)
    model = models.build("resnet10s", 2, width=8)
    masks = {
        p: tickets.omp(model, 0.5, p, "layer") for p in ("unstructured", "row", "channel", "2:4")
    }
    fig = figures.patterns(masks, "layer2.0.conv1.weight")
    shown = [np.asarray(ax.images[0].get_array(), dtype=bool) for ax in fig.axes if ax.images]
    assert [round(float(s.mean()), 2) for s in shown] == [0.5] * 4 and inside(fig)
    # A row of the picture is a row of kernels: with channels removed it is black or white.
    assert all(len(set(line)) == 1 for line in shown[2].tolist())
    table = figures.pair_overlaps(masks)
    same = table[table["first"] == table["second"]]
    assert list(same.overlap) == [1.0] * 4 and inside(figures.overlaps(masks))
    # Layers have one density here, so chance is that of two random masks of a half.
    assert table.chance.to_numpy() == pytest.approx(1 / 3, abs=0.01)


def note(fig):
    return fig.legends[0].get_title().get_text()


def evaluated(suite, column, level=0.5, **fields):
    out = []
    for seed, s, pretrain in itertools.product((0, 1), (0.0, 0.9), (NATURAL, ROBUST)):
        of = Transfer(Ticket(replace(pretrain, seed=seed), sparsity=s), "mnist", seed=seed)
        spec = Evaluation(of, suite, **fields)
        value = level - 0.2 * s + 0.05 * (pretrain is ROBUST) + 0.01 * seed
        out.append(specs.columns(spec) | {column: value, "n": 100, "key": specs.key(spec)})
    return pd.DataFrame(out)


def test_properties_have_a_panel_each_and_a_row_in_the_table():
    frames = {
        "adversarial": evaluated("adversarial", "autoattack_accuracy", eps=0.1),
        "calibration": evaluated("calibration", "ece", level=0.4),
        "calibration scaled": evaluated("calibration", "ece", level=0.2, scaled=True),
    }
    fig = figures.properties(frames)
    shown = [ax for ax in fig.axes if ax.axison]
    titles = [ax.get_title() for ax in shown]
    assert [t.split("\n")[1] for t in titles] == [
        "cheap, L2 ε = 0.1, 100 images",
        "not scaled, 100 images",
        "scaled on val, 100 images",
    ]
    assert "↑" in titles[0] and "↓" in titles[1] and inside(fig)
    robust = figures.label(specs.columns(ROBUST))
    for ax, level in zip(shown, (0.5, 0.4, 0.2), strict=True):
        # Of the first seed, at sparsities 0 and 0.9; the second is ahead by 0.01.
        first = level + np.array([0, -0.18, 0.05, -0.13])
        curves = lines(ax)
        assert list(curves) == ["natural", robust]
        for (x, y, reached), own in zip(curves.values(), (first[:2], first[2:]), strict=True):
            assert x == pytest.approx([1, 10], rel=0.05) and y == pytest.approx(100 * own + 0.5)
            assert reached == pytest.approx(half([0, 1]))
        assert sorted(small(ax)) == pytest.approx(sorted([*(100 * first), *(100 * first + 1)]))
    table = figures.property_table(frames)
    attacked, ece = "accuracy under AutoAttack (%)", "calibration error, ECE (%)"
    assert list(table.property) == [attacked, attacked, ece, ece, ece, ece]
    assert list(table.sparsity) == [0.0, 0.9] * 3
    assert set(table.images) == {100} and set(table.seeds) == {2}
    assert list(table.columns[-3:]) == ["natural", robust, f"{robust} − natural"]
    # Two seeds, a point apart: Student's factor of 12.7 over the root of 2, times the deviation.
    assert table.natural[0] == "50.5 [44.1, 56.9]" and table[robust][1].startswith("37.5 [")
    assert list(table.iloc[:, -1]) == ["+5.0 [+5.0, +5.0]"] * 6
    saved = figures.property_rows(frames)
    assert len(saved) == 3 * 8 and list(saved.n) == [100] * 24
    assert saved.index.is_unique  # drawn with the lines of every suite numbered from 0
    figures.properties({k: f.reset_index(drop=True) for k, f in frames.items()})


def test_a_property_of_robust_networks_alone_has_no_difference():
    frames = {
        "similarity": evaluated("similarity", "cka", other=Transfer()).query("objective == 'pgd'"),
        "certified": evaluated("certified", "mean_radius", sigma=0.1).rename(
            columns={"n": "n_images"}
        ),
    }
    table = figures.property_table(frames)
    assert list(table.natural[:2]) == ["", ""] and list(table.iloc[:2, -1]) == ["", ""]
    assert table.natural[2] and table.iloc[2, -1] and set(table.images) == {100}
    assert set(figures.property_rows(frames).n) == {100}


def test_images_abstained_on_are_counted_and_shares_lie_between_0_and_100():
    frame = evaluated("certified", "mean_radius", sigma=0.1).assign(abstained=14)
    table = figures.property_table({"certified": frame}).set_index("property")
    assert table.natural["images abstained on"].to_list() == ["14.0 [14.0, 14.0]"] * 2
    committed = sorted(
        (Path(__file__).resolve().parents[2] / "figures").rglob("property_table.csv")
    )
    assert committed
    for path in committed:
        shares = pd.read_csv(path).query("property.str.contains('%')")
        means = shares.iloc[:, 5:-1].stack().str.extract(r"^([-+.\d]+)")[0].dropna().astype(float)
        assert means.between(-100, 100).all(), path


def test_reliability_adds_up_seeds_and_leaves_out_empty_bins():
    tables = {}
    for seed in (0, 1):
        spec = Evaluation(Transfer(Ticket(replace(NATURAL, seed=seed)), "mnist", seed=seed))
        tables[spec] = [
            {"bin": 0.0, "count": 0, "confidence": np.nan, "accuracy": np.nan},
            {"bin": 0.5, "count": 10 * (1 + seed), "confidence": 0.6, "accuracy": 0.3 * (1 + seed)},
            {"bin": 0.9, "count": 1, "confidence": 0.95, "accuracy": 0.0},
        ]
    lines = figures.table_rows(tables)
    fig = figures.reliability(lines)
    curve = fig.axes[0].lines[1]
    assert list(curve.get_xdata()) == pytest.approx([60]), "not that of two images"
    assert len(fig.axes[0].collections[0].get_offsets()) == 2
    assert list(curve.get_ydata()) == pytest.approx([100 * (10 * 0.3 + 20 * 0.6) / 30]) and inside(
        fig
    )
    assert list(lines["count"]) == [0, 10, 1, 0, 20, 1] and list(lines.seed) == [0] * 3 + [1] * 3
    assert list(lines.key.unique()) == [specs.key(spec) for spec in tables]


def test_certified_accuracy_falls_with_the_radius_in_a_panel_a_sparsity():
    tables = {}
    for seed, s, noise in itertools.product((0, 1), (0.0, 0.9), (0.1, 0.2)):
        of = Transfer(Ticket(replace(NATURAL, seed=seed), sparsity=s), "mnist", seed=seed)
        tables[Evaluation(of, "certified", sigma=noise)] = [
            {"radius": r, "certified_accuracy": 0.9 - noise - s / 2 - r + 0.1 * seed}
            for r in (0.0, 0.2)
        ]
    lines = figures.table_rows(tables)
    fig = figures.certified(lines)
    panels = [ax for ax in fig.axes if ax.axison]
    titles = [f"sparsity {s}, noise σ = {noise}" for noise in ("0.1", "0.2") for s in ("0", "0.9")]
    assert [ax.get_title() for ax in panels] == titles and inside(fig) and "MNIST" in note(fig)
    curves = [ax.lines[-1].get_ydata().tolist() for ax in panels]
    assert curves[0] == pytest.approx([85, 65]) and curves[1] == pytest.approx([40, 20])
    assert curves[2] == pytest.approx([75, 55]), "two noises are not one curve"
    assert set(lines.evaluation_sigma) == {0.1, 0.2}


def test_similarity_by_layer_tells_dense_from_natural_and_keeps_the_layers_order():
    tables = {}
    names = ("stem", "block", "avgpool")  # Not in the order of the alphabet.
    for seed, s in itertools.product((0, 1), (0.0, 0.9)):
        natural, robust = (Ticket(replace(p, seed=seed), sparsity=s) for p in (NATURAL, ROBUST))
        of = Transfer(robust, "mnist", seed=seed)
        others = {"natural": natural} | ({"dense": Ticket(robust.pretrain)} if s else {})
        for name, ticket in others.items():
            spec = Evaluation(of, "similarity", other=replace(of, ticket=ticket))
            start = 0.9 if name == "dense" else 0.5
            tables[spec] = [
                {"layer": n, "cka": start - 0.1 * i + 0.02 * seed} for i, n in enumerate(names)
            ]
    lines = figures.table_rows(tables)
    assert list(lines.against.unique()) == ["natural", "dense"]
    fig = figures.layers(lines)
    panels = [ax for ax in fig.axes if ax.axison]
    assert [t.get_text() for t in panels[0].get_xticklabels()] == list(names) and inside(fig)
    means = [[li for li in ax.lines if li.get_linewidth() > 0.5] for ax in panels]
    assert [[li.get_linestyle() for li in own] for own in means] == [["--"], ["-", "--"]]
    assert means[1][0].get_ydata().tolist() == pytest.approx([91, 81, 71])
    assert means[1][1].get_ydata().tolist() == pytest.approx([51, 41, 31])
    assert any("and dense" in t for t in texts(fig)) and any("and natural" in t for t in texts(fig))
    assert "MNIST" in note(fig)


def test_clean_accuracy_is_shown_once_and_without_a_radius():
    attacked = evaluated("adversarial", "clean_accuracy", eps=0.1).assign(autoattack_accuracy=0.1)
    linf = evaluated("adversarial", "clean_accuracy", norm="linf", eps=1 / 255)
    frames = {
        "adversarial": attacked,
        "adversarial norm linf eps 1/255": linf.assign(autoattack_accuracy=0.2),
        "corruption": evaluated("corruption", "clean_accuracy").assign(corruption_accuracy=0.3),
    }
    table = figures.property_table(frames).drop_duplicates(["property", "asked"])
    assert list(zip(table.property, table.asked, strict=True)) == [
        ("clean accuracy (%)", "not attacked"),
        ("accuracy under AutoAttack (%)", "cheap, L2 ε = 0.1"),
        ("accuracy under AutoAttack (%)", "cheap, L∞ ε = 1/255"),
        ("accuracy on corruptions (%)", "corruption"),
    ]
    assert len([ax for ax in figures.properties(frames).axes if ax.axison]) == 4


def test_corruptions_are_averaged_over_severities_at_the_highest_sparsity():
    tables = {}
    for s in (0.0, 0.9):
        of = Transfer(Ticket(NATURAL, sparsity=s), "mnist")
        lines = itertools.product(("fog", "gaussian_noise"), (1, 5))
        tables[Evaluation(of, "corruption")] = [
            {"corruption": c, "severity": k, "accuracy": s / k + 0.1 * (c == "fog")}
            for c, k in lines
        ]
    fig = figures.corruptions(figures.table_rows(tables))
    assert names(fig.axes[0]) == ["fog", "gaussian noise"]
    assert [y for _, y in large(fig.axes[0])] == pytest.approx([64, 54]) and inside(fig)
    assert np.isnan(bars(fig.axes[0])).all() and "bars" not in note(fig)


def test_corruptions_and_classes_have_bars_of_the_difference_to_natural_paired_by_seed():
    tables, classes = {}, []
    for p, seed in itertools.product((NATURAL, ROBUST), (0, 1)):
        of = Transfer(Ticket(replace(p, seed=seed)), "mnist", seed=seed)
        # Seeds are far apart, and the difference to natural in them is 1 and 3 points.
        level = 0.3 + 0.3 * seed + 0.01 * (1 + 2 * seed) * (p is ROBUST)
        tables[Evaluation(of, "corruption")] = [
            {"corruption": "fog", "severity": 1, "accuracy": level}
        ]
        spec = Transfer(of.ticket, "glyphs_seg", "segment", seed=seed)
        classes += [specs.columns(spec) | {"name": "sky", "iou": level}]
    classes += [line | {"name": "never", "iou": np.nan} for line in classes]
    for fig in (figures.corruptions(figures.table_rows(tables)), figures.by_class(
        pd.DataFrame(classes)
    )):  # fmt: skip
        assert heights(fig.axes[0]) == pytest.approx([45, 47]) and inside(fig)
        natural, robust = bars(fig.axes[0])
        assert np.isnan(natural).all() and robust == pytest.approx([half([1, 3])] * 2)
        assert "difference to natural, paired by seed" in " ".join(note(fig).split())


def test_scenes_show_what_is_predicted_and_leave_out_what_has_no_class():
    masks = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    images = torch.zeros((1, 2, 2, 3), dtype=torch.uint8)
    fig = figures.scenes(images, masks, {"natural": 1 - masks.clamp(max=1)}, ["sky", "road", "car"])
    image, truth, predicted = (ax.images[0].get_array() for ax in fig.axes)
    assert truth.mask.tolist() == [[False, False], [True, False]]
    assert np.asarray(predicted).tolist() == [[1, 0], [0, 0]]
    assert {"sky", "road"} <= set(texts(fig)) and "car" not in texts(fig)


def test_as_many_classes_as_voc_has_are_told_apart():
    names = [f"c{i}" for i in range(21)]
    masks = torch.arange(21, dtype=torch.uint8)[None, None, :]
    images = torch.zeros((1, 1, 21, 3), dtype=torch.uint8)
    fig = figures.scenes(images, masks, {}, names)
    patches = fig.legends[0].get_patches()
    assert len({p.get_facecolor() for p in patches}) == 21


def test_several_rows_in_one_place_are_refused_and_what_they_differ_in_is_named():
    frame = rows(SCHEMES[:1], mode="linear")
    both = pd.concat([frame, frame.assign(recalibrate=True)])
    fig = figures.by_pretraining(both)
    ways = [ax.get_ylabel().split("\n")[0] for ax in fig.axes]
    assert ways == ["linear", "linear, BN re-estimated"]
    trades = frame.assign(beta=1.0)
    for draw in (figures.by_pretraining, figures.by_mask):
        with pytest.raises(ValueError, match="of beta 6.0, 1.0: must be one"):
            draw(pd.concat([frame, trades[trades.objective == "pgd"]]))
    with pytest.raises(ValueError, match="of ticket_seed 0, 1: must be one"):
        figures.by_drawing(pd.concat([frame, frame.assign(ticket_seed=1)]))


def test_statistics_that_were_reestimated_are_said_although_all_were():
    ways = [lambda p, s=s: Ticket(p, sparsity=s) for s in (0.5, 0.9)]
    both = pd.concat([rows(ways), rows(ways, mode="linear", recalibrate=True)])
    for fig in (figures.accuracy_vs_sparsity(both), figures.advantage(both)):
        said = [ax.get_ylabel().split("\n")[0] for ax in fig.axes]
        assert said == ["finetune", "linear, BN re-estimated"]


def test_alike_ways_are_drawn_on_one_scale():
    layer = [lambda p, s=s: Ticket(p, sparsity=s, scope="layer") for s in (0.5, 0.9)]
    all_layers = [lambda p, s=s: Ticket(p, sparsity=s) for s in (0.5, 0.9)]
    ranked = pd.concat([rows(all_layers), rows(layer).assign(accuracy=lambda r: r.accuracy + 0.2)])
    above, below = figures.accuracy_vs_sparsity(ranked).axes
    assert above.get_ylim() == below.get_ylim()
    modes = pd.concat([rows(all_layers), rows(all_layers, mode="linear")])
    modes = modes.assign(accuracy=modes.accuracy + 0.3 * (modes["mode"] == "linear"))
    above, below = figures.accuracy_vs_sparsity(modes).axes
    assert above.get_ylim() != below.get_ylim()


def test_differences_stand_against_labels_too_and_only_those_that_a_task_has():
    frame = pd.concat(
        rows([lambda p: Ticket(p, sparsity=0.9)], n_train=n, tasks=(task,)).assign(
            n_train_measured=n or most
        )
        for task, most in (("cifar10", 9000), ("mnist", 4500))
        for n in (50, None)
    )
    for fig in (figures.advantage_vs_labels(frame), figures.accuracy_vs_labels(frame)):
        assert [names(ax) for ax in fig.axes] == [["50", "9000"], ["50", "4500"]] and inside(fig)


def test_classes_have_their_places():
    frame = pd.DataFrame(
        specs.columns(Transfer(Ticket(p, sparsity=s), "glyphs_seg", "segment"))
        | {"name": name, "iou": iou - s / 10 + 0.05 * (p is ROBUST)}
        for p in (NATURAL, ROBUST)
        for s in (0.0, 0.9)
        for name, iou in (("sky", 0.9), ("pole", 0.2))
    )
    fig = figures.by_class(frame)
    dense, sparse = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["sparsity 0", "sparsity 0.9"]
    assert names(sparse) == ["sky", "pole"] and inside(fig)
    assert heights(dense) == pytest.approx([90, 20, 95, 25])
    assert heights(sparse) == pytest.approx([81, 11, 86, 16])
    assert [round(x) for x, _ in large(sparse)] == [0, 1, 0, 1]
