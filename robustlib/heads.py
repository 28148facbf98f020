"""Dense prediction: a head that turns a ResNet's feature maps into a label for every pixel."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from robustlib.models import ResNet

FUSED = 32  # channels that Fusion works in, whatever the backbone: tickets differ, heads do not


class Segmenter(nn.Module):
    """A backbone and a head: logits [N, K, H, W] of images [N, 3, H, W] in [0, 1], any H and W.

    The backbone is the very network that was given, so a mask that was applied to it holds on.
    """

    def __init__(self, backbone: ResNet, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, K, H, W] of images [N, 3, H, W] in [0, 1]."""
        out = self.head(self.backbone.pyramid(x))
        return F.interpolate(out, x.shape[-2:], mode="bilinear", align_corners=False)


class Fusion(nn.Module):
    """Logits at the finest of the maps, to which the coarser ones are added top-down (feature
    pyramid networks, Lin et al., 2017): for small images, whose last map is a few pixels.

    channels: those of the maps, finest first.
    """

    def __init__(self, channels: list[int], n_classes: int, width: int = FUSED) -> None:
        super().__init__()
        # No 3x3 convolution after the sum: on CamVid it cost time and won nothing.
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width))
            for c in channels
        )
        self.classify = nn.Conv2d(width, n_classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits [N, K, H_0, W_0] of maps [N, C_i, H_i, W_i], finest first."""
        out = self.lateral[-1](maps[-1])
        for lateral, finer in zip(self.lateral[-2::-1], maps[-2::-1], strict=True):
            out = F.interpolate(out, finer.shape[-2:], mode="bilinear", align_corners=False)
            out = out + lateral(finer)
        return self.classify(F.relu(out))


class Deepest(nn.Module):
    """One of torchvision's segmentation heads on the last map."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Logits [N, K, H, W] of maps, of which the last is [N, C, H, W]."""
        return self.head(maps[-1])


def segmenter(backbone: ResNet, n_classes: int, head: str = "auto") -> Segmenter:
    """A fresh head, from torch's global generator, on a backbone that loses its classifier `fc`.

    head: `fusion`, or torchvision's `fcn` (Long et al., 2015) or `deeplab` (Chen et al., 2017), for
    which the backbone is dilated in place (`dilate`); auto: fusion behind a small stem, fcn behind
    ImageNet's.
    """
    if head == "auto":
        head = "fusion" if isinstance(backbone.maxpool, nn.Identity) else "fcn"
    deepest, where = backbone.fc.in_features, backbone.fc.weight.device
    if head == "fusion":
        stages = (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4)
        # Read off, for a ticket without whole channels is narrower than its arch.
        norms = [[m for m in s[-1].modules() if isinstance(m, nn.BatchNorm2d)] for s in stages]
        made: nn.Module = Fusion([own[-1].num_features for own in norms], n_classes)
    else:
        dilate(backbone)
        made = Deepest((FCNHead if head == "fcn" else DeepLabHead)(deepest, n_classes))
    backbone.add_module("fc", nn.Identity())  # declared nn.Linear, so mypy refuses `fc = `
    return Segmenter(backbone, made.to(where))


def dilate(backbone: ResNet) -> None:
    """Stages 3 and 4 dilated by 2 and 4 instead of strided, in place: the last map is an eighth of
    the image, and the same at the places that the strided network has too. For bottlenecks that is
    torchvision's `replace_stride_with_dilation`, which has no rule for basic blocks.
    """
    before = 1
    for stage in (backbone.layer3, backbone.layer4):
        for i, block in enumerate(stage):
            rate = before if i == 0 else 2 * before
            for m in block.modules():
                if isinstance(m, nn.Conv2d):
                    if m.kernel_size == (3, 3):
                        m.dilation = m.padding = (rate, rate)
                    if m.stride != (1, 1):
                        m.stride, rate = (1, 1), 2 * before  # what follows was on the strided map
        before *= 2
