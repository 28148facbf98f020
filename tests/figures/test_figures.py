"""Figures show the numbers of their rows, and their files hold them."""

import io
import itertools
import math
import warnings
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import NATURAL, STRONG, half, inside, lines, small, texts, transfer_rows

from robustlib import figures, models, specs, stats, tickets
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer
from robustlib.tickets import Mask


def test_accuracy_shows_means_and_paired_intervals():
    tasks, modes = ("mnist", "gtsrb"), ("finetune", "linear")
    frame = transfer_rows(tasks, modes)
    fig = figures.accuracy_vs_sparsity(frame)
    assert len(fig.axes) == 4 and inside(fig)
    assert [ax.get_title() for ax in fig.axes] == ["MNIST", "GTSRB"] * 2
    for ax, (mode, task) in zip(fig.axes, itertools.product(modes, tasks), strict=True):
        rows = frame[(frame.task == task) & (frame["mode"] == mode)]
        drawn = lines(ax)
        assert list(drawn) == ["natural", "robust, L2 ε = 0.15", "robust, L2 ε = 0.5"]
        more = 1 + (np.array([0, 0.8, 0.9]) + tasks.index(task) + modes.index(mode)) / 2
        for (x, y, bars), eps in zip(drawn.values(), (0, 0.15, 0.5), strict=True):
            own = rows[rows.eps == eps]
            assert x == pytest.approx([1, 5, 10], rel=0.12)
            assert y == pytest.approx(100 * own.groupby("sparsity").accuracy.mean().to_numpy())
            # The spread of accuracies between seeds is not in the bar, that of differences is.
            ahead = half([10 * eps, 20 * eps, 30 * eps]) if eps else math.nan
            assert bars.T == pytest.approx(np.stack([ahead * more] * 2), nan_ok=True)
        rows = rows.sort_values("sparsity", kind="stable")
        seeds = [rows[rows.eps == eps].accuracy for eps in (0, 0.15, 0.5)]
        assert small(ax) == pytest.approx(100 * np.concatenate(seeds))


def test_advantage_shows_the_paired_difference():
    fig = figures.advantage(transfer_rows(("mnist", "gtsrb"), ("finetune", "linear")))
    assert [ax.get_title() for ax in fig.axes] == ["MNIST", "GTSRB"] * 2 and inside(fig)
    # The places of a mode and of a task, each worth a half.
    for ax, place in zip(fig.axes, (0, 1, 1, 2), strict=True):
        more = 1 + (np.array([0, 0.8, 0.9]) + place) / 2
        drawn = lines(ax)
        assert list(drawn) == ["robust, L2 ε = 0.15", "robust, L2 ε = 0.5"]
        for (x, y, bars), seeds in zip(drawn.values(), ([1.5, 3, 4.5], [5, 10, 15]), strict=True):
            assert x == pytest.approx([1, 5, 10], rel=0.12)
            assert y == pytest.approx(np.mean(seeds) * more)
            assert bars.T == pytest.approx(np.stack([half(seeds) * more] * 2))
        each = [s * m for eps in (1.5, 5) for m in more for s in (eps, 2 * eps, 3 * eps)]
        assert small(ax) == pytest.approx(each)


def test_one_seed_has_no_interval():
    frame = transfer_rows(seeds=(1,))
    for draw in (figures.accuracy_vs_sparsity, figures.advantage):
        assert np.isnan(lines(draw(frame).axes[0])["robust, L2 ε = 0.5"][-1]).all()


def test_two_ways_to_transfer_are_never_averaged():
    frame = pd.concat(
        [transfer_rows(recalibrate=r, n_train=n) for r in (False, True) for n in (1, 2)]
    )
    fig = figures.accuracy_vs_sparsity(frame)
    names = [ax.get_ylabel().split("\n")[0] for ax in fig.axes]
    assert len(set(names)) == len(fig.axes) == 4
    assert all("BN" in name for name in names[2:]) and "1 training images" in names[0]
    everything = pd.concat([transfer_rows(n_train=n) for n in (None, 100)])
    assert len(figures.accuracy_vs_sparsity(everything).axes) == 2


def test_many_tasks_wrap():
    frame = transfer_rows(tasks=("a", "b", "c", "d", "e"), seeds=(0, 1))
    fig = figures.accuracy_vs_sparsity(frame)
    assert [ax.get_title() for ax in fig.axes if ax.axison] == list("abcde")
    assert inside(fig)


