"""Corruptions: each grows with severity, and is what another library or a case by hand says."""

import time
from importlib import import_module
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor, nn

from robustlib import store
from robustlib.data import Split, load
from robustlib.metrics.corruption import corrupted, corrupted_sets, measure
from robustlib.metrics.distortions import CORRUPTIONS, as_bytes, floats
from robustlib.specs import Evaluation

STILL = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg")
"""Those that draw nothing."""

every_severity = pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
# The parameters below are those of CIFAR-10-C (Hendrycks and Dietterich 2019, make_cifar_c.py),
# but for those of glass, elastic and frost, and a sigma of motion, where `distortions` departs.


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


def distorted(x: Tensor, name: str, severity: int) -> Tensor:
    """Floats [N, C, S, S], neither clipped nor rounded: what closed forms are of."""
    return CORRUPTIONS[name](x, severity, torch.Generator().manual_seed(0))


def agrees(samples: Tensor, expected: float) -> None:
    """The mean of independent samples is the expected one, to 5 standard errors."""
    error = float(samples.std()) / len(samples) ** 0.5
    assert float(samples.mean()) == pytest.approx(expected, abs=5 * error)


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


@every_severity
def test_the_noises_have_the_moments_that_they_should(severity):
    level, s = 0.4, severity - 1
    flat = torch.full((100, 3, 32, 32), level)
    photons = (500, 250, 100, 75, 50)[s]  # Poisson: variance = mean / photons
    for name, variance in (
        ("gaussian_noise", (0.04, 0.06, 0.08, 0.09, 0.10)[s] ** 2),
        ("shot_noise", level / photons),
    ):
        x = distorted(flat, name, severity)
        agrees(x.mean((1, 2, 3)), level)
        agrees((x - level).square().mean((1, 2, 3)), variance)
    x = distorted(flat, "impulse_noise", severity)
    hit = (0.01, 0.02, 0.03, 0.05, 0.07)[s]
    for value, share in ((1, hit / 2), (0, hit / 2), (level, 1 - hit)):
        agrees((x == value).float().mean((1, 2, 3)), share)


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
    if name == "defocus_blur":
        disk = np.hypot(*np.mgrid[-4:5, -4:5]) <= (0.3, 0.4, 0.5, 1, 1.5)[s]
        kernel = ndimage.gaussian_filter(disk / disk.sum(), (0.4, 0.5, 0.6, 0.2, 0.1)[s])
        return ndimage.convolve(x / 1.0, kernel[..., None], mode="mirror")
    zooms = [x / 1.0]
    for z in np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[s], 0.01):
        shift = 15.5 * (1 - 1 / z)
        channels = [ndimage.affine_transform(c, [1 / z] * 2, shift, order=1) for c in x.T / 1.0]
        zooms.append(np.stack(channels).T)
    return np.mean(zooms, 0)


@every_severity
@pytest.mark.parametrize("name", STILL)
def test_another_library_makes_the_same(name, severity):
    split = images("natural", 6)
    ours = corrupted(split, name, severity).x.numpy().astype(float)
    for x, mine in zip(split.x.numpy(), ours, strict=True):
        assert np.abs(by_hand(x, name, severity).clip(0, 255) - mine).max() <= 1.01


