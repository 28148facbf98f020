"""Corruptions: each grows with severity, and is what another library or a case by hand says."""

import time
from importlib import import_module
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from robustlib import store
from robustlib.data import Split, load
from robustlib.metrics.corruption import corrupted, corrupted_sets, corruption
from robustlib.metrics.distortions import CORRUPTIONS, as_bytes, floats

STILL = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")
"""Those that draw nothing."""


def natural(n: int, size: int = 32) -> Tensor:
    """Images with the falling spectrum of natural ones, and edges: uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size)] * 2))
    frequency[0, 0] = 1
    waves = np.fft.fft2(rng.normal(size=(n, 3, size, size))) / frequency
    x = np.fft.ifft2(waves).real
    x = x.mean(1, keepdims=True) + 0.4 * x
    x = (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)
    x[:, :, size // 4 : size // 2, size // 3 :] += 0.8  # an object
    return torch.from_numpy((110 + 45 * x).clip(0, 255).astype(np.uint8)).permute(0, 2, 3, 1)


def images(kind: str, n: int = 40) -> Split:
    if kind == "natural":
        return Split(natural(n), torch.zeros(n).long())
    test = load(kind, size=32).test
    return Split(test.x[:n], test.y[:n])


def damage(a: Split, b: Split) -> float:
    return float((a.x.float() - b.x.float()).abs().mean())


@pytest.mark.parametrize("kind", ["natural", "digits", "glyphs"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_grows_with_severity_and_what_comes_out_is_an_image_set(name, kind):
    split = images(kind)
    before = split.x.clone()
    found = [corrupted(split, name, s) for s in (1, 2, 3, 4, 5)]
    sizes = [damage(split, x) for x in found]
    assert sizes == sorted(set(sizes)) and sizes[0] > 0.2
    assert torch.equal(split.x, before)
    for x in found:
        assert x.x.dtype == torch.uint8 and x.x.shape == split.x.shape
        assert torch.equal(x.y, split.y)
    assert torch.equal(corrupted(split, name, 3).x, found[2].x)
    assert torch.equal(corrupted(split, name, 3, seed=1).x, found[2].x) == (name in STILL)
    # No corruption may change what the image is of: it stays nearer to itself than to another.
    others = split.x.roll(1, 0).float()
    assert sizes[0] < float((split.x.float() - others).abs().mean())


@pytest.mark.parametrize("size", [24, 48, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_damage_grows_at_other_sizes_too(name, size):
    split = Split(natural(24, size), torch.zeros(24).long())
    sizes = [damage(split, corrupted(split, name, s)) for s in (1, 2, 3, 4, 5)]
    assert sizes == sorted(set(sizes)) and sizes[0] > 0.2


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_images_and_other_sizes_work_and_the_generator_is_left_alone(name):
    state = torch.get_rng_state()
    colour = images("natural", 12)
    grey = Split(colour.x[..., :1].contiguous(), colour.y)
    found = corrupted(grey, name, 4)
    assert found.x.shape == grey.x.shape and damage(found, grey) > 0.2
    if name not in ("gaussian_noise", "shot_noise", "impulse_noise", "frost", "jpeg"):
        # One draw for all channels, no tint: a grey image is a colour image of equal channels.
        same = corrupted(Split(grey.x.expand(-1, -1, -1, 3).contiguous(), grey.y), name, 4)
        assert (same.x.int() - found.x.int()).abs().max() <= 1
    for size in (8, 12):
        sized = Split(natural(3, size), torch.zeros(3).long())
        small = [damage(sized, corrupted(sized, name, s)) for s in (1, 5)]
        assert small[1] > small[0] and small[1] > 0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_the_noises_have_the_moments_that_they_should():
    level = 100
    flat = Split(torch.full((50, 32, 32, 3), level).to(torch.uint8), torch.zeros(50).long())
    x = corrupted(flat, "gaussian_noise", 3).x.float() / 255
    assert float(x.mean()) == pytest.approx(level / 255, abs=0.001)
    assert float(x.std()) == pytest.approx(0.08, rel=0.01)
    x = corrupted(flat, "shot_noise", 4).x.float() / 255
    assert float(x.mean()) == pytest.approx(level / 255, abs=0.001)
    assert float(x.var()) == pytest.approx(level / 255 / 75, rel=0.02)  # Poisson: mean / photons
    x = corrupted(flat, "impulse_noise", 5).x
    assert float((x == 255).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((x == 0).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((x == level).float().mean()) == pytest.approx(0.93, rel=0.01)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic", "pixelate"]
)
def test_what_moves_or_averages_pixels_leaves_an_even_image_as_it_is(name):
    x = torch.tensor([0, 90, 255]).to(torch.uint8).expand(4, 32, 32, 3).contiguous()
    flat = Split(x, torch.zeros(4).long())
    for severity in (1, 5):
        assert damage(corrupted(flat, name, severity), flat) == 0
    split = images("natural")
    mean = corrupted(split, name, 2).x.float().mean()
    assert float(mean) == pytest.approx(float(split.x.float().mean()), abs=1.5)


def by_hand(x: np.ndarray, name: str, severity: int) -> np.ndarray:
    """The corruption of one image [S, S, 3] by other libraries, as floats in [0, 255]."""
    s = severity - 1
    if name == "contrast":
        mean = x.mean((0, 1), keepdims=True)
        return mean + (x - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[s]
    if name == "brightness":
        hsv = rgb_to_hsv(x / 255)
        hsv[..., 2] = (hsv[..., 2] + (0.05, 0.1, 0.15, 0.2, 0.3)[s]).clip(0, 1)
        return hsv_to_rgb(hsv) * 255
    if name == "jpeg":
        coded = BytesIO()
        Image.fromarray(x).save(coded, "JPEG", quality=(80, 65, 58, 50, 40)[s])
        return np.asarray(Image.open(coded))
    if name == "pixelate":
        side = (30, 28, 27, 24, 20)[s]
        small = Image.fromarray(x).resize((side, side), Image.Resampling.BOX)
        return np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    if name == "defocus_blur":  # radius 1: a pixel and its four neighbours; 1.5: all eight
        kernel = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) if severity == 4 else np.ones((3, 3))
        return ndimage.convolve(x / 1.0, kernel[..., None] / kernel.sum(), mode="mirror")
    zooms = [x / 1.0]
    for z in np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[s], 0.01):
        shift = 15.5 * (1 - 1 / z)
        channels = [ndimage.affine_transform(c, [1 / z] * 2, shift, order=1) for c in x.T / 1.0]
        zooms.append(np.stack(channels).T)
    return np.mean(zooms, 0)


@pytest.mark.parametrize("name", STILL)
def test_another_library_makes_the_same(name):
    split = images("natural", 6)
    for severity in (4, 5) if name == "defocus_blur" else (1, 3, 5):
        ours = corrupted(split, name, severity).x.numpy().astype(float)
        for x, mine in zip(split.x.numpy(), ours, strict=True):
            assert np.abs(by_hand(x, name, severity).clip(0, 255) - mine).max() <= 1.01


def test_motion_smears_a_point_along_a_line_that_each_image_has_for_itself():
    x = torch.zeros(30, 33, 33, 1)
    x[:, 16, 16] = 1
    lengths, angles = [], []
    places = torch.arange(33.0) - 16
    for severity in (1, 5):
        draws = torch.Generator().manual_seed(0)
        spread = CORRUPTIONS["motion_blur"](x.permute(0, 3, 1, 2), severity, draws)[:, 0]
        assert torch.allclose(spread.sum((1, 2)), torch.ones(30), atol=1e-4)
        down = (spread.sum(2) * places).sum(1)
        right = (spread.sum(1) * places).sum(1)
        lengths.append(torch.hypot(down, right).mean())
        angles.append(torch.atan2(down, right.abs()))
    # The mean of half a Gaussian of sigma 2.5 is 2; of one cut into whole steps it is a bit less.
    assert 0.4 < lengths[0] < 0.8 and 1.4 < lengths[1] < 2.1
    assert torch.allclose(*angles, atol=0.05)
    assert angles[0].abs().max() <= np.pi / 4 + 0.05 and angles[0].std() > 0.3


def test_weather_lightens_and_fog_veils():
    split = images("natural")
    mean, contrast = split.x.float().mean(), split.x.float().std((1, 2)).mean()
    for name in ("snow", "frost"):
        assert corrupted(split, name, 3).x.float().mean() > mean + 15
    assert corrupted(split, "fog", 3).x.float().std((1, 2)).mean() < 0.9 * contrast
    assert corrupted(split, "fog", 5).x.amax() <= split.x.amax()


def bright_or_dark(n: int = 20) -> Split:
    y = torch.arange(n) % 2
    return Split((255 * y)[:, None, None, None].expand(-1, 16, 16, 1).to(torch.uint8), y)


def threshold() -> nn.Module:
    """Class 1 where an image is lighter than half."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 3))
        model[2].bias.copy_(torch.tensor([0.0, -1.5]))
    return model