def test_sparsities_are_far_apart_and_named():
    ax = figures.accuracy_vs_sparsity(transfer_rows(sparsities=(0.0, 0.8, 0.9, 0.95))).axes[0]
    ax.figure.draw_without_rendering()
    at = ax.transAxes.inverted().transform(
        ax.transData.transform([(x, 0.0) for x in ax.get_xticks()])
    )[:, 0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "0.8", "0.9", "0.95"]
    assert np.diff(at).min() > 0.15


def test_ten_tasks_stand_on_a_page_those_of_full_detail_first():
    tasks = {f"task{i}": 64 if i % 3 == 0 else 4 * i for i in range(10)}
    frame = transfer_rows(tuple(tasks), ("finetune", "linear"), seeds=(0, 1))
    frame = frame.assign(size=64, native_detail=frame.task.map(tasks)).sample(frac=1)
    for draw in (figures.accuracy_vs_sparsity, figures.advantage):
        fig = draw(frame)
        titles = [ax.get_title() for ax in fig.axes]
        full = [f"task{i}\nfull, 64 px" for i in (0, 3, 6, 9)]
        coarse = [f"task{i}\ncoarse, {4 * i} px" for i in (1, 2, 4, 5, 7, 8)]
        assert titles == [*full, *coarse] * 2 and inside(fig)
        assert fig.get_size_inches()[1] < 9


def detailed(tasks=("flowers5", "rsscn7"), details=(None, 32, 16), modes=("finetune", "linear")):
    """Robust is ahead by (1 + seed) points, times the places of task, mode, sparsity and detail."""
    rows = []
    places = (enumerate(part) for part in (tasks, modes, details, (0.0, 0.9)))
    for (t, task), (m, mode), (d, detail), (i, sparsity) in itertools.product(*places):
        for seed, p in itertools.product((0, 1, 2), (NATURAL, STRONG)):
            source = Pretrain(objective=p.objective, eps=p.eps, seed=seed, size=64)
            spec = Transfer(Ticket(source, sparsity=sparsity), task, mode, seed=seed)
            ahead = 0.01 * (1 + seed) * (1 + t + m + d + i) * (p is STRONG)
            row = specs.columns(spec) | {"detail": detail, "native_detail": 64}
            rows.append(row | {"accuracy": 0.4 + ahead})
    return pd.DataFrame(rows)


def test_detail_shows_paired_differences_above_both_accuracies():
    tasks, modes, details = ("flowers5", "rsscn7"), ("finetune", "linear"), (None, 32, 16)
    fig = figures.detail(detailed())
    assert len(fig.axes) == 8 and inside(fig)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes[:2]] == ["Flowers", "RSSCN7"]
    for m, t in itertools.product(range(len(modes)), range(len(tasks))):
        above, below = fig.axes[4 * m + t], fig.axes[4 * m + 2 + t]
        assert above.get_xscale() == "log"
        assert above.get_ylabel().startswith(modes[m]) or t
        drawn, levels = lines(above), lines(below)
        named = [f"robust, L2 ε = 0.5, sparsity {s}" for s in ("0", "0.9")]
        assert list(drawn) == named and len(levels) == 4
        for i, name in enumerate(named):
            x, y, bars = drawn[name]
            times = np.array([1 + t + m + d + i for d in range(len(details))])[::-1]
            assert x == pytest.approx([16, 32, 64], rel=0.15)
            assert y == pytest.approx(2 * times)
            assert bars.T == pytest.approx(np.stack([half([1, 2, 3]) * times] * 2))
            assert levels[name][1] == pytest.approx(40 + 2 * times)
            assert levels[name.replace("robust, L2 ε = 0.5", "natural")][1] == pytest.approx(
                [40] * 3
            )


def test_detail_leaves_out_what_has_one_and_refuses_nothing_to_compare():
    single = detailed(tasks=("mnist",), details=(None,))
    fig = figures.detail(pd.concat([detailed(tasks=("rsscn7",)), single]))
    assert [ax.get_title().split("\n")[0] for ax in fig.axes if ax.get_title()] == ["RSSCN7"]
    with pytest.raises(ValueError, match="detail: no task has rows of several"):
        figures.detail(single)
    frame = detailed()
    with pytest.raises(ValueError, match="natural and one robust"):
        figures.detail(pd.concat([frame, frame[frame.eps > 0].assign(eps=0.15)]))
    with pytest.raises(ValueError, match="no natural partner"):
        figures.detail(frame[(frame.eps > 0) | (frame.seed > 0)])


