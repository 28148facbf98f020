"""The explorer: its choices, and its widgets driven through traits and handlers, without a browser;
then the notebook, executed, and in a kernel that lives."""

import io
import time
from dataclasses import replace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TINY, _workers_import_tests, transfer_rows  # noqa: F401 - a fixture
from PIL import Image

from robustlib import (
    Pretrain,
    Ticket,
    Transfer,
    batch,
    checkpoints,
    explorer,
    figures,
    models,
    profiles,
    run,
    specs,
    stages,
    store,
    tickets,
    training,
)
from robustlib.explorer import background, choices, networks, panel

NOTEBOOK = batch.NOTEBOOKS / "00_explorer.ipynb"


def filled(tasks=("digits", "glyphs"), modes=("linear", "finetune"), seeds=(0, 1), **fields):
    """Stores made-up results of natural and robust tickets; their specs."""
    out = []
    for task in tasks:
        for mode in modes:
            for seed in seeds:
                for eps in (0.0, 0.5):
                    for sparsity in (0.0, 0.9):
                        objective = "pgd" if eps else "natural"
                        source = Pretrain(source="glyphs", objective=objective, eps=eps, seed=seed)
                        ticket = Ticket(source, sparsity=sparsity)
                        spec = Transfer(ticket, task, mode, seed=seed, **fields)
                        accuracy = 0.5 + 0.1 * eps + 0.01 * seed - 0.1 * sparsity
                        store.put(spec, {"accuracy": accuracy, "n": 100, "seconds": 2.0})
                        out.append(spec)
    return out


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# Choices: plain functions.


def test_every_menu_offers_what_the_others_leave_with_its_count():
    filled(), filled(tasks=("digits",), modes=("linear",), n_train=50)
    frame, _, said = choices.load()
    table = choices.facets(frame)
    assert said == "" and {"source", "robust", "task", "mode", "n_train", "seed"} <= set(table)
    chosen = {"mode": ("finetune",), "robust": ("robust, L2 ε = 0.5",)}
    offered = choices.options(table, chosen)
    assert offered["n_train"] == [("1000 (16)", "1000")]  # finetuned is none on 50
    assert {v for _, v in offered["mode"]} == {"linear", "finetune"}  # its own choice is not asked
    for name, menu in offered.items():
        for text, value in menu:
            alone = table[choices.matching(table, {**chosen, name: (value,)})]
            # Natural rows go with every robust network, so they are counted with none.
            count = (alone[name] == value).sum()
            assert text == f"{value} ({count})" and count > 0
    # What is chosen stays where the others leave nothing of it.
    offered = choices.options(table, {"mode": ("finetune",), "n_train": ("50",)})
    assert ("50 (0)", "50") in offered["n_train"]


def test_what_says_nothing_of_a_row_goes_with_any_choice():
    filled(lr=0.1), filled(modes=("finetune",), lr=0.2)
    table = choices.facets(choices.load()[0])
    assert set(table.lr.dropna()) == {"0.1", "0.2"}
    left = table[choices.matching(table, {"lr": ("0.2",)})]
    assert left["mode"].value_counts().to_dict() == {"linear": 16, "finetune": 16}


def test_a_first_choice_makes_one_picture():
    filled(tasks=list("abcdef")), filled(tasks=["a"], n_train=50)
    table = choices.facets(frame := choices.load()[0])
    chosen = choices.start(table)
    assert chosen["n_train"] == ("1000",) and len(chosen["task"]) == 4 and len(chosen["mode"]) == 1
    rows, value, said = choices.drawable(frame[choices.matching(table, chosen)])
    assert (len(rows), value, said) == (4 * 8, "accuracy", "")


