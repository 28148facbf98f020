"""Packs and splits: what is refused and why, what val and n_train draw, what the real packs are."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustlib.data import load, packs
from robustlib.data.packs import Pack
from robustlib.data.splits import balanced, holdout

REAL = """tinyimagenet200 cifar10 flowers5 rsscn7 gtsrb brain_mri4 fashion_mnist mnist
omniglot_small""".split()


def arrays(n_train=200, n_test=40, classes=4, size=8, channels=3, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for split, n in (("train", n_train), ("test", n_test)):
        made[f"x_{split}"] = rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)
        made[f"y_{split}"] = rng.permutation(np.arange(n) % classes)
    return made


def a_pack(**changes) -> Pack:
    made = arrays(**changes)
    return Pack(made, tuple(f"class {k}" for k in range(made["y_train"].max() + 1)))


def images(split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.x}


# --- reading and writing


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pack_is_read_as_it_was_written(tmp_path: Path, channels: int) -> None:
    pack = a_pack(channels=channels)
    packs.write(tmp_path / "deep" / "p.npz", pack)
    got = packs.read(tmp_path / "deep" / "p.npz")
    assert got.class_names == pack.class_names and got.arrays.keys() == pack.arrays.keys()
    assert all(np.array_equal(got.arrays[k], pack.arrays[k]) for k in pack.arrays)
    assert os.listdir(tmp_path / "deep") == ["p.npz"]


def test_a_pack_written_by_numpy_alone_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **arrays(), class_names=np.array(list("abcd")))
    assert packs.read(tmp_path / "p.npz").class_names == tuple("abcd")


def test_a_write_that_fails_leaves_the_old_pack_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "p.npz"
    packs.write(path, a_pack())
    before = path.read_bytes()

    def dies(file, **_):
        file.write(b"PK half of it")
        raise OSError("no space left")

    monkeypatch.setattr(packs.np, "savez_compressed", dies)
    with pytest.raises(OSError, match="no space"):
        packs.write(path, a_pack(seed=1))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["p.npz"]


def test_one_who_is_reading_the_old_pack_goes_on_reading_it(tmp_path: Path) -> None:
    packs.write(tmp_path / "p.npz", a_pack())
    before = (tmp_path / "p.npz").read_bytes()
    with open(tmp_path / "p.npz", "rb") as reader:
        half = reader.read(1000)
        packs.write(tmp_path / "p.npz", a_pack(seed=1))
        assert half + reader.read() == before
    assert (tmp_path / "p.npz").read_bytes() != before


def changed(key, value):
    return lambda a: a | {key: value(a[key])}


def without(key):
    return lambda a: {k: v for k, v in a.items() if k != key}


def copied(n):
    def change(a):
        x = a["x_test"].copy()
        x[:n] = a["x_train"][:n]
        return a | {"x_test": x}

    return change


BAD = {
    "no x_test": (without("x_test"), "x_test: missing"),
    "no y_train": (without("y_train"), "y_train: missing"),
    "no names": (without("class_names"), "class_names: missing"),
    "floats": (changed("x_train", lambda x: x / 255), "x_train: float64, must be uint8"),
    "int32 labels": (changed("y_test", lambda y: y.astype(np.int32)), "y_test: int32, must be int"),
    "float labels": (changed("y_train", lambda y: y * 1.0), "y_train: float64"),
    "no channels": (changed("x_train", lambda x: x[..., 0]), "x_train: shape"),
    "4 channels": (changed("x_test", lambda x: x[..., [0, 1, 2, 2]]), "x_test: shape"),
    "oblong": (changed("x_train", lambda x: x[:, :-1]), "x_train: shape"),
    "other size": (changed("x_test", lambda x: x[:, :4, :4]), "x_test: images .4, 4, 3"),
    "other channels": (changed("x_test", lambda x: x[..., :1]), "x_test: images .8, 8, 1"),
    "fewer labels": (changed("y_train", lambda y: y[:-1]), "y_train: shape .199"),
    "labels in 2-d": (changed("y_test", lambda y: y[:, None]), "y_test: shape"),
    "label too high": (changed("y_test", lambda y: y + 1), "y_test: labels 1 to 4, must be 0 to 3"),
    "label below 0": (changed("y_train", lambda y: y - 1), "y_train: labels -1"),
    "empty test": (
        lambda a: a | {"x_test": a["x_test"][:0], "y_test": a["y_test"][:0]},
        "x_test: empty",
    ),
    "copies in test": (copied(4), "x_test: 4 of 40 images are copies"),
    "copies in test beside a val": (
        lambda a: (
            copied(4)(a)
            | {k.replace("test", "val"): v for k, v in arrays(seed=5).items() if "test" in k}
        ),
        "x_test: 4 of 40 images are copies",
    ),
    "copies in own val": (
        lambda a: a | {"x_val": a["x_train"][:50], "y_val": a["y_train"][:50]},
        "x_val: 50 of 50 images are copies",
    ),
    "half a val": (lambda a: a | {"x_val": a["x_test"]}, "y_val: missing"),
    "names as bytes": (changed("class_names", lambda n: n.astype("S")), "class_names: .S7"),
    "one name": (changed("class_names", lambda n: n[:1]), "class_names: 1 names"),
    "name twice": (changed("class_names", lambda n: n[[0, 1, 2, 2]]), "class_names: 4 names, must"),
    "names in 2-d": (changed("class_names", lambda n: n[None]), "class_names: <U7 .1, 4"),
    "masks": (lambda a: without("y_train")(a) | {"m_train": a["x_train"]}, "segmentation"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_pack_is_refused_with_file_key_and_reason(tmp_path: Path, case: str) -> None:
    change, says = BAD[case]
    names = np.array([f"class {k}" for k in range(4)])
    np.savez(tmp_path / "bad.npz", **change(arrays() | {"class_names": names}))
    with pytest.raises(ValueError, match=says) as error:
        load("bad", size=8, root=tmp_path)
    assert str(tmp_path / "bad.npz") in str(error.value)


def test_a_bad_pack_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x_test: 30 of 40 images are copies"):
        packs.write(tmp_path / "p.npz", Pack(copied(30)(arrays()), tuple("abcd")))
    assert not os.listdir(tmp_path)


def test_a_rare_copy_is_let_pass(tmp_path: Path) -> None:
    """1 in 50 is the limit: published sets have a few."""
    made = copied(1)(arrays(n_test=50))
    packs.write(tmp_path / "p.npz", Pack(made, tuple("abcd")))
    with pytest.raises(ValueError, match="2 of 50"):
        packs.validate(Pack(copied(2)(made), tuple("abcd")), Path("p"))


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, -1])
def test_a_truncated_pack_is_refused(tmp_path: Path, keep: float) -> None:
    packs.write(tmp_path / "p.npz", a_pack())
    data = (tmp_path / "p.npz").read_bytes()
    n = int(len(data) * keep) if 0 < keep < 1 else keep
    (tmp_path / "p.npz").write_bytes(data[:n])
    with pytest.raises(ValueError, match=r"p.npz: .*(not a readable .npz|damaged)"):
        load("p", size=8, root=tmp_path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    packs.write(tmp_path / "p.npz", a_pack())
    data = bytearray((tmp_path / "p.npz").read_bytes())
    data[len(data) // 2] ^= 1  # amid the pixels
    (tmp_path / "p.npz").write_bytes(data)
    with pytest.raises(ValueError, match="p.npz: x_train: cannot be read, the file is damaged"):
        load("p", size=8, root=tmp_path)


class Hostile:
    def __reduce__(self):
        return (os.mkdir, (os.environ["HOSTILE_DIR"],))


@pytest.mark.parametrize("key", ["x_train", "class_names", "y_test", "something_else", "origin"])
def test_a_pickle_is_refused_and_never_run(tmp_path: Path, key: str, monkeypatch) -> None:
    monkeypatch.setenv("HOSTILE_DIR", str(tmp_path / "ran"))
    made = arrays() | {"class_names": np.array(list("abcd"))}
    np.savez(tmp_path / "p.npz", **made | {key: np.array([Hostile()], dtype=object)})
    with pytest.raises(ValueError, match=f"p.npz: {key}: holds Python objects"):
        load("p", size=8, root=tmp_path)
    assert not (tmp_path / "ran").exists()


def npz_with(path: Path, key: str, header_shape: tuple[int, ...], body: bytes) -> None:
    member = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": header_shape}
    np.lib.format.write_array_header_1_0(member, header)
    np.savez(path, **{k: v for k, v in arrays().items() if k != key}, class_names=list("abcd"))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", member.getvalue() + body)


def test_a_header_that_promises_terabytes_is_refused_before_memory_is(tmp_path: Path) -> None:
    npz_with(tmp_path / "p.npz", "x_train", (10**9, 32, 32, 3), b"\0" * 100)
    with pytest.raises(ValueError, match="p.npz: x_train: header says .1000000000, 32"):
        load("p", size=8, root=tmp_path)


def test_zeros_that_unpack_to_more_than_memory_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(packs, "MAX_BYTES", 10_000_000)
    npz_with(tmp_path / "p.npz", "x_train", (4000, 32, 32, 3), bytes(4000 * 32 * 32 * 3))
    assert (tmp_path / "p.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="GiB of arrays"):
        load("p", size=8, root=tmp_path)


def test_a_member_that_is_no_array_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", **arrays(), class_names=list("abcd"))
    with zipfile.ZipFile(tmp_path / "p.npz", "a") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match="notes.txt: not a numpy array"):
        load("p", size=8, root=tmp_path)


# --- splits


def test_val_is_cut_from_train_the_same_for_every_seed_and_test_is_whole(tmp_path: Path) -> None:
    pack = a_pack()
    packs.write(tmp_path / "p.npz", pack)
    data, other = load("p", 8, root=tmp_path), load("p", 8, seed=9, root=tmp_path)
    assert len(data.val) == 20 and data.val.y.bincount().tolist() == [5] * 4
    assert torch.equal(data.val.x, other.val.x) and torch.equal(data.train.x, other.train.x)
    whole = {image.tobytes() for image in pack.arrays["x_train"]}
    assert images(data.train) | images(data.val) == whole and len(data.train) == 180
    assert not images(data.train) & images(data.val)
    assert np.array_equal(data.test.x, pack.arrays["x_test"])
    assert np.array_equal(data.test.y, pack.arrays["y_test"])
    pairs = zip(pack.arrays["x_train"], pack.arrays["y_train"], strict=True)
    label = {x.tobytes(): y for x, y in pairs}
    for split in (data.train, data.val):
        assert [label[x.numpy().tobytes()] for x in split.x] == split.y.tolist()
        assert split.x.dtype == torch.uint8 and split.y.dtype == torch.int64
    assert data.name == "p" and data.n_classes == 4 and data.class_names[2] == "class 2"


def test_a_pack_with_its_own_val_keeps_it(tmp_path: Path) -> None:
    made = arrays()
    made |= {k.replace("test", "val"): v for k, v in arrays(seed=5).items() if "test" in k}
    packs.write(tmp_path / "p.npz", Pack(made, tuple("abcd")))
    data = load("p", 8, root=tmp_path)
    assert len(data.train) == 200 and np.array_equal(data.val.x, made["x_val"])


def test_n_train_draws_from_train_and_leaves_test(tmp_path: Path) -> None:
    packs.write(tmp_path / "p.npz", a_pack(n_train=400))
    full = load("p", 8, root=tmp_path)
    few = load("p", 8, n_train=50, root=tmp_path)
    assert len(few.train) == 50 and len(few.val) == 12
    assert sorted(few.train.y.bincount().tolist()) == [12, 12, 13, 13]
    assert images(few.train) < images(full.train) and images(few.val) < images(full.val)
    assert torch.equal(few.test.x, full.test.x)
    other = load("p", 8, n_train=50, seed=1, root=tmp_path)
    again = load("p", 8, n_train=50, seed=0, root=tmp_path)
    assert images(few.train) != images(other.train) and images(few.val) != images(other.val)
    assert torch.equal(few.train.x, again.train.x) and torch.equal(few.val.x, again.val.x)
    assert len(load("p", 8, n_train=2, root=tmp_path).train.y.unique()) == 2
    assert len(load("p", 8, n_train=2, root=tmp_path).val) == 4  # one of each class


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"n_train": 181}, "n_train=181: p has 180 training images available"),
        ({"n_train": 0}, "n_train=0"),
        ({"n_train": 2.5}, "n_train=2.5"),
        ({"size": 0}, "size=0"),
        ({"name": "q"}, "choose one of"),
    ],
)
def test_bad_arguments_name_the_value(tmp_path: Path, bad: dict, says: str) -> None:
    packs.write(tmp_path / "p.npz", a_pack())
    with pytest.raises(ValueError, match=says):
        load(**({"name": "p", "size": 8, "root": tmp_path} | bad))


labels = st.lists(st.integers(0, 6), min_size=1, max_size=300).map(np.array)


@given(y=labels, data=st.data(), seed=st.integers(0, 5))
def test_a_balanced_draw_is_as_even_as_the_classes_allow(y, data, seed) -> None:
    n = data.draw(st.integers(1, len(y)))
    rows = balanced(y, n, seed)
    assert len(set(rows.tolist())) == n and np.array_equal(rows, np.sort(rows))
    have, drawn = np.bincount(y), np.bincount(y[rows], minlength=y.max() + 1)
    # A class gets fewer than another only by one, or because it has no more.
    assert all(drawn[k] >= drawn.max() - 1 or drawn[k] == have[k] for k in range(len(have)))
    assert set(balanced(y, max(1, n // 2), seed)) <= set(rows)  # a smaller budget is part of it


@given(y=labels)
def test_the_holdout_is_a_stratified_tenth(y) -> None:
    train, val = holdout(y)
    assert sorted([*train, *val]) == list(range(len(y)))
    have, held = np.bincount(y), np.bincount(y[val], minlength=y.max() + 1)
    assert np.all(np.abs(held - have / 10) <= 1.5) and np.all(held <= np.maximum(have - 1, 0))
    assert np.array_equal(val, holdout(y)[1])


def test_the_holdout_is_at_most_5000_and_not_the_first_classes() -> None:
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 8_000))
    train, val = holdout(y)
    assert len(val) == 5_000 and set(np.bincount(y[val])) == {500} and len(train) == 75_000
    tiny = np.repeat(np.arange(100), 5)  # half an image each: which classes get one is drawn
    held = tiny[holdout(tiny)[1]]
    assert len(held) == 50 == len(set(held)) and held.max() > 60 and held.min() < 40


# --- size and cache


@pytest.mark.parametrize("size", [8, 16, 48])
@pytest.mark.parametrize("channels", [1, 3])
def test_another_size_is_what_pillow_makes_of_it(tmp_path: Path, size: int, channels: int) -> None:
    made = arrays(n_train=30, n_test=600, size=4, channels=channels)
    for key in ("x_train", "x_test"):  # smooth images: noise would be all rounding
        made[key] = np.stack(
            [np.array(Image.fromarray(x.squeeze()).resize((24, 24))) for x in made[key]]
        ).reshape(-1, 24, 24, channels)
    packs.write(tmp_path / "p.npz", Pack(made, tuple("abcd")))
    x = load("p", size, root=tmp_path).test.x
    assert x.shape == (600, size, size, channels) and x.dtype == torch.uint8
    for i in (0, 511, 512, 599):  # resized in chunks: both sides of a border
        image = Image.fromarray(made["x_test"][i].squeeze())
        expected = np.array(image.resize((size, size), Image.Resampling.BILINEAR), dtype=int)
        assert np.abs(x[i].numpy().squeeze().astype(int) - expected).max() <= 1


def test_a_pack_is_read_once_but_again_when_it_has_changed(tmp_path: Path, monkeypatch) -> None:
    reads = []
    read = packs.read
    monkeypatch.setattr(packs, "read", lambda *path: reads.append(path) or read(*path))
    packs.write(tmp_path / "p.npz", a_pack())
    first = load("p", 8, root=tmp_path)
    assert load("p", 8, n_train=20, seed=3, root=tmp_path).n_classes == 4 and len(reads) == 1
    assert load("p", 8, root=tmp_path).train.x.data_ptr() == first.train.x.data_ptr()
    packs.write(tmp_path / "p.npz", a_pack(n_train=100, classes=5))
    assert load("p", 8, root=tmp_path).n_classes == 5 and len(reads) == 2


# --- the real packs


@pytest.mark.parametrize("name", REAL)
def test_the_real_packs_load(data_root: Path, name: str) -> None:
    if not (data_root / f"{name}.npz").exists():
        pytest.skip(f"no {name}.npz in ROBUSTLIB_DATA")
    data = load(name, root=data_root)
    n_val = round(0.1 * (len(data.train) + len(data.val)))
    assert len(data.val) == n_val and data.train.x.shape[1:3] == (32, 32)
    assert len(data.train.y.unique()) == data.n_classes == len(data.test.y.unique())
    few = load(name, n_train=1_000, root=data_root)
    assert set(few.train.y.bincount().tolist()) <= {
        1000 // data.n_classes,
        -(-1000 // data.n_classes),
    }


def test_a_pack_of_masks_is_refused_here(data_root: Path) -> None:
    if not (data_root / "camvid_seg.npz").exists():
        pytest.skip("no camvid_seg.npz in ROBUSTLIB_DATA")
    with pytest.raises(ValueError, match="segmentation"):
        load("camvid_seg", root=data_root)