def data_inside(fig):
    """Whether every dot of every panel lies within its limits."""
    return all(
        low <= y <= high
        for ax in fig.axes
        for low, high in [ax.get_ylim()]
        for line in ax.lines
        if line.get_marker() in "os^Dv<>P"
        for y in line.get_ydata()
    )


def test_no_datum_lies_outside_its_panel_and_only_what_is_cut_off_is_said_to_be():
    frame = transfer_rows(seeds=(0, 1))
    lower = frame.assign(scope="layer", accuracy=frame.accuracy - 0.15)
    fig = figures.accuracy_vs_sparsity(pd.concat([frame, lower]))
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim() and data_inside(fig)

    def said(fig):
        return [t for t in texts(fig) if "arrowhead" in t]

    # Intervals of two seeds are a dozen times as long as the seeds are apart.
    for draw in (figures.accuracy_vs_sparsity, figures.advantage):
        wide = draw(frame.assign(accuracy=frame.accuracy + 0.1 * frame.seed * (frame.eps > 0)))
        assert said(wide) and any(len(ax.collections) for ax in wide.axes) and data_inside(wide)
    rounds = transfer_rows(seeds=range(8))
    near = figures.advantage(rounds)
    assert not said(near) and data_inside(near)
    assert not any("bars" in t for t in texts(figures.advantage(frame[frame.seed == 0])))


def test_a_way_to_pretrain_looks_the_same_whatever_stands_beside_it():
    names = ["robust, L2 ε = 0.15", "robust, L∞ ε = 8/255", "trades, L2 ε = 0.5", "noise σ = 0.25"]
    every = figures.looks(["natural", *names])
    assert len({str(look["color"]) for look in every.values()}) == 5
    for name in names:
        assert figures.looks([name])[name] == every[name]


def test_no_rows_and_no_partner_are_refused():
    frame = transfer_rows()
    for draw in (figures.accuracy_vs_sparsity, figures.advantage):
        with pytest.raises(ValueError, match="no rows"):
            draw(frame[:0])
        with pytest.raises(ValueError, match="no natural partner"):
            draw(frame[frame.objective != "natural"])
    with pytest.raises(ValueError, match="no robust row"):
        figures.advantage(frame[frame.objective == "natural"])


def test_looks_tell_labels_apart_without_colour():
    names = ["natural", *(f"robust, L2 ε = {e}" for e in (0.03, 0.1, 0.5, 1, 3))]
    looks = figures.looks(reversed(names))
    assert next(iter(looks)) == "natural"
    assert figures.looks(["natural"])["natural"] == looks["natural"]
    for cue in ("color", "marker", "ls"):
        assert len({str(look[cue]) for look in looks.values()}) >= (5 if cue == "ls" else 6)
    ordered = figures.looks(names)
    light = [plt.matplotlib.colors.to_rgb(ordered[n]["color"]) @ np.ones(3) for n in names[1:]]
    assert light == sorted(light, reverse=True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (NATURAL, "natural"),
        (STRONG, "robust, L2 ε = 0.5"),
        (Pretrain(objective="trades", norm="linf", eps="8/255"), "trades, L∞ ε = 8/255"),
        (Pretrain(objective="smoothing", sigma=0.25), "noise σ = 0.25"),
    ],
)
def test_label(spec, expected):
    assert figures.label(specs.columns(spec)) == expected
    # A row of a table, whose numbers are numpy's.
    assert figures.label(pd.DataFrame([specs.columns(spec)] * 2).iloc[0]) == expected


def test_save_writes_three_files_and_the_same_bytes(tmp_path):
    frame = transfer_rows()
    for _ in range(2):
        fig = figures.accuracy_vs_sparsity(frame)
        assert figures.save(fig, tmp_path / "new", "one", frame) == tmp_path / "new" / "one.pdf"
        written = {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()}
        assert set(written) == {"one.pdf", "one.png", "one.csv", "one.txt"}
    again = figures.accuracy_vs_sparsity(frame)
    figures.save(again, tmp_path, "one", frame)
    assert all((tmp_path / name).read_bytes() == data for name, data in written.items())
    back = pd.read_csv(tmp_path / "one.csv")
    assert list(back)[:5] == ["task", "mode", "scheme", "pattern", "sparsity"]
    assert {"objective", "norm", "eps", "n_train", "seed", "accuracy", "n"} <= set(back)
    assert back.accuracy.tolist() == frame.accuracy.tolist()
    width = plt.imread(tmp_path / "one.png").shape[1]
    assert width == pytest.approx(200 * fig.get_figwidth(), abs=1)