def test_rows_that_cannot_be_compared_are_left_out_and_said():
    filled()
    alone = Transfer(
        Ticket(Pretrain(source="glyphs", objective="pgd", eps=1.0)), "digits", "linear"
    )
    store.put(alone, {"accuracy": 0.5, "n": 100, "seconds": 1.0})
    frame = choices.load()[0]
    assert len(choices.partners(frame)) == 17  # seed 0 has a natural network for it too
    frame = frame[(frame.eps == 1) | (frame.seed == 1)]
    rows, _, said = choices.drawable(frame)
    assert said == "Left out: 1 robust rows without a natural partner."
    assert set(rows.eps) == {0.0, 0.5}
    for own, natural in choices.partners(rows).items():
        a, b = frame.loc[own], frame.loc[natural]
        same = ["task", "mode", "sparsity", "seed", "n_train"]
        assert (a[same] == b[same]).all() and (a.objective, b.objective) == ("pgd", "natural")
    with pytest.raises(ValueError, match="No robust row"):
        choices.drawable(frame[frame.eps == 0])
    many = pd.concat([rows.assign(task=f"t{i}", key=rows.key + str(i)) for i in range(13)])
    with pytest.raises(ValueError, match="26 panels, at most 24"):
        choices.drawable(many.reset_index(drop=True))


def test_a_spec_as_python_makes_the_spec():
    robust = Pretrain(source="glyphs", objective="pgd", norm="linf", eps="8/255", n_train=10)
    drawn = Ticket(robust, "imp", sparsity=0.9, rounds=(0.5,), mask_from=Pretrain(), seed=3)
    for spec in (Transfer(), Transfer(drawn, "a 'b'", "linear", n_train=None), *filled()[:3]):
        assert eval(specs.as_python(spec)) == spec
    assert specs.as_python(Transfer()) == "Transfer()"


# The trade-off.


def test_an_empty_store_says_what_to_run_first():
    made = explorer.tradeoff()
    assert "robustlib study --profile quick" in made.message.value
    assert made.image.layout.display == "none" and not made.figures


def test_damaged_results_are_left_out_and_named():
    wanted = filled()
    (store.path(wanted[0]) / "meta.json").write_text("{}")
    made = explorer.tradeoff()
    assert (
        "1 left out, the first" in made.message.value and specs.key(wanted[0]) in made.message.value
    )
    assert made.figures and len(made.frame) == len(wanted) - 1
    for spec in wanted[1:]:
        (store.path(spec) / "meta.json").write_text("{}")
    made.reload()
    assert "32 left out" in made.message.value and "robustlib study" in made.message.value
    assert not made.figures


def test_the_picture_is_in_the_widget_and_follows_the_menus():
    filled()
    made = explorer.tradeoff()
    assert len(made.figures) == 2
    first = made.image.value
    made.redraw()
    assert made.image.value == first  # nothing was chosen anew
    heights = [round(150 * f.get_size_inches()[1]) for f in made.figures]
    assert abs(decoded(first).shape[0] - sum(heights)) <= 2 and (decoded(first)[0] == 255).all()
    made.controls["task"].value = ("glyphs",)
    titles = [ax.get_title() for figure in made.figures for ax in figure.axes if ax.get_title()]
    assert titles == ["Glyphs"] * 2 and made.image.value != first
    assert set(made.rows.task) == {"glyphs"}
    made.clear()
    assert len(made.rows) == 32 and made.controls["task"].value == ()
    made.controls["robust"].value = ("robust, L2 ε = 0.5",)
    assert set(made.rows.objective) == {"natural", "pgd"}
    # One value is no choice.
    assert made.controls["source"].layout.display == "none"
    assert made.controls["task"].layout.display is None


def test_choices_that_leave_nothing_are_said():
    filled(tasks=("digits",), modes=("linear",)), filled(tasks=("glyphs",), modes=("finetune",))
    made = explorer.tradeoff()
    made.clear()
    task, mode = made.controls["task"], made.controls["mode"]
    task.value = ("digits", "glyphs")
    mode.value = ("finetune",)
    assert ("digits (0)", "digits") in task.options and made.figures
    task.value = ("digits",)
    assert not made.figures and "choose others" in made.message.value and made.python.value == ""
    made.save()
    assert "choose others" in made.saved.value
    mode.value = ()
    assert made.figures and set(made.rows.task) == {"digits"}


