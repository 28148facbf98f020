"""The two sets that need no network and no data root: scanned `digits`, rendered `glyphs`."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from robustlib.data.packs import Pack
from robustlib.data.splits import seed_for

# One case of each letter whose two cases have one shape (the letters EMNIST merges, and no lower
# case i and l, which pass for a capital I or a 1); no letter O, which in several faces is the zero.
GLYPHS = string.digits + string.ascii_uppercase.replace("O", "") + "abdefghnqrt"
# Every face in matplotlib that has letters and digits. Test holds out whole faces: three of
# families seen in train, in another weight or slant, and two unlike all of train (cmss10, cmtt10).
TEST_FACES = ("DejaVuSerif-BoldItalic", "STIXGeneralBol", "cmss10", "cmtt10", "DejaVuSansMono")
TRAIN_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique"),
    *("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    *("STIXGeneral", "STIXGeneralBolIta", "STIXGeneralItalic"),
    *("cmb10", "cmmi10", "cmr10", "cmti10"),
)
PER_FACE = 10  # images of each character in each face
LARGEST = 64  # px: rendering takes 2 s at 32 and 4 s at 64, so larger images are scaled up
N_GLYPHS = tuple(len(GLYPHS) * PER_FACE * len(faces) for faces in (TRAIN_FACES, TEST_FACES))
N_DIGITS = (1_438, 359)


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
    train, test = order[order < N_DIGITS[0]], order[order >= N_DIGITS[0]]
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    return Pack(arrays, tuple(string.digits), "embedded")


def glyphs(size: int) -> Pack:
    """White printed characters on black, [N, S, S, 1]: 46 classes; 22 faces, none in both splits.

    7,820 train images from 17 faces and 2,300 test images from 5 others, each with a size (55 to
    95 % of the image), place and tilt (12 degrees at most) of its own. S is size, 64 at most.
    The same on every call.
    """
    size = min(size, LARGEST)
    rng = np.random.default_rng(seed_for("glyphs"))
    arrays: dict[str, np.ndarray] = {}
    for split, faces in (("train", TRAIN_FACES), ("test", TEST_FACES)):
        y = np.tile(np.repeat(np.arange(len(GLYPHS)), PER_FACE), len(faces))
        face = np.repeat(faces, len(GLYPHS) * PER_FACE)
        jitter = rng.random((len(y), 4))
        x = np.stack(
            [_draw(f, GLYPHS[k], size, j) for f, k, j in zip(face, y, jitter, strict=True)]
        )
        order = rng.permutation(len(y))  # rows of a pack are shuffled: its first N are a fair draw
        arrays |= {f"x_{split}": x[order, ..., None], f"y_{split}": y[order].astype(np.int64)}
    return Pack(arrays, tuple(GLYPHS), "embedded")


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


EMBEDDED: dict[str, Callable[[int], Pack]] = {"digits": digits, "glyphs": glyphs}