def test_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    frame = transfer_rows()
    fig = figures.advantage(frame)
    monkeypatch.setattr(fig, "savefig", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.save(fig, tmp_path, "one", frame)
    assert {p.name for p in tmp_path.iterdir()} == {"one.csv", "one.txt"}


def test_no_folder_means_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert figures.folder("") is None
    assert figures.save(figures.advantage(transfer_rows()), None, "one", transfer_rows()) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder"):
        figures.folder(str(tmp_path / "file"))


def test_figures_are_shown_once(tmp_path):
    before = plt.get_fignums()
    figures.advantage(transfer_rows())
    assert plt.get_fignums() == before


def test_curves_show_each_network_and_bear_none():
    rows = [{"epoch": e, "loss": 1 / (e + 1), "val_accuracy": 0.5 + e / 10} for e in range(4)]
    robust = [specs.columns(STRONG) | r | {"val_robust": 0.25} for r in rows]
    frame = pd.DataFrame([specs.columns(NATURAL) | r for r in rows] + robust)
    loss, clean, attacked = figures.curves(frame).axes
    assert [len(ax.lines) for ax in (loss, clean, attacked)] == [2, 2, 1]
    assert clean.lines[0].get_ydata() == pytest.approx([50, 60, 70, 80])
    assert attacked.lines[0].get_ydata() == pytest.approx([25] * 4)
    assert "pretrained on Tiny ImageNet, seed 0" in texts(loss.figure)
    assert "not measured" in texts(figures.curves(pd.DataFrame([])))


def test_robust_accuracy_has_exact_intervals():
    rows = [
        specs.columns(spec)
        | {"attack": attack, "attack_norm": "l2", "attack_eps": e, "correct": k, "n": 200}
        for spec in (NATURAL, STRONG)
        for attack, e, k in (("PGD-20", 0.0, 180), ("PGD-20", 0.5, 0), ("APGD-CE", 0.5, 0))
    ]
    frame = pd.DataFrame(rows)
    fig = figures.robust_accuracy(frame)
    assert inside(fig)
    curve, _, (bars,) = fig.axes[0].containers[0]
    assert curve.get_ydata() == pytest.approx([90, 0])
    # The other attack is where it was measured, and all that is drawn is explained.
    assert list(fig.axes[0].containers[2][0].get_xdata()) == [0.5]
    (note,) = [t for t in texts(fig) if "hollow: APGD-CE" in t]
    assert "Tiny ImageNet, seed 0; lines: PGD-20" in note and "dotted: the radius" in note
    for k, segment in zip((180, 0), bars.get_segments(), strict=True):
        ends = stats.accuracy_interval(k / 200, 200)
        assert segment[:, 1] == pytest.approx([100 * e for e in ends], abs=1e-6)
    said = figures.robustness(frame)
    assert "APGD-CE at L2 ε = 0.5" in said and "natural 0.0 % [0.0, 1.8]" in said


def test_rows_of_attacks_are_those_of_evaluations_and_what_is_not_attacked_stands_once():
    found = []
    for network, (own, half_, one) in {NATURAL: (90, 40, 3), STRONG: (80, 70, 50)}.items():
        for eps, left in ((0.5, half_), (1.0, one)):
            spec = Evaluation(network, "adversarial", eps=eps, limit=100)
            row = {"n": 100, "clean_correct": own, "pgd_correct": left}
            row |= specs.columns(spec) | {"autoattack_correct": left - 1}
            found.append(SimpleNamespace(spec=spec, row=row))
    rows = figures.attacked_rows(found)
    assert len(rows) == 2 * (1 + 2 * 2)
    counted = rows.set_index(["eps", "attack", "attack_eps"]).correct
    for network, clean, at_one in ((NATURAL, 90, 3), (STRONG, 80, 50)):
        assert counted[network.eps, "PGD-20", 0.0] == clean
        assert counted[network.eps, "PGD-20", 1.0] == at_one
        assert counted[network.eps, "AutoAttack", 1.0] == at_one - 1


def test_an_attacked_image_shows_what_changed_and_what_is_said_how_surely():
    torch.manual_seed(0)
    x, slope = torch.rand(3, 8, 8), torch.randn(3, 8, 8)
    after = {"natural": [0.1, 0.9], "robust, L2 ε = 0.5": [0.75, 0.25]}
    networks = {
        name: (x + 0.01 * i, slope, torch.tensor([0.8, 0.2]), torch.tensor(said))
        for i, (name, said) in enumerate(after.items(), 1)
    }
    fig = figures.attacked(x, 0, networks, ["cat", "dog"], "L2 ε = 0.3")
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[:2] == ["image: cat ✓ 80%", "attacked: dog ✗ 90%"]
    assert titles[5] == "attacked: cat ✓ 75%" and titles[2] == titles[6] == "change × 20"
    assert "class cat; L2 ε = 0.3" in texts(fig)
    change = fig.axes[2].images[0].get_array(), fig.axes[6].images[0].get_array()
    assert np.allclose(change[0], 0.5 + 20 * 0.01, atol=1e-4)  # one factor for both networks
    assert np.allclose(change[1], 0.5 + 20 * 0.02, atol=1e-4)
    gradient = fig.axes[3].images[0].get_array()
    assert gradient.min() < 0.05 and gradient.max() > 0.95 and inside(fig)


def test_two_masks_close_up_tell_networks_of_one_pretraining_apart():
    torch.manual_seed(0)
    kept = [Mask({"conv1.weight": torch.rand(30, 4, 3, 3) > s}) for s in (0.5, 0.9)]
    weights = torch.randn(30, 4, 3, 3)
    for names in (("natural (a)", "natural (b)"), ("natural (a)", "robust, L2 ε = 0.5 (a)")):
        masks = dict(zip(names, kept, strict=True))
        fig = figures.masks(masks, dict.fromkeys(names, weights), "conv1.weight")
        chance, *lines = fig.axes[3].lines
        first, second = (line.get_color() for line in lines)
        assert first != second and first == figures.looks(["natural"])["natural"]["color"]
        said = texts(fig)
        assert any("the first 24 × 4 of 30 × 4" in t for t in said)
        assert chance.get_ydata()[0] == pytest.approx(100 * kept[0].chance(kept[1]))
        assert [line.get_ydata()[0] for line in lines] == [
            pytest.approx(100 * float(m["conv1.weight"].float().mean())) for m in kept
        ]
        assert fig.axes[0].images[0].get_array().shape == (72, 12)


def test_adversarial_examples_say_before_and_after():
    x = torch.rand(2, 3, 8, 8)
    attacked = {"natural": (x + 0.01, [0, 1], [1, 1]), "robust": (x, [0, 1], [0, 0])}
    fig = figures.adversarial_examples(x, [0, 1], attacked, ["cat", "a very long class name"])
    said = texts(fig)
    assert "cat →\na very long… ✗" in said and "cat →\ncat ✓" in said
    assert sum("✓" in t for t in said) == 2
    assert "natural\nchange × 50" in said
    assert inside(fig)


@pytest.mark.parametrize("n", [2, 6, 12])
def test_predictions_of_neighbours_do_not_overlap(n):
    names = ["trolleybus, trolley coach", "MMMMM wwww mmmm"]
    x = torch.rand(n, 3, 8, 8)
    fig = figures.adversarial_examples(x, [0] * n, {"natural": (x, [0] * n, [0] * n)}, names)
    short = "trolleybus" if n < 12 else "trolle…"
    assert f"{short} →\n{short} ✓" in texts(fig)
    assert min(t.get_fontsize() for t in fig.findobj(plt.Text) if t.get_text().strip()) >= 6
    fig.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in fig.axes if "→" in ax.title.get_text()]
    assert len(boxes) == n
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


