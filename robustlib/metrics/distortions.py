"""The 15 corruptions of Hendrycks and Dietterich (2019), at 5 severities, for small images.

Written anew from the published parameters of CIFAR-10-C (make_cifar_c.py). Lengths are those for
32 px; in larger images they grow with the side. All severities of a corruption have the same draws,
and each damages more than the one before it (mean absolute difference of pixels, natural images of
24 to 64 px; of digits the first two of pixelate may change places). Where the published parameters
do not do so, or need what is not at hand, this departs from them, and so do the numbers:

- frost blends in generated ice, of the mean colour, contrast and grain of the photographs that the
  original takes, and the image fades less under it, else severities 4 and 5 change less than 3;
- elastic: the published displacement shrinks as the warp grows; here both grow;
- glass: a growing share of pixels takes a random neighbour's colour; the original swaps everywhere;
- motion: from severity 3 to 4 the original reaches further without weight; here sigma grows too;
- fog is a sum of octaves of noise in place of the diamond-square algorithm.
"""

import math
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Draws = torch.Generator
VERSION = 2
"""Of the parameters and the code: another one makes other images."""


def gaussian_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Independent normal noise on every value."""
    deviation = _level(severity, 0.04, 0.06, 0.08, 0.09, 0.10)
    return x + deviation * torch.randn(x.shape, generator=draws)


def shot_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Poisson noise, as of few photons."""
    photons = _level(severity, 500, 250, 100, 75, 50)
    return torch.poisson(x * photons, generator=draws) / photons


