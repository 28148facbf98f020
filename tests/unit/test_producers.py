"""Norms and biases go with the channels that alone feed them, however the model is written."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from robustlib import models
from robustlib.compact import compact
from robustlib.tickets import Mask, masked, omp, patterns, prunable
from robustlib.tickets.producers import producers


class Net(nn.Module):
    """A stem, one layer of convolutions and norms that a subclass wires up, and a head."""

    def __init__(self, *order: str, bias: bool = False) -> None:
        super().__init__()
        make = {"c": lambda n: nn.Conv2d(3 if n == "conv0" else 8, 8, 3, padding=1, bias=bias),
                "b": lambda n: nn.BatchNorm2d(8), "g": lambda n: nn.GroupNorm(4, 8),
                "i": lambda n: nn.InstanceNorm2d(8, affine=True)}  # fmt: skip
        for name in order:
            self.add_module(name, make[name[0]](name))
        self.fc = nn.Linear(8, 4)
        for m in self.modules():
            if not isinstance(m, nn.Conv2d | nn.Linear) and hasattr(m, "weight"):
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.uniform_(m.bias, 0.3, 0.6)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Late(Net):
    """Attributes in another order than that of their use."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn2(self.conv1(F.relu(self.bn1(self.conv0(x))))).relu())


class PreActivation(Net):
    """A block that begins with its norm (He et al., 2016, Identity Mappings)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.head(self.bn3(x).relu())


class Shared(Net):
    """One norm after two convolutions, and one convolution before two norms."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.bn1(self.conv0(x)).relu())).relu()
        y = self.conv2(x)
        return self.head(self.bn2(y).relu() + self.bn3(y.relu()))