HARD = ["猫", "$100$ bill", r"$\foo$", "_unknown_", "two\nlines", "bell\a", "\u20dd", "é"]
"""Names of folders: the usual font has no letter for the first, and STIX for the seventh."""


def missing_glyphs(fig) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with figures.style.style():
            for kind in ("png", "pdf"):
                fig.savefig(io.BytesIO(), format=kind)
    return [str(w.message) for w in told]


def test_names_that_the_font_lacks_are_written_without_boxes():
    written = [figures.style.written(name) for name in HARD]
    assert written[1:] == [
        r"\$100\$ bill",
        r"\$\foo\$",
        *HARD[3:4],
        "two lines",
        "bellU+0007",
        *HARD[6:],
    ]
    assert written[0] in ("U+732B", "猫")  # the letter, where a font for it is installed
    n = len(HARD)
    x = torch.rand(n, 3, 8, 8)
    said = list(range(n)), list(range(n))
    shown = figures.adversarial_examples(x, said[0], {"natural": (x, *said)}, HARD)
    labels = torch.arange(n)[None, None]
    scenes = figures.scenes(torch.zeros((1, 1, n, 3), dtype=torch.uint8), labels, {}, HARD)
    assert [t.get_text() for t in scenes.legends[0].get_texts()] == written
    frame = pd.concat(
        transfer_rows(seeds=(0,), sparsities=(0.0,)).assign(name=name, iou=0.5) for name in HARD
    )
    for fig in (shown, scenes, figures.by_class(frame)):
        assert missing_glyphs(fig) == []


