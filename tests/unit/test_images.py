"""Folders of images from outside: every layout opens them alike, and says what it does not read."""

import gzip
import io
import json
import os
import runpy
import struct
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from robustlib import cli, takeaway
from robustlib.data import files, images, load, loading, packs
from robustlib.data.sources import build_folder

RNG = np.random.default_rng(0)
SIDE = 32
LEFT = np.arange(SIDE) < SIDE // 2
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def noise(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
    return path


def shelves(folder: Path, n: int = 3, classes: tuple[str, ...] = ("a", "b")) -> Path:
    for name in classes:
        for i in range(n):
            noise(folder / name / f"{i}.png")
    return folder


def halves(left: int, right: int, dtype: type = np.uint8) -> np.ndarray:
    return np.broadcast_to(np.where(LEFT, left, right), (SIDE, SIDE)).astype(dtype)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def planes(*of: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack(of, axis=-1))


def png(bits: int, colour: int, pixels: np.ndarray, clear: bytes = b"") -> bytes:
    """A PNG of any depth, which Pillow does not write. pixels: [H, W] or [H, W, C]."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    head = struct.pack(">IIBBBBB", SIDE, SIDE, bits, colour, 0, 0, 0)
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        digits = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in digits.astype(np.uint8)]
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", head), chunk(b"tRNS", clear) * bool(clear), chunk(b"IDAT", body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def turned(kind: str) -> bytes:
    """White on the left, stored a quarter turn off, which EXIF says."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(halves(255, 0)).transpose(Image.Transpose.ROTATE_90)
    return encoded(stored, kind, exif=exif)


BLACK, ALPHA = halves(0, 0), halves(255, 0)
WIDE = halves(0x2080, 0xE07F, np.uint16)
PALETTE = Image.fromarray(halves(1, 0))
PALETTE = PALETTE.convert("P")
PALETTE.putpalette([0] * 768)
FRAMES = [Image.fromarray(halves(a, 255 - a)) for a in (0, 255)]
HALF_CLEAR = planes(BLACK, BLACK, BLACK, halves(255, 128))
CMYK = Image.fromarray(halves(0, 255)).convert("RGB").convert("CMYK")

SPECKLED = Image.fromarray(RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))

# A file, and how light its left and its right half are to be.
CASES = {
    "RGBA": ("png", encoded(planes(BLACK, BLACK, BLACK, ALPHA)), 0, 255),
    "RGBA, half clear": ("png", encoded(HALF_CLEAR), 0, 127),
    "RGBA in WebP": (
        "webp",
        encoded(planes(BLACK, BLACK, BLACK, ALPHA), "WEBP", lossless=True, exact=True),
        0,
        255,
    ),
    "RGBA in TIFF": ("tif", encoded(planes(BLACK, BLACK, BLACK, ALPHA), "TIFF"), 0, 255),
    "LA": ("png", encoded(planes(BLACK, ALPHA)), 0, 255),
    "palette, one clear": ("png", encoded(PALETTE, transparency=0), 0, 255),
    "palette, all with alpha": ("png", encoded(PALETTE, transparency=bytes([128, 255])), 0, 127),
    "a clear grey": ("png", encoded(Image.fromarray(halves(9, 8)), transparency=8), 9, 255),
    "a clear colour": (
        "png",
        encoded(planes(*[halves(9, 8)] * 3), transparency=(8, 8, 8)),
        9,
        255,
    ),
    "a clear grey of 1 bit": ("png", png(1, 0, halves(1, 0), struct.pack(">H", 1)), 255, 0),
    "a clear black of 1 bit": ("png", png(1, 0, halves(0, 0), struct.pack(">H", 0)), 255, 255),
    "a clear grey of 2 bits": ("png", png(2, 0, halves(0, 1), struct.pack(">H", 1)), 0, 255),
    "a clear grey of 4 bits": ("png", png(4, 0, halves(2, 5), struct.pack(">H", 5)), 34, 255),
    "a clear grey of 16 bits": (
        "png",
        png(16, 0, halves(0x2001, 0x2000, np.uint16), struct.pack(">H", 0x2000)),
        0x20,
        255,
    ),
    "LA of 16 bits": (
        "png",
        png(16, 4, np.stack([0 * WIDE, halves(0xFFFF, 0, np.uint16)], axis=-1)),
        0,
        255,
    ),
    "RGBA of 16 bits": (
        "png",
        png(16, 6, np.stack([*[0 * WIDE] * 3, halves(0xFFFF, 0, np.uint16)], axis=-1)),
        0,
        255,
    ),
    "grey of 16 bits": ("png", encoded(Image.fromarray(WIDE)), 0x20, 0xE0),
    "colour of 16 bits": ("png", png(16, 2, np.stack([WIDE] * 3, axis=-1)), 0x20, 0xE0),
    "TIFF of 16 bits": ("tiff", encoded(Image.fromarray(WIDE), "TIFF"), 0x20, 0xE0),
    "PGM of 16 bits": ("pgm", encoded(Image.fromarray(WIDE), "PPM"), 0x20, 0xE0),
    "turned JPEG": ("jpg", turned("JPEG"), 255, 0),
    "turned PNG": ("png", turned("PNG"), 255, 0),
    "turned TIFF": ("tif", turned("TIFF"), 255, 0),
    "CMYK": ("jpg", encoded(CMYK, "JPEG"), 0, 255),
    "animated": (
        "webp",
        encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
        0,
        255,
    ),
}


