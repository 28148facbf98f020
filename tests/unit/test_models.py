"""Models: torchvision's function, normalisation inside, and counts that can be checked by hand."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from robustlib import models
from robustlib.specs import ARCHS

SMALL = [arch for arch in ARCHS if arch.endswith("s")]
LARGE = [arch for arch in ARCHS if not arch.endswith("s")]


@pytest.mark.parametrize("arch", LARGE)
def test_with_torchvisions_weights_it_is_torchvisions_network(arch):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, arch)().eval()
    ours = models.build(arch, 1000).eval()
    rest = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (rest.missing_keys, rest.unexpected_keys) == (["mean", "std"], [])
    x = torch.rand(2, 3, 96, 96)
    normalised = torchvision.transforms.functional.normalize(
        x, models.IMAGENET_MEAN, models.IMAGENET_STD
    )
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(normalised), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", LARGE)
def test_untrained_weights_are_drawn_as_torchvision_draws_them(arch):
    torch.manual_seed(0)
    ours = models.build(arch, 1000).state_dict()
    theirs = getattr(torchvision.models, arch)().state_dict()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        if tensor.dim() == 4:
            # Two samples of one spread differ by their standard errors, five of each at most.
            error = 2 * 5 / (2 * tensor.numel()) ** 0.5
            assert ours[name].std().item() == pytest.approx(tensor.std().item(), rel=error)
        elif not name.startswith("fc"):
            assert torch.equal(ours[name], tensor)


@pytest.mark.parametrize(
    "arch, width, n_classes, millions",
    [
        ("resnet10s", 16, 10, 0.3),
        ("resnet10s", 32, 200, 1.3),
        ("resnet18s", 64, 10, 11.2),
        ("resnet18", 64, 1000, 11.7),
        ("resnet50", 64, 1000, 25.6),
    ],
)
def test_parameter_counts_are_those_documented(arch, width, n_classes, millions):
    with torch.device("meta"):
        model = models.build(arch, n_classes, width)
    count = sum(p.numel() for p in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_parameters_counts_those_that_are_not_zero():
    model = models.build("resnet10s", 10, 8)
    total = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())  # BatchNorm's biases
    assert models.parameters(model) == total - zeros
    with torch.no_grad():
        model.conv1.weight[:2] = 0
    assert models.parameters(model) == total - zeros - 2 * 27


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("stride", [1, 2])
def test_shapes_of_small_image_networks(arch, stride):
    model = models.build(arch, 10, 8, stem_stride=stride).eval()
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (stride, stride)
    x = torch.rand(2, 3, 32, 32)
    sides = [32 // stride // 2**i for i in range(4)]
    with torch.no_grad():
        assert [m.shape for m in model.pyramid(x)] == [
            (2, 8 * 2**i, side, side) for i, side in enumerate(sides)
        ]
        assert model.features(x).shape == (2, 64)
        assert model(x).shape == (2, 10)


@pytest.mark.parametrize("arch, expansion", [("resnet18", 1), ("resnet50", 4)])
def test_shapes_of_large_image_networks(arch, expansion):
    with torch.device("meta"):
        model = models.build(arch, 10, width=8, stem_stride=1).eval()
        x = torch.rand(1, 3, 224, 224)
        assert [m.shape for m in model.pyramid(x)] == [
            (1, 64 * expansion * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)
        ]
        assert model.features(x).shape == (1, 512 * expansion)
        assert model(x).shape == (1, 10)


def test_the_head_sees_the_pooled_last_map():
    torch.manual_seed(0)
    model = models.build("resnet10s", 5, 8).eval()
    x = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        pooled = model.pyramid(x)[-1].mean((2, 3))
        torch.testing.assert_close(model.features(x), pooled)
        torch.testing.assert_close(model(x), pooled @ model.fc.weight.T + model.fc.bias)


def test_normalisation_is_inside_and_travels_with_the_weights():
    torch.manual_seed(0)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    model = models.build("resnet10s", 5, 8, mean=mean, std=std).eval()
    plain = copy.deepcopy(model)
    plain.mean.zero_()
    plain.std.fill_(1)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        normalised = torchvision.transforms.functional.normalize(x, mean, std)
        torch.testing.assert_close(model(x), plain(normalised))
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model(x), plain(x))
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("arch", ARCHS)
def test_swap_head_replaces_the_head_alone_and_in_place(arch):
    torch.manual_seed(0)
    model = models.build(arch, 10, 8)
    before = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("fc.")}
    old = model.fc.weight.clone()
    assert models.swap_head(model, 3) is model
    assert model.fc.weight.shape == (3, old.shape[1]) and model.fc.out_features == 3
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    models.swap_head(model, 10)
    assert not torch.equal(model.fc.weight, old)


@pytest.mark.parametrize("arch, size", [("resnet10s", 32), ("resnet18s", 16), ("resnet50", 64)])
def test_multiply_adds_of_a_dense_network_are_half_of_torchs_flops(arch, size):
    model = models.build(arch, 10, 8, stem_stride=2).eval()
    for p in model.parameters():
        nn.init.ones_(p)  # among millions of normal draws one may be exactly zero
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert 2 * models.multiply_adds(model, size) == flops.get_total_flops()


def test_multiply_adds_fall_by_what_zero_weights_would_have_cost():
    torch.manual_seed(0)
    model = models.build("resnet10s", 10, 8, stem_stride=1)
    dense = models.multiply_adds(model, 16)
    with torch.no_grad():
        model.conv1.weight[0] = 0  # 27 weights at 16 x 16 positions
        model.layer2[0].conv1.weight[0, 0] = 0  # 9 weights at 8 x 8
        model.layer4[0].downsample[0].weight[:, :2] = 0  # 64 x 2 weights at 2 x 2
        model.fc.weight[:, 5] = 0  # 10 weights, once
        model.bn1.weight[3] = 0  # not a multiply-add
    assert dense - models.multiply_adds(model, 16) == 27 * 256 + 9 * 64 + 128 * 4 + 10


@pytest.mark.parametrize("size", [7, 8])
def test_multiply_adds_count_every_kind_of_convolution_as_torch_does(size):
    layers = (
        nn.ConvTranspose2d(3, 4, 3, stride=2, groups=1),
        nn.Flatten(2),
        nn.Conv1d(4, 6, 5, stride=2, groups=2),
        nn.Unflatten(1, (1, 6)),  # six images of one row, then a volume of one
        nn.Conv2d(1, 2, 3),
        nn.Unflatten(1, (1, 2)),
        nn.Conv3d(1, 3, (2, 2, 3)),
        nn.Linear(((2 * size + 1) ** 2 - 5) // 2 + 1 - 4, 2),
    )
    model = nn.Sequential(*layers).eval()
    for p in model.parameters():
        nn.init.ones_(p)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    assert 2 * models.multiply_adds(model, size) == flops.get_total_flops()


def test_multiply_adds_leaves_the_model_as_it_was():
    model = models.build("resnet10s", 10, 8).train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    models.multiply_adds(model, 16)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in state.items())
    assert not any(m._forward_hooks for m in model.modules())