def test_a_letter_of_another_installed_font_is_drawn_with_it():
    for name, families in (("\u20dd", {"STIXGeneral"}), ("cat", set())):
        with figures.style.style([name]):
            usual, *others = plt.rcParams["font.family"]
        assert usual == "sans-serif" and len(others) == len(families)
    long = figures.networks._short("猫" * 9)
    assert long.endswith("…") and figures.networks._width(long) <= figures.networks.LONGEST


@pytest.fixture(scope="module")
def masks():
    torch.manual_seed(0)
    networks = [models.build("resnet10s", 5, width=4, stem_stride=2) for _ in range(2)]
    return [tickets.omp(net, 0.8) for net in networks]


def test_overlap_is_the_masks_own_and_chance_is_chance(masks):
    table = stats.mask_overlap(*masks)
    assert list(table.layer) == list(masks[0])
    for layer, row in table.set_index("layer").iterrows():
        one = [tickets.Mask({layer: m[layer]}) for m in masks]
        assert row.overlap == pytest.approx(one[0].overlap(one[1]))
        assert row.density_first == pytest.approx(masks[0].density()[layer])
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(100_000, generator=generator) < d for d in (0.3, 0.1))
    row = stats.mask_overlap(tickets.Mask({"w": a}), tickets.Mask({"w": b})).iloc[0]
    assert row.overlap == pytest.approx(row.chance, abs=0.005)
    assert row.chance == pytest.approx(0.03 / 0.37, abs=0.003)
    none = tickets.Mask({"w": torch.zeros(5, dtype=torch.bool)})
    assert np.isnan(stats.mask_overlap(none, none).overlap[0])
    with pytest.raises(ValueError, match="w"):
        stats.mask_overlap(none, masks[0])


def test_overlap_in_words_is_that_of_the_whole_masks(masks):
    table = stats.mask_overlap(*masks).assign(label="robust", sparsity=0.8)
    assert f"overlap {100 * masks[0].overlap(masks[1]):.1f} %," in figures.overlap(table)
    fig = figures.mask_overlap(table.assign(source="cifar10", seed=3))
    overlap, above = fig.axes
    assert overlap.lines[0].get_ydata() == pytest.approx(100 * table.overlap.to_numpy())
    assert overlap.lines[1].get_ydata() == pytest.approx(100 * table.chance.to_numpy())
    assert above.lines[0].get_ydata() == pytest.approx(
        100 * (table.overlap - table.chance).to_numpy()
    )
    assert any("tickets of CIFAR-10, seed 3" in t for t in texts(fig)) and inside(fig)


