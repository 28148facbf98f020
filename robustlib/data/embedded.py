"""The sets that need no network and no data root: scanned `digits`, rendered `glyphs`, and, with
masks, letters on texture, `glyphs_seg`."""

import string
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from robustlib.data.packs import IGNORE, Pack
from robustlib.data.splits import seed_for

# One case of each letter whose two cases have one shape (the letters EMNIST merges, and no lower
# case i and l, which pass for a capital I or a 1); no letter O, which in several faces is the zero.
GLYPHS = string.digits + string.ascii_uppercase.replace("O", "") + "abdefghnqrt"
# Every face in matplotlib that has letters and digits. Test holds out whole faces: three of
# families seen in train, in another weight or slant, and two unlike all of train (cmss10, cmtt10).
TEST_FACES = "DejaVuSerif-BoldItalic STIXGeneralBol cmss10 cmtt10 DejaVuSansMono".split()
TRAIN_FACES = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSans-Oblique DejaVuSansMono-Bold "
    "DejaVuSansMono-BoldOblique DejaVuSansMono-Oblique DejaVuSerif DejaVuSerif-Bold "
    "DejaVuSerif-Italic STIXGeneral STIXGeneralBolIta STIXGeneralItalic cmb10 cmmi10 cmr10 cmti10"
).split()
PER_FACE = 10  # images of each character in each face
LARGEST = 64  # px: rendering takes 2 s at 32 and 4 s at 64, so larger images are scaled up
DIGITS_TRAIN = 1_438
LETTERS = "AESX"  # few and large, so that a small network tells them apart within a minute
CANVAS = (48, 64)  # height and width, px


def digits(size: int) -> Pack:
    """Handwritten digits, grey 8 x 8 scans (scikit-learn's copy of UCI optdigits); size is ignored.

    1,438 train and 359 test images: the last fifth of the file is the test split, because
    neighbours in the file were written by the same hand. `load` scales the scans up.
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    x = np.round(scans.images * (255 / 16)).astype(np.uint8)[..., None]  # ink is 0 to 16 there
    y = scans.target.astype(np.int64)
    order = np.random.default_rng(seed_for("digits")).permutation(len(y))
    parts = {"train": order[order < DIGITS_TRAIN], "test": order[order >= DIGITS_TRAIN]}
    splits = {split: (x[rows], y[rows]) for split, rows in parts.items()}
    return Pack.of(splits, string.digits, "embedded")


def glyphs(size: int) -> Pack:
    """White printed characters on black, [N, S, S, 1]: 46 classes; 22 faces, none in both splits.

    7,820 train images from 17 faces and 2,300 test images from 5 others, each with a size (55 to
    95 % of the image), place and tilt (12 degrees at most) of its own. S is size, 64 at most.
    The same on every call.
    """
    size = min(size, LARGEST)
    rng = np.random.default_rng(seed_for("glyphs"))
    splits = {}
    for split, faces in (("train", TRAIN_FACES), ("test", TEST_FACES)):
        y = np.tile(np.repeat(np.arange(len(GLYPHS)), PER_FACE), len(faces))
        face = np.repeat(faces, len(GLYPHS) * PER_FACE)
        drawn = zip(face, y, rng.random((len(y), 4)), strict=True)
        x = np.stack([_draw(f, GLYPHS[k], size, jitter) for f, k, jitter in drawn])
        order = rng.permutation(len(y))  # rows of a pack are shuffled: its first N are a fair draw
        splits[split] = x[order, ..., None], y[order].astype(np.int64)
    return Pack.of(splits, GLYPHS, "embedded")


def glyphs_seg(size: int) -> Pack:
    """One to three printed letters on a textured background, [N, 48, 64, 3]: background and 4
    letters, a class each; size is ignored.

    600 train images in 17 faces and 200 test images in 5 others. Pixels that ink covers by a
    quarter to three quarters have no class. The same on every call.
    """
    rng = np.random.default_rng(seed_for("glyphs_seg"))
    splits = {}
    for split, faces, n in (("train", TRAIN_FACES, 600), ("test", TEST_FACES, 200)):
        x, masks = zip(*(_scene(rng, faces) for _ in range(n)), strict=True)
        splits[split] = np.stack(x), np.stack(masks)
    return Pack.of(splits, ("background", *LETTERS), "embedded")


def _scene(rng: np.random.Generator, faces: list[str]) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    height, width = CANVAS
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    texture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255 - 0.5
    shade = rng.uniform(60, 195)
    x = shade + rng.uniform(20, 100) * texture
    # Lighter or darker than the background, whichever there is more room for.
    ink = shade + (1 if shade < 128 else -1) * rng.uniform(60, 120) + rng.uniform(-20, 20, 3)
    mask = np.zeros(CANVAS, np.uint8)
    for _ in range(rng.integers(1, 4)):
        label, side = rng.integers(len(LETTERS)), int(rng.integers(36, 49))
        face = faces[rng.integers(len(faces))]
        covered = _draw(face, LETTERS[label], side, rng.random(4)) / 255
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        area = slice(top, top + side), slice(left, left + side)
        x[area] += covered[..., None] * (ink - x[area])
        mask[area][covered >= 0.25] = IGNORE
        mask[area][covered > 0.75] = label + 1
    return x.round().clip(0, 255).astype(np.uint8), mask


def _draw(face: str, char: str, size: int, jitter: np.ndarray) -> np.ndarray:
    """One character as uint8 [size, size]; jitter: scale, x, y, tilt, each in [0, 1)."""
    from PIL import Image, ImageDraw

    font = _font(face, max(4, round(size * (0.55 + 0.4 * jitter[0]))))
    left, top, right, bottom = font.getbbox(char)
    image = Image.new("L", (size, size), 0)
    # Anywhere in the middle, but not over the edge: a cut letter may be another one.
    room = np.maximum([size - (right - left), size - (bottom - top)], 0)
    at = room / 2 + (jitter[1:3] - 0.5) * np.minimum(room, size // 4) - (left, top)
    ImageDraw.Draw(image).text(tuple(np.round(at)), char, fill=255, font=font)
    return np.asarray(image.rotate(24 * jitter[3] - 12, Image.Resampling.BILINEAR))


@lru_cache(maxsize=512)
def _font(face: str, pixels: int):
    import matplotlib
    from PIL import ImageFont

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    # The basic layout is in every build of Pillow, the other one is not.
    return ImageFont.truetype(str(path), pixels, layout_engine=ImageFont.Layout.BASIC)


EMBEDDED: dict[str, Callable[[int], Pack]] = {f.__name__: f for f in (digits, glyphs, glyphs_seg)}