def test_the_limits_what_no_corruption_hides_and_a_network_that_does_not_look():
    split = bright_or_dark()
    row, table = corruption(threshold(), split)
    assert row == {"n": 20, "clean_accuracy": 1.0, "corruption_accuracy": 1.0}
    assert [(r["corruption"], r["severity"]) for r in table] == [
        (name, s) for name in CORRUPTIONS for s in (1, 2, 3, 4, 5)
    ]
    blind = threshold()
    nn.init.zeros_(blind[2].weight)  # always class 0
    blind.train()
    row, table = corruption(blind, Split(split.x, (torch.arange(20) < 5).long()))
    assert row["clean_accuracy"] == row["corruption_accuracy"] == 0.75 and blind.training
    assert all(r["correct"] == 15 and r["accuracy"] == 0.75 for r in table)


def test_the_accuracy_is_that_on_the_corrupted_images():
    split = images("digits", 60)
    lighter = Split(split.x, (split.x.float().mean((1, 2, 3)) > 127).long())
    row, table = corruption(threshold(), lighter)
    for r in (table[0], table[37], table[54]):
        x = corrupted(lighter, r["corruption"], r["severity"]).x.float().mean((1, 2, 3))
        right = int(((x > 127.5).long() == lighter.y).sum())
        assert abs(r["correct"] - right) <= 1 and r["accuracy"] == r["correct"] / 60
    assert row["corruption_accuracy"] == pytest.approx(np.mean([r["accuracy"] for r in table]))
    assert corruption(threshold(), lighter, limit=20)[0]["n"] == 20