@pytest.mark.parametrize(("n", "width"), [(2, 3.25), (6, 3.25), (8, 6.75), (12, 6.75)])
def test_overlaps_are_readable_however_many_there_are(masks, n, width):
    names = [f"A-IMP downstream, robust, L2 ε = 0.15 {i}" for i in range(n)]
    named = dict(zip(names, masks * 6, strict=False))
    fig = figures.overlaps(named, note="cifar10, sparsity 0.8")
    assert fig.get_figwidth() == width and inside(fig)
    assert any(t.startswith("cifar10, sparsity 0.8\n") for t in texts(fig))
    assert min(t.get_fontsize() for t in fig.findobj(plt.Text) if t.get_text().strip()) >= 6
    # Numbers stay apart, and the columns are numbered as the rows are.
    boxes = [t.get_window_extent().padded(1) for t in fig.axes[0].texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == [
        t.get_text().split()[-1] for t in fig.axes[0].get_yticklabels()
    ]
    cells = [t.get_text() for t in fig.axes[0].texts]
    own, other = masks[0].overlap(masks[1]), masks[0].chance(masks[1])
    assert cells[1] == f"{100 * own:.0f}\n({100 * other:.0f})"
    # The same from the rows that are saved with it.
    again = figures.overlaps(figures.pair_overlaps(named), note="cifar10, sparsity 0.8")
    assert texts(again) == texts(fig)


def test_masks_of_patterns_say_whose_and_what_is_black(masks):
    fig = figures.patterns({"row": masks[0], "2:4": masks[1]}, "conv1.weight", note="natural")
    assert "natural; black: kept" in texts(fig) and inside(fig)


def test_layer_density_beside_natural(masks):
    rows = [
        {"label": name, "sparsity": 0.8, "layer": layer, "density": d}
        for name, mask in zip(("natural", "robust", figures.START), [*masks, masks[0]], strict=True)
        for layer, d in mask.density().items()
    ]
    rows[2]["density"] = 0.0  # a layer of which natural keeps nothing
    left, right = figures.layer_density(pd.DataFrame(rows)).axes
    assert len(left.lines) == 4 and len(right.lines) == 2
    a, b = ([*m.density().values()] for m in masks)
    expected = np.asarray(b) / np.asarray(a)
    expected[2] = math.nan
    assert right.lines[1].get_ydata() == pytest.approx(expected, nan_ok=True)


def test_filters_show_zero_as_grey_and_what_a_ticket_removed():
    w = torch.randn(10, 3, 3, 3)
    w[0, :, 0, 0] = 0
    kept = torch.ones_like(w, dtype=torch.bool)
    kept[1] = False
    fig = figures.filters({"natural": w, "robust": w}, {"natural": kept, "robust": kept}, "t")
    top, _, bottom, _ = (ax.images[0].get_array() for ax in fig.axes)
    assert np.allclose(top[0, 0], 0.5)
    assert np.allclose(bottom[:3, 4:7], 0.5)
    assert np.allclose(top[:3, 4:7], (0.5 + w[1] / (2 * w.abs().max())).permute(1, 2, 0))


def test_classes_of_several_tasks_or_patterns_are_never_averaged():
    frame = pd.DataFrame(
        specs.columns(Transfer(Ticket(p, sparsity=0.5, pattern=pattern), task, "segment", seed=2))
        | {"name": "sky", "iou": 0.9}
        for task in ("glyphs_seg", "camvid_seg")
        for pattern in ("row", "kernel")
        for p in (NATURAL, STRONG)
    )
    with pytest.raises(ValueError, match="task: the rows have glyphs_seg, camvid_seg"):
        figures.by_class(frame)
    with pytest.raises(ValueError, match="pattern: the rows have row, kernel"):
        figures.by_class(frame[frame.task == "glyphs_seg"])
    fig = figures.by_class(frame[(frame.task == "camvid_seg") & (frame.pattern == "row")])
    assert any("CamVid, seed 2\n" in t for t in texts(fig)) and inside(fig)


def test_a_correlation_of_few_tasks_is_said_without_what_is_not_a_number():
    row = specs.columns(STRONG)
    rows = pd.DataFrame([row | {"gap": i, "mean": i**2} for i in range(6)])
    said = figures.correlation(rows)
    assert said.startswith("robust, L2 ε = 0.5, 6 tasks: rank correlation 1.00 [")
    assert "p = 0.0028" in said and "nan" not in said
    assert figures.correlation(rows[:2]).endswith(
        "2 tasks: too few for a correlation, or all alike"
    )
    assert "nan" not in figures.correlation(rows[:3])


def test_verdict_counts_decided_comparisons():
    frame = transfer_rows(tasks=("mnist", "gtsrb"), seeds=(0, 1, 2))
    ahead = figures.verdict(frame).splitlines()
    assert len(ahead) == 2
    # Differences 1, 2 and 3 times one number: their interval holds zero.
    assert "of 6 comparisons ahead of natural in 0, behind in 0, undecided in 6" in ahead[0]
    frame.loc[frame.objective != "natural", "accuracy"] += 0.3
    assert "ahead of natural in 6, behind in 0, undecided in 0" in figures.verdict(frame)
    assert "undecided in 6" in figures.verdict(frame[frame.seed == 0])