def test_networks_trained_on_all_images_are_not_those_on_some():
    for n_train in (None, 1000):
        for eps in (0.0, 0.5):
            objective = "pgd" if eps else "natural"
            source = Pretrain(source="glyphs", objective=objective, eps=eps, n_train=n_train)
            spec = Transfer(Ticket(source), "digits", "linear")
            store.put(spec, {"accuracy": 0.5, "n": 100, "seconds": 1.0})
    table = choices.facets(choices.load()[0])
    assert choices.matching(table, {"pretrain_n_train": ("1000",)}).sum() == 2


def test_the_table_is_sorted_and_its_row_is_told_as_python():
    wanted = filled()
    made = explorer.tradeoff()
    made.clear()
    made.sort.value = "accuracy"
    rows = made.frame.set_index("key")
    best = made.one.value = made.one.options[0][1]
    assert rows.accuracy[best] == rows.accuracy.max()
    made.down.value = False
    assert made.one.value == best  # a row stays chosen while it is shown
    worst = made.one.value = made.one.options[0][1]
    assert rows.accuracy[worst] == rows.accuracy.min()
    assert made.listing.value.count("<tr") == len(wanted) + 1
    text = made.python.value.splitlines()[-1].removeprefix("run(").removesuffix(").row")
    assert specs.key(eval(text)) == worst


def test_save_writes_pictures_rows_and_specs_that_sweep_takes(tmp_path):
    wanted = filled()
    made = explorer.tradeoff(str(tmp_path / "new"))
    made.clear()
    made.controls["task"].value = ("digits",)
    made.save()
    names = {p.name for p in (tmp_path / "new").iterdir()}
    pairs = {
        f"{name}.{s}"
        for name in ("tradeoff", "tradeoff_advantage")
        for s in ("pdf", "png", "csv", "txt")
    }
    assert names == {*pairs, "tradeoff.json"}
    kept = profiles.wanted(str(tmp_path / "new" / "tradeoff.json"))
    assert set(kept) == {spec for spec in wanted if spec.task == "digits"}
    assert len(pd.read_csv(tmp_path / "new" / "tradeoff.csv")) == 16
    assert "difference" in pd.read_csv(tmp_path / "new" / "tradeoff_advantage.csv")
    assert "robustlib sweep" in made.saved.value
    for name, folder in (("../a", "new"), ("", "new"), ("a", "/dev/null")):
        made.name.value, made.folder.value = name, str(tmp_path / folder)
        made.save()
        assert "must be" in made.saved.value
    assert {p.name for p in (tmp_path / "new").iterdir()} == names


def drawn(box):
    """(tasks, the mean accuracies of natural in the first panel) as drawn."""
    first = box.figure.axes[0]
    line = next(line for line in first.lines if line.get_linestyle() != "None")
    titles = [ax.get_title().lower() for ax in box.figure.axes if ax.get_title()]
    return titles, line.get_ydata()


def test_transfers_of_many_tasks_begins_with_a_picture_of_a_few():
    frame = transfer_rows([f"task{i}" for i in range(30)], modes=("finetune", "linear"), seeds=(0,))
    box = explorer.transfers(frame)
    assert len(box.figures) == 1 and len(box.controls["task"].value) == 4
    box.controls["task"].value = ()
    assert not box.figures and "30 panels, at most 24 can be read" in box.message.value


def test_transfers_shows_what_is_chosen():
    frame = transfer_rows(tasks=("mnist", "gtsrb"), modes=("finetune", "linear"), seeds=(0, 1, 2))
    box = explorer.transfers(frame)
    menus = box.controls
    assert set(menus) == {"picture", "task", "mode", "seed"}
    assert drawn(box)[0] == ["mnist", "gtsrb"] * 2
    menus["task"].value, menus["mode"].value = ("gtsrb",), ("linear",)
    for seeds in (("0",), ("1", "2")):
        menus["seed"].value = seeds
        rows = frame[(frame.task == "gtsrb") & (frame["mode"] == "linear")]
        rows = rows[rows.seed.isin(map(int, seeds)) & (rows.objective == "natural")]
        titles, means = drawn(box)
        assert titles == ["gtsrb"]
        assert means == pytest.approx(100 * rows.groupby("sparsity").accuracy.mean().to_numpy())
    menus["seed"].value = ()
    assert len(drawn(box)[0]) == 1
    before = box.image.value
    menus["picture"].value = "robust − natural"
    assert box.image.value != before and "robust − natural" in box.figure.axes[0].get_ylabel()