def laid_out(folder: Path, kind: str, data: bytes, test: str) -> Path:
    """A set in which one training image of class a is the file."""
    for split in ("train", test):
        shelves(folder / split, 2)
    path = folder / "train" / "a" / f"case.{kind}"
    path.write_bytes(data)
    return path


def lightness(image: np.ndarray) -> tuple[float, float]:
    """Of the left and the right half, away from the seam; nan if they are not uniform."""
    left, right = image[2:-2, 2:12].astype(float), image[2:-2, -12:-2].astype(float)
    if max(np.ptp(left), np.ptp(right)) > 12:  # JPEG is not exact
        return float("nan"), float("nan")
    return left.mean(), right.mean()


@pytest.mark.parametrize("case", CASES)
def test_an_image_looks_the_same_in_every_layout(tmp_path: Path, case: str) -> None:
    kind, data, left, right = CASES[case]
    laid_out(tmp_path / "f", kind, data, "test")
    built = packs.read(build_folder("mine", tmp_path / "f", root=tmp_path / "root")).arrays
    of_a = built["x_train"][built["y_train"] == 0]
    assert sum(lightness(x) == pytest.approx((left, right), abs=3) for x in of_a) == 1

    path = laid_out(tmp_path / "imagenet", kind, data, "val")
    set_ = load("imagenet", size=SIDE, root=tmp_path)
    split = set_.train if str(path) in set_.train.paths else set_.val
    row = split.paths.index(str(path))
    ((x, _),) = files.stream(split, [torch.tensor([row])])
    assert lightness(x[0].numpy()) == pytest.approx((left, right), abs=3)


def test_a_set_of_grey_images_with_alpha_or_16_bits_stays_grey(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "f" / name).mkdir(parents=True)
        for i in range(4):
            grey = RNG.integers(0, 2**16, (SIDE, SIDE), dtype=np.uint16)
            eight = (grey >> 8).astype(np.uint8)
            made = png(16, 4, np.stack([grey, grey], -1)), encoded(planes(eight, eight))
            made += png(16, 0, grey), encoded(Image.fromarray(eight))
            (tmp_path / "f" / name / f"{i}.png").write_bytes(made[i])
    build_folder("mine", tmp_path / "f", root=tmp_path)
    assert load("mine", root=tmp_path).train.x.shape[3] == 1


