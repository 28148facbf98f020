"""Patterns: what is removed as one goes as one, by rank, in every scheme that draws a mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import BLOCKS, NETS, SCOPES, basic, bottleneck, fits, members, odd, sparsity_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from robustlib import tickets
from robustlib.data import load
from robustlib.data.splits import Split, take
from robustlib.specs import PATTERNS, SCHEMES, Ticket
from robustlib.tickets import Mask, learned, masked, omp, patterns, prunable, random
from robustlib.training import Recipe, optimiser

DRAWN = [s for s in SCHEMES if s != "dense"]


@pytest.fixture(scope="module")
def split() -> Split:
    return take(load("digits", size=8).train, np.arange(40))


def draw(scheme: str, model: nn.Module, split: Split, pattern: str, s: float, scope: str) -> Mask:
    if scheme == "omp":
        return omp(model, s, pattern, scope)
    if scheme == "random":
        return random(model, s, pattern, scope, seed=3)
    recipe = {"epochs": 1, "batch_size": 20, "lr": 0.1, "augment": "none", "seed": 1}
    spec = Ticket(
        scheme=scheme, pattern=pattern, sparsity=sparsity_of(pattern, s), scope=scope, **recipe
    )
    if scheme == "lmp":
        return tickets.lmp(model, split, spec)[0]
    before = None if pattern in BLOCKS else omp(model, s / 2, pattern, scope)
    mask, _ = tickets.imp_round(model, split, spec, before)
    assert before is None or all(not (m & ~before[n]).any() for n, m in mask.items())
    return mask


def is_as_asked(mask: Mask, model: nn.Module, pattern: str, s: float, scope: str) -> None:
    """Groups go whole, and as many as the sparsity says, to one group."""
    weights = prunable(model)
    assert list(mask) == list(weights)
    lost, size, total = [], [], []
    for name, p in weights.items():
        if not fits(p, pattern):
            assert mask[name].all(), name
            continue
        groups = members(mask[name], pattern)
        if pattern in BLOCKS:
            n, m = BLOCKS[pattern]
            assert (groups.sum(1) == n).all(), name
        else:
            assert (groups.all(1) | ~groups.any(1)).all(), name
        lost.append(int((~groups).sum()))
        size.append(groups.shape[1])
        total.append(groups.size)
    left = [n for n, p in weights.items() if not fits(p, pattern)]
    assert tickets.left_dense(model, pattern) == left
    if pattern in BLOCKS:
        assert sum(lost) == s * sum(total)
    elif scope == "global":
        asked = min(round(s * sum(total)), sum(total) - 1)  # a network keeps its last group
        assert 0 <= asked - sum(lost) < max(size)
    else:
        for removed, one, all_ in zip(lost, size, total, strict=True):
            assert removed == min(round(s * all_) // one, all_ // one - 1) * one


@pytest.mark.parametrize("scheme", DRAWN)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_groups_go_whole_and_in_the_asked_number(pattern, scheme, split):
    cases = [(net, scope, s) for net in NETS for scope in SCOPES for s in (0.3, 0.8)]
    if scheme in ("imp", "lmp"):  # these train
        cases = [("basic", "global", 0.3), ("bottleneck", "layer", 0.8), ("odd", "global", 0.8)]
    for seed, (net, scope, wanted) in enumerate(cases):
        s, model = sparsity_of(pattern, wanted), NETS[net](seed)
        mask = draw(scheme, model, split, pattern, s, scope)
        is_as_asked(mask, model, pattern, s, scope)
        assert draw(scheme, model, split, pattern, s, scope) == mask


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(SCOPES),
    st.floats(0, 0.95),
    st.lists(st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 4)] * 2), min_size=1, max_size=4),
    st.integers(0, 999),
)
def test_any_shapes_of_kernels_lose_whole_groups(pattern, scope, wanted, shapes, seed):
    torch.manual_seed(seed)
    if pattern in BLOCKS:
        shapes = [(o, 8 * i, h, w) for o, i, h, w in shapes]
    model = nn.Sequential(*(nn.Conv2d(i, o, (h, w)) for o, i, h, w in shapes))
    # Narrow layers with a channel each to keep may be out of reach of a global sparsity.
    s, scope = sparsity_of(pattern, wanted), "layer" if pattern == "channel" else scope
    for mask in (omp(model, s, pattern, scope), random(model, s, pattern, scope, seed)):
        if scope == "layer":  # no layer loses its last group
            assert all(m.any() for m in mask.values())
        is_as_asked(mask, model, pattern, s, scope)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("draw_", [omp, random])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in BLOCKS])
def test_masks_of_growing_sparsity_are_nested(pattern, draw_, scope):
    for build in NETS.values():
        masks = [draw_(build(), s, pattern, scope) for s in (0, 0.2, 0.5, 0.7, 0.9)]
        for denser, sparser in zip(masks, masks[1:], strict=False):
            assert all(not (m & ~denser[n]).any() for n, m in sparser.items())
            assert sparser.sparsity > denser.sparsity


@pytest.mark.parametrize("draw_", [omp, random])
def test_one_of_eight_lies_within_one_of_four_within_two_of_four(draw_):
    for build in NETS.values():
        two, four, eight = (draw_(build(), s, p) for s, p in
                            ((0.5, "2:4"), (0.75, "1:4"), (0.875, "1:8")))  # fmt: skip
        for denser, sparser in ((two, four), (four, eight)):
            for name, p in prunable(build()).items():
                if p.shape[1] % 8 == 0:
                    assert not (sparser[name] & ~denser[name]).any()
                    assert sparser[name].sum() < denser[name].sum()


@pytest.mark.parametrize("score", ["l1", "l2"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_removed_group_outranks_a_kept_one(pattern, scope, score):
    for build in NETS.values():
        model, s = build(), sparsity_of(pattern, 0.6)
        mask, pooled = omp(model, s, pattern, scope, score), []
        for name, p in prunable(model).items():
            if not fits(p, pattern):
                continue
            w, kept = members(p.double(), pattern), members(mask[name], pattern)
            if pattern in BLOCKS:  # ranked within each block
                for block, keeps in zip(np.abs(w), kept, strict=True):
                    assert block[~keeps].max() <= block[keeps].min()
                continue
            rank = np.abs(w).sum(1) / w.shape[1] if score == "l1" else np.sqrt((w**2).mean(1))
            pooled.append((rank, kept[:, 0], name))
        if scope == "global" and pooled:
            if pattern == "channel":  # the best channel of a layer stays, whatever its rank
                pooled = [(np.delete(r, r.argmax()), np.delete(k, r.argmax()), n)
                          for r, k, n in pooled]  # fmt: skip
            pooled = [(*map(np.concatenate, zip(*(x[:2] for x in pooled), strict=True)), "all")]
        for rank, keeps, name in pooled:
            assert rank[~keeps].max() <= rank[keeps].min() * (1 + 1e-6), name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_scores_are_the_mean_magnitude_and_the_root_mean_square(pattern):
    for p in prunable(odd()).values():
        l1, l2 = (patterns.score(p, pattern, norm).flatten().double() for norm in ("l1", "l2"))
        w = p.detach().double().flatten().numpy()[:, None]
        if pattern not in BLOCKS:
            w = members(p.double(), pattern)
        np.testing.assert_allclose(l1, np.abs(w).sum(1) / w.shape[1], rtol=1e-5)
        np.testing.assert_allclose(l2, np.sqrt((w**2).sum(1) / w.shape[1]), rtol=1e-5)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in ("unstructured", *BLOCKS)])
def test_groups_expand_to_the_weights_they_were_taken_from(pattern):
    for name, p in prunable(odd()).items():
        mask = random(odd(), 0.5, pattern)[name]
        groups = patterns.grouped(mask, pattern)
        assert groups.numel() == len(members(mask, pattern))
        assert np.array_equal(groups.flatten().numpy(), members(mask, pattern)[:, 0])
        assert torch.equal(patterns.expanded(groups, p.shape), mask)


@pytest.mark.parametrize("scope", SCOPES)
def test_unstructured_is_torchs_own_magnitude_pruning(scope):
    for build in NETS.values():
        model, s = build(), 0.7
        mask = omp(model, s, scope=scope)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        if scope == "global":
            where = [(m, "weight") for m in layers]
            prune.global_unstructured(where, prune.L1Unstructured, amount=s)
        for m, kept in zip(layers, mask.values(), strict=True):
            if scope == "layer":
                prune.l1_unstructured(m, "weight", amount=s)
            assert torch.equal(kept, m.weight_mask.bool())


@pytest.mark.parametrize(("score", "n"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("s", [0.2, 0.5, 0.8])
def test_channels_within_a_layer_are_torchs_structured_pruning(s, score, n):
    for build in NETS.values():
        mask, model = omp(build(), s, "channel", "layer", score), build()
        for m, kept in zip(
            (m for m in model.modules() if isinstance(m, nn.Conv2d)), mask.values(), strict=True
        ):
            # torch rounds its fraction of the channels, ours removes no more than asked.
            amount = round(s * m.weight.numel()) // m.weight[0].numel()
            prune.ln_structured(m, "weight", amount=amount, n=n, dim=0)
            assert torch.equal(kept, m.weight_mask.bool())


def with_weights(*weights: list) -> nn.Sequential:
    convs = []
    for values in weights:
        w = torch.tensor(values, dtype=torch.float)
        conv = nn.Conv2d(w.shape[1], w.shape[0], tuple(w.shape[2:]), bias=False)
        conv.weight.data.copy_(w)
        convs.append(conv)
    return nn.Sequential(*convs)


def test_rows_kernels_and_channels_worked_by_hand():
    #     means of rows:     2,     0.5        3,    1         means of kernels: 1.25, 2
    one = [
        [[[1, -3], [0.5, 0.5]], [[6, 0], [-1, 1]]],
        [[[0.1, 3.9], [7, 0]], [[0.2, 0], [0, 4.4]]],
    ]  # rows: 2, 3.5, 0.1, 2.2; k: 2.75, 1.15
    model, T, F = with_weights(one), True, False  # fmt: skip
    row = omp(model, 0.5, "row")["0.weight"]
    # Of the two rows of mean 2 the first goes: 0.1, 0.5, 1 and then 2.
    expected = [[[[F, F], [F, F]], [[T, T], [F, F]]], [[[T, T], [T, T]], [[F, F], [T, T]]]]
    assert row.tolist() == expected
    kernel = omp(model, 0.5, "kernel")["0.weight"]
    none, whole = [[F, F], [F, F]], [[T, T], [T, T]]
    assert kernel.tolist() == [[none, whole], [whole, none]]
    channel = omp(model, 0.5, "channel")["0.weight"]  # means 1.625 and 1.95
    assert channel.tolist() == [[none, none], [whole, whole]]


def test_blocks_lie_along_the_input_worked_by_hand():
    w = torch.tensor([[4.0, 1, -3, 2, 9, 8, 7, 6]]).view(1, 8, 1, 1)
    other = torch.tensor([[1.0, 2, 2, 1, 0, 0, 0, 0]]).view(1, 8, 1, 1)
    model = with_weights(torch.cat([w, other], 3).tolist())
    two = omp(model, 0.5, "2:4")["0.weight"]
    assert two[0, :, 0, 0].tolist() == [True, False, True, False, True, True, False, False]
    # Of equal weights the first go.
    assert two[0, :, 0, 1].tolist() == [False, True, True, False, False, False, True, True]
    one = omp(model, 0.875, "1:8")["0.weight"]
    assert one[0, :, 0, 0].nonzero().tolist() == [[4]] and one[0, :, 0, 1].nonzero().item() == 2


def test_the_two_scores_rank_differently_worked_by_hand():
    model = with_weights([[[[3, -3], [0, 5]]]])  # means 3 and 2.5; root mean squares 3 and 3.54
    assert omp(model, 0.5, "row", score="l1")["0.weight"].tolist() == [[[[True] * 2, [False] * 2]]]
    assert omp(model, 0.5, "row", score="l2")["0.weight"].tolist() == [[[[False] * 2, [True] * 2]]]
    with pytest.raises(ValueError, match="score='l3'.*l1, l2"):
        omp(model, 0.5, score="l3")


def test_global_ranking_removes_what_each_layer_would_keep():
    small, large = [[[[0.1, 0.2]]], [[[0.3, 0.4]]]], [[[[10, 20]]], [[[30, 40]]]]
    model = with_weights(small, [[w[0] * 2] for w in large])
    for pattern in ("unstructured", "row", "kernel"):
        together, apart = omp(model, 1 / 3, pattern), omp(model, 0.5, pattern, "layer")
        assert not together["0.weight"].any() and together["1.weight"].all()
        assert {float(m.float().mean()) for m in apart.values()} == {0.5}


@pytest.mark.parametrize("pattern", ["unstructured", "row", "kernel", "channel"])
@pytest.mark.parametrize("scope", SCOPES)
def test_ties_go_by_layer_then_by_position(pattern, scope):
    model = basic()
    for p in prunable(model).values():
        p.data.fill_(-0.5)
    mask = omp(model, 0.5, pattern, scope)
    kept = [members(m, pattern)[:, 0] for m in mask.values()]
    if pattern == "channel":  # the last of each layer is spared: of equal ones the last is best
        assert all(k[-1] for k in kept)
        kept = [k[:-1] for k in kept]
    for k in [np.concatenate(kept)] if scope == "global" else kept:
        assert (np.diff(k.astype(int)) >= 0).all() and 0 < k.sum() < len(k)


def test_a_row_of_a_one_by_one_kernel_is_a_single_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, (3, 1)))
    assert omp(model, 0.5, "row") == omp(model, 0.5)
    points = nn.Sequential(*list(model)[:2])
    assert omp(points, 0.5, "kernel") == omp(points, 0.5)


@pytest.mark.parametrize("pattern", BLOCKS)
def test_a_stem_of_three_channels_is_left_dense_and_named(pattern):
    for build in (basic, bottleneck):
        mask = omp(build(), sparsity_of(pattern, 0), pattern)
        assert patterns.left_dense(build(), pattern) == ["conv1.weight"]
        assert mask["conv1.weight"].all()
        assert all(not m.all() for n, m in mask.items() if n != "conv1.weight")
    assert patterns.left_dense(basic(), "row") == []


@pytest.mark.parametrize("draw_", [omp, random])
def test_blocks_that_fit_nowhere_or_another_sparsity_are_refused(draw_):
    with pytest.raises(ValueError, match="pattern='2:4': no layer .* multiple of 4"):
        draw_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(6, 4, 1)), 0.5, "2:4")
    with pytest.raises(ValueError, match="sparsity=0.7: pattern='2:4' has sparsity 0.5"):
        draw_(basic(), 0.7, "2:4")


@pytest.mark.parametrize("draw_", [omp, random])
@pytest.mark.parametrize("scope", SCOPES)
def test_every_layer_keeps_its_best_channels(scope, draw_):
    model = basic()
    with torch.no_grad():
        model.layer1[0].conv1.weight.mul_(1e-3)
        model.layer3[0].conv2.weight.mul_(1e-3)
    for least in (1, 2, 5):
        s = 0.6 if scope == "global" else 0.3
        mask = draw_(model, s, "channel", scope, min_channels=least)
        counts = {n: int(m.flatten(1).any(1).sum()) for n, m in mask.items()}
        assert min(counts.values()) >= least
        if draw_ is omp and scope == "global":
            for name in ("layer1.0.conv1.weight", "layer3.0.conv2.weight"):
                assert counts[name] == least
                best = prunable(model)[name].detach().abs().mean((1, 2, 3)).topk(least).indices
                assert mask[name][best].all()
        largest = [m[0].numel() for m in mask.values()]
        short = max(largest) if scope == "global" else sum(largest)
        assert 0 <= s - mask.sparsity < short / sum(m.numel() for m in mask.values())


@pytest.mark.parametrize(("s", "least", "scope"), [(0.9, 8, "global"), (0.8, 3, "layer"),
                                                   (0.1, 1000, "global")])  # fmt: skip
def test_a_floor_that_leaves_too_few_channels_is_refused(s, least, scope):
    says = f"sparsity={s:g}: min_channels={least} .*'channel'"
    for draw_ in (omp, random):
        with pytest.raises(ValueError, match=says):
            draw_(basic(), s, "channel", scope, min_channels=least)
    with pytest.raises(ValueError, match="min_channels=0: must be a whole number"):
        omp(basic(), 0.5, "channel", min_channels=0)


def norms_of(model: nn.Module) -> dict[str, str]:
    """The norm after each convolution of a ResNet, by name."""
    names = [n.removesuffix(".weight") for n in prunable(model)]
    return {
        f"{n}.weight": n.replace("downsample.0", "downsample.1").replace("conv", "bn")
        for n in names
    }


@pytest.mark.parametrize("build", [basic, bottleneck])
def test_a_removed_channel_takes_its_scale_and_shift_along(build):
    model = build()
    assert any("downsample" in n for n in prunable(model))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 2)
                m.bias.normal_()
                m.running_mean.normal_()
    mask = omp(model, 0.6, "channel")
    start = {n: p.clone() for n, p in model.state_dict().items()}
    full = patterns.with_norms(mask, model)
    own = norms_of(model)
    assert set(full) == {*mask, *(f"{n}.{p}" for n in own.values() for p in ("weight", "bias"))}
    assert masked(model, mask, "channel") is model
    gone = {norm: ~torch.from_numpy(members(mask[w], "channel")[:, 0]) for w, norm in own.items()}

    def is_zero() -> None:
        for norm, lost in gone.items():
            for part in ("weight", "bias"):
                assert (model.get_parameter(f"{norm}.{part}")[lost] == 0).all(), norm

    is_zero()
    for norm, lost in gone.items():
        assert torch.equal(model.get_parameter(f"{norm}.bias")[~lost], start[f"{norm}.bias"][~lost])
    outputs = {}
    for norm in gone:
        model.get_submodule(norm).register_forward_hook(
            lambda _m, _i, out, norm=norm: outputs.update({norm: out.clone()})
        )
    slow = Recipe.of(Ticket(scheme="imp", lr=0.01, weight_decay=0.1))
    fast = replace(slow, decay_norms=True)
    for optim in (optimiser(model, fast), torch.optim.AdamW(model.parameters(), 0.01)):
        for mode in (True, True, False, True):
            model.train(mode)
            optim.zero_grad()
            model(torch.randn(4, 3, 16, 16)).square().mean().backward()
            optim.step()
            is_zero()
            for norm, lost in gone.items():
                assert (outputs[norm][:, lost] == 0).all(), norm
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, start[n])]
    assert {f"{norm}.{p}" for norm in gone for p in ("weight", "bias")} <= set(moved)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "channel"])
def test_other_patterns_leave_norms_alone(pattern):
    model = basic()
    s = sparsity_of(pattern, 0.9)
    before = {n: p.clone() for n, p in model.state_dict().items() if n not in prunable(model)}
    masked(model, omp(model, s, pattern), pattern)
    assert all(torch.equal(model.state_dict()[n], p) for n, p in before.items())
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all((m.weight.grad != 0).any() for m in model.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_shuffle_keeps_the_counts_of_each_layer_and_the_pattern(pattern):
    for build in NETS.values():
        model, s = build(), sparsity_of(pattern, 0.7)
        mask = omp(model, s, pattern)
        one = patterns.shuffled(mask, pattern, 1)
        state = torch.random.get_rng_state()
        assert one == patterns.shuffled(mask, pattern, 1) != patterns.shuffled(mask, pattern, 2)
        assert torch.equal(state, torch.random.get_rng_state())
        assert one != mask and list(one) == list(mask)
        for name, m in mask.items():
            assert int(one[name].sum()) == int(m.sum()), name
        is_as_asked(one, model, pattern, s, "global")


def test_a_learned_mask_keeps_the_floor_too():
    spec = Ticket(scheme="lmp", pattern="channel", sparsity=0.5, min_channels=3)
    _, scores = learned.score(basic(), spec)
    kept = [int(s.kept.sum()) for s in scores.values()]
    assert min(kept) >= 3 and sum(kept) < sum(s.kept.numel() for s in scores.values())