# Tickets.


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    names = ("natural", "robust, L2 ε = 0.1", "robust, L2 ε = 0.5")
    return {name: models.build("resnet10s", 5, width=16, stem_stride=2) for name in names}


def sheets(box):
    """The kernels of both tickets and the overlay, as drawn."""
    return [ax.images[0].get_array() for ax in box.figure.axes[:3]]


def test_the_slider_redraws_the_masks_that_omp_draws(trained):
    box = explorer.masks(trained, sparsity=0.9)
    slider, layer = box.controls["sparsity"], box.controls["layer"].value
    assert layer == "layer1.0.conv1.weight"
    seen = []
    for sparsity in (0.9, 0.5, 0.0, 0.99):
        slider.value = sparsity
        a, b = (tickets.omp(trained[n], sparsity) for n in ("natural", "robust, L2 ε = 0.1"))
        first, second, both = sheets(box)
        expected = figures.overlay(a[layer], b[layer])
        assert (both.data == expected).all()
        # Removed weights are blank, the others have their value.
        for shown, name, bit in ((first, "natural", 1), (second, "robust, L2 ε = 0.1", 2)):
            blank = np.ma.getmaskarray(shown) | np.isnan(shown.data)
            assert (blank == (expected & bit == 0)).all()
            own = trained[name].get_parameter(layer).detach()
            assert shown.data[~blank].sum() == pytest.approx(
                float(own[:24, :24][(a if bit == 1 else b)[layer][:24, :24]].sum()), rel=1e-4
            )
        seen.append(expected.copy())
    assert (seen[2] == 3).all()
    assert len({tuple(s.ravel()) for s in seen}) == 4


def test_the_menus_choose_layer_networks_pattern_and_scope(trained):
    box = explorer.masks(trained, sparsity=0.8, scope="layer")
    box.controls["layer"].value = layer = "layer3.0.conv2.weight"
    box.controls["other"].value = "robust, L2 ε = 0.5"
    box.controls["pattern"].value = "2:4"  # has a sparsity of its own
    a, b = (
        tickets.omp(trained[n], 0.5, "2:4", "layer")[layer]
        for n in ("natural", "robust, L2 ε = 0.5")
    )
    assert (sheets(box)[2].data == figures.overlay(a, b)).all()
    assert any(
        "layer3.0.conv2" in t.get_text()
        for t in box.figure.legends[0].findobj()
        if hasattr(t, "get_text")
    )
    box.controls["network"].value = "robust, L2 ε = 0.1"  # not with itself
    assert box.controls["other"].value != "robust, L2 ε = 0.1" and box.figures


def test_a_move_of_the_slider_changes_the_picture_into_that_of_fresh_tickets(trained):
    box = explorer.masks(trained, sparsity=0.5)
    first = box.figure
    for sparsity in (0.0, 0.99, 0.9):
        box.controls["sparsity"].value = sparsity
        assert box.figure is first
        assert box.image.value == explorer.masks(trained, sparsity=sparsity).image.value
    for name, value in (("layer", "layer3.0.conv2.weight"), ("other", "robust, L2 ε = 0.5")):
        before = box.figure
        box.controls[name].value = value
        assert box.figure is not before


def test_a_move_of_the_slider_takes_less_than_200_ms():
    """For networks as large as the zoo's. Of this process, for others may have the machine; as much
    again for slower ones."""
    box = explorer.ticket()
    assert box.controls["network"].value == "natural (zoo, seed 0)"
    spent = []
    for sparsity in (0.5, 0.6, 0.7, 0.8, 0.85):
        began = time.process_time()
        box.controls["sparsity"].value = sparsity
        spent.append(time.process_time() - began)
    assert min(spent) < 0.4


