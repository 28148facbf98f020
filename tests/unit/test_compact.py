"""Compaction: a channel ticket's small network is the ticket, computes as it does, trains as it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustlib import models, training
from robustlib.compact import Compacted, compact
from robustlib.data import load
from robustlib.objectives import Objective, natural
from robustlib.tickets import Mask

SIZE = 16


def network(arch: str = "resnet10s", width: int = 6, seed: int = 0) -> nn.Module:
    """Norms with statistics, scales and shifts of their own: those of a fresh network are equal."""
    torch.manual_seed(seed)
    model = models.build(arch, 5, width=width)
    return randomise(model).eval()


def randomise(model: nn.Module) -> nn.Module:
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.3)
    return model


def convolutions(model: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def norm_of(conv: str) -> str:
    return f"{conv[:-1]}1" if "downsample" in conv else conv.replace("conv", "bn")


def kill(model: nn.Module, dead: dict[str, Tensor]) -> Mask:
    """Zeroes the channels in place; the mask that holds them, hooks not yet on the model."""
    kept = {}
    for name, gone in dead.items():
        norm = norm_of(name)
        shape = convolutions(model)[name].weight.shape
        kept[f"{name}.weight"] = (~gone).view(-1, 1, 1, 1).expand(shape).clone()
        kept |= {f"{norm}.weight": ~gone, f"{norm}.bias": ~gone}
    with torch.no_grad():
        for name, m in kept.items():
            model.get_parameter(name)[~m] = 0
    return Mask(kept)


def streams(model: nn.Module) -> list[list[str]]:
    """Which convolutions of a ResNet add up, read off its construction."""
    found = []
    for stage in range(1, 5):
        producers = []
        for i, block in enumerate(getattr(model, f"layer{stage}")):
            last = "conv3" if hasattr(block, "conv3") else "conv2"
            producers.append(f"layer{stage}.{i}.{last}")
            if block.downsample is not None:
                producers.append(f"layer{stage}.{i}.downsample.0")
        if getattr(model, f"layer{stage}")[0].downsample is None:
            producers.append("conv1")
        found.append(producers)
    inner = set(convolutions(model)) - {n for names in found for n in names}
    return found + [[n] for n in sorted(inner)]


def draw(model: nn.Module, seed: int, inner: float, stream: float, partial: float) -> dict:
    """Dead channels: of what is inside blocks, of whole streams, of single layers of streams."""
    generator = torch.Generator().manual_seed(seed)
    dead, layers = {}, convolutions(model)
    for names in streams(model):
        n = layers[names[0]].out_channels
        whole = torch.rand(n, generator=generator) < (stream if len(names) > 1 else inner)
        for name in names:
            extra = torch.rand(n, generator=generator) < (partial if len(names) > 1 else 0)
            dead[name] = whole | extra
    return dead


def expected(model: nn.Module, dead: dict[str, Tensor]) -> tuple[dict, dict]:
    """Removed and left channels by the streams above: those dead everywhere, but for one."""
    removed, left = {}, {}
    for names in streams(model):
        common = torch.stack([dead[n] for n in names]).all(0)
        gone = int(common.sum()) - bool(common.all())
        for name in names:
            removed[f"{name}.weight"] = gone
            left[f"{name}.weight"] = int(dead[name].sum()) - gone
    return {k: v for k, v in removed.items() if v}, {k: v for k, v in left.items() if v}


def check(model: nn.Module, dead: dict[str, Tensor]) -> Compacted:
    before = copy.deepcopy(model.state_dict())
    out = compact(model, SIZE)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert (out.removed, out.left) == expected(model, dead)
    x = torch.rand(6, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)
    small = convolutions(out.model)
    for name, m in convolutions(model).items():
        kept = m.out_channels - out.removed.get(f"{name}.weight", 0)
        assert small[name].out_channels == len(small[name].weight) == kept
        assert out.model.get_submodule(norm_of(name)).num_features == kept
    assert out.model.fc.in_features == small[streams(model)[3][0]].out_channels
    return out


probability = st.sampled_from([0.0, 0.3, 0.7, 1.0])


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["resnet10s", "resnet18s"]),
    st.integers(0, 2**31),
    *(probability for _ in range(3)),
)
def test_the_small_network_computes_what_the_ticket_does(arch, seed, inner, stream, partial):
    model = network(arch, width=5, seed=seed % 100)
    dead = draw(model, seed, inner, stream, partial)
    kill(model, dead)
    check(model, dead)


@pytest.mark.parametrize("partial", [0.0, 0.5])
def test_bottlenecks_are_cut_too(partial):
    model = network("resnet50")
    dead = draw(model, 3, 0.5, 0.5, partial)
    kill(model, dead)
    out = check(model, dead)
    assert bool(out.left) == (partial > 0)
    assert models.parameters(out.model) < 0.5 * 23.5e6
    assert models.multiply_adds(out.model, SIZE) < models.multiply_adds(model, SIZE)


def test_nothing_of_a_dead_channel_is_left_where_all_of_it_can_go():
    model = network("resnet18s", width=8)
    half = torch.arange(64) % 2 == 1
    dead = {n: half[: m.out_channels] for n, m in convolutions(model).items()}
    kill(model, dead)
    out = check(model, dead)
    twin = models.build("resnet18s", 5, width=4)
    assert {k: v.shape for k, v in out.model.state_dict().items()} == {
        k: v.shape for k, v in twin.state_dict().items()
    }
    assert out.left == {} and len(out.held) == 0


def test_a_dense_network_is_left_as_it_is():
    model = network().train()
    model.conv1.weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    out = compact(model, SIZE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (out.removed, out.left, len(out.held)) == ({}, {}, 0)
    assert out.model is not model and model.training and not out.model.training
    flags = [p.requires_grad for p in out.model.parameters()]
    assert flags == [p.requires_grad for p in model.parameters()] and not flags[0]
    for (k, a), (_, b) in zip(
        model.state_dict().items(), out.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), k


def test_what_is_frozen_stays_frozen_when_it_is_cut():
    model = network()
    dead = draw(model, 0, 0.5, 0.5, 0.3)
    kill(model, dead)
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    with torch.no_grad():
        out = compact(model, SIZE)
    flags = {n: p.requires_grad for n, p in out.model.named_parameters()}
    assert out.removed and flags == {n: n.startswith("fc.") for n in flags}


def step(model: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimiser.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimiser.step()


@pytest.mark.parametrize("seed", range(3))
def test_it_trains_as_the_masked_network_does_and_what_is_left_stays_zero(seed):
    model = network(seed=seed).double()
    mask = kill(model, draw(model, seed, 0.4, 0.4, 0.4))
    out = compact(model, SIZE)
    assert out.removed and out.left
    mask.apply(model)
    pair = (model.train(), out.model.train())
    start = copy.deepcopy(out.model.state_dict())
    optimisers = [
        torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, weight_decay=0.01) for m in pair
    ]
    for i in range(6):
        generator = torch.Generator().manual_seed(i)
        x = torch.rand(8, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 5, (8,), generator=generator)
        for m, optimiser in zip(pair, optimisers, strict=True):
            step(m, optimiser, x, y)
        with torch.no_grad():
            torch.testing.assert_close(model(x), out.model(x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        big, small = model.eval()(x), out.model.eval()(x)
    torch.testing.assert_close(big, small, rtol=1e-9, atol=1e-9)
    for name, kept in out.held.items():
        p = out.model.get_parameter(name).detach()
        assert not p[~kept].any() and (~kept).any()
        assert (p[kept] != start[name][kept]).any() or not kept.any()
    assert compact(out.model, SIZE).left == out.left


def test_the_projects_own_loop_keeps_what_is_left_at_zero():
    model = network(width=4)
    kill(model, draw(model, 1, 0.4, 0.4, 0.4))
    out = compact(models.swap_head(model, 10), SIZE)
    start = copy.deepcopy(out.model.state_dict())
    recipe = training.Recipe(2, 0.1, 16, 5e-4, "none", "fp32", 0, decay_norms=True)
    training.fit(out.model, load("digits", SIZE, n_train=50).train, Objective(natural), recipe)
    assert out.left and not torch.equal(start["conv1.weight"], out.model.conv1.weight)
    for name, kept in out.held.items():
        assert not out.model.get_parameter(name).detach()[~kept].any()


def test_a_state_dict_fits_any_other_compaction_of_the_same_network():
    model = network()
    kill(model, draw(model, 2, 0.5, 0.5, 0.5))
    one, other = compact(model, SIZE), compact(model, 2 * SIZE)
    assert (one.removed, one.left, one.held) == (other.removed, other.left, other.held)
    x = torch.rand(4, 3, SIZE, SIZE)
    optimiser = torch.optim.SGD(one.model.parameters(), 0.1)
    step(one.model.train(), optimiser, x, torch.tensor([0, 1, 2, 3]))
    other.model.load_state_dict(one.model.state_dict(), strict=True)
    assert torch.equal(one.model.eval()(x), other.model(x))


def test_a_channel_is_dead_only_when_weight_scale_and_shift_are_zero():
    model = network(width=8)
    with torch.no_grad():
        conv, norm = model.layer1[0].conv1, model.layer1[0].bn1
        conv.weight[:3] = 0
        norm.weight[1:] = 0
        norm.bias[2:6] = 0
    # Of 0 to 5: scale and shift live, shift live, dead, then with weights.
    out = compact(model, SIZE)
    assert out.removed == {"layer1.0.conv1.weight": 1}
    assert out.left == {"layer1.0.conv1.weight": 2}
    x = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)
    kept = out.held["layer1.0.conv1.weight"]
    assert list(out.held) == ["layer1.0.conv1.weight"]
    assert kept.flatten(1).any(1).tolist() == [False] * 2 + [True] * 5


def zero(conv: nn.Conv2d, channels: list[int], norm: nn.Module | None = None) -> None:
    with torch.no_grad():
        for m in (conv, norm):
            for p in m.parameters() if m is not None else ():
                p[channels] = 0


def test_a_plain_network_with_biases_and_a_flat_head():
    torch.manual_seed(0)
    convs = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
    model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(5 * 12 * 12, 4))
    zero(model[0], [1, 4])
    zero(model[2], [0])
    with torch.no_grad():
        model[2].weight[3] = 0  # its bias lives
    out = compact(model, SIZE)
    assert (out.removed, out.left) == ({"0.weight": 2, "2.weight": 1}, {"2.weight": 1})
    assert out.model[5].in_features == 4 * 12 * 12
    x = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dead", "multiple", "kept"),
    [(7, 1, 9), (7, 4, 12), (7, 8, 16), (8, 8, 8), (16, 4, 4), (16, 1, 1), (3, 32, 16), (0, 3, 16)],
)
def test_layers_keep_a_multiple_of_channels_where_one_is_asked_for(dead, multiple, kept):
    model = network(width=16)
    gone = torch.arange(16) < dead
    kill(model, {"layer1.0.conv1": gone})
    out = compact(model, SIZE, multiple)
    assert out.model.layer1[0].conv1.out_channels == kept
    name = "layer1.0.conv1.weight"
    assert out.removed.get(name, 0) == 16 - kept
    assert out.left.get(name, 0) == dead - (16 - kept)
    held = sum(int((~out.held[n]).sum()) for n in out.held if n == name)
    assert held == out.left.get(name, 0) * 16 * 9
    x = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)


class Joined(nn.Module):
    """Two branches, put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 6, 3), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1).relu())


