"""Sets too small for what is done with them are refused before anything is computed, by the name
of the field and with the least number; with that number it works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustlib import store
from robustlib.data import batches, packs
from robustlib.data.packs import Pack
from robustlib.data.splits import LEAST_FOR_VAL, holdout
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer
from robustlib.stages import evaluation, pretrain, run, ticket, transfer

LABELS = {
    "fine": ([0, 1] * 3, [0, 1] * 4),
    "alone": ([0], [0, 1]),
    "four": ([0, 1, 0, 1], [0, 1]),
    "five": ([0, 1, 0, 1, 0], [0, 1]),
    "each": (list(range(10)), list(range(10))),
    "same": ([0] * 12, [0, 1]),
    "few_tests": ([0, 1] * 3, [0, 1, 0]),
    "seven_tests": ([0, 1] * 3, [0, 1] * 3 + [0]),
    "one_test": ([0, 1] * 3, [0]),
}
PRETRAIN = Pretrain("fine", width=16, size=8, stem_stride=1, epochs=1, batch_size=4)
TICKET = Ticket(PRETRAIN, sparsity=0.5)
FINETUNE = Transfer(TICKET, "fine", n_train=None, epochs=1, batch_size=4)
LINEAR, SEGMENT = replace(FINETUNE, mode="linear"), replace(FINETUNE, mode="segment")
IMP = Ticket(PRETRAIN, "imp", sparsity=0.2, epochs=1, batch_size=4)
LMP = replace(IMP, scheme="lmp")
NO_VAL = "no validation image .* 6 at least .* two of them of one class"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Packs with these labels, some for segmentation, and a folder of one image a class."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def images(n: int, size: int = 8) -> np.ndarray:
        return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)

    for name, (train, test) in LABELS.items():
        arrays = {"x_train": images(len(train)), "y_train": np.array(train)}
        arrays |= {"x_test": images(len(test)), "y_test": np.array(test)}
        names = tuple(f"c{k}" for k in range(max(2, max(train) + 1)))
        packs.write(root / f"{name}.npz", Pack(arrays, names))
    two, three = np.zeros((2, 16, 16), np.uint8), np.zeros((3, 16, 16), np.uint8)
    nothing = np.full_like(two[0], 255)
    one_of_many = np.stack([two[0], *[nothing] * 60])
    # Without a val of its own: the one image of four that is cut for it has no label.
    cut = np.random.default_rng(batches.seed_for("holdout")).permutation(4)[0]
    masks = {
        "alone_seg": (two[:1], None),
        "two_seg": (two, None),
        "three_seg": (three, None),
        "dark_val_seg": (three, one_of_many),
        "dark_cut_seg": (np.stack([nothing if i == cut else two[0] for i in range(4)]), None),
        "dark_few_seg": (one_of_many, two),
    }
    for name, (train, val) in masks.items():
        arrays = {"m_train": train, "m_test": two} | ({} if val is None else {"m_val": val})
        arrays |= {k.replace("m_", "x_"): images(len(m), 16) for k, m in arrays.items()}
        packs.write(root / f"{name}.npz", Pack(arrays, ("a", "b")))
    for split in ("train", "val"):
        for k in range(8):
            folder = root / "imagenet" / split / f"n{k}"
            folder.mkdir(parents=True)
            Image.fromarray(images(1)[0]).save(folder / f"{split}.png")
    return root


@pytest.fixture(autouse=True)
def _here(root, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(root))


def test_the_least_number_for_a_validation_image_is_said_right():
    for n in range(1, LEAST_FOR_VAL):
        assert not len(holdout(np.zeros(n, dtype=int))[1])
    assert len(holdout(np.zeros(LEAST_FOR_VAL, dtype=int))[1]) == 1
    for singles in range(LEAST_FOR_VAL - 1, 100):
        assert len(holdout(np.r_[np.arange(singles), 0])[1])
        assert not len(holdout(np.arange(singles))[1])


def refused() -> dict[str, tuple]:
    cases = {}
    for name in ("alone", "four", "five", "each", "imagenet"):
        cases[f"source {name}"] = replace(PRETRAIN, source=name), f"source='{name}': {NO_VAL}"
        for spec in (FINETUNE, LINEAR):
            wrong = replace(spec, task=name)
            cases[f"{spec.mode} {name}"] = wrong, f"task='{name}': {NO_VAL}"
    for spec in (PRETRAIN, FINETUNE, LINEAR, replace(SEGMENT, task="three_seg"), IMP, LMP):
        cases[f"one image {spec}"] = replace(spec, n_train=1), "n_train=1: 1 training image .* 2 at"
    one = replace(PRETRAIN, objective="pgd", eps=0.1, n_train=1)
    cases["one of a source's"] = replace(IMP, pretrain=one), "n_train=1: .* 2 at least"
    cases["below"] = Evaluation(replace(FINETUNE, ticket=Ticket(one))), "n_train=1: .* 2 at least"
    for spec in (IMP, LMP, replace(IMP, sparsity=0.0, rewind=1)):
        wrong = replace(spec, dataset="alone")
        cases[f"dataset {spec}"] = wrong, "dataset='alone': 1 training image .* 2 at least"
        wrong = replace(spec, dataset="fine", n_train=1)
        cases[f"dataset, n_train {spec}"] = wrong, "n_train=1: 1 training image .* 2 at least"
    cases["one class"] = replace(LINEAR, task="same"), "task='same': .* all of one class.* 2 at"
    wrong = replace(LINEAR, task="same", n_train=3)
    cases["one class, n_train"] = wrong, "n_train=3: .* all of one class; mode='linear' needs 2"
    for name, said in {
        "alone_seg": "1 training image; 3 are needed",
        "two_seg": "task='two_seg': 1 training image beside 1 for validation; 2 at least",
        "dark_cut_seg": "task='dark_cut_seg': no pixel of its 1 val images has a class; 1 at least",
    }.items():
        cases[name] = replace(SEGMENT, task=name), said
    wrong = replace(SEGMENT, task="dark_val_seg", n_train=2)
    cases["dark val"] = wrong, "'dark_val_seg': no pixel of its 2 val images has a class; 1 at"
    wrong = replace(SEGMENT, task="dark_few_seg", n_train=2)
    cases["dark train"] = wrong, "n_train=2: no pixel of its 2 train images has a class; 1 at"
    tests = replace(PRETRAIN, source="few_tests")
    wrong = Evaluation(tests, "similarity", other=PRETRAIN)
    cases["similarity"] = wrong, "source='few_tests': 3 images .*suite='similarity' needs 4"
    wrong = Evaluation(replace(FINETUNE, task="few_tests"), "similarity", other=PRETRAIN)
    cases["similarity, task"] = wrong, "task='few_tests': 3 images .* needs 4"
    wrong = Evaluation(PRETRAIN, "domain_gap", against="seven_tests", limit=8)
    cases["gap"] = wrong, "against='seven_tests': 7 images .*suite='domain_gap' needs 8"
    tests = replace(PRETRAIN, source="seven_tests")
    wrong = Evaluation(tests, "domain_gap", against="fine", limit=8)
    cases["gap, source"] = wrong, "source='seven_tests': 7 images .* needs 8"
    for suite in ("calibration", "corruption"):
        wrong = Evaluation(replace(FINETUNE, task="four"), suite)
        cases[f"{suite} of four"] = wrong, f"task='four': {NO_VAL}"
    return cases


@pytest.mark.parametrize(("spec", "said"), [pytest.param(*c, id=n) for n, c in refused().items()])
def test_what_is_too_small_is_refused_before_anything_is_computed(spec, said, monkeypatch):
    for stage in (evaluation, pretrain, ticket, transfer):
        monkeypatch.setattr(stage, "compute", lambda spec, inputs: pytest.fail("computed"))
    with pytest.raises(ValueError, match=said) as caught:
        run(spec)
    assert "\n" not in str(caught.value) and not store.root().exists()


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(FINETUNE, id="six images"),
        pytest.param(replace(FINETUNE, n_train=2, recalibrate=True), id="finetune"),
        pytest.param(replace(LINEAR, n_train=2), id="linear"),
        pytest.param(replace(LINEAR, n_train=2, recalibrate=True), id="linear, recalibrated"),
        pytest.param(replace(FINETUNE, task="same"), id="finetune on one class"),
        pytest.param(Ticket(replace(PRETRAIN, n_train=2)), id="pretrain"),
        pytest.param(replace(IMP, n_train=2, objective="pgd", eps=0.1, rewind=1), id="imp"),
        pytest.param(replace(LMP, n_train=2), id="lmp"),
        pytest.param(replace(IMP, dataset="each"), id="imp needs no val"),
        *(
            pytest.param(replace(SEGMENT, task="three_seg", head=head), id=head)
            for head in ("fusion", "fcn", "deeplab")
        ),
        pytest.param(Evaluation(PRETRAIN, "domain_gap", against="digits", limit=8), id="gap"),
        *(
            pytest.param(Evaluation(replace(FINETUNE, task="one_test"), **fields), id=str(fields))
            for fields in (
                {"suite": "adversarial", "eps": 0.1},
                {"suite": "calibration", "scaled": True},
                {"suite": "certified", "sigma": 0.1, "draws": 20},
                {"suite": "corruption"},
                {"suite": "ood", "against": "fine"},
            )
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:temperature")
def test_the_least_is_enough(spec):
    assert run(spec).row