def test_overlay_counts_each_kind_once():
    a = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)
    b = torch.tensor([True, False, True, False]).view(1, 1, 2, 2)
    assert figures.overlay(a, b).tolist() == [[3, 1], [2, 0]]


def test_masks_wants_two_networks(trained):
    with pytest.raises(ValueError, match="natural and at least one robust"):
        explorer.masks({"natural": trained["natural"]})


def test_tickets_of_the_zoo_need_nothing_stored_and_stored_networks_are_offered_too(tmp_path):
    box = explorer.ticket(0.8)
    assert box.figures and not (tmp_path / "store").exists()
    names = list(box.controls["network"].options)
    assert names[0] == "natural (zoo, seed 0)" and len(names) == len(checkpoints.zoo())
    assert names[6] == "natural (resnet18s, zoo, seed 0)" and "resnet18s" not in names[5]
    assert box.controls["other"].value == "robust, L2 ε = 0.5 (zoo, seed 0)"
    run(TINY)
    box = explorer.ticket()
    box.controls["network"].value = "natural (digits, seed 0)"
    assert not box.figures and "no other network has its architecture" in box.message.value
    box.controls["network"].value = "robust, L2 ε = 0.5 (zoo, seed 1)"
    assert box.figures


def test_first_is_a_natural_beside_a_robust_network_and_rows_without_networks_are_not_offered():
    alike = {"source": "digits", "stem": "imagenet", "size": 64}  # the zoo's architecture
    store.put(Pretrain(**alike, objective="smoothing", sigma=0.1), {}, {"w": torch.zeros(1)})
    store.put(Pretrain(**alike, seed=7), {"accuracy": 0.5})
    box = explorer.ticket()
    assert "noise σ = 0.1 (digits, seed 0)" in box.controls["network"].options
    assert "natural (digits, seed 7)" not in box.controls["network"].options
    first, second = (box.controls[name].value for name in ("network", "other"))
    assert (first, second) == ("natural (zoo, seed 0)", "robust, L2 ε = 0.5 (zoo, seed 0)")


# Attacks.


def test_attack_moves_through_images_and_radii(tmp_path):
    box = explorer.attack()
    assert box.controls["task"].value == networks.ZOO and not (tmp_path / "store").exists()
    image, eps = box.controls["image"], box.controls["ε"]
    shown = lambda: [ax.images[0].get_array() for ax in box.figure.axes]  # noqa: E731
    eps.value = 0.0
    assert np.abs(shown()[0] - shown()[1]).max() == 0  # no attack at a radius of 0
    eps.value = 0.5
    for line in (0, 4):
        change = shown()[line + 1] - shown()[line]
        assert 0.3 < np.sqrt((change.astype(float) ** 2).sum()) <= 0.5 + 1e-5
    again = box.image.value
    eps.value = 1.0
    eps.value = 0.5
    assert box.image.value == again
    buttons = {b.description: b for b in box.children[2].children}
    buttons["next"].click()
    assert image.value == 1
    wrong = networks._loaded(None, None).wrong
    buttons["misclassified"].click()
    assert image.value > 1 and wrong[image.value] and not wrong[2 : image.value].any()
    buttons["random"].click()
    assert 0 <= image.value < len(wrong)
    image.value = len(wrong) - 1
    buttons["next"].click()
    assert image.value == 0


def test_stored_pairs_are_attacked_at_their_own_norm(tmp_path):
    robust = Pretrain(
        source="digits",
        width=4,
        n_train=100,
        epochs=1,
        batch_size=50,
        objective="pgd",
        norm="linf",
        eps="8/255",
    )
    for source in (TINY, robust):
        run(Transfer(Ticket(source, sparsity=0.5), "digits", "linear", n_train=50))
    box = explorer.attack()
    assert list(box.controls["task"].options) == ["digits", networks.ZOO]
    assert box.controls["tickets"].value == "robust, L∞ ε = 8/255, linear, sparsity 0.5, seed 0"
    assert box.controls["ε"].max == pytest.approx(32 / 255)
    box.controls["ε"].value = 16 / 255
    image, attacked = (ax.images[0].get_array() for ax in box.figure.axes[:2])
    assert np.abs(attacked - image).max() == pytest.approx(16 / 255, abs=1e-6)


