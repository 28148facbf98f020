"""Sources: each is made in its published layout, at a small scale, and read by `load`."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from robustlib.data import (
    embedded,
    load,
    load_segmentation,
    loading,
    packs,
    sources,
    torchsets,
)
from robustlib.data.sources import available, build_folder

RNG = np.random.default_rng(0)
TINY = "tiny-imagenet-200.zip"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test downloads anything, whatever machine it runs on."""

    def refuse(*_, **__):
        raise OSError("no network in tests")

    monkeypatch.setattr(torchvision.datasets.utils.urllib.request, "urlopen", refuse)


def picture(size=(20, 16), mode="RGB", shade: int | None = None) -> Image.Image:
    shape = (size[1], size[0], 3)
    pixels = RNG.integers(0, 256, shape) if shade is None else np.full(shape, shade)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def small_pack(origin: str = "") -> packs.Pack:
    made = {
        f"{k}_{s}": RNG.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        if k == "x"
        else np.arange(n) % 2
        for s, n in (("train", 40), ("test", 14))
        for k in "xy"
    }
    return packs.Pack(made, ("no", "yes"), origin)


@pytest.fixture(scope="module")
def glyphs() -> dict[str, np.ndarray]:
    return embedded.glyphs(32).arrays


def save(path: Path, image: Image.Image | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path)
    return path


def counts(monkeypatch, name: str, n_train: int, n_test: int, classes: int) -> None:
    """The published set's counts as those of the small copy that a test has made."""
    entry = dataclasses.replace(torchsets.PUBLISHED[name], counts=(n_train, n_test, classes))
    monkeypatch.setitem(torchsets.PUBLISHED, name, entry)


# --- names


def test_an_unknown_name_lists_the_near_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'cifar10'.*tiny_imagenet"):
        load("cifar_10", root=tmp_path)
    packs.write(tmp_path / "my_birds.npz", small_pack())
    with pytest.raises(ValueError, match="did you mean 'my_birds'"):
        load("my_bird", root=tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "", ".x", "a b", "x.npz", "-x", "x@64", "é", "a\n"]
)
def test_a_name_that_is_no_plain_file_name_is_refused_before_any_work(tmp_path, name) -> None:
    with pytest.raises(ValueError, match="letters, digits, _ and -"):
        build_folder(name, tmp_path / "missing", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["cifar10", "glyphs", "imagenet"])
def test_the_name_of_a_known_set_is_taken(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="own"):
        build_folder(name, tmp_path, root=tmp_path)