def test_sets_are_made_once_and_told_apart_by_images_and_seed(monkeypatch):
    split = bright_or_dark(8)
    first = list(corrupted_sets(split))
    files = sorted((store.root() / "corrupted").iterdir())
    assert len(first) == 75 and len(files) == 15
    for name, severity, found in first[::7]:
        assert torch.equal(found.x, corrupted(split, name, severity).x)
    list(corrupted_sets(split, seed=1))
    list(corrupted_sets(Split(split.x.flip(0), split.y)))
    assert len(list((store.root() / "corrupted").iterdir())) == 45

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(import_module("robustlib.metrics.corruption"), "corrupted", never)
    again = list(corrupted_sets(Split(split.x, 1 - split.y)))
    assert all(torch.equal(a[2].x, b[2].x) for a, b in zip(first, again, strict=True))
    assert torch.equal(again[0][2].y, 1 - split.y)  # the labels are the caller's


def test_a_damaged_file_is_named_and_made_again():
    split = bright_or_dark(8)
    first = list(corrupted_sets(split))
    file = sorted((store.root() / "corrupted").iterdir())[0]
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged.*made again"):
        again = list(corrupted_sets(split))
    assert all(torch.equal(a[2].x, b[2].x) for a, b in zip(first, again, strict=True))
    list(corrupted_sets(split))  # no warning: it was written again


def test_two_thousand_images_take_no_longer_than_a_coffee():
    """All 75 sets of 2,000 images in well under two minutes: a tenth of them is made here."""
    split = images("natural", 200)
    start = time.process_time()
    list(corrupted_sets(split))
    assert time.process_time() - start < 10


def test_bytes_and_floats_are_inverse_and_bad_values_are_refused_by_name():
    x = natural(2)
    assert torch.equal(as_bytes(floats(x)), x)
    split = bright_or_dark(4)
    for arguments, says in (
        (("gausian_noise", 1), "name='gausian_noise'.*mean 'gaussian_noise'"),
        (("fog", 0), "severity=0"),
        (("fog", 6), "severity=6"),
        (("fog", 1, -1), "seed=-1"),
    ):
        with pytest.raises(ValueError, match=says):
            corrupted(split, *arguments)
    with pytest.raises(ValueError, match="limit=0"):
        corruption(threshold(), split, limit=0)