def test_attacked_are_the_images_that_a_transfer_is_measured_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    pack = {"x_train": pixels[:30], "y_train": np.arange(30) % 2, "x_test": pixels[30:]}
    names = np.array(["a", "b"])
    np.savez(tmp_path / "own.npz", **pack, y_test=np.arange(10) % 2, class_names=names)
    own = {"n_train": 20, "grey": True, "detail": 8}
    pair = [
        Transfer(Ticket(replace(TINY, **fields)), "own", "linear", **own)
        for fields in ({}, {"objective": "pgd", "eps": 0.5})
    ]
    shown = networks._loaded(*pair)
    assert torch.equal(shown.test.x, stages.transfer.images(pair[1]).test.x)
    assert (shown.test.x == shown.test.x[..., :1]).all()
    found = training.correct(list(shown.networks.values())[1], shown.test)
    assert found == run(pair[1]).row["accuracy"] * len(shown.test)


# Runs.


GRID = """
about = "a test"
seeds = [0]
[pretrain]
source = "digits"
width = 4
n_train = 100
epochs = 1
batch_size = 50
[[objective]]
objective = "natural"
[[objective]]
objective = "pgd"
eps = 0.5
[ticket]
sparsity = [0.0, 0.5]
[[transfer]]
mode = "linear"
task = "digits"
n_train = 50
"""


@pytest.fixture
def grid(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GRID)
    yield str(path)
    background.cancel_all()


def waited(made, state):
    deadline = time.monotonic() + 120
    while made.show() == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert made.sweep.state == state, made.state.value


def test_cost_is_that_of_stored_rows_of_the_same_kind(grid):
    missing = store.lacking(profiles.grid(grid))
    assert [specs.kind(s) for s in missing].count("pretrain") == 2 and len(missing) == 10
    _, unknown = background.minutes(missing, 1)
    assert {"pretrain natural", "pretrain pgd", "ticket omp", "transfer linear"} == set(unknown)
    linear = [spec for spec in missing if isinstance(spec, Transfer)]
    other = Transfer(Ticket(TINY, sparsity=0.7), "digits", "linear", n_train=50)
    store.put(other, {"accuracy": 0.5, "n": 1, "seconds": 30.0})  # as much arithmetic as each
    assert background.minutes(linear, 1) == (pytest.approx(4 * 30 / 60), [])
    assert background.minutes(linear, 2)[0] == pytest.approx(2 * 30 / 60)
    assert background.minutes(linear, 99)[0] == pytest.approx(
        30 / 60
    )  # one takes as long as it does
    assert background.minutes([], 2) == (0, [])


def test_a_run_goes_on_after_it_was_cancelled_a_second_is_refused_and_its_points_appear(grid):
    shown = explorer.tradeoff()
    made = explorer.runner(grid, workers=1, after=shown.reload)
    assert "4 transfers; to compute: 2 pretrain, 4 ticket, 4 transfer; about" in made.message.value
    made.start()
    assert made.sweep.state == "running" and made.bar.max == 10
    first = made.sweep
    made.start()
    made.show()  # what is said of the other stays beside it
    assert "a sweep is running" in made.answer.value and made.sweep is first
    began = time.monotonic()
    made.cancel()
    assert time.monotonic() - began < 20
    assert made.sweep.state == "cancelled" and "cancelled: " in made.state.value
    made.start()
    waited(made, "done")
    most = made.bar.max
    assert made.bar.value == most and f"done: {most} of {most} stored" in made.state.value
    assert made.message.value == "4 transfers, all stored."
    assert len(shown.rows) == 4 and shown.figures  # at first it had nothing to show
    made.start()
    assert "nothing is lacking" in made.answer.value
    made.controls["sparsities"].value = "1.5"
    assert "sparsities=1.5" in made.message.value