class Concatenated(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(x)
        return self.head(self.bn2(torch.cat([x[:, :4], self.conv1(self.bn1(x))[:, 4:]], 1)))


class Deciding(Net):
    """What it computes depends on its input, so it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = x * 2
        return self.head(self.bn1(self.conv0(x)))


class Optional(Net):
    """An argument that is left out decides where it goes."""

    def forward(self, x: Tensor, other: Tensor | None = None, twice: bool = False) -> Tensor:
        x = self.conv0(x)
        if other is not None or twice:
            x = x + self.conv1(x)
        return self.head(self.bn1(x))


class Grouped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.in2(self.conv1(F.silu(self.gn1(self.conv0(x)))))))


WIRED = {
    "as used": (Late, "conv0 bn1 conv1 bn2", {"conv0": ["bn1"], "conv1": ["bn2"]}, []),
    "convolutions first": (Late, "conv0 conv1 bn1 bn2", {"conv0": ["bn1"], "conv1": ["bn2"]}, []),
    "norms first": (Late, "bn1 bn2 conv0 conv1", {"conv0": ["bn1"], "conv1": ["bn2"]}, []),
    "backwards": (Late, "bn2 conv1 bn1 conv0", {"conv0": ["bn1"], "conv1": ["bn2"]}, []),
    "pre-activation": (
        PreActivation,
        "conv0 bn1 conv1 bn2 conv2 bn3",
        {"conv0": ["bn1"], "conv1": ["bn2"]},
        ["bn3"],
    ),
    "shared": (Shared, "conv0 bn1 conv1 conv2 bn2 bn3", {"conv2": ["bn2", "bn3"]}, ["bn1"]),
    "concatenated": (Concatenated, "conv0 bn1 conv1 bn2", {"conv0": ["bn1"]}, ["bn2"]),
    "deciding": (Deciding, "conv0 bn1", {}, ["bn1"]),
    "optional": (Optional, "conv0 conv1 bn1", {"conv0": ["bn1"]}, []),
    "groups": (Grouped, "gn1 in2 conv0 conv1", {"conv0": ["gn1"], "conv1": ["in2"]}, []),
}


def build(case: str, bias: bool = False) -> Net:
    torch.manual_seed(0)
    kind, order, *_ = WIRED[case]
    return kind(*order.split(), bias=bias)


def outputs(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    found = {}
    hooks = [
        model.get_submodule(n).register_forward_hook(
            lambda _m, _i, out, n=n: found.update({n: out.detach()})
        )
        for n in names
    ]
    model(x)
    for h in hooks:
        h.remove()
    return found


@pytest.mark.parametrize("bias", [False, True], ids=["bare", "bias"])
@pytest.mark.parametrize("case", WIRED)
def test_the_norm_that_a_convolution_alone_feeds_goes_with_its_channels(case, bias):
    _, _, after, left = WIRED[case]
    model = build(case, bias)
    found = producers(model)
    assert found.norms == {f"{n}.weight": norms for n, norms in after.items()}
    assert found.left == left
    mask = omp(model, 0.5, "channel")
    start = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        masked(model, mask, "channel")
    assert len(said) == bool(left) and all(n in str(said[0].message) for n in left)
    assert all("\n" not in str(w.message) and w.filename == __file__ for w in said)
    lost = {n.removesuffix(".weight"): ~m.flatten(1).any(1) for n, m in mask.items()}
    gone = {n: lost[conv] for conv, norms in after.items() for n in norms}
    gone |= lost
    # All that was removed is zero, and nothing else is touched.
    for name, p in model.named_parameters():
        layer, part = name.rsplit(".", 1)
        away = gone.get(layer, torch.zeros(len(p), dtype=torch.bool))
        assert (p[away] == 0).all() and torch.equal(p[~away], start[name][~away]), name
    optimiser = torch.optim.AdamW(model.parameters(), 0.05, weight_decay=0.1)
    for step in range(4):
        model.train(step != 2)
        optimiser.zero_grad()
        x = torch.randn(6, 3, 8, 8) + 1
        for layer, out in outputs(model, x, list(gone)).items():
            assert (out[:, gone[layer]] == 0).all(), layer
            assert (out[:, ~gone[layer]] != 0).any()
        F.cross_entropy(model(x), torch.arange(6) % 4).backward()
        optimiser.step()
    for name, p in model.named_parameters():
        if (layer := name.rsplit(".", 1)[0]) in gone:
            assert (p[gone[layer]] == 0).all() and (p[~gone[layer]] != 0).all(), name


@pytest.mark.parametrize("case", WIRED)
def test_the_order_of_definition_changes_nothing(case):
    kind, order, *_ = WIRED[case]
    model, other = build(case, True), kind(*reversed(order.split()), bias=True)
    other.load_state_dict(model.state_dict())
    mask = omp(model, 0.5, "channel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert patterns.with_norms(mask, model) == patterns.with_norms(mask, other)


def test_a_dense_mask_says_nothing_of_norms_that_are_left():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked(build("deciding"), omp(build("deciding"), 0, "channel"), "channel")
        masked(build("deciding"), omp(build("deciding"), 0.5), "unstructured")


@pytest.mark.parametrize("name", ["resnet10s", "resnet50", "resnet18", "resnext50_32x4d"])
def test_the_norms_of_resnets_are_those_beside_their_convolutions(name):
    own = name in models._BLOCKS
    model = models.build(name, 5, 8) if own else getattr(torchvision.models, name)()
    found, state = producers(model), torch.random.get_rng_state()
    names = [n.removesuffix(".weight") for n in prunable(model)]
    expected = {
        f"{n}.weight": [n.replace("downsample.0", "downsample.1").replace("conv", "bn")]
        for n in names
    }
    assert found.norms == expected and found.alone == set(expected) and found.left == []
    assert torch.equal(torch.random.get_rng_state(), state)


def test_norms_of_other_kinds_are_left_and_named():
    frozen = torchvision.ops.FrozenBatchNorm2d(8)
    bare = nn.BatchNorm2d(8, affine=False)
    layer = torchvision.models.convnext.LayerNorm2d(8)
    for norm in (frozen, bare, layer):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 8, 3))
        assert (producers(model).norms, producers(model).left) == ({}, ["1"])
        with pytest.warns(UserWarning, match=r"left as they are: 1 \("):
            masked(model, omp(model, 0.5, "channel"), "channel")
    # What keeps zero at zero without a parameter is none to speak of.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.BatchNorm2d(8))
    assert producers(model).norms == {"0.weight": ["2"]} and producers(model).left == []


def test_only_what_feeds_its_norms_and_nothing_else_is_alone():
    alone = {case: {n.removesuffix(".weight") for n in producers(build(case)).alone}
             for case in WIRED}  # fmt: skip
    assert alone["as used"] == {"conv0", "conv1"}
    assert alone["pre-activation"] == {"conv1"}  # the stem also feeds the sum
    assert alone["shared"] == set() == alone["deciding"]  # a ReLU stands between
    assert alone["groups"] == {"conv1"}  # the other channels of a group feel a channel


def test_hooks_and_compiled_parts_do_not_hide_a_norm():
    model = models.build("resnet10s", 5, 8)
    expected = producers(model)
    model.compile(backend="eager")
    model.layer1.compile(backend="eager")
    seen = []
    for m in model.modules():
        m.register_forward_hook(lambda *a: seen.append(a))
    assert producers(model) == expected and seen == []


def test_a_trace_leaves_the_model_and_the_draws_as_they_were():
    class Dropping(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bn1(self.conv0(x)) if torch.rand(1) < 2 else x)

    model = Dropping("conv0", "bn1").train()
    model.conv0.eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    assert producers(model).norms == {"conv0.weight": ["bn1"]}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training and not model.conv0.training
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


BIASED = {
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)),
    "norm": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ),
    "norm after": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)
    ),
}


def biased(case: str) -> tuple[nn.Module, Mask]:
    torch.manual_seed(0)
    tail = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    model = nn.Sequential(*BIASED[case](), *tail)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.bias, 0.2, 0.5)
            nn.init.uniform_(m.running_mean, 0.2, 0.5)
    mask = omp(model, 0.5, "channel", "layer")
    return model, mask


@pytest.mark.parametrize("case", BIASED)
def test_a_removed_channel_with_a_bias_is_taken_out(case):
    model, mask = biased(case)
    masked(model, mask, "channel")
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(torch.rand(6, 3, 8, 8)), torch.arange(6) % 3).backward()
        optimiser.step()
    lost = {n: int((~m.flatten(1).any(1)).sum()) for n, m in mask.items()}
    out = compact(model, 8)
    assert out.removed == lost and sum(lost.values()) > 8 and out.left == {}
    x = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(out.model(x), model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", BIASED)
def test_a_channel_that_still_puts_out_a_constant_is_reported_as_left(case):
    model, mask = biased(case)
    mask.apply(model)  # of the weights alone
    lost = {n: int((~m.flatten(1).any(1)).sum()) for n, m in mask.items()}
    out = compact(model, 8)
    assert (out.removed, out.left) == ({}, lost)
    x = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(out.model(x), model.eval()(x))


def test_a_bias_before_a_silent_norm_does_not_keep_a_channel():
    model, mask = biased("norm")
    mask.apply(model)
    gone = ~mask["0.weight"].flatten(1).any(1)
    with torch.no_grad():
        for p in model[1].parameters():
            p[gone] = 0
    assert (model[0].bias != 0).all()
    out = compact(model, 8)
    assert out.removed == {"0.weight": int(gone.sum())}
    x = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(out.model(x), model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_compaction_reports_convolutions_of_kinds_that_it_cannot_cut(groups):
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(8, 6, 2, groups=groups)
    line = nn.Conv1d(6, 5, 3, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), up, nn.Flatten(2), line, nn.Flatten())
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0, 0
        if groups == 1:
            up.weight[:, 4] = 0
        else:
            up.weight[4:, 1] = 0  # channel 4 too: the second of the second group
        line.weight[:2] = 0
    out = compact(model, 8)
    left = {"2.weight": 1, "4.weight": 2}
    if groups == 1:
        assert (out.removed, out.left) == ({"0.weight": 1}, left)
    else:
        assert (out.removed, out.left) == ({}, {"0.weight": 1, **left})
    assert not out.held["4.weight"][:2].any() and out.held["4.weight"][2:].all()
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(out.model(x), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_what_a_mask_cannot_hold_is_not_compacted():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError, match="2.weight: .*remove_parametrizations"):
        compact(model, 8)
    with pytest.raises(ValueError, match="is wrapped .*give model.module"):
        compact(nn.DataParallel(nn.Conv2d(3, 8, 3)), 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    nn.utils.parametrize.register_parametrization(model[0], "bias", nn.Softplus())
    with pytest.raises(ValueError, match="0.bias: .*remove_parametrizations.layer, 'bias'"):
        masked(model, omp(model, 0.5, "channel"), "channel")