@pytest.mark.parametrize("size", [32, 64])
def test_motion_smears_a_point_along_a_line_that_each_image_has_for_itself(size):
    places = torch.arange(float(size)) - size // 2
    x = torch.zeros(30, 1, size, size)
    x[:, :, size // 2, size // 2] = 1
    angles = []
    for severity, sigma in enumerate((1, 1.5, 2, 2.25, 2.5), 1):
        spread = distorted(x, "motion_blur", severity)[:, 0]
        assert torch.allclose(spread.sum((1, 2)), torch.ones(30), atol=1e-4)
        down = (spread.sum(2) * places).sum(1)
        right = (spread.sum(1) * places).sum(1)
        # Half a Gaussian in steps of a pixel; sharing a step among pixels keeps where it lies.
        weights = stats.norm.pdf(np.arange(30), scale=sigma * size / 32)
        length = np.average(np.arange(30), weights=weights)
        assert torch.allclose(torch.hypot(down, right), torch.tensor(length).float(), rtol=0.01)
        angles.append(torch.atan2(down, right.abs()))
    assert all(torch.allclose(angles[0], a, atol=0.01) for a in angles)
    assert angles[0].abs().max() <= np.pi / 4 + 0.01 and angles[0].std() > 0.3


@every_severity
def test_glass_moves_its_share_of_the_pixels_to_any_neighbour_under_one_blur(severity):
    share = (0.2, 0.35, 0.5, 0.75, 1)[severity - 1]
    places = torch.arange(32.0)
    down, right = torch.meshgrid(places, places, indexing="ij")
    x = torch.stack([down, right, (down >= 16).float()]).expand(150, -1, -1, -1)
    x = distorted(x, "glass_blur", severity)
    # Ramps show by how much each pixel moved: -1, 0 or 1, averaged by the blur that follows.
    down, right = (x[:, :2] - torch.stack([down, right]))[..., 5:-5, 5:-5].unbind(1)
    point = np.zeros((9, 9))
    point[4, 4] = 1
    averaged = (ndimage.gaussian_filter(point, 0.4) ** 2).sum()
    for moved in (down, right):
        agrees(moved.mean((1, 2)), 0)
        agrees(moved.square().mean((1, 2)), share * 2 / 3 * averaged)
    agrees((down * right).mean((1, 2)), 0)
    # An edge is blurred, moved, and blurred again.
    edge = ndimage.gaussian_filter1d(places.numpy() >= 16, 0.4, output=float)
    edge = ndimage.convolve1d(edge, [share / 3, 1 - share * 2 / 3, share / 3])
    edge = ndimage.gaussian_filter1d(edge, 0.4)
    for row in (14, 15, 16, 17):
        agrees(x[:, 2, row].mean(1), edge[row])


@every_severity
def test_elastic_waves_and_an_affine_map_both_move_pixels_along_both_axes(severity):
    warp = (0.04, 0.06, 0.08, 0.1, 0.12)[severity - 1] * 32
    shift = (0.02, 0.03, 0.04, 0.05, 0.06)[severity - 1] * 32
    ramps = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 2, indexing="ij"))
    x = distorted(ramps.expand(400, -1, -1, -1), "elastic", severity)
    moved = (x - ramps)[..., 8:24, 8:24]  # no place here comes from over the edge

    def wave_variance(weights: np.ndarray) -> float:
        """Of a weighted sum of the waves: uniform noise under a Gaussian."""
        smooth = ndimage.gaussian_filter(np.pad(weights, 8), 0.04 * 32, mode="constant")
        return warp**2 / 3 * (smooth**2).sum()

    agrees(moved.prod(1).mean((1, 2)), 0)  # along each axis for itself
    for along in (moved[:, 0], moved[:, 1]):
        # The affine map is left out of second differences, ...
        bend = np.array([[1.0, -2.0, 1.0]])
        agrees(along.diff(n=2, dim=2).square().mean((1, 2)), wave_variance(bend))
        agrees(along.diff(n=2, dim=1).square().mean((1, 2)), wave_variance(bend.T))
        # ... and most of the waves out of means. The map takes three corners of a square, whose
        # sides are 2/3 of the image, by up to +-shift each: its centre by the mean of two of them,
        agrees(along.mean((1, 2)), 0)
        mean = np.full((16, 16), 1 / 256)
        agrees(along.mean((1, 2)).square(), shift**2 / 3 / 2 + wave_variance(mean))
        # and the two ends of a side by their own.
        slope = mean * np.repeat([-2, 2], 8) / 8
        slopes = wave_variance(slope) + 2 * shift**2 / 3 / (32 * 2 / 3) ** 2
        for dim in (1, 2):
            low, high = along.chunk(2, dim)
            agrees(((high - low).mean((1, 2)) / 8).square(), slopes)


@every_severity
def test_fog_is_octaves_of_noise_over_the_whole_range_of_its_amount(severity):
    amount, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    x = floats(natural(5))
    draws = torch.Generator().manual_seed(0)
    cloud = np.zeros((5, 32, 32))
    for octave, side in enumerate((2, 4, 8, 16, 32)):
        noise = torch.rand((5, 1, side, side), generator=draws)[:, 0].numpy()
        zoom = (1, 32 / side, 32 / side)
        noise = ndimage.zoom(noise, zoom, order=1, mode="nearest", grid_mode=True)
        # By the square, as in the original, which multiplies its "wibble" twice.
        cloud += noise / decay ** (2 * octave)
    cloud -= cloud.min((1, 2), keepdims=True)
    cloud /= cloud.max((1, 2), keepdims=True)
    most = x.amax((1, 2, 3), True)
    expected = (x + amount * torch.from_numpy(cloud).float()[:, None]) * most / (most + amount)
    assert torch.allclose(distorted(x, "fog", severity), expected, atol=1e-4)