def test_a_failure_shows_its_last_line_and_where_the_traceback_is(grid, tmp_path):
    lost = Pretrain(source="digits", checkpoint=str(tmp_path / "lost.safetensors"))
    made = explorer.runner(grid, workers=1)
    made.wanted = lambda: [Transfer(Ticket(lost), "digits", "linear", n_train=50)]
    made.start()
    waited(made, "failed")
    assert "there is no such file" in made.state.value and str(made.sweep.log) in made.state.value
    assert "Traceback" not in made.state.value and "lost.safetensors" in made.sweep.log.read_text()
    made.cancel()  # too late to do anything
    assert made.sweep.state == "failed"


# The notebook.


def outputs(path):
    cells = nbformat.read(path, 4).cells
    return {c.id: [o.get("data", {}) for o in c.outputs] for c in cells if c.cell_type == "code"}


def test_an_executed_notebook_shows_its_pictures_and_no_repr(tmp_path):
    wanted = filled()
    (store.path(wanted[0]) / "meta.json").write_text("{}")
    batch.execute(NOTEBOOK, tmp_path / "out.ipynb", {"workers": 1})
    shown = outputs(tmp_path / "out.ipynb")
    for cell, pictures in {"tradeoff": 1, "ticket": 1, "attack": 1, "run": 0}.items():
        _, live, static = shown[cell]
        assert panel.VIEW in live and panel.VIEW not in static
        assert ("image/png" in static) == bool(pictures)
        assert not any("(" in data["text/plain"][:20] for data in (live, static))
    state = nbformat.read(tmp_path / "out.ipynb", 4).metadata.widgets
    assert "image/png" in shown["tradeoff"][2] and panel.VIEW.replace("view", "state") in state


@pytest.fixture
def shell():
    """IPython, in this process."""
    from IPython.core.interactiveshell import InteractiveShell

    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def test_the_notebook_on_an_empty_store_says_what_to_run(shell):
    from IPython.utils.capture import capture_output

    shown = {}
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            with capture_output() as captured:
                shell.run_cell(cell.source).raise_error()
            shown[cell.id] = [output.data for output in captured.outputs]
    assert "robustlib study --profile quick" in shown["tradeoff"][2]["text/plain"]
    assert "image/png" in shown["ticket"][2] and "image/png" in shown["attack"][2]


def test_the_static_copy_follows_while_the_page_is_open(trained, shell):
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        box = explorer.masks(trained)
        shell.display_formatter.format(box)
        box.controls["sparsity"].value = 0.5
    _, live, first, second = captured.outputs
    assert live.data[panel.VIEW]["model_id"] == box.model_id
    assert not first.update and second.update
    assert first.transient["display_id"] == second.transient["display_id"]
    assert first.data["image/png"] != second.data["image/png"]


def test_a_kernel_answers_while_a_run_goes_on_that_a_click_has_started(grid):
    """The loop that follows the run is the kernel's own: it is asked nothing meanwhile."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:

        def told(code):
            said = []
            hook = lambda m: said.append(m["content"].get("text", m["content"].get("evalue", "")))  # noqa: E731
            client.execute_interactive(code, timeout=120, output_hook=hook)
            return "".join(said).strip()

        told(f"from robustlib import explorer\nmade = explorer.runner({grid!r}, 1)")
        button = told("print(made.children[-3].children[0].model_id)")
        content = {"comm_id": button, "data": {"method": "custom", "content": {"event": "click"}}}
        client.shell_channel.send(client.session.msg("comm_msg", content))
        assert told("print(made.sweep.state, 6 * 7)") == "running 42"
        assert told("made.start()\nprint(made.answer.value)").startswith("not started: a sweep")
        deadline = time.monotonic() + 120
        while not (said := told("print(made.state.value)")).startswith("done"):
            assert time.monotonic() < deadline and "failed" not in said, said
            time.sleep(1)
        assert said == "done: 10 of 10 stored"
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