def impulse_noise(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Values replaced by 0 or 1, each at random."""
    amount = _level(severity, 0.01, 0.02, 0.03, 0.05, 0.07)
    hit, salt = torch.rand(x.shape, generator=draws), torch.rand(x.shape, generator=draws)
    return torch.where(hit < amount, (salt < 0.5).float(), x)


def defocus_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blurred by a disk, as out of focus."""
    radius, alias = _level(severity, (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    # The edge is blurred by pixels, whatever their size: else severity 4 would be below 3.
    return _filtered(x, _disk(radius * _scale(x), alias))


def glass_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Pixels moved to random places nearby, blurred before and after."""
    share, sigma = _level(severity, 0.2, 0.35, 0.5, 0.75, 1.0), 0.4 * _scale(x)
    far, size = max(1, round(_scale(x))), x.shape[-1]
    x = _gaussian(x, sigma)
    shape = (len(x), size, size)
    shifts = torch.randint(-far, far + 1, (2, *shape), generator=draws)
    shifts = shifts * (torch.rand(shape, generator=draws) < share)
    down = (torch.arange(size)[:, None] + shifts[0]).clamp_(0, size - 1)
    right = (torch.arange(size) + shifts[1]).clamp_(0, size - 1)
    places = (down * size + right).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return _gaussian(x.flatten(2).gather(2, places).view(x.shape), sigma)


def motion_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Blurred along a line, at a random angle within 45 degrees of the horizontal."""
    radius, sigma = _level(severity, (6, 1), (6, 1.5), (6, 2), (8, 2.25), (9, 2.5))
    angles = (torch.rand(len(x), generator=draws) - 0.5) * math.pi / 2
    return _moved(x, radius * _scale(x), sigma * _scale(x), angles)


def zoom_blur(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """The mean of the image and of ones zoomed in further and further."""
    total, factors = x, 1 + 0.01 * np.arange(_level(severity, 7, 12, 16, 21, 26))
    for zoom in [_zoom(x.shape[-1], float(f)) for f in factors]:
        total = total + zoom @ x @ zoom.T
    return total / (len(factors) + 1)


def snow(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Greyed and brightened, with moved flakes on it."""
    mean, deviation, zoom, floor, radius, sigma, keep = _level(
        severity,
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    flakes = mean + deviation * torch.randn((len(x), 1, *x.shape[2:]), generator=draws)
    angles = -(0.25 + 0.5 * torch.rand(len(x), generator=draws)) * math.pi
    matrix = _zoom(x.shape[-1], zoom)
    flakes = matrix @ flakes @ matrix.T
    flakes = torch.where(flakes < floor, 0.0, flakes).clamp(0, 1)
    flakes = _moved(flakes, radius * _scale(x), sigma * _scale(x), angles)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = x if x.shape[1] == 1 else (x * weights).sum(1, True)
    x = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return x + flakes + flakes.rot90(2, (2, 3))


def frost(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Darkened under a random field of ice."""
    keep, ice = _level(severity, (1, 0.2), (0.975, 0.275), (0.95, 0.35), (0.925, 0.425), (0.9, 0.5))
    # Of the six photographs of the original at the scale it takes them: means of 0.37 to 0.8,
    # a deviation of 0.07 within 32 px, a correlation of 0.9 from pixel to pixel, bluish.
    level = 0.37 + 0.43 * torch.rand((len(x), 1, 1, 1), generator=draws)
    grain = _plasma(len(x), x.shape[-1], 1.3, draws)
    tint = torch.tensor([-0.05, 0.0, 0.05])[: x.shape[1], None, None] * (x.shape[1] == 3)
    return keep * x + ice * (level + 0.07 * grain + tint)


def fog(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """A random cloud added, and the range scaled back to that of the image."""
    amount, decay = _level(severity, (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    cloud = _plasma(len(x), x.shape[-1], decay**2, draws)
    low, high = cloud.amin((1, 2, 3), True), cloud.amax((1, 2, 3), True)
    most = x.amax((1, 2, 3), True)
    return (x + amount * (cloud - low) / (high - low)) * most / (most + amount)


def brightness(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """The value of HSV raised, hue and saturation kept; black has neither."""
    value = x.amax(1, True)
    more = (value + _level(severity, 0.05, 0.1, 0.15, 0.2, 0.3)).clamp(max=1)
    return torch.where(value > 0, x * (more / value.clamp_min(1e-6)), more)


def contrast(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Drawn towards the mean of each channel."""
    mean = x.mean((2, 3), True)
    return mean + (x - mean) * _level(severity, 0.75, 0.5, 0.4, 0.3, 0.15)


def elastic(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Warped by a random affine map and smooth waves."""
    size = x.shape[-1]
    warp = _level(severity, 0.04, 0.06, 0.08, 0.1, 0.12)
    shift = _level(severity, 0.02, 0.03, 0.04, 0.05, 0.06)
    places = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    down, right = places[:, None].expand(size, size), places.expand(size, size)
    # A random affine map moves three corners of a square, and takes all other places along.
    third = size / 3
    first, last = (1 + right / third) / 2, (1 - down / third) / 2
    weights = torch.stack([first, 1 - first - last, last])
    corners = (2 * torch.rand((len(x), 2, 3), generator=draws) - 1) * shift * size
    moved = torch.einsum("nck,khw->nchw", corners, weights)
    waves = 2 * torch.rand((len(x), 2, size, size), generator=draws) - 1
    moved = moved + warp * size * _gaussian(waves, 0.04 * size)
    grid = torch.stack([right + moved[:, 1], down + moved[:, 0]], -1) * (2 / (size - 1))
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=True)


def pixelate(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Made smaller and large again, by boxes."""
    small = size = x.shape[-1]
    for share in (0.95, 0.9, 0.85, 0.75, 0.65)[:severity]:  # no two the same where images are small
        small = max(1, min(int(size * share), small - 1))
    matrix = _box(small, size) @ _box(size, small)
    return matrix @ x @ matrix.T


def jpeg(x: Tensor, severity: int, draws: Draws) -> Tensor:
    """Coded as JPEG and decoded."""
    from PIL import Image

    quality = _level(severity, 80, 65, 58, 50, 40)
    out = np.empty((len(x), *x.shape[2:], x.shape[1]), dtype=np.uint8)
    for i, image in enumerate(as_bytes(x).numpy()):
        coded = BytesIO()
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.save(coded, "JPEG", quality=quality)
        out[i] = np.asarray(Image.open(coded)).reshape(image.shape)
    return floats(torch.from_numpy(out))


NAMES = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow "
    "frost fog brightness contrast elastic pixelate jpeg"
).split()
CORRUPTIONS: dict[str, Callable[[Tensor, int, Draws], Tensor]] = {n: globals()[n] for n in NAMES}


def _level(severity: int, *values: Any) -> Any:
    return values[severity - 1]


def _scale(x: Tensor) -> float:
    return max(1.0, x.shape[-1] / 32)


def floats(x: Tensor) -> Tensor:
    """[N, S, S, C] uint8 -> [N, C, S, S] in [0, 1]."""
    return x.permute(0, 3, 1, 2).float() / 255


def as_bytes(x: Tensor) -> Tensor:
    """The inverse of `floats`: clipped and rounded."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """x filtered with one kernel [K, K] for all, or with one [N, K, K] for each image."""
    n, channels, height, width = x.shape
    pad = kernel.shape[-1] // 2
    kernels = kernel.expand(n, *kernel.shape[-2:]).repeat_interleave(channels, 0)[:, None]
    x = F.pad(x, (pad,) * 4, mode="reflect" if pad < height else "replicate")
    out = F.conv2d(x.reshape(1, n * channels, *x.shape[2:]), kernels, groups=n * channels)
    return out.view(n, channels, height, width)


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    reach = min(max(1, math.ceil(4 * sigma)), x.shape[-1] - 1)
    return gaussian_blur(x, 2 * reach + 1, sigma)


def _disk(radius: float, alias: float) -> Tensor:
    """A disk whose edge is blurred a pixel wide, as the original draws it."""
    reach = math.ceil(radius) + 1
    places = torch.arange(-reach, reach + 1)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).float()
    kernel = _gaussian(F.pad(inside, (1,) * 4)[None, None], alias)[0, 0]
    return kernel / kernel.sum()


def _moved(x: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """x smeared along a line from each pixel, by a half of a Gaussian, at an angle for each."""
    steps = torch.arange(2 * round(radius) + 1, dtype=torch.float32)
    weights = torch.exp(-(steps**2) / (2 * sigma**2))
    steps, weights = steps[weights > 1e-4], weights[weights > 1e-4]
    places = torch.arange(-len(steps), len(steps) + 1)
    # Each step of the line is shared among the pixels around it.
    down, right = (
        (1 - (places[:, None] - f(angles)[:, None, None] * steps).abs()).clamp_min(0)
        for f in (torch.sin, torch.cos)
    )
    kernels = torch.einsum("nas,nbs,s->nab", down, right, weights)
    return _filtered(x, kernels / kernels.sum((1, 2), True))


@cache
def _zoom(size: int, factor: float) -> Tensor:
    """[S, S]: the middle of a line of pixels, stretched by a factor, linearly interpolated."""
    middle = (size - 1) / 2
    at = middle + (torch.arange(size) - middle) / factor
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp_min(0)


@cache
def _box(size: int, to: int) -> Tensor:
    """[to, S]: Pillow's BOX resampling of a line of pixels, as a matrix."""
    from PIL import Image

    lines = Image.fromarray(np.eye(size, dtype=np.float32))
    return torch.from_numpy(np.array(lines.resize((size, to), Image.Resampling.BOX)))


def _plasma(n: int, size: int, decay: float, draws: Draws) -> Tensor:
    """Clouds [N, 1, S, S] of mean 0 and deviation 1: octaves of noise, each `decay` times weaker
    than the coarser one before it."""
    cloud = torch.zeros(n, 1, size, size)
    octaves = max(1, math.ceil(math.log2(size)))
    for octave in range(octaves):
        noise = torch.rand((n, 1, 2 ** (octave + 1), 2 ** (octave + 1)), generator=draws)
        cloud += F.interpolate(noise, (size, size), mode="bilinear") / decay**octave
    cloud -= cloud.mean((2, 3), True)
    return cloud / cloud.square().mean((2, 3), True).sqrt()
