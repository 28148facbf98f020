"""Sets for dense prediction: masks belong to their images, in every split, scale and crop."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import voc

from robustlib.data import Split, batches, embedded, load, load_segmentation, torchsets
from robustlib.specs import AUGMENTS

NAMES = np.array(["sky", "road", "car", "void(ignore=3)"])


def masks(n: int, height: int = 12, width: int = 20, k: int = 3, seed: int = 0) -> np.ndarray:
    """Blocks of 4 x 4 px of a class each."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, k, (n, -(-height // 4), -(-width // 4)), dtype=np.uint8)
    return blocks.repeat(4, 1).repeat(4, 2)[:, :height, :width]


def pack(**changes: object) -> dict[str, np.ndarray]:
    arrays: dict[str, object] = {"class_names": NAMES}
    for i, (split, n) in enumerate({"train": 30, "val": 6, "test": 8}.items()):
        m = masks(n, k=4, seed=i)
        noise = np.random.default_rng(i).integers(0, 40, (*m.shape, 3), dtype=np.uint8)
        arrays |= {f"m_{split}": m, f"x_{split}": noise + 60 * m[..., None]}
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def written(folder: Path, **changes: object) -> Path:
    np.savez(folder / "town.npz", **pack(**changes))
    return folder


# Packs


def test_a_pack_is_read_as_it_is_and_its_unlabelled_pixels_are_255(tmp_path):
    data, arrays = load_segmentation("town", root=written(tmp_path)), pack()
    assert data.class_names == ("sky", "road", "car") and data.n_classes == 3
    for split in ("train", "val", "test"):
        part, m = getattr(data, split), arrays[f"m_{split}"]
        assert np.array_equal(part.x.numpy(), arrays[f"x_{split}"])
        assert np.array_equal(part.y.numpy(), np.where(m == 3, data.ignore, m))
        assert (m == 3).any() and part.y.dtype == torch.uint8


def test_without_a_val_of_its_own_a_tenth_of_train_is_val_for_every_seed(tmp_path):
    root = written(tmp_path, x_val=None, m_val=None)
    data = load_segmentation("town", root=root)
    assert (len(data.train), len(data.val), len(data.test)) == (27, 3, 8)
    both = {image.numpy().tobytes() for part in (data.train, data.val) for image in part.x}
    assert both == {image.tobytes() for image in pack()["x_train"]}
    other = load_segmentation("town", root=root, n_train=20, seed=5)
    assert torch.equal(other.val.x, data.val.x)