def test_branches_that_are_joined_and_an_output_that_keeps_all_channels():
    torch.manual_seed(0)
    model = Joined()
    for conv, channels in ((model.a, [2]), (model.b, [0, 5]), (model.c, [1])):
        zero(conv, channels)
    out = compact(model, SIZE)
    assert out.removed == {"a.weight": 1, "b.weight": 2} and out.left == {"c.weight": 1}
    x = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)
    assert out.held.keys() == {"c.weight", "c.bias"}


@pytest.mark.parametrize(("groups", "goes"), [(8, True), (2, False)], ids=["depthwise", "grouped"])
def test_depthwise_convolutions_are_cut_with_their_input_and_grouped_ones_stay(groups, goes):
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=groups, bias=False)
    norms = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    tail = nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    model = nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], *tail)
    randomise(model).eval()
    zero(first, [0, 1, 5], norms[0])
    zero(second, [0, 5, 6], norms[1])
    out = compact(model, SIZE)
    assert out.removed == ({"0.weight": 2, "3.weight": 2} if goes else {})
    assert out.left == {"0.weight": 1 if goes else 3, "3.weight": 1 if goes else 3}
    x = torch.rand(4, 3, SIZE, SIZE)
    torch.testing.assert_close(out.model(x), model(x), rtol=1e-5, atol=1e-5)


def test_what_does_not_keep_zero_at_zero_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 1), nn.Flatten())
    zero(model[0], [1])
    with pytest.raises(RuntimeError, match="does not compute what the model does"):
        compact(model, SIZE)


def test_a_model_without_convolutions_is_refused_by_name():
    with pytest.raises(ValueError, match="Linear: has no convolution"):
        compact(nn.Linear(3, 3), SIZE)