REFUSED = {
    "float": ("tif", encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "32 bits"),
    "32 bits": ("tif", encoded(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "32 bits"),
    "a clear colour of 16 bits": (
        "png",
        png(16, 2, np.stack([WIDE] * 3, -1), struct.pack(">HHH", 1, 2, 3)),
        "transparent colour",
    ),
    "text": ("jpg", b"text", "cannot identify"),
    "empty": ("jpg", b"", "cannot identify"),
    "half a JPEG": ("jpg", encoded(SPECKLED, "JPEG")[:-300], "truncated"),
    "half a PNG": ("png", CASES["RGBA"][1][:-40], "."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unreadable_image_is_named_before_anything_is_computed(tmp_path, case: str) -> None:
    kind, data, why = REFUSED[case]
    laid_out(tmp_path / "f", kind, data, "test")
    laid_out(tmp_path / "imagenet", kind, data, "val")
    says = rf"case\.{kind}: not a readable image \(.*{why}"
    with pytest.raises(ValueError, match=says):
        build_folder("mine", tmp_path / "f", root=tmp_path)
    with pytest.raises(ValueError, match=says):
        load("imagenet", size=SIDE, root=tmp_path)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*.checked"))


def test_a_folder_is_checked_once_and_again_when_it_changes(tmp_path: Path, monkeypatch) -> None:
    for split in ("train", "val"):
        shelves(tmp_path / "imagenet" / split)
    opened = []
    read = files.read_image

    def counted(path: str, *_, **options: object) -> Image.Image:
        opened.append(path)
        return read(path, **options)

    monkeypatch.setattr(files, "read_image", counted)

    def again() -> int:
        loading._whole.cache_clear()  # as another process would
        loading._sized.cache_clear()
        opened.clear()
        load("imagenet", size=SIDE, root=tmp_path)
        return len(opened)

    assert [again(), again()] == [12, 0]
    noise(tmp_path / "imagenet" / "train" / "b" / "new.png")
    assert [again(), again()] == [13, 0]
    (tmp_path / "imagenet" / "val" / "a" / "bad.png").write_bytes(b"")
    for _ in range(2):  # a refusal is not taken for a check
        with pytest.raises(ValueError, match="bad.png"):
            again()


# --- what is not read


def litter(folder: Path) -> None:
    """What systems and people leave in a folder of class folders."""
    (folder / "a" / "._0.jpg").write_bytes(b"resource fork")
    (folder / "a" / ".DS_Store").write_bytes(b"x")
    (folder / "b" / "Thumbs.db").write_bytes(b"x")
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        (folder / name / "a").mkdir(parents=True)
        (folder / name / "._0.jpg").write_bytes(b"x")
    (folder / "a" / "__MACOSX").mkdir()


def test_hidden_and_foreign_files_are_passed_over_in_silence(tmp_path: Path) -> None:
    shelves(tmp_path / "f", 4)
    litter(tmp_path / "f")
    for split in ("train", "val"):
        litter(shelves(tmp_path / "imagenet" / split))
        litter(shelves(tmp_path / "g" / split.replace("val", "test")))
    (tmp_path / "imagenet" / "__MACOSX").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in "fg":
            build_folder(name, tmp_path / name, root=tmp_path)
            assert load(name, root=tmp_path).class_names == ("a", "b")
        assert load("imagenet", size=SIDE, root=tmp_path).class_names == ("a", "b")


def test_what_is_skipped_is_counted_and_named_on_one_line(tmp_path: Path) -> None:
    def untidy(folder: Path) -> None:
        for i in range(3):
            (folder / "a" / f"{i}.GIF").write_bytes(b"x")
        (folder / "b" / "notes.txt").write_bytes(b"x")
        (folder / "b" / "README").write_bytes(b"x")
        noise(folder / "b" / "more" / "0.png")
        (folder / "b" / "folder.png").mkdir()  # no image, whatever its name
        noise(folder / "loose.png")

    said = ".gif (3), .txt (1), folders in class folders (2), "
    said += "images outside of class folders (1), without suffix (1)"
    untidy(shelves(tmp_path / "f", 4))
    with pytest.warns(UserWarning) as told:
        build_folder("mine", tmp_path / "f", root=tmp_path)
    (line,) = (str(w.message) for w in told)
    assert line.endswith(f"f: not read: {said}")
    for split in ("train", "val", "test"):
        shelves(tmp_path / "imagenet" / split)
    untidy(tmp_path / "imagenet" / "val")
    with pytest.warns(UserWarning) as told:
        load("imagenet", size=SIDE, root=tmp_path)
    (line,) = (str(w.message) for w in told)
    assert line.endswith(f"imagenet: not read: {said}, folder test")
    only = shelves(tmp_path / "only", classes=("b", "c"))
    (only / "a").mkdir()
    (only / "a" / "0.gif").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"only/a: no images in it .*there is \.gif \(1\)"):
        build_folder("only", only, root=tmp_path)


def test_the_command_says_on_one_line_what_is_skipped(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    (shelves(tmp_path / "f", 4) / "a" / "0.gif").write_bytes(b"x")
    assert cli.main(["data", "build", "mine", str(tmp_path / "f")]) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'mine.npz'}\n"
    assert f"\nrobustlib: {tmp_path / 'f'}: not read: .gif (1)\n" in f"\n{err}"


# --- splits


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_the_validation_split_may_have_any_of_its_names(tmp_path: Path, val: str) -> None:
    for split, n in (("train", 6), ("test", 3), (val, 2)):
        shelves(tmp_path / "f" / split, n)
    build_folder("mine", tmp_path / "f", root=tmp_path)
    data = load("mine", root=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [12, 4, 6]
    for split, n in (("train", 20), (val, 2)):
        shelves(tmp_path / "imagenet" / split, n)
    data = load("imagenet", size=SIDE, root=tmp_path)
    assert [len(s) for s in (data.train, data.val, data.test)] == [36, 4, 4]


def test_a_split_that_is_missing_or_there_twice_is_named(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shelves(tmp_path / "f" / split)
    with pytest.raises(ValueError, match="f: no test folder; train and test are needed.*val"):
        build_folder("mine", tmp_path / "f", root=tmp_path)
    shelves(tmp_path / "f" / "test")
    shelves(tmp_path / "f" / "valid")
    with pytest.raises(ValueError, match="f: val and valid are both val"):
        build_folder("mine", tmp_path / "f", root=tmp_path)
    shelves(tmp_path / "imagenet" / "train")
    shelves(tmp_path / "imagenet" / "test")
    with pytest.raises(ValueError, match="imagenet: no val folder; train and val are needed"):
        load("imagenet", size=SIDE, root=tmp_path)
    noise(tmp_path / "flat" / "train" / "0.png")
    noise(tmp_path / "flat" / "test" / "0.png")
    with pytest.raises(ValueError, match="flat/train: 0 folders in it"):
        build_folder("flat", tmp_path / "flat", root=tmp_path)


def test_folders_beside_the_splits_are_named(tmp_path: Path) -> None:
    for split in ("train", "test", "vaild"):
        shelves(tmp_path / "f" / split)
    with pytest.warns(UserWarning, match="f: not read: folder vaild$"):
        build_folder("mine", tmp_path / "f", root=tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    shelves(tmp_path / "f", 4, ("bus", "test", "train"))
    build_folder("mine", tmp_path / "f", root=tmp_path)
    assert load("mine", root=tmp_path).class_names == ("bus", "test", "train")


# --- names of classes


def test_a_name_is_one_class_however_its_accent_is_written(tmp_path: Path) -> None:
    for split, name in (("train", COMPOSED), ("test", DECOMPOSED), ("val", COMPOSED)):
        shelves(tmp_path / "f" / split, 4, (name, "z"))
    for split in ("train", "val"):
        shelves(tmp_path / "imagenet" / split, 4, (COMPOSED, "cafz"))  # between the two in order
    build_folder("mine", tmp_path / "f", root=tmp_path)
    assert load("mine", root=tmp_path).class_names == (COMPOSED, "z")
    (tmp_path / "imagenet" / "val" / COMPOSED).rename(tmp_path / "imagenet" / "val" / DECOMPOSED)
    data = load("imagenet", size=SIDE, root=tmp_path)
    assert data.class_names == ("cafz", COMPOSED)
    for split in (data.train, data.test):
        named = torch.tensor(["cafz" not in path for path in split.paths])
        assert torch.equal(split.y, named.long())


def test_both_spellings_in_one_split_are_refused(tmp_path: Path) -> None:
    shelves(tmp_path / "f", 4, (COMPOSED, DECOMPOSED, "z"))
    if len(list((tmp_path / "f").iterdir())) < 3:
        pytest.skip("this file system takes the two for one")
    with pytest.raises(ValueError, match="café' is there twice, in composed and in decomposed"):
        build_folder("mine", tmp_path / "f", root=tmp_path)
    x = RNG.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    arrays = {"x_train": x[:3], "x_test": x[3:]}
    arrays |= {key: np.array([0, 1, 1]) for key in ("y_train", "y_test")}
    with pytest.raises(ValueError, match="class_names: 2 names, must be 2 or more, all different"):
        packs.write(tmp_path / "p.npz", packs.Pack(arrays, (COMPOSED, DECOMPOSED)))


def test_a_class_folder_whose_name_is_no_unicode_is_refused(tmp_path: Path) -> None:
    shelves(tmp_path / "f", 4)
    odd = os.path.join(os.fsencode(tmp_path / "f"), b"caf\xe9")
    try:
        os.rename(tmp_path / "f" / "b", odd)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    shelves(tmp_path / "f", 4)
    with pytest.raises(ValueError, match=r"caf\\udce9: the name is no Unicode"):
        build_folder("mine", tmp_path / "f", root=tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_a_file_whose_name_is_no_unicode_is_read(tmp_path: Path) -> None:
    for split in ("train", "val"):
        shelves(tmp_path / "imagenet" / split)
    folder = tmp_path / "imagenet" / "train" / "a"
    try:
        os.rename(folder / "0.png", os.path.join(os.fsencode(folder), b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    data = load("imagenet", size=SIDE, root=tmp_path)
    assert len(data.train) + len(data.val) == 6


@pytest.mark.parametrize("case", [*CASES, *REFUSED])
def test_the_script_of_a_network_reads_what_the_set_of_its_images_did(
    tmp_path: Path, case: str, monkeypatch
) -> None:
    kind, data, *_ = (CASES | REFUSED)[case]
    path = tmp_path / f"case.{kind}"
    path.write_bytes(data)
    card = {"network": "none.gz", "stored_size": SIDE, "size": SIDE, "input": "x", "classes": "a"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    (tmp_path / "none.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "classify.py").write_text(takeaway.SCRIPT)
    read: list[np.ndarray] = []

    def run(_: None, inputs: dict[str, np.ndarray]) -> np.ndarray:
        read.append(inputs["x"])
        return np.zeros((1, 1, 1))

    session = SimpleNamespace(InferenceSession=lambda _: SimpleNamespace(run=run))
    monkeypatch.setitem(sys.modules, "onnxruntime", session)
    monkeypatch.setattr(sys, "argv", ["classify.py", str(path)])
    try:
        expected = np.asarray(images.read_image(path).convert("RGB"), np.float32)
    except ValueError:
        with pytest.raises((SystemExit, OSError, SyntaxError)):
            runpy.run_path(str(tmp_path / "classify.py"))
        assert not read
    else:
        runpy.run_path(str(tmp_path / "classify.py"))
        assert np.array_equal(np.rint(read[0][0] * 255), expected.transpose(2, 0, 1))
