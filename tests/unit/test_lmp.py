"""LMP: the mask is learned, straight through, while no weight moves."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import NETS, SCOPES, basic, fits, killed_at, members, odd, sparsity_of
from torch import nn
from torch.func import functional_call

from robustlib import models, specs, stages, store, tickets, training
from robustlib.data import load
from robustlib.data.splits import Split, take
from robustlib.specs import PATTERNS, Pretrain, Ticket
from robustlib.tickets import learned, lmp, omp, prunable
from robustlib.tickets.producers import producers

PRETRAIN = Pretrain(source="digits", width=4, stem_stride=1, size=8, n_train=150, epochs=1)
RECIPE = {"scheme": "lmp", "batch_size": 20, "augment": "none"}


@pytest.fixture(scope="module")
def split() -> Split:
    return take(load("digits", size=8).train, np.arange(60))


def ticket(pattern: str = "unstructured", sparsity: float = 0.5, **fields) -> Ticket:
    s = sparsity_of(pattern, sparsity)
    return Ticket(PRETRAIN, pattern=pattern, sparsity=s, **{**RECIPE, **fields})


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_first_step_is_taken_with_the_mask_of_omp(pattern, scope, split):
    for build in NETS.values():
        for score in ("l1", "l2"):
            spec = ticket(pattern, 0.6, scope=scope, score=score, epochs=0)
            expected = omp(build(), spec.sparsity, pattern, scope, score)
            assert lmp(build(), split, spec)[0] == expected
    model, scores = learned.score(basic(), spec)
    expected = omp(basic(), spec.sparsity, pattern, scope, score).apply(basic().eval())
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), expected(x))
    mean = [s.scores.mean() for s in scores.values()]
    if scope == "layer":
        assert all(float(m.detach()) == pytest.approx(learned.UNIT, rel=1e-4) for m in mean)


def test_the_gradient_of_a_score_worked_by_hand():
    conv = nn.Conv2d(1, 3, (1, 2), bias=False)
    conv.weight.data.copy_(torch.tensor([[1.0, 2.0], [-3.0, 4.0], [0.5, -0.25]]).view(3, 1, 1, 2))
    model = nn.Sequential(OrderedDict(conv=conv, flat=nn.Flatten(), fc=nn.Linear(3, 1)))
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[3.0, -7.0, 10.0]]))
    x = torch.tensor([[[[2.0, 5.0]]]])
    # One output a channel, y = kept (2 a + 5 b), so of a kernel's score: fc (2 a + 5 b).
    expected = [3 * (2 * 1 + 5 * 2), -7 * (2 * -3 + 5 * 4), 10 * (2 * 0.5 - 5 * 0.25)]
    for pattern in ("kernel", "channel", "row"):
        scored, scores = learned.score(copy.deepcopy(model), ticket(pattern, 0.5))
        own = scores["conv.weight"]
        assert own.kept.flatten().tolist() == [True, True, False]  # 1 of 3: at most half
        out = scored(x)
        assert out.item() == pytest.approx(3 * 12 - 7 * 14 + model.fc.bias.item())
        out.sum().backward()
        assert own.scores.grad.flatten().tolist() == pytest.approx(expected)
    scored, scores = learned.score(copy.deepcopy(model), ticket("unstructured", 0.5))
    scored(x).sum().backward()
    by_weight = [3 * 2, 3 * 10, 7 * 6, -7 * 20, 10, 10 * -1.25]
    grad = scores["conv.weight"].scores.grad
    assert grad.flatten().tolist() == pytest.approx(by_weight)
    assert scores["conv.weight"].kept.flatten().tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gradient_of_a_score_is_summed_over_its_group(pattern):
    """Kept or removed: weight times the gradient of the masked weight, from an autograd that knows
    of no scores."""
    for build in (basic, odd):
        spec, x = ticket(pattern, 0.6), torch.rand(4, 3, 8, 8)
        model, y = build(), torch.tensor([1, 2, 3, 4])
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.bias.uniform_(0.1, 1)
        mask = omp(model, spec.sparsity, pattern)
        leaves = {n: (p.detach() * mask[n]).requires_grad_() for n, p in prunable(model).items()}
        # A channel is masked at its norm, scale and shift times what is kept; and one without a
        # norm at its convolution, weight and bias.
        after = producers(model).norms if pattern == "channel" else {}
        parts = {name: [f"{n}.{p}" for n in ns for p in ("weight", "bias")]
                 for name, ns in after.items()}  # fmt: skip
        for name in after:
            leaves[name] = prunable(model)[name].detach().requires_grad_()
        if pattern == "channel" and build is odd:
            assert "group.weight" not in after
            parts["group.weight"] = ["group.bias"]
        for name, part in ((name, part) for name, own in parts.items() for part in own):
            own = model.get_parameter(part).detach()
            leaves[part] = (own * mask[name].flatten(1).any(1)).requires_grad_()
        out = functional_call(copy.deepcopy(model), leaves, (x,))
        nn.functional.cross_entropy(out, y).backward()
        scored, scores = learned.score(copy.deepcopy(model), spec)
        nn.functional.cross_entropy(scored(x), y).backward()
        for name, p in prunable(model).items():
            found = scores[name].scores.grad.flatten().numpy()
            w = (p.detach() * leaves[name].grad).double()
            if name in after:
                expected = 0
            elif pattern in ("2:4", "1:4", "1:8"):
                expected = w.flatten().numpy()
            else:
                expected = members(w, pattern).sum(1)
            for part in parts.get(name, ()):
                own = model.get_parameter(part).detach() * leaves[part].grad
                expected = expected + own.double().numpy()
            np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
            kept = scores[name].kept.flatten().numpy()
            if fits(p, pattern) and 0 < kept.mean() < 1:
                assert (found[kept] != 0).any()
                # A ReLU is flat where a removed channel stands, at zero.
                assert pattern == "channel" or (found[~kept] != 0).any()


@pytest.mark.parametrize("pattern", ["unstructured", "channel", "2:4"])
def test_scores_and_head_are_trained_and_nothing_else(pattern, split, monkeypatch):
    trained, fit = [], training.fit

    def noted(model, *args, **kwargs):
        trained.append((model, copy.deepcopy(model.state_dict())))
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(training, "fit", noted)
    model = basic()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.bias.normal_()
    given, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    model.train()
    spec = ticket(pattern, 0.5, epochs=6, lr=0.1)
    mask, curve = lmp(model, split, spec)
    # The network that it was given is as it was.
    assert all(torch.equal(given[n], p) for n, p in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state) and len(curve) == 6
    assert not any(hasattr(m, "parametrizations") for m in model.modules())
    ((scored, before),) = trained
    after = scored.state_dict()
    moved = {n for n, p in before.items() if not torch.equal(p, after[n])}
    scores = {n for n in before if n.endswith(".scores")}
    assert {"fc.weight", "fc.bias"} <= moved and scores <= moved
    rest = moved - scores - {"fc.weight", "fc.bias"}
    assert all(
        n.endswith((".kept", "running_mean", "running_var", "batches_tracked")) for n in rest
    )
    # A learned mask, of exactly the sparsity.
    assert mask != omp(basic(), spec.sparsity, pattern)
    if pattern == "unstructured":
        total = sum(m.numel() for m in mask.values())
        assert sum(int((~m).sum()) for m in mask.values()) == round(0.5 * total)
    assert curve[-1]["loss"] < curve[0]["loss"]


def test_a_learned_ticket_is_the_pretrained_network_behind_a_mask(monkeypatch):
    spec = ticket(sparsity=0.7, dataset="glyphs", n_train=80, epochs=2, lr=0.3, seed=2)
    mask, found = stages.mask(spec), stages.network(spec).state_dict()
    source = stages.network(PRETRAIN).state_dict()
    assert mask != omp(stages.network(PRETRAIN), 0.7)
    for name, p in source.items():
        kept = mask[name] if name in mask else torch.ones_like(p, dtype=torch.bool)
        assert torch.equal(found[name], torch.where(kept, p, 0)), name
    row = store.get(spec).row
    total = sum(m.numel() for m in mask.values())
    assert row["sparsity_measured"] == pytest.approx(round(0.7 * total) / total, abs=1e-9)
    assert store.has(PRETRAIN) and specs.parents(spec) == (PRETRAIN,)
    assert stages.mask(ticket(sparsity=0.7, epochs=2, lr=0.3, seed=2)) != mask  # upstream


def test_a_killed_one_goes_on_to_the_same_mask(split, tmp_path, monkeypatch):
    spec = ticket("row", 0.5, epochs=3, lr=0.5)
    expected = lmp(basic(), split, spec)[0]
    killing, calls = killed_at(6, training.learning_rate)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training, "learning_rate", killing)
    with pytest.raises(KeyboardInterrupt):
        lmp(basic(), split, spec, tmp_path / "half.pt")
    assert lmp(basic(), split, spec, tmp_path / "half.pt")[0] == expected
    assert [step for _, step, _ in calls[:7]] == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("objective", ["natural", "pgd"])
def test_the_mask_follows_from_the_spec(objective, split):
    attack = {"objective": "pgd", "eps": 0.5} if objective == "pgd" else {}
    spec = ticket("kernel", 0.5, epochs=1, lr=0.5, **attack)
    one = lmp(basic(), split, spec)[0]
    torch.manual_seed(77)
    assert lmp(basic(), split, spec)[0] == one
    other = ticket("kernel", 0.5, epochs=1, lr=0.5, seed=1, **attack)
    assert lmp(basic(), split, other)[0] != one
    if attack:
        assert lmp(basic(), split, ticket("kernel", 0.5, epochs=1, lr=0.5))[0] != one


def test_a_channel_is_learned_with_its_norm_and_a_removed_one_gets_a_gradient():
    """What is learned on is the ticket's own network: nothing flows where a channel is removed."""
    torch.manual_seed(0)
    model = models.build("resnet10s", 3, width=8)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
            torch.nn.init.uniform_(m.bias, 0.1, 0.5)
    spec = Ticket(scheme="lmp", pattern="channel", sparsity=0.5, dataset="digits")
    x = torch.rand(4, 3, 16, 16)
    mask = tickets.omp(model, 0.5, "channel")
    ticket = tickets.masked(copy.deepcopy(model), mask, "channel").eval()
    scored, scores = learned.score(copy.deepcopy(model), spec)
    assert torch.allclose(scored.eval()(x), ticket(x), atol=1e-5)
    scored(x).square().sum().backward()
    removed = torch.cat([s.scores.grad[~s.kept] for s in scores.values()])
    assert len(removed) and removed.count_nonzero() > 0
