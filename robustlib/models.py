"""ResNets that take images in [0, 1]: normalisation inside, a head that can be swapped."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torchvision.models.resnet import BasicBlock, Bottleneck

from robustlib.attacks import evaluating
from robustlib.specs import Pretrain

M = TypeVar("M", bound=nn.Module)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BLOCKS = {
    "resnet10s": (BasicBlock, (1, 1, 1, 1)),
    "resnet18s": (BasicBlock, (2, 2, 2, 2)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """A ResNet (He et al., 2016) whose parameter names are torchvision's, normaliser included.

    Input: float images [N, 3, H, W] in [0, 1]. `mean` and `std` are buffers: an eps in pixel units
    means the same for every network, and a checkpoint carries them.
    """

    mean: Tensor
    std: Tensor
    maxpool: nn.Module
    fc: nn.Linear  # but nn.Identity in a segmenter's backbone

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        n_classes: int,
        width: int = 64,
        small_stem_stride: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        if small_stem_stride is None:
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, stride=small_stem_stride, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        in_planes, stages = width, [nn.Sequential() for _ in blocks]
        for i, n in enumerate(blocks):
            planes = width * 2**i
            out = planes * block.expansion
            for j in range(n):
                stride = 2 if i > 0 and j == 0 else 1
                downsample = None
                if stride != 1 or in_planes != out:
                    conv = nn.Conv2d(in_planes, out, 1, stride=stride, bias=False)
                    downsample = nn.Sequential(conv, nn.BatchNorm2d(out))
                stages[i].append(block(in_planes, planes, stride, downsample))
                in_planes = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_planes, n_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the four stages, finest first: [N, C_i, H_i, W_i]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1((x - self.mean) / self.std))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Pooled features [N, D] of images [N, 3, H, W] in [0, 1]."""
        return self.avgpool(self.pyramid(x)[-1]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K] of images [N, 3, H, W] in [0, 1]."""
        return self.fc(self.features(x))


def build(
    arch: str,
    n_classes: int,
    width: int = 64,
    stem_stride: int = 1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    stem: str = "small",
) -> ResNet:
    """An untrained network, from torch's global generator.

    `resnet18` and `resnet50` are torchvision's, for 224 px (width and stem_stride do not apply);
    `resnet10s` and `resnet18s` have a 3x3 stem for small images, or with `stem="imagenet"` that of
    the others, and 4 stages of 1 or 2 basic blocks with `width`, 2, 4 and 8 times `width` channels:
    0.3 M parameters for `resnet10s` at width 16, 11 M for `resnet18s` at width 64.
    """
    block, blocks = _BLOCKS[arch]
    if not arch.endswith("s"):
        width, stem = 64, "imagenet"
    stride = None if stem == "imagenet" else stem_stride
    return ResNet(block, blocks, n_classes, width, stride, mean, std)


def of(
    spec: Pretrain,
    n_classes: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ResNet:
    """The untrained network that a spec says, from torch's global generator."""
    return build(spec.arch, n_classes, spec.width, spec.stem_stride, mean, std, spec.stem)


def swap_head(model: M, n_classes: int, seed: int | None = None) -> M:
    """Replaces the classifier `fc` by a fresh one, in place, drawn by the seed (None: from torch's
    global generator); returns the model."""
    old = cast(nn.Linear, model.fc)  # of a module, torch's stubs say no more of a part
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model.fc = nn.Linear(old.in_features, n_classes).to(old.weight.device)
    return model


def parameters(model: nn.Module) -> int:
    """The number of parameters that are not zero."""
    return sum(int(torch.count_nonzero(p)) for p in model.parameters())


def multiply_adds(model: nn.Module, size: int | tuple[int, int]) -> int:
    """Multiply-adds of one image in convolutions and linear layers; size: its side, or height and
    width. Weights that are zero do not count, as for an ideal sparse engine."""
    side = (size, size) if isinstance(size, int) else tuple(size)
    total = 0

    def count(module: _ConvNd | nn.Linear, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        # How often a weight is used: at each position of the output, or of the input where that is
        # what the kernel is laid on.
        where = inputs[0] if isinstance(module, _ConvTransposeNd) else out
        positions = where[0, ..., 0] if isinstance(module, nn.Linear) else where[0, 0]
        total += positions.numel() * int(torch.count_nonzero(module.weight))

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for m in model.modules():
            if isinstance(m, _ConvNd | nn.Linear):
                hooks.enter_context(m.register_forward_hook(count))
        model(torch.zeros(1, 3, *side, device=next(model.parameters()).device))
    return total