def test_the_tenth_that_is_val_is_drawn_from_all_over_train(tmp_path):
    """The images of a pack may be in the order of a drive: the first tenth would be one street."""
    x = np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    m = masks(400, 8, 8)
    changes = {"x_train": x, "m_train": m, "x_test": 255 - x[:8], "m_test": m[:8]}
    root = written(tmp_path, x_val=None, m_val=None, **changes)
    data, number = load_segmentation("town", root=root), {i.tobytes(): n for n, i in enumerate(x)}
    rows = {
        name: [number[i.numpy().tobytes()] for i in getattr(data, name).x]
        for name in ("train", "val")
    }
    assert sorted(rows["train"] + rows["val"]) == [*range(400)]
    for name, drawn in rows.items():
        assert np.array_equal(getattr(data, name).y, m[drawn])
    # 4 are expected in each tenth of train; chance does not go as far as this.
    tenths = np.bincount(np.array(rows["val"]) // 40, minlength=10)
    assert tenths.sum() == 40 and tenths.max() <= 12 and (tenths > 0).sum() >= 6
    # Nor is it every tenth image, which is as regular as the drive may be.
    assert len(set(np.diff(rows["val"]))) > 5


def test_a_budget_is_drawn_by_seed_and_a_smaller_one_is_part_of_a_larger(tmp_path):
    def drawn(n: int, seed: int) -> dict[bytes, bytes]:
        train = load_segmentation("town", n_train=n, seed=seed, root=tmp_path).train
        pairs = zip(train.x.numpy(), train.y.numpy(), strict=True)
        return {x.tobytes(): m.tobytes() for x, m in pairs}

    whole = load_segmentation("town", root=written(tmp_path))
    belongs = dict(zip((x.numpy().tobytes() for x in whole.train.x), whole.train.y, strict=True))
    few, more = drawn(5, 1), drawn(12, 1)
    assert len(few) == 5 and len(more) == 12 and few.items() <= more.items()
    assert all(belongs[x].numpy().tobytes() == m for x, m in more.items())
    assert drawn(5, 2) != few
    cut = load_segmentation("town", n_train=8, root=tmp_path)
    assert (len(cut.val), len(cut.test)) == (3, 8)
    with pytest.raises(ValueError, match="n_train=31: town has 30"):
        load_segmentation("town", n_train=31, root=tmp_path)


BAD = {
    "float images": ({"x_val": pack()["x_val"].astype(np.float32)}, "x_val: float32.*uint8"),
    "wide masks": ({"m_test": pack()["m_test"].astype(np.int64)}, "m_test: int64.*uint8"),
    "no masks": ({"m_test": None}, "m_test: missing"),
    "half a val": ({"m_val": None}, "m_val: missing"),
    "other size": ({"m_train": pack()["m_train"][:, :8]}, r"m_train: shape \(30, 8, 20\)"),
    "fewer masks": ({"m_train": pack()["m_train"][:9]}, r"m_train: shape \(9, 12, 20\)"),
    "a split of other size": (
        {"x_test": pack()["x_test"][:, :8], "m_test": pack()["m_test"][:, :8]},
        r"x_test: images \(8, 20, 3\)",
    ),
    "two channels": ({"x_train": pack()["x_train"][..., :2]}, "x_train: shape .* C 1 or 3"),
    "empty": ({"x_test": pack()["x_test"][:0], "m_test": pack()["m_test"][:0]}, "x_test: shape"),
    "a label too high": ({"m_test": pack()["m_test"] + 1}, "m_test: labels up to 4.*0 to 2"),
    "nothing labelled": ({"m_val": np.full_like(pack()["m_val"], 3)}, "m_val: no pixel"),
    "copies": ({"x_test": pack()["x_train"][:8]}, "x_test: 8 of 8 images are copies"),
    "names twice": ({"class_names": NAMES[[0, 1, 0, 3]]}, "class_names: 3 names.*different"),
    "names that are numbers": ({"class_names": np.arange(4)}, "class_names: int64.*text"),
    "another ignored label": (
        {"class_names": np.array(["a(ignore=0)", "b", "c", "d"])},
        "class_names: .*only the last",
    ),
    "a wrong ignored label": (
        {"class_names": np.array(["a", "b", "c", "d(ignore=11)"])},
        "class_names: .*only the last",
    ),
}


@pytest.mark.parametrize(("changes", "says"), BAD.values(), ids=BAD)
def test_a_bad_pack_is_refused_by_file_key_and_reason(tmp_path, changes, says):
    with pytest.raises(ValueError, match=f"town.npz: {says}"):
        load_segmentation("town", root=written(tmp_path, **changes))


def test_packs_of_pickles_and_files_that_are_no_packs_are_refused(tmp_path):
    written(tmp_path, class_names=np.array(["a", "b", "c"], dtype=object))
    with pytest.raises(ValueError, match="town.npz: class_names: .*Python objects"):
        load_segmentation("town", root=tmp_path)
    (tmp_path / "town.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="town.npz: not a readable"):
        load_segmentation("town", root=tmp_path)


def test_sets_with_masks_and_sets_with_labels_are_not_mistaken_for_each_other(tmp_path):
    with pytest.raises(ValueError, match="y_train: missing: this pack has masks"):
        load("town", root=written(tmp_path))
    arrays = {"x_train": pack()["x_train"], "y_train": np.zeros(30, np.int64)}
    np.savez(tmp_path / "labels.npz", **arrays)
    with pytest.raises(ValueError, match="m_train: missing: .* one label an image"):
        load_segmentation("labels", root=tmp_path)
    with pytest.raises(ValueError, match="dataset='glyphs_seq' .*'glyphs_seg'"):
        load_segmentation("glyphs_seq", root=tmp_path)
    with pytest.raises(ValueError, match="dataset=3: must be text"):
        load_segmentation(3, root=tmp_path)


@pytest.mark.parametrize("size", [8, 24, 36])
def test_scaled_masks_stay_on_their_images(tmp_path, size):
    """The image is its mask as colours; away from the edges of blocks it must still be."""
    m = masks(30)
    changes = {"class_names": NAMES[:3], "m_train": m, "x_train": (80 * m)[..., None]}
    for split, n in (("val", 6), ("test", 8)):
        part = masks(n, seed=n)
        changes |= {f"m_{split}": part, f"x_{split}": (80 * part)[..., None]}
    train = load_segmentation("town", size=size, root=written(tmp_path, **changes)).train
    assert train.x.shape == (30, size, size * 20 // 12, 1) and train.y.shape == train.x.shape[:3]
    decoded = (train.x[..., 0].float() / 80).round()
    agree = (decoded == train.y).float().mean()
    assert agree > 0.85
    for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        assert (decoded == train.y.roll((down, right), (1, 2))).float().mean() < agree
    if size % 12 == 0:
        step = size // 12
        corner = train.y[:, ::step, ::step]
        assert torch.equal(corner, torch.from_numpy(m))
        centres = slice(2 * step, None, 4 * step)
        assert torch.equal(decoded[:, centres, centres], train.y[:, centres, centres].float())


@pytest.mark.parametrize("size", [8, 24])
def test_scaled_images_and_masks_are_those_of_pillow(tmp_path, size):
    """On ramps, which show any shift, and on noise, which shows what is left out when shrinking."""
    changes = {}
    for seed, (split, n) in enumerate({"train": 6, "val": 4, "test": 4}.items()):
        rng = np.random.default_rng(seed)
        x = rng.integers(0, 256, (n, 12, 21, 3), dtype=np.uint8)
        x[: n // 2, ..., 0] = 12 * np.arange(21)
        x[: n // 2, ..., 1] = 20 * np.arange(12)[:, None]
        m = rng.integers(0, 3, (n, 12, 21), dtype=np.uint8)
        changes |= {f"x_{split}": x, f"m_{split}": m}
    # At 2/3 and 2 no centre of a pixel falls on the edge between two: the nearest is one.
    data = load_segmentation("town", size, root=written(tmp_path, **changes))
    shape = (size * 21 // 12, size)
    for split in ("train", "val", "test"):
        part, x, m = getattr(data, split), changes[f"x_{split}"], changes[f"m_{split}"]
        images = [Image.fromarray(i).resize(shape, Image.Resampling.BILINEAR) for i in x]
        labels = [Image.fromarray(i).resize(shape, Image.Resampling.NEAREST) for i in m]
        apart = part.x.numpy().astype(int) - np.stack([np.asarray(i) for i in images])
        assert np.abs(apart).max() <= 1  # Pillow's weights are of 8 bits
        assert np.array_equal(part.y, np.stack([np.asarray(i) for i in labels]))


# The embedded set


def test_rendered_letters_are_the_same_on_every_call_and_lie_under_their_masks():
    data = load_segmentation("glyphs_seg")
    made = embedded.glyphs_seg(48)
    arrays = made.arrays
    assert made.class_names == data.class_names == ("background", *"AESX")
    assert np.array_equal(arrays["x_test"], data.test.x) and data.test.x.shape[1:] == (48, 64, 3)
    assert np.array_equal(arrays["m_test"], data.test.y)
    assert (len(data.train), len(data.val), len(data.test)) == (540, 60, 200)
    for part in (data.train, data.val, data.test):
        assert set(np.unique(part.y)) == {*range(5), data.ignore}
        grey, ink = part.x.float().mean(3), (part.y > 0) & (part.y != data.ignore)
        inside = torch.stack([g[i].median() for g, i in zip(grey, ink, strict=True)])
        outside = torch.stack([g[m == 0].median() for g, m in zip(grey, part.y, strict=True)])
        assert ((inside - outside).abs() > 30).float().mean() > 0.95
        # A third of it moved aside would be mostly beside the ink.
        near = (grey - inside[:, None, None]).abs() < 25
        assert near[ink].float().mean() > 0.9 > 0.7 > near[ink.roll(8, 2)].float().mean()


# VOC, in the layout in which torchvision unpacks it


@pytest.fixture
def devkit(tmp_path, monkeypatch) -> Path:
    """12 training and 5 validation images of 40 x 32 or 32 x 40 px, coloured by their mask."""
    voc_set = dataclasses.replace(torchsets.PUBLISHED["voc2012_seg"], counts=(12, 5, 21))
    monkeypatch.setitem(torchsets.PUBLISHED, "voc2012_seg", voc_set)
    base = tmp_path / "downloads/VOCdevkit/VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    number = 0
    for split, n in (("train", 12), ("val", 5)):
        names = [f"2007_{number + i:06}" for i in range(n)]
        for name in names:
            number += 1
            shape = (40, 32) if number % 2 else (32, 40)
            m = masks(1, *shape, k=5, seed=number)[0]
            m[:2] = 255
            image = Image.fromarray(m, mode="P")
            image.putpalette([*range(200, 210)] * 60 + [0] * 168)
            image.save(base / f"SegmentationClass/{name}.png")
            colour = Image.fromarray(np.repeat(np.where(m == 255, 5, m)[..., None] * 50, 3, 2))
            colour.save(base / f"JPEGImages/{name}.jpg", quality=100, subsampling=0)
        (base / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_voc_is_read_from_torchvisions_folder_once_and_cut_with_its_masks(devkit, monkeypatch):
    data = load_segmentation("voc2012_seg", size=32, root=devkit)
    assert data.n_classes == 21 and data.class_names[15] == "person"
    assert (len(data.train), len(data.val), len(data.test)) == (11, 1, 5)
    for part in (data.train, data.val, data.test):
        assert part.x.shape[1:] == (32, 32, 3) and part.y.shape[1:] == (32, 32)
        decoded = (part.x.float().mean(3) / 50).round()
        expected = torch.where(part.y == data.ignore, 5, part.y)
        assert (decoded == expected).float().mean() > 0.99
        assert set(np.unique(part.y)) <= {*range(5), 255}
    monkeypatch.setattr(torchsets, "build", None)  # from now on its pack is read
    assert (devkit / "voc2012_seg@32.npz").exists()
    again = load_segmentation("voc2012_seg", size=32, root=devkit)
    assert torch.equal(again.test.y, data.test.y)


def test_what_is_missing_or_broken_of_voc_is_named(devkit, tmp_path, monkeypatch):
    base = devkit / "downloads/VOCdevkit/VOC2012"
    listed = base / "ImageSets/Segmentation/val.txt"
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="4 val images, 5 are published; delete"):
        load_segmentation("voc2012_seg", size=32, root=devkit)
    listed.write_text("\n".join(lines))
    (base / f"JPEGImages/{lines[0]}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=f"{lines[0]}.jpg: not a readable image"):
        load_segmentation("voc2012_seg", size=32, root=devkit)
    Image.new("RGB", (7, 7)).save(base / f"JPEGImages/{lines[0]}.jpg")
    with pytest.raises(ValueError, match=rf"{lines[0]}.png: \(.*its image has \(7, 7\)"):
        load_segmentation("voc2012_seg", size=32, root=devkit)
    Image.new("RGB", (32, 40)).save(base / f"SegmentationClass/{lines[0]}.png")
    with pytest.raises(ValueError, match=f"{lines[0]}.png: .*RGB pixels"):
        load_segmentation("voc2012_seg", size=32, root=devkit)
    assert not list(devkit.glob("*.npz"))


def test_images_with_masks_are_opened_as_all_others(devkit):
    """Transparent pixels are white, and EXIF turns image and mask."""
    base = devkit / "downloads/VOCdevkit/VOC2012"
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in (base / "ImageSets/Segmentation/val.txt").read_text().split():
        half = np.zeros((32, 32), np.uint8)
        half[16:] = 1  # stored upside down
        clear = np.stack([np.zeros_like(half)] * 3 + [255 * half], axis=-1)
        clear[0, int(name[-1])] = 255  # images of their own
        Image.fromarray(clear).save(base / f"JPEGImages/{name}.jpg", "PNG", exif=exif)
        Image.fromarray(half).save(base / f"SegmentationClass/{name}.png", exif=exif)
    test = load_segmentation("voc2012_seg", size=32, root=devkit).test
    assert (test.y[:, :16] == 1).all() and (test.y[:, 16:] == 0).all()
    assert (test.x[:, :16] == 0).all() and (test.x[:, 16:] == 255).all()


def test_voc_is_downloaded_with_torchvisions_checksum(tmp_path, monkeypatch):
    asked = []

    def unreachable(url: str, root: str, filename: str, md5: str) -> None:
        asked.append((url, md5))
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(voc, "download_and_extract_archive", unreachable)
    with pytest.raises(FileNotFoundError, match="VOCtrainval_11-May-2012.tar\nand unpack"):
        load_segmentation("voc2012_seg", size=32, root=tmp_path / "empty")
    # torchvision verifies its own checksum.
    assert asked == [
        (torchsets.PUBLISHED["voc2012_seg"].urls[0], voc.DATASET_YEAR_DICT["2012"]["md5"])
    ]


# Augmentation


def encoded(n: int, height: int, width: int, channels: int = 3) -> Split:
    """Images in which every pixel says its label, and its row and column."""
    m = torch.from_numpy(masks(n, height, width))
    rows = torch.arange(height)[:, None].expand(n, height, width)
    columns = torch.arange(width).expand(n, height, width)
    x = torch.stack([50 * m, rows, columns], 3).to(torch.uint8)
    return Split(x[..., :channels].contiguous(), m)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize(("height", "width"), [(24, 24), (18, 40), (41, 17)])
def test_masks_stay_aligned_under_every_augmentation(augment, height, width):
    split = encoded(24, height, width)
    original = {m.numpy().tobytes() for m in split.y}
    moved = flipped = 0
    for epoch in range(3):
        options = {"augment": augment, "seed": 1, "epoch": epoch}
        feed = list(batches.epoch(split, 8, **options))
        assert len(feed) == 3
        for x, y in feed:
            assert y.dtype == torch.uint8 and y.shape == (8, height, width)
            pixels = (x * 255).round()
            assert torch.equal(pixels[:, 0], 50.0 * y)
            moved += sum(m.numpy().tobytes() not in original for m in y)
            across = pixels[:, 2, 0].diff(dim=1)
            flipped += int((across.sum(1) < 0).sum())
        # Any step can be redone without those before it.
        again = list(batches.epoch(split, 8, start=2, **options))
        assert len(again) == 1
        assert all(torch.equal(a, b) for a, b in zip(again[0], feed[2], strict=True))
    assert (moved > 50) == (augment != "none")
    assert 20 < flipped < 52 if augment == "crop-flip" else flipped == 0


def test_what_a_shift_uncovers_is_reflected_in_image_and_mask():
    height, width, pad = 16, 24, 2
    split = encoded(1, height, width)
    rows = torch.zeros(200, dtype=torch.long)
    x, y = batches.gather(split, rows, "crop", torch.Generator().manual_seed(0))
    m = np.pad(split.y[0].numpy(), pad, mode="reflect")
    image = np.pad(split.x[0].numpy(), [(pad, pad), (pad, pad), (0, 0)], mode="reflect")
    crops = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            area = slice(top, top + height), slice(left, left + width)
            crops[image[area].tobytes()] = (top, left, m[area])
    seen = set()
    for one, mask in zip(x.numpy(), y.numpy(), strict=True):
        top, left, expected = crops[one.tobytes()]
        assert np.array_equal(mask, expected)
        seen.add((top, left))
    assert len(seen) == (2 * pad + 1) ** 2


def test_masks_do_not_change_the_batches_of_images():
    """Stored results stand on these very bytes."""
    split, digest = encoded(40, 16, 16), hashlib.blake2b(digest_size=8)
    for augment in AUGMENTS:
        options = {"augment": augment, "seed": 3, "epoch": 2}
        plain = Split(split.x, torch.arange(40))
        for (x, _), (x_masked, _) in zip(
            batches.epoch(plain, 16, **options), batches.epoch(split, 16, **options), strict=True
        ):
            assert torch.equal(x, x_masked)
            digest.update((x * 255).round().to(torch.uint8).numpy().tobytes())
    assert digest.hexdigest() == "fb2f3f3d22895e16"


def test_evaluation_sees_every_image_and_mask_as_it_is():
    split = encoded(5, 12, 20)
    seen = list(batches.ordered(split, 2))
    assert torch.equal(torch.cat([y for _, y in seen]), split.y)
    assert torch.equal(torch.cat([x for x, _ in seen]), batches.to_float(split.x))


# The real pack


def test_camvid(data_root):
    if not (data_root / "camvid_seg.npz").exists():
        pytest.skip("needs the pack camvid_seg")
    data = load_segmentation("camvid_seg")
    assert data.n_classes == 11 and data.class_names[3] == "Road"
    assert [len(s) for s in (data.train, data.val, data.test)] == [367, 101, 233]
    for part in (data.train, data.val, data.test):
        assert part.x.shape[1:] == (72, 96, 3)
        assert set(np.unique(part.y)) == {*range(11), 255}
    road = data.train.y == 3
    assert road[:, 36:].sum() > 10 * road[:, :36].sum()  # the lower half of a street scene
    with pytest.raises(ValueError, match="this pack has masks"):
        load("camvid_seg")