def test_the_root_is_the_argument_else_the_variable_else_the_cache(monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", "/data/packs")
    assert sources.data_root("/other") == Path("/other")
    assert sources.data_root() == Path("/data/packs")
    monkeypatch.delenv("ROBUSTLIB_DATA")
    assert sources.data_root() == Path.home() / ".cache" / "robustlib"


# --- embedded


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_embedded_sets_need_no_root_and_are_the_same_every_time(tmp_path, name, glyphs) -> None:
    data = load(name, root=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    row = {r.name: r for r in available(tmp_path)}[name]
    assert (len(data.train) + len(data.val), len(data.test)) == (row.n_train, row.n_test)
    assert data.n_classes == row.classes == len(data.train.y.unique()) and row.here
    for split in (data.train, data.val, data.test):
        assert split.x.shape[1:] == (32, 32, 1)
        assert split.x.flatten(1).amax(1).min() > 100  # no image is blank
    again = embedded.digits(8).arrays if name == "digits" else glyphs
    assert np.array_equal(data.test.y, again["y_test"])
    if name == "glyphs":  # digits are scaled: the next test
        assert np.array_equal(data.test.x, again["x_test"])
    first = data.test.y[: 20 * data.n_classes].bincount(minlength=data.n_classes)
    assert first.min() > 5  # the first images are a fair draw of the classes


def test_digits_are_the_scans_and_hands_do_not_mix() -> None:
    from sklearn.datasets import load_digits

    scans = load_digits()
    label = {}
    for i, (image, y) in enumerate(zip(scans.images, scans.target, strict=True)):
        label.setdefault((image * 255 / 16).round().astype(np.uint8).tobytes(), (y, i))
    made = embedded.digits(8).arrays
    for split, low, high in (("train", 0, 1438), ("test", 1438, 1797)):
        found = [label[x.tobytes()] for x in made[f"x_{split}"]]
        assert [y for y, _ in found] == made[f"y_{split}"].tolist()
        assert all(low <= i < high for _, i in found)


def test_each_face_has_each_glyph_and_is_in_one_split() -> None:
    from matplotlib.ft2font import FT2Font

    assert not set(embedded.TRAIN_FACES) & set(embedded.TEST_FACES)
    assert len(set(embedded.GLYPHS)) == len(embedded.GLYPHS) == 46
    for face in (*embedded.TRAIN_FACES, *embedded.TEST_FACES):
        font = embedded._font(face, 24)
        known = FT2Font(font.path).get_charmap()
        assert all(ord(c) in known for c in embedded.GLYPHS)
        shapes = {bytes(font.getmask(c)) for c in embedded.GLYPHS}
        assert len(shapes) == 46  # no two characters look alike, none is a "missing" box


def test_glyphs_can_be_told_apart_across_faces(glyphs) -> None:
    """Cut to its ink and scaled, a test glyph's nearest train glyph is mostly of its class."""
    from sklearn.neighbors import KNeighborsClassifier

    def ink(images: np.ndarray) -> np.ndarray:
        crops = (Image.fromarray(x[..., 0]) for x in images)
        return np.stack([np.asarray(c.crop(c.getbbox()).resize((12, 12))).ravel() for c in crops])

    model = KNeighborsClassifier(1).fit(ink(glyphs["x_train"]), glyphs["y_train"])
    assert model.score(ink(glyphs["x_test"]), glyphs["y_test"]) > 0.75
    tall = (glyphs["x_train"][..., 0] > 60).any(2).sum(1)
    assert tall.min() < 12 and tall.max() > 22  # sizes differ
    top = (glyphs["x_train"][..., 0] > 60).any(2).argmax(1)
    assert len(np.unique(top)) > 10  # so do places


# --- packs in the root, and when a published set is built


@pytest.fixture
def fake_cifar(monkeypatch) -> list[bool]:
    """torchvision's CIFAR10 replaced by 30 + 10 images; the list holds a value per construction."""
    made = []

    class Fake:
        def __init__(self, root, train, download):
            assert download and root.name == "downloads"
            made.append(train)
            self.items = [(picture((32, 32)), i % 10) for i in range(30 if train else 10)]
            self.classes = list("abcdefghij")

        def __len__(self):
            return len(self.items)

        def __getitem__(self, i):
            return self.items[i]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    counts(monkeypatch, "cifar10", 30, 10, 10)
    return made


def test_a_published_set_is_built_once_and_then_a_pack(tmp_path: Path, fake_cifar) -> None:
    data = load("cifar10", root=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 10)
    assert data.class_names == tuple("abcdefghij") and data.train.x.shape[1:] == (32, 32, 3)
    assert load("cifar10", size=64, root=tmp_path).test.x.shape[1:] == (64, 64, 3)
    assert fake_cifar == [True, False]  # never built larger than its images are
    assert [p.name for p in tmp_path.glob("*.npz")] == ["cifar10.npz"]
    load("cifar10", size=16, root=tmp_path)
    assert (tmp_path / "cifar10@16.npz").exists() and len(fake_cifar) == 4
    row = {r.name: r for r in available(tmp_path)}["cifar10"]
    assert row.here and (row.n_train, row.n_test) == (30, 10) and row.origin == "pack"


def test_a_pack_from_outside_wins_over_the_published_set(tmp_path: Path, fake_cifar) -> None:
    packs.write(tmp_path / "cifar10.npz", small_pack())
    for size in (8, 16, 32):
        assert len(load("cifar10", size=size, root=tmp_path).test) == 14
    assert not fake_cifar


def test_a_half_extracted_download_is_noticed(tmp_path: Path, fake_cifar, monkeypatch) -> None:
    counts(monkeypatch, "cifar10", 31, 10, 10)
    with pytest.raises(ValueError, match="30 train images, 31 are published; delete"):
        load("cifar10", root=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_without_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    for name, entry in torchsets.PUBLISHED.items():
        with pytest.raises(FileNotFoundError) as error:
            (load_segmentation if entry.masks else load)(name, root=tmp_path)
        assert all(url in str(error.value) for url in entry.urls)
        assert str(tmp_path / entry.place) in str(error.value)
    with pytest.raises(FileNotFoundError, match="imagenet/train"):
        load("imagenet", size=224, root=tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, fake_cifar) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="file/packs/cifar10.npz cannot be written"):
        load("cifar10", root=tmp_path / "file" / "packs")


def test_two_that_want_one_pack_build_it_once(tmp_path: Path) -> None:
    builds = []

    def build():
        builds.append(1)
        time.sleep(0.3)
        packs.write(path, small_pack())

    path = tmp_path / "p.npz"
    threads = [threading.Thread(target=sources.ensure, args=(path, build)) for _ in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(builds) == 1 and len(packs.read(path).arrays["y_test"]) == 14


def test_the_list_shows_a_bad_pack_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    packs.write(tmp_path / "good@64.npz", small_pack())
    rows = {r.name: r for r in available(tmp_path)}
    assert not rows["broken"].here and "not a readable .npz" in rows["broken"].note
    assert rows["good"].here and rows["good"].n_test == 14
    assert {"cifar100", "imagenet", "glyphs"} <= rows.keys() and not rows["cifar100"].here
    assert list(rows) == sorted(rows) and all(r.licence for r in rows.values())


def test_the_list_counts_sets_with_masks_as_they_load(tmp_path: Path) -> None:
    rows = {r.name: r for r in available(tmp_path)}
    row, data = rows["glyphs_seg"], load_segmentation("glyphs_seg", root=tmp_path)
    held = len(data.train) + len(data.val), len(data.test), data.n_classes
    assert (row.n_train, row.n_test, row.classes) == held and row.here
    masked = {r.name for r in rows.values() if r.masks}
    assert not rows["voc2012_seg"].here and masked == {"glyphs_seg", "voc2012_seg"}
    (tmp_path / "downloads/VOCdevkit/VOC2012").mkdir(parents=True)
    x = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    mask = RNG.integers(0, 2, (6, 8, 8), dtype=np.uint8)
    arrays = {"x_train": x[:4], "m_train": mask[:4], "x_test": x[4:], "m_test": mask[4:]}
    names = np.array(["road", "sky", "void (ignore=2)"])
    np.savez(tmp_path / "own_seg.npz", **arrays, class_names=names)
    rows = {r.name: r for r in available(tmp_path)}
    assert rows["voc2012_seg"].here and rows["own_seg"].masks
    assert rows["own_seg"].classes == load_segmentation("own_seg", root=tmp_path).n_classes == 2
    with pytest.raises(ValueError, match="own; choose another name"):
        build_folder("glyphs_seg", tmp_path, root=tmp_path)


# --- published sets, in torchvision's own layouts


def idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(head + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("name", "cls"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_files_become_a_grey_pack_with_a_border(tmp_path, monkeypatch, name, cls) -> None:
    x = {s: RNG.integers(1, 256, (n, 28, 28)) for s, n in (("train", 40), ("t10k", 20))}
    for s, images in x.items():
        idx(tmp_path / "downloads" / cls / "raw" / f"{s}-images-idx3-ubyte", images)
        idx(tmp_path / "downloads" / cls / "raw" / f"{s}-labels-idx1-ubyte", images[:, 5, 5] % 10)
    counts(monkeypatch, name, 40, 20, 10)
    data = load(name, root=tmp_path)
    test = data.test.x[..., 0].numpy()
    assert test.shape == (20, 32, 32) and len(data.train) + len(data.val) == 40
    assert not test[:, :2].any() and not test[:, :, -2:].any()
    inner = test[:, 2:-2, 2:-2]
    assert {i.tobytes() for i in inner} == {i.astype(np.uint8).tobytes() for i in x["t10k"]}
    assert np.array_equal(inner[:, 5, 5] % 10, data.test.y)
    assert "eight" in data.class_names[8] or data.class_names[8] == "Bag"


def test_eurosat_is_divided_by_class(tmp_path: Path, monkeypatch) -> None:
    for c in ("Forest", "River", "SeaLake"):
        for i in range(10):
            save(
                tmp_path / "downloads" / "eurosat" / "2750" / c / f"{c}_{i}.jpg", picture((64, 64))
            )
    counts(monkeypatch, "eurosat", 24, 6, 3)
    data = load("eurosat", size=64, root=tmp_path)
    assert data.test.y.bincount().tolist() == [2, 2, 2] and data.class_names[1] == "River"
    assert data.test.x.shape[1:] == (64, 64, 3)


def test_gtsrb_labels_come_from_folders_and_table(tmp_path: Path, monkeypatch) -> None:
    base, rows = tmp_path / "downloads" / "gtsrb", ["Filename;Width;ClassId"]
    for i in range(8):
        save(base / "GTSRB/Training" / f"{i % 2:05d}" / f"{i}.ppm", picture(shade=i % 2 * 100 + i))
        save(base / "GTSRB/Final_Test/Images" / f"{i}.ppm", picture(shade=i % 2 * 100 + 20 + i))
        rows.append(f"{i}.ppm;20;{i % 2}")
    (base / "GT-final_test.csv").write_text("\n".join(rows))
    counts(monkeypatch, "gtsrb", 8, 8, 2)
    data = load("gtsrb", root=tmp_path)
    for split in (data.train, data.test):
        assert torch.equal((split.x.amax((1, 2, 3)) >= 100).long(), split.y)


def test_dtd_brings_its_own_val(tmp_path: Path, monkeypatch) -> None:
    base = tmp_path / "downloads" / "dtd" / "dtd"
    for s, n in (("train", 3), ("val", 2), ("test", 4)):
        files = [f"{c}/{c}_{s}{i}.jpg" for c in ("dotted", "woven") for i in range(n)]
        for file in files:
            save(base / "images" / file)
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{s}1.txt").write_text("\n".join(files))
    counts(monkeypatch, "dtd", 6, 8, 2)
    data = load("dtd", root=tmp_path)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 4, 8)
    assert data.class_names == ("dotted", "woven")


def test_pets_are_read_by_their_lists(tmp_path: Path, monkeypatch) -> None:
    base = tmp_path / "downloads" / "oxford-iiit-pet"
    for s, numbers in (("trainval", range(1, 5)), ("test", range(5, 8))):
        lines = []
        for k, breed in enumerate(("Beagle", "Sphynx")):
            for i in numbers:
                save(base / "images" / f"{breed}_{i}.jpg")
                lines.append(f"{breed}_{i} {k + 1} 1 1")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{s}.txt").write_text("\n".join(lines))
    # Some of the published files are of another kind than their names say.
    Image.new("RGBA", (20, 16), (0, 0, 0, 0)).save(base / "images" / "Beagle_1.jpg", "PNG")
    counts(monkeypatch, "oxford_iiit_pet", 8, 6, 2)
    data = load("oxford_iiit_pet", root=tmp_path)
    train = torch.cat([data.train.x, data.val.x])
    assert (train.flatten(1).amin(1) == 255).sum() == 1
    assert data.test.y.bincount().tolist() == [3, 3] and data.class_names == ("Beagle", "Sphynx")


def test_omniglot_is_divided_by_drawer(tmp_path: Path, monkeypatch) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for k, folder in enumerate(("Greek/character01", "Greek/character02", "Latin/character01")):
            for drawer in range(1, 21):
                png = io.BytesIO()
                picture((105, 105), "1", 255 * (drawer > 15)).save(png, "png")
                archive.writestr(
                    f"images_background/{folder}/{k:04d}_{drawer:02d}.png", png.getvalue()
                )
    place = tmp_path / "downloads" / "omniglot-py"
    place.mkdir(parents=True)
    (place / "images_background.zip").write_bytes(buffer.getvalue())
    md5 = {"images_background": hashlib.md5(buffer.getvalue()).hexdigest()}
    monkeypatch.setattr(torchvision.datasets.Omniglot, "zips_md5", md5)
    counts(monkeypatch, "omniglot", 45, 15, 3)
    # Images of one shade are copies of each other, within a split only: white ones are test.
    data = load("omniglot", root=tmp_path)
    assert data.test.x.min() == 255 and data.train.x.max() == 0 and data.test.x.shape[3] == 1
    assert data.test.y.bincount().tolist() == [5, 5, 5]
    assert data.class_names == ("Greek/character01", "Greek/character02", "Latin/character01")


def test_cifar_archive_put_there_by_hand_is_enough(tmp_path: Path, monkeypatch) -> None:
    """As the error says: the archive, as it is, in the folder; torchvision verifies and unpacks."""
    cifar, md5 = torchvision.datasets.CIFAR10, {}
    (tmp_path / "downloads").mkdir()
    archive = tmp_path / "downloads" / cifar.filename
    with tarfile.open(archive, "w:gz") as tar:
        for file in [n for n, _ in cifar.train_list + cifar.test_list] + ["batches.meta"]:
            data = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
            content = {"data": data, "labels": list(range(10)), "label_names": list("abcdefghij")}
            body = pickle.dumps(content)
            md5[file] = hashlib.md5(body).hexdigest()
            info = tarfile.TarInfo(f"{cifar.base_folder}/{file}")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar, "train_list", [(n, md5[n]) for n, _ in cifar.train_list])
    monkeypatch.setattr(cifar, "test_list", [(n, md5[n]) for n, _ in cifar.test_list])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": md5["batches.meta"]})
    counts(monkeypatch, "cifar10", 50, 10, 10)
    data = load("cifar10", root=tmp_path)
    assert len(data.test) == 10 and data.class_names == tuple("abcdefghij")


# --- Tiny-ImageNet


def tiny(path: Path, monkeypatch, hostile: bool = False) -> dict[str, bytes]:
    images = {}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n02\nn01\n")
        archive.writestr("tiny-imagenet-200/words.txt", "n01\tgoldfish, Carassius\nn02\tcrane\n")
        notes = []
        for i in range(6):
            wnid = f"n0{i % 2 + 1}"
            for name in (f"train/{wnid}/images/{wnid}_{i}.JPEG", f"val/images/val_{i}.JPEG"):
                jpeg = io.BytesIO()
                shade = 100 * (i % 2) + i + 10 * name.startswith("val")
                picture((64, 64), "L" if i == 3 else "RGB", shade).save(jpeg, "jpeg")
                archive.writestr(f"tiny-imagenet-200/{name}", jpeg.getvalue())
            notes.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "\n".join(notes) + "\n")
        if hostile:
            archive.writestr("../../escaped.JPEG", b"x")
            archive.writestr("/tmp/escaped.txt", b"x")
    monkeypatch.setattr(torchsets, "TINY_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    counts(monkeypatch, "tiny_imagenet", 6, 6, 2)
    return images


@pytest.mark.parametrize("hostile", [False, True])
def test_tiny_imagenet_is_read_from_its_archive(tmp_path: Path, monkeypatch, hostile) -> None:
    root = tmp_path / "a" / "root"
    root.mkdir(parents=True)
    tiny(root / TINY, monkeypatch, hostile)
    assert {r.name: r.here for r in available(root)}["tiny_imagenet"]
    data = load("tiny_imagenet", size=64, root=root)
    assert data.class_names == ("goldfish (n01)", "crane (n02)")
    for split in (data.train, data.test):
        assert split.x.shape[1:] == (64, 64, 3)  # one grey image makes no grey set
        assert torch.equal((split.x.amax((1, 2, 3)) > 60).long(), split.y)
    seen = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert seen - {".tiny_imagenet@64.npz.lock"} == {TINY, "tiny_imagenet@64.npz"}


def test_another_archive_of_that_name_is_refused(tmp_path: Path, monkeypatch) -> None:
    tiny(tmp_path / TINY, monkeypatch)
    monkeypatch.setattr(torchsets, "TINY_MD5", "90528d7ca1a48142e341f4ef8d21d0de")
    with pytest.raises(ValueError, match="tiny-imagenet-200.zip: md5 .*90528d7c"):
        load("tiny_imagenet", root=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


# --- folders


def shelves(folder: Path, n: int = 10, classes: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    for k, c in enumerate(classes):
        for i in range(n + k):
            save(folder / c / f"{i}.png", picture((40, 30)))
    return folder


def test_a_folder_of_class_folders_becomes_a_pack(tmp_path: Path) -> None:
    folder = shelves(tmp_path / "insects")
    (folder / "ant" / "notes.txt").write_text("not an image")
    (folder / ".thumbnails").mkdir()
    path = build_folder("my-insects", folder, root=tmp_path / "root")
    assert path == tmp_path / "root" / "my-insects.npz"
    data = load("my-insects", root=tmp_path / "root")
    assert data.class_names == ("ant", "bee", "cat") and data.train.x.shape[1:] == (32, 32, 3)
    assert data.test.y.bincount().tolist() == [2, 2, 2]
    assert (data.train.y.bincount() + data.val.y.bincount()).tolist() == [8, 9, 10]
    expected = Image.open(folder / "bee" / "0.png").crop((5, 0, 35, 30))  # the middle of 40 x 30
    middle = np.asarray(expected.resize((32, 32), Image.Resampling.BILINEAR), dtype=int)
    bees = torch.cat([s.x[s.y == 1] for s in (data.train, data.val, data.test)]).numpy().astype(int)
    assert np.abs(bees - middle).mean((1, 2, 3)).min() < 1


def test_a_folder_is_divided_by_seed_and_fraction(tmp_path: Path) -> None:
    folder = shelves(tmp_path / "f")
    tests = {}
    for name, arguments in {
        "a": {},
        "b": {},
        "c": {"seed": 1},
        "d": {"test_fraction": 0.5},
    }.items():
        made = packs.read(build_folder(name, folder, root=tmp_path, **arguments)).arrays
        tests[name] = {x.tobytes() for x in made["x_test"]}
        assert not tests[name] & {x.tobytes() for x in made["x_train"]}
    assert tests["a"] == tests["b"] != tests["c"] and len(tests["d"]) == 17  # 5 + 6 + 6


def test_val_is_a_part_of_what_would_be_train(tmp_path: Path) -> None:
    """In a folder that is not divided, and in one that has train and test; its own val stays."""
    shelves(tmp_path / "whole")
    for split, n in (("train", 6), ("test", 3)):
        shelves(tmp_path / "parts" / split, n)
    counts = {"whole": ([6, 7, 8], [2, 2, 2], [2, 2, 2]), "parts": ([4, 5, 6], [2] * 3, [3, 4, 5])}
    for name, expected in counts.items():
        folder = tmp_path / name
        made = packs.read(build_folder(name, folder, root=tmp_path, val_fraction=0.25)).arrays
        plain = packs.read(build_folder(f"{name}0", folder, root=tmp_path)).arrays
        found = [np.bincount(made[f"y_{s}"]).tolist() for s in ("train", "val", "test")]
        assert found == list(expected)
        assert (made["x_test"] == plain["x_test"]).all()
        parts = [{x.tobytes() for x in made[f"x_{s}"]} for s in ("train", "val")]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {x.tobytes() for x in plain["x_train"]}


def test_a_folder_with_splits_of_its_own_keeps_them(tmp_path: Path) -> None:
    for split, n in (("train", 6), ("test", 3), ("val", 2)):
        shelves(tmp_path / "f" / split, n)
    path = build_folder("mine", tmp_path / "f", size=16, root=tmp_path)
    assert path.name == "mine@16.npz"
    data = load("mine", size=16, root=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [21, 9, 12]
    assert load("mine", size=24, root=tmp_path).test.x.shape[1] == 24  # from the pack there is
    (tmp_path / "f" / "test" / "cat").rename(tmp_path / "f" / "test" / "cow")
    says = rf"^{tmp_path / 'f'}: (test has no folder cat|train has no folder cow)"
    with pytest.raises(ValueError, match=says):
        build_folder("mine2", tmp_path / "f", root=tmp_path)


def test_grey_turned_and_paletted_images(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path / "grey" / "a" / f"{i}.png", picture(mode="L"))
        save(tmp_path / "grey" / "b" / f"{i}.bmp", picture(mode="1"))
        save(tmp_path / "colour" / "a" / f"{i}.png", picture(mode="P"))
        save(tmp_path / "colour" / "b" / f"{i}.png", picture(mode="RGBA"))
    half = np.zeros((20, 20, 3), np.uint8)
    half[:10] = 255  # white on top; EXIF 3 says the camera was upside down
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(half).save(tmp_path / "colour" / "a" / "turned.jpg", exif=exif)
    build_folder("grey", tmp_path / "grey", root=tmp_path)
    assert load("grey", root=tmp_path).train.x.shape[3] == 1
    made = packs.read(build_folder("colour", tmp_path / "colour", root=tmp_path)).arrays
    x = np.concatenate([made["x_train"], made["x_test"]])
    assert x.shape[3] == 3
    assert sum(i[-10:].min() > 240 and i[:10].max() < 15 for i in x) == 1


def one(folder: Path) -> None:
    for file in list((folder / "bee").iterdir())[1:]:
        file.unlink()


WRONG = {
    "no folder": (lambda f: f.rename(f.parent / "away"), "no such folder"),
    "no classes": (
        lambda f: [p.unlink() for p in f.glob("*/*")] + [p.rmdir() for p in f.iterdir()],
        "0 folders",
    ),
    "an empty class": (lambda f: (f / "dog").mkdir(), "dog: no images"),
    "one image": (one, "class 'bee' has 1 image"),
    "no image": (lambda f: (f / "ant" / "3.png").write_bytes(b"text"), "ant/3.png: not a readable"),
    "half an image": (
        lambda f: (f / "ant" / "3.png").write_bytes((f / "ant" / "3.png").read_bytes()[:400]),
        "ant/3.png: not a readable",
    ),
    "32 bits": (
        lambda f: Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(f / "ant" / "3.tif"),
        "ant/3.tif: .*F: 32 bits a pixel",
    ),
    "copies": (
        lambda f: [
            (f / "ant" / f"{i}.png").write_bytes((f / "ant/0.png").read_bytes()) for i in range(9)
        ],
        "/f: x_test: 2 of 6 images are copies of images of another split \\(in ant\\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_makes_no_set_is_refused_and_nothing_left(tmp_path, case: str) -> None:
    folder = shelves(tmp_path / "f", 9)
    change, says = WRONG[case]
    change(folder)
    with pytest.raises(ValueError, match=says):
        build_folder("mine", folder, root=tmp_path / "root")
    assert not list(tmp_path.rglob("*.npz")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": "big"}, {"test_fraction": 1.0}])
def test_bad_numbers_are_refused(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        build_folder("mine", shelves(tmp_path / "f", 2), root=tmp_path, **bad)


def test_a_pack_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    build_folder("mine", shelves(tmp_path / "f", 3), root=tmp_path)
    with pytest.raises(ValueError, match="mine.npz: is there already"):
        build_folder("mine", tmp_path / "f", root=tmp_path)


def test_imagenet_is_read_file_by_file(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("val", 4)):
        for k, wnid in enumerate(("n01", "n02")):
            for i in range(n):
                save(tmp_path / "imagenet" / split / wnid / f"{i}.JPEG", picture(shade=k * 100 + i))
    data = load("imagenet", size=24, root=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [36, 4, 8]
    assert not set(data.train.paths) & set(data.val.paths) and data.class_names == ("n01", "n02")
    assert all("/val/" in p for p in data.test.paths) and all(
        "/train/" in p for p in data.val.paths
    )
    few = load("imagenet", size=24, n_train=10, root=tmp_path)
    assert few.train.y.bincount().tolist() == [5, 5] and set(few.train.paths) < set(
        data.train.paths
    )
    from robustlib.data import batches

    for x, y in batches.ordered(data.test, 3):
        assert x.shape[1:] == (3, 24, 24) and torch.equal((x.amax((1, 2, 3)) > 0.3).long(), y)
    os.rename(tmp_path / "imagenet/val/n02", tmp_path / "imagenet/val/n03")
    loading._whole.cache_clear()
    loading._sized.cache_clear()
    with pytest.raises(ValueError, match="n02, n03"):
        load("imagenet", size=24, root=tmp_path)


def test_gz_files_put_there_by_hand_are_verified(tmp_path: Path) -> None:
    """A file of the right name and the wrong content is not taken for MNIST."""
    raw = tmp_path / "downloads" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with gzip.open(raw / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"something else")
    with pytest.raises(FileNotFoundError, match="mnist could not be fetched"):
        load("mnist", root=tmp_path)