@every_severity
def test_frost_is_bluish_grainy_ice_over_a_fading_image(severity):
    keep = (1, 0.975, 0.95, 0.925, 0.9)[severity - 1]
    amount = (0.2, 0.275, 0.35, 0.425, 0.5)[severity - 1]
    x = floats(natural(100))
    bare = distorted(torch.zeros_like(x), "frost", severity)
    assert torch.allclose(distorted(x, "frost", severity) - bare, keep * x, atol=1e-5)
    ice = bare / amount
    red, green, blue = ice.mean((2, 3)).unbind(1)
    assert torch.allclose(blue - green, torch.tensor(0.05), atol=1e-5)
    assert torch.allclose(green - red, torch.tensor(0.05), atol=1e-5)
    agrees(green, (0.37 + 0.8) / 2)
    assert 0.37 <= green.min() < 0.4 and 0.77 < green.max() <= 0.8
    grain = (ice - ice.mean((2, 3), True)) / 0.07
    assert torch.allclose(grain.square().mean((2, 3)), torch.tensor(1.0), atol=1e-3)
    for dim in (2, 3):  # of neighbours: neither noise of pixels nor a smooth cloud
        assert 0.78 < 1 - float(grain.diff(dim=dim).square().mean()) / 2 < 0.9


@every_severity
def test_snow_whitens_and_lays_two_layers_of_flakes_on_it(severity):
    mean, deviation, zoom, floor, keep = (
        (0.1, 0.2, 1, 0.6, 0.95),
        (0.1, 0.2, 1, 0.5, 0.9),
        (0.15, 0.3, 1.75, 0.55, 0.9),
        (0.25, 0.3, 2.25, 0.6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 0.8),
    )[severity - 1]
    black = (1 - keep) * 0.5
    x = floats(natural(4))
    grey = torch.tensordot(x, torch.tensor([0.299, 0.587, 0.114]), ([1], [0]))[:, None]
    white = keep * x + (1 - keep) * torch.maximum(x, 1.5 * grey + 0.5)
    bare = distorted(torch.zeros_like(x), "snow", severity)
    assert torch.allclose(distorted(x, "snow", severity) - bare, white - black, atol=1e-5)

    flakes = distorted(torch.zeros(150, 1, 32, 32), "snow", severity) - black
    # The second layer is the first one upside down.
    assert torch.allclose(flakes, flakes.rot90(2, (2, 3)), atol=1e-5)
    # They fall: streaks are more down than across.
    down, across = (flakes.diff(dim=dim).square().mean() for dim in (2, 3))
    assert down < 0.6 * across
    # Each flake is a pixel of noise above the floor; the zoom before it averages its neighbours.
    part = (15.5 + (np.arange(32) - 15.5) / zoom) % 1
    evened = np.hypot(part, 1 - part)
    spread = deviation * np.outer(evened, evened)
    low, high = (floor - mean) / spread, (1 - mean) / spread
    norm = stats.norm
    layer = mean * (norm.cdf(high) - norm.cdf(low)) + norm.sf(high)
    layer += spread * (norm.pdf(low) - norm.pdf(high))
    agrees(flakes.mean((1, 2, 3)), 2 * layer.mean())


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


def corruption(model: nn.Module, split: Split, **fields) -> tuple[dict, list[dict]]:
    data = SimpleNamespace(test=split)
    row, tables = measure(model, data, Evaluation(suite="corruption", **fields))
    return row, tables["corruptions"]


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
    files = sorted((store.root() / "corruptions").iterdir())
    assert len(first) == 75 and len(files) == 15
    for name, severity, found in first[::7]:
        assert torch.equal(found.x, corrupted(split, name, severity).x)
    list(corrupted_sets(split, seed=1))
    list(corrupted_sets(Split(split.x.flip(0), split.y)))
    assert len(list((store.root() / "corruptions").iterdir())) == 45

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(import_module("robustlib.metrics.corruption"), "corrupted", never)
    again = list(corrupted_sets(Split(split.x, 1 - split.y)))
    assert all(torch.equal(a[2].x, b[2].x) for a, b in zip(first, again, strict=True))
    assert torch.equal(again[0][2].y, 1 - split.y)  # the labels are the caller's


def test_a_damaged_file_is_named_and_made_again():
    split = bright_or_dark(8)
    first = list(corrupted_sets(split))
    file = sorted((store.root() / "corruptions").iterdir())[0]
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


def test_bytes_and_floats_are_inverse():
    x = natural(2)
    assert torch.equal(as_bytes(floats(x)), x)
