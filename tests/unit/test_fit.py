"""A folder and a budget become a network: chosen by its rule, exported, and used by its script."""

import gzip
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageOps

from robustlib import export, figures, fit, models, specs, stages, stats, store, takeaway
from robustlib.cli import main
from robustlib.costs import cost
from robustlib.data import load
from robustlib.fit import Budget
from robustlib.specs import Evaluation, Ticket, Transfer

FEW = (("unstructured", 0.95), ("channel", 0.9))


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(fit, "TICKETS", FEW)


def photos(folder: Path, classes: int = 3, each: int = 20, side: int = 40) -> Path:
    """A folder of class folders: glyphs on a canvas that is not square, as PNG and as JPEG."""
    glyphs = load("glyphs", 32)
    for label in range(classes):
        name = "été" if label == 1 else f"class {glyphs.class_names[label]}"
        (folder / name).mkdir(parents=True)
        for i, row in enumerate(torch.nonzero(glyphs.train.y == label).flatten()[:each]):
            image = Image.fromarray(glyphs.train.x[row, ..., 0].numpy()).resize((side, side))
            framed = ImageOps.expand(image.convert("RGB"), (9, 0), "navy")
            framed.save(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return folder


# The rule


def options(sizes, met=None):
    return pd.DataFrame({"bytes": sizes, "met": met or [True] * len(sizes)})


def hits(*counts, n=100):
    """Which of n images options have right: the first so many."""
    return np.array([np.arange(n) < count for count in counts])


@pytest.mark.parametrize(
    ("sizes", "counts", "met", "chosen"),
    [
        ([10, 20, 30], [60, 90, 80], None, 1),  # the highest
        ([10, 20, 30], [60, 90, 80], [True, False, True], 2),  # within the budget
        ([30, 20, 10], [90, 90, 90], None, 2),  # of equals the smallest
        ([30, 20, 10], [90, 89, 80], None, 1),  # one image behind is one standard error
        ([30, 20, 10], [90, 88, 80], None, 0),  # two are more than theirs
        ([30, 20, 10], [90, 89, 80], [True, False, True], 0),
        ([10, 20], [90, 10], [False, True], 1),
        ([104, 100, 200], [89, 89, 90], None, 1),  # of equals the smallest still
        ([104, 100, 200], [90, 89, 90], None, 0),  # 4 % are not worth an image
        ([106, 100, 200], [90, 89, 90], None, 1),
    ],
)
def test_the_most_accurate_within_the_budget_is_chosen_and_of_the_tied_the_smallest(
    sizes, counts, met, chosen
):
    assert fit.choose(options(sizes, met), hits(*counts)) == chosen


def test_the_standard_error_is_that_of_the_same_images():
    """Two that differ on many images, in both directions, are less sure to differ than two of which
    one is right wherever the other is."""
    first, other = np.arange(100) < 60, np.arange(100) >= 45  # 60 and 55 right, 15 in common
    assert fit.choose(options([20, 10]), np.array([first, other])) == 1
    assert fit.choose(options([20, 10]), hits(60, 55)) == 0


def test_a_paired_interval_holds_the_difference_as_often_as_it_says():
    rng, held = np.random.default_rng(0), []
    for _ in range(2_000):
        u = rng.random((60, 2))
        first, other = u[:, 0] < 0.8, np.where(u[:, 1] < 0.7, u[:, 0] < 0.8, u[:, 1] < 0.85)
        mean, low, high = stats.paired_interval(first, other)
        assert mean == pytest.approx(first.mean() - other.mean())
        # P(other) = 0.7 * 0.8 + P(0.7 <= u < 0.85)
        held.append(low <= 0.8 - (0.7 * 0.8 + 0.15) <= high)
    assert 0.935 < np.mean(held) < 0.985
    same = np.ones(20, bool)
    mean, low, high = stats.paired_interval(same, same)
    assert mean == 0 and low == pytest.approx(-high) and 0.05 < high < 0.2
    assert stats.paired_interval(same, ~same)[0] == 1 and stats.paired_interval(same, ~same)[2] <= 1


# Budgets


def test_a_budget_is_met_only_by_what_meets_all_of_it():
    forms = pd.DataFrame({"parameters": [1, 1, 9], "bytes": [5, 9, 5], "latency": [1.0, 1.0, 1.0]})
    assert Budget().met(forms).tolist() == [True] * 3
    assert Budget(bytes=5).met(forms).tolist() == [True, False, True]
    assert Budget(parameters=1, bytes=5).met(forms).tolist() == [True, False, False]
    assert not Budget(latency=0.9).met(forms).any()
    for bad in (0, -1, math.nan, math.inf, "few", True):
        with pytest.raises(ValueError, match="latency="):
            Budget(latency=bad)
    assert Budget(bytes="6").met(forms).tolist() == [True, False, True]


def test_only_channel_tickets_have_fewer_parameters_and_zeros_compress(monkeypatch):
    planned = fit.plan("digits", n_train=60)
    rows = pd.DataFrame([r for s in planned.wanted for r in takeaway.estimates(s, 10)])
    by = rows[rows.network == "natural-0"].set_index(["pattern", "form"])
    whole = sum(p.numel() for p in stages.network(planned.wanted[0].ticket).parameters())
    head = 256 * 150 + 150 - (256 * 10 + 10)
    assert (by.parameters["unstructured"] == whole - head).all()
    assert (by.parameters["channel"] < whole / 4).all()
    assert by.bytes["unstructured", "int8"] < 4 * whole / 20
    assert set(rows.network) == {"natural-0", "robust-0"}


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (
            ["--bytes", "1000"],
            r"bytes=1000 \(the least is estimated at [\d,]+: \S+, channel, .*int8\)",
        ),
        (["--parameters", "100"], r"parameters=100 \(the least is [\d,]+: \S+, channel"),
        (["--parameters", "1e9", "--bytes", "9"], r"parameters=1e\+09 .*bytes=9 \(the least"),
    ],
)
def test_a_budget_that_nothing_meets_is_refused_before_any_training(budget, says, capsys, tmp_path):
    assert main(["fit", "digits", "--n-train", "60", "--workers", "1", *budget]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert pd.Series([error]).str.contains(says).all() and "no ticket of the zoo" in error
    assert not (tmp_path / "store" / "transfer").exists() and not (tmp_path / "fit").exists()


def test_what_may_be_within_the_budget_is_tried_where_nothing_is_for_sure(monkeypatch, tmp_path):
    """An estimate is no fact: a file may be smaller than it, which is known once it is written."""
    planned = fit.plan("digits", n_train=60)
    sizes = {"natural-0": 100, "robust-0": 105}

    def estimates(spec, n_classes):
        row = takeaway._named(spec)
        least = sizes[row["network"]] * (1 if spec.ticket.pattern == "channel" else 9)
        return [row | {"form": form, "bytes": least} for form in ("fp32", "int8")]

    monkeypatch.setattr(takeaway, "estimates", estimates)

    def able(size):
        own = fit._affordable(list(planned.wanted), Budget(bytes=size), 10, tmp_path, None)
        return [planned.wanted.index(spec) for spec in own]

    assert able(109) == [1, 3] and able(104) == [1]
    assert able(102) == [1, 3] and able(95) == [1]
    with pytest.raises(ValueError, match=r"bytes=92 \(the least is estimated at 103: natural-0"):
        able(92)


def test_zeros_in_place_are_timed_once_and_what_is_too_slow_is_left_out(monkeypatch, tmp_path):
    tickets = (("unstructured", 0.0), ("unstructured", 0.9), ("channel", 0.5), ("channel", 0.9))
    monkeypatch.setattr(fit, "TICKETS", tickets)
    slow = {"unstructured": 3.0, "channel": 2.0}

    def forms(wanted, folder, client):
        timed.extend((s.ticket.pretrain.objective, s.ticket.pattern) for s in wanted)
        rows = [
            {"spec": i, "form": form, "latency": slow[s.ticket.pattern] * (form == "fp32") + 0.5}
            for i, s in enumerate(wanted)
            for form in ("fp32", "int8")
        ]
        return pd.DataFrame(rows)

    monkeypatch.setattr(takeaway, "forms", forms)

    def able(**budget):
        timed.clear()
        planned = fit.plan("digits", Budget(**budget), n_train=60)
        found = fit._affordable(list(planned.wanted), planned.budget, 10, tmp_path, None)
        return [planned.wanted.index(spec) for spec in found]

    timed: list = []
    assert able(latency=4) == [*range(8)]
    assert sorted(timed) == sorted(
        (side, pattern)
        for side in ("natural", "pgd")
        for pattern in ("unstructured", "channel", "channel")
    )
    slow |= {"unstructured": -9.0}  # fp32 alone is fast
    assert able(latency=0.4) == [0, 1, 4, 5]
    assert able(latency=0.4, bytes=1_000_000) == [1, 5]
    assert len(timed) == 6
    with pytest.raises(
        ValueError, match=r"latency=0.4 \(the least is estimated at 0.550 ms: \S+, channel.*int8"
    ):
        able(latency=0.4, parameters=500_000)


def test_full_tries_each_network_of_the_zoo_on_all_images():
    quick, full = fit.plan("digits"), fit.plan("digits", effort="full")
    assert [s.ticket.pretrain.checkpoint for s in quick.wanted[::2]] == [
        "zoo/natural-0",
        "zoo/robust-0",
    ]
    assert {s.ticket.pretrain.checkpoint for s in full.wanted} == {
        f"zoo/{name}" for name in fit.checkpoints.zoo()
    }
    assert {s.n_train for s in quick.wanted} == {1000} and {s.n_train for s in full.wanted} == {
        None
    }
    assert "images: 1000 train, 144 val, 359 test; 4 tickets" in str(quick)


def test_without_a_label_budget_the_own_validation_images_are_all_used(tmp_path):
    """The cost of what is trained on all images is known too, of a folder that is new."""
    for name in ("one", "two"):
        for split, each in (("train", 8), ("val", 10), ("test", 5)):
            photos(tmp_path / name / split, classes=2, each=each, side=40 + len(name + split))
        planned = fit.plan(tmp_path / name)
        assert [len(getattr(planned.data, s)) for s in ("train", "val", "test")] == [16, 20, 10]
        assert all(cost(spec) > 16 * 1e6 for spec in planned.wanted)
    assert fit.plan(tmp_path / "one", effort="full").data.val.y.numel() == 20
    cut = fit.plan(tmp_path / "one", n_train=16)
    assert len(cut.data.val) == 4 and {s.n_train for s in cut.wanted} == {16}


# Bad folders


def damage(folder: Path, how: str) -> Path:
    if how == "one class":
        return photos(folder, classes=1)
    if how == "three images":
        photos(folder, classes=2, each=2)
        next(folder.rglob("*.png")).unlink()
        return folder
    photos(folder)
    if how == "unreadable":
        (folder / "été" / "1.png").write_bytes(b"no image")
    if how == "empty class":
        (folder / "nothing").mkdir()
    if how == "no test":
        (folder / "sorted").mkdir()
        for child in [p for p in folder.iterdir() if p.name != "sorted"]:
            child.rename(folder / "sorted" / child.name)
        (folder / "sorted").rename(folder / "train")
    return folder


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("one class", "1 folders in it; one per class, 2 or more, needed"),
        ("three images", "images to train and choose on; 5 at least are needed"),
        ("unreadable", "1.png: not a readable image"),
        ("empty class", "no images in it"),
        ("no test", "no test folder"),
    ],
)
def test_a_bad_folder_is_told_in_a_line_and_leaves_nothing(how, says, capsys, tmp_path):
    folder = damage(tmp_path / "photos", how)
    assert main(["fit", str(folder)]) == 2
    error = [e for e in capsys.readouterr().err.splitlines() if e.startswith("robustlib: ")]
    assert len(error) == 1 and says in error[0] and str(folder) in error[0]
    assert not [*tmp_path.glob("data/*.npz"), *tmp_path.glob("store*"), *tmp_path.glob("fit*")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere/photos"], "nowhere/photos: no such folder"),
        (["digitz"], "did you mean 'digits'"),
        (["glyphs_seg"], "choose one of"),
        (["digits", "--effort", "most"], "most"),
        (["digits", "--bytes", "0"], "bytes=0"),
        (["digits", "--n-train", "100000"], "n_train=100000"),
        (["digits", "--workers", "0"], "workers=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, says, capsys, tmp_path):
    assert main(["fit", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("robustlib: ") and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("/sys", "must be a folder to write to"),
        ("file", "must be a folder to write to"),
        ("file/in it", "must be a folder to write to"),
        ("nowhere", "must be a folder to write to"),  # a link
        ("taken", "a file card.json"),
        ("", "outside of the images"),
        ("photos/network", "outside of the images"),
        ("here/network", "outside of the images"),  # a link to the same
    ],
)
def test_where_nothing_can_be_written_is_refused_before_anything_is_computed(
    out, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos", classes=2, each=5)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "here").symlink_to(tmp_path / "photos")
    (tmp_path / "taken" / "card.json").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["fit", "photos", "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"robustlib: out={out!r}: ") and says in error
    assert error.count("\n") == 1 and sorted(tmp_path.rglob("*")) == before
    planned, said = fit.plan("photos"), []
    with pytest.raises(ValueError, match=f"out={out!r}.*{says}"):
        fit.fit(planned, out, say=said.append)
    assert not said and not (tmp_path / "store").exists()


@pytest.mark.parametrize("what", [None, 5])
def test_what_is_no_path_is_no_set(what):
    with pytest.raises(ValueError, match=f"{what}: must be text or a path"):
        fit.plan(what)


def test_a_folder_is_a_pack_of_its_content(tmp_path):
    folder = photos(tmp_path / "my photos")
    first = fit.plan(folder)
    assert first.task.startswith("my-photos-") and first.detail == 40
    assert [len(getattr(first.data, s)) for s in ("train", "val", "test")] == [39, 9, 12]
    for split in ("train", "val", "test"):
        assert getattr(first.data, split).y.bincount().tolist()[0] > 0
    assert fit.plan(folder).task == first.task
    folder.rename(tmp_path / "my_photos")
    assert fit.plan(tmp_path / "my_photos").wanted == first.wanted
    next((tmp_path / "my_photos").rglob("*.png")).unlink()
    assert fit.plan(tmp_path / "my_photos").task != first.task
    (tmp_path / "digits").mkdir()
    assert fit.plan("digits").task == "digits"  # not a folder of the current one's parent


# The whole way


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder, what the command has made of it, and what it printed; interrupted once before."""
    where = tmp_path_factory.mktemp("fit")
    folder = photos(where / "photos")
    told: list[str] = []

    def interrupted(text: str) -> None:
        told.append(text)
        if text.startswith("finetuning"):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTLIB_STORE", str(where / "store"))
        patch.setenv("ROBUSTLIB_DATA", str(where / "data"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(fit, "TICKETS", FEW)
        patch.setattr(fit, "EFFORTS", {"quick": replace(fit.EFFORTS["quick"], epochs=4)})
        planned = fit.plan(folder, Budget(bytes=250_000), workers=1)
        with pytest.raises(KeyboardInterrupt):
            fit.fit(planned, say=interrupted)
        rows = {p: p.stat().st_mtime_ns for p in (where / "store").glob("transfer/*/*/meta.json")}
        again: list[str] = []
        timed = replace(planned, budget=Budget(bytes=250_000, latency=1000))
        found = fit.fit(timed, where / "out", say=again.append)
    return where, found, told, again, rows


def test_costs_are_said_before_each_step_and_an_interrupted_fit_goes_on(fitted):
    where, _, told, again, rows = fitted
    assert [t.partition(":")[0] for t in told[1:]] == [
        *["costs"] * 2,
        *["linear evaluation"] * 2,
        "finetuning",
    ]
    assert "4 trainings; the first one tells" in told[3]
    assert told[4].startswith("linear evaluation: 3 trainings, 1 stored, about 0.")
    assert told[5].startswith("finetuning: 4 trainings, 0 stored, up to about ")
    assert [t for t in again if "trainings" in t] == told[5:]  # linear evaluation is stored
    assert len(rows) == 4 and all(p.stat().st_mtime_ns == t for p, t in rows.items())
    assert len(list((where / "store").glob("transfer/*/*/meta.json"))) == 8


def test_the_script_gives_what_the_exported_network_does(fitted):
    """On the folder's own files, and on what phones and drawing programs save."""
    where, found, *_ = fitted
    card = json.loads((where / "out" / "card.json").read_text(encoding="utf-8"))
    assert card == json.loads(json.dumps(found.card))
    assert card["classes"] == ["class 0", "class 2", "été"]
    paths = sorted((where / "photos").rglob("*.*"))[::4]
    turned, clear = where / "turned.jpg", where / "clear.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths[0]).save(turned, exif=exif)
    ink = Image.open(paths[1]).convert("L")
    white = Image.new("RGB", ink.size, "white")
    Image.merge("RGBA", (*ink.convert("RGB").split(), ink)).save(clear)
    white.paste(ink.convert("RGB"), mask=ink)
    shown = [*((p, Image.open(p).convert("RGB")) for p in paths), (clear, white)]
    shown += [(turned, Image.open(turned).convert("RGB").rotate(-90, expand=True))]
    run = export.session(gzip.decompress((where / "out" / "network.onnx.gz").read_bytes()))
    done = subprocess.run(
        [sys.executable, str(where / "out" / "classify.py"), *(str(p) for p, _ in shown)],
        **{"capture_output": True, "text": True, "encoding": "utf-8"},
        env={"PYTHONPATH": "", "PYTHONIOENCODING": "utf-8"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == len(shown)
    for (path, image), (name, label, sure) in zip(shown, lines, strict=True):
        x = np.asarray(ImageOps.fit(image, (64, 64), Image.Resampling.BILINEAR), np.float32) / 255
        scores = torch.tensor(run.run(None, {"images": x.transpose(2, 0, 1)[None]})[0][0])
        assert (name, label) == (str(path), card["classes"][int(scores.argmax())])
        assert float(sure) == pytest.approx(float(scores.softmax(0).max()), abs=6e-4)
    assert len({label for _, label, _ in lines}) > 1


def test_the_card_says_what_the_network_is_and_is_worth(fitted, monkeypatch):
    where, found, *_ = fitted
    monkeypatch.setenv("ROBUSTLIB_STORE", str(where / "store"))
    monkeypatch.setenv("ROBUSTLIB_DATA", str(where / "data"))
    card, out = found.card, where / "out"
    spec = specs.from_dict(Transfer, card["spec"])
    assert spec.mode == "finetune" and store.has(spec) and spec.lr == 0.1
    data = load(spec.task, 64, spec.n_train)
    plain = out / f"{card['form']}.onnx"
    assert gzip.decompress((out / card["network"]).read_bytes()) == plain.read_bytes()
    for split, name in ((data.test, "test"), (data.val, "val")):
        right = int((export.logits(plain, split).argmax(1) == split.y).sum())
        assert card[name]["accuracy"] == right / len(split) and card[name]["n"] == len(split)
    assert card["test"]["low"] <= card["test"]["accuracy"] <= card["test"]["high"]
    # fp32 is the finetuned network itself.
    expected = stages.network(spec)(torch.rand(2, 3, 64, 64))
    assert expected.shape == (2, 3)
    (form,) = (f for f in card["forms"] if f["form"] == card["form"])
    assert form["bytes"] == (out / card["network"]).stat().st_size <= 250_000 and form["met"]
    assert {f["form"] for f in card["forms"]} == {"fp32", "int8"}
    assert "research only" in card["licence"] and card["budget"]["bytes"] == 250_000
    versus = card["robust_minus_natural"]
    assert "robust-0" in versus["robust"] and "natural-0" in versus["natural"]
    best = found.options[found.options.met].groupby("network").val_accuracy.max()
    assert versus["mean"] == pytest.approx(best["robust-0"] - best["natural-0"])
    assert versus["low"] <= versus["mean"] <= versus["high"]
    assert "accuracy" not in found.linear and "accuracy" not in found.options
    text = takeaway.told(card)
    assert "by validation image" not in text and f"{versus['n']} validation images" in text


def test_costs_that_were_estimated_are_those_of_the_files(fitted, monkeypatch):
    where, found, *_ = fitted
    monkeypatch.setenv("ROBUSTLIB_STORE", str(where / "store"))
    for row in found.options.itertuples():
        ticket = Ticket(
            fit.checkpoints.pretrain(f"zoo/{row.network}"),
            pattern=row.pattern,
            sparsity=row.sparsity,
        )
        about = takeaway.estimates(Transfer(ticket), 3)
        (one,) = (r for r in about if r["form"] == row.form)
        assert one["parameters"] == row.parameters
        assert 1 / 1.06 < one["bytes"] / row.bytes < 1.06, row
        assert row.bytes <= fit.ROOM["bytes"] * one["bytes"]


def test_the_choice_is_drawn(fitted):
    _, found, *_ = fitted
    (ax,) = figures.choice(found.options, 250_000).axes
    (ring,) = (line for line in ax.lines if line.get_markersize() == 12)
    own = found.options[found.options.chosen].iloc[0]
    at = float(ring.get_xdata()[0]), float(ring.get_ydata()[0])
    assert at == (own.bytes / 1000, 100 * own.val_accuracy)
    drawn = [line for line in ax.lines if line.get_markersize() == 5]
    assert sum(line.get_mfc() == "none" for line in drawn) == len(found.options) / 2
    pale = [line.get_alpha() < 1 for line in drawn]
    assert sorted(pale) == sorted((~found.options.met).tolist()) and any(pale)


def test_the_card_counts_zeros_in_both_costs(fitted):
    """Of a ticket with zeros in place both are those of the network without any."""
    _, found, *_ = fitted
    own = found.options[found.options.network == "natural-0"]
    by = own[own.form == "int8"].set_index("pattern")
    ticket = Ticket(fit.checkpoints.pretrain("zoo/natural-0"), sparsity=0.0)
    dense = models.swap_head(stages.network(ticket), 3, seed=0)
    assert by.parameters["unstructured"] == sum(p.numel() for p in dense.parameters())
    own_zeros = 1e-5  # of the network without a ticket: one weight
    assert by.multiply_adds["unstructured"] == pytest.approx(
        models.multiply_adds(dense, 64), rel=own_zeros
    )
    assert by.multiply_adds["channel"] < by.multiply_adds["unstructured"]


def test_a_fit_that_replaces_another_says_so_first(fitted, monkeypatch):
    where, found, *_ = fitted
    monkeypatch.setenv("ROBUSTLIB_STORE", str(where / "store"))
    monkeypatch.setenv("ROBUSTLIB_DATA", str(where / "data"))
    said: list[str] = []
    planned = fit.plan(where / "photos", Budget(bytes=10), workers=1)
    with pytest.raises(ValueError, match="bytes=10"):
        fit.fit(planned, where / "out", say=said.append)
    assert (
        said[1] == f"{where / 'out'}: its network will be replaced; another folder (out) keeps both"
    )
    kept = json.loads((where / "out" / "card.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(found.card))


# What the study says


def test_what_the_study_would_have_said(monkeypatch, tmp_path):
    fine, coarse = takeaway.expected("digits", 64), takeaway.expected("digits", 8)
    claims = pd.read_csv(takeaway.FIGURES / "claims.csv").set_index(["claim", "part"])
    for said, part, detail in ((fine, "full tasks", 64), (coarse, "coarse tasks", 8)):
        row = claims.loc["C1", part]
        assert f"{detail} px" in said[0] and f"{row['mean']:+.1f} points" in said[0]
        assert row.verdict in said[0]
        assert "not known, since the images of the source, tinyimagenet150, are not here" in said[1]
    monkeypatch.setattr(takeaway, "FIGURES", tmp_path)
    assert takeaway.expected("digits", 8)[0].startswith("Not known")


def test_the_domain_gap_is_set_beside_those_of_the_study(monkeypatch):
    asked = []

    def run(spec: Evaluation):
        asked.append(spec)
        return type("Artifact", (), {"row": {"frechet_infinity": 60.0}})

    monkeypatch.setattr(takeaway, "run", run)
    monkeypatch.setattr(takeaway.sources, "here", lambda name: True)
    gaps = pd.read_csv(takeaway.FIGURES / "domain_gap.csv")
    own = gaps[(gaps.objective == "natural") & (gaps.seed == 0)]
    nearer = int((own.frechet_infinity < 60).sum())
    said = takeaway.expected("digits", 8)[1]
    assert 0 < nearer < len(own) == own.against.nunique()
    assert f"of the {len(own)} tasks of the study {nearer} were nearer" in said
    assert asked[0].against == "digits" and set(gaps.limit) == {asked[0].limit}

    def few(spec):
        raise ValueError("limit=300: only 20 images of each set are there")

    monkeypatch.setattr(takeaway, "run", few)
    assert takeaway.expected("digits", 8)[1] == (
        "Domain gap: not known, limit=300: only 20 images of each set are there."
    )
