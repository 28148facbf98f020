"""Objectives, each against a computation of its own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustlib import devices, models, objectives
from robustlib.attacks import Threat, random_start
from robustlib.specs import Pretrain

EPS = 0.1
SPECS = {
    "natural": {},
    "pgd": {"eps": 0.5, "steps": 3},
    "trades": {"eps": 0.5, "steps": 3},
    "free": {"eps": 0.5},
    "smoothing": {"sigma": 0.1},
}


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 12, generator=torch.Generator().manual_seed(0)))
        model[1].bias.copy_(torch.tensor([0.1, -0.2]))
    return model


def batch(n: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images so close to the middle that the [0, 1] box never binds, and labels of two classes."""
    x = 0.5 + 0.1 * torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return x, torch.arange(n) % 2


def probabilities(model: nn.Module, x: Tensor) -> Tensor:
    e = (x.flatten(1) @ model[1].weight.T + model[1].bias).double().exp()
    return e / e.sum(1, keepdim=True)


def entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The mean of -log p(y), from probabilities."""
    return -probabilities(model, x)[torch.arange(len(y)), y].log().mean()


def start(x: Tensor, seed: int = 0) -> Tensor:
    """The first random start after torch.manual_seed(seed)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return random_start(x, Threat("linf", EPS))


def step(model: nn.Module, delta: Tensor, y: Tensor, size: float) -> Tensor:
    """A linf step up the cross entropy of the linear model: its gradient is along w1 - w0."""
    w = (model[1].weight[1] - model[1].weight[0]).detach().sign().view(1, 3, 2, 2)
    up = torch.where(y.view(-1, 1, 1, 1) == 1, -w, w)
    return (delta + size * up).clamp(-EPS, EPS)


def test_natural_is_the_mean_of_minus_log_p():
    model, (x, y) = linear(), batch()
    assert objectives.natural(model, x, y).item() == pytest.approx(entropy(model, x, y).item())


def test_pgd_is_the_cross_entropy_of_images_that_count_as_given():
    model, (x, y) = linear(), batch()
    x_adv = x + step(model, start(x), y, 1.25 * EPS)
    torch.manual_seed(0)
    loss = objectives.adversarial(Threat("linf", EPS, 1)).loss(model, x, y)
    assert loss.item() == pytest.approx(entropy(model, x_adv, y).item(), rel=1e-5)
    loss.backward()
    with torch.no_grad():
        error = probabilities(model, x_adv) - F.one_hot(y, 2)
    by_hand = (error.T @ x_adv.flatten(1).double() / len(y)).float()
    assert torch.allclose(model[1].weight.grad, by_hand, atol=1e-6)


def test_trades_is_cross_entropy_plus_beta_times_the_divergence_it_maximised():
    model, (x, y) = linear(), batch()
    beta, delta = 6.0, start(x)
    # KL(p || q) grows along (q1 - p1)(w1 - w0): away from where the start already lies.
    with torch.no_grad():
        clean, begun = probabilities(model, x), probabilities(model, x + delta)
    side = (begun[:, 1] < clean[:, 1]).long()
    x_adv = x + step(model, delta, side, 1.25 * EPS)
    p, q = probabilities(model, x), probabilities(model, x_adv)
    expected = entropy(model, x, y) + beta * (p * (p / q).log()).sum(1).mean()
    (by_hand,) = torch.autograd.grad(expected, model[1].weight)

    torch.manual_seed(0)
    loss = objectives.trades(Threat("linf", EPS, 1), beta).loss(model, x, y)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() > 1.05 * entropy(model, x, y).item(), "the second term is not nothing"
    (grad,) = torch.autograd.grad(loss, model[1].weight)
    assert torch.allclose(grad, by_hand, atol=1e-5), "both terms, and both sides of the divergence"


@pytest.mark.parametrize("name", ["pgd", "trades"])
def test_in_a_tiny_ball_only_the_cross_entropy_is_left(name):
    model, (x, y) = linear(), batch()
    spec = Pretrain(objective=name, eps=1e-6, steps=2)
    loss = objectives.from_spec(spec).loss(model, x, y)
    assert loss.item() == pytest.approx(entropy(model, x, y).item(), abs=1e-5)


def test_free_moves_one_perturbation_from_pass_to_pass_and_from_batch_to_batch():
    model, objective = linear(), objectives.free(Threat("linf", EPS), replays=2)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    (x1, y1), (x2, y2) = batch(), batch(seed=2)
    y2 = 1 - y2
    expected = start(x1)
    torch.manual_seed(0)
    for x, y in [(x1, y1), (x1, y1), (x2, y2), (x2, y2)]:
        loss = objective.loss(model, x, y)
        assert loss.item() == pytest.approx(entropy(model, x + expected, y).item(), rel=1e-5)
        assert torch.allclose(seen[-1], x + expected, atol=1e-6)
        loss.backward()
        expected = step(model, expected, y, EPS)
        assert torch.allclose(objective.state["delta"], expected, atol=1e-6)
    assert objective.replays == 2
    # The gradient is that of the weights too, of all four passes.
    assert model[1].weight.grad.abs().sum() > 0


def test_free_in_l2_steps_by_eps_and_projects():
    model, objective = linear(), objectives.free(Threat("l2", EPS), replays=2)
    x, y = batch()
    for _ in range(4):
        objective.loss(model, x, y).backward()
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    up = torch.where(y[:, None] == 1, -w, w) / w.norm()
    delta = objective.state["delta"].flatten(1)
    assert delta.norm(dim=1).max() <= EPS * (1 + 1e-5)
    assert ((delta * up).sum(1) > 0.95 * EPS).all(), "four steps of eps point at the optimum"


def test_free_stays_in_the_box_and_starts_anew_for_a_batch_of_another_size():
    model, objective = linear(), objectives.free(Threat("linf", EPS), replays=2)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x, y = batch()
    for corner in (0.0, 1.0, 0.0):
        objective.loss(model, torch.full_like(x, corner), y).backward()
    assert min(s.min() for s in seen) == 0 and max(s.max() for s in seen) == 1
    few, labels = batch(4)
    objective.loss(model, few, labels).backward()
    assert objective.state["delta"].shape == few.shape


def test_free_survives_a_gradient_that_overflowed():
    for norm in ("l2", "linf"):
        model, objective = linear(), objectives.free(Threat(norm, EPS), replays=2)
        x, y = batch()
        objective.loss(model, x, y).backward(torch.tensor(torch.inf))
        assert objective.state["delta"].isfinite().all()


def test_smoothing_adds_fresh_noise_of_the_right_size_and_does_not_clip():
    class Probe(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :2]

    seen = []
    x, y = torch.ones(40, 3, 20, 20), torch.zeros(40, dtype=torch.long)
    torch.manual_seed(0)
    loss = objectives.smoothing(0.25).loss
    for _ in range(2):
        loss(Probe(), x, y)
    first, second = (s - x for s in seen)
    # 48,000 draws: the deviation is known to a third of a percent.
    assert first.std().item() == pytest.approx(0.25, rel=0.015)
    assert abs(first.mean()) < 0.005 and first.max() > 0.5
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]) < 0.02


# How often a network is run in eval mode (the attack) and in train mode (the step) by one loss.
PASSES = {"natural": (0, 1), "pgd": (3, 1), "trades": (4, 2), "free": (0, 1), "smoothing": (0, 1)}


@pytest.mark.parametrize("name", PASSES)
def test_attacks_run_in_eval_mode_and_steps_in_train_mode(name):
    model = models.build("resnet10s", 2, 4, 1).train()
    ran = []
    model.bn1.register_forward_hook(lambda m, *_: ran.append(m.training))
    x = torch.rand(6, 3, 8, 8)
    objective = objectives.from_spec(Pretrain(objective=name, **SPECS[name]))
    objective.loss(model, x, torch.arange(6) % 2).backward()
    attack, train = PASSES[name]
    assert (ran.count(False), ran.count(True)) == (attack, train)
    assert model.bn1.num_batches_tracked == train
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SPECS)
def test_every_weight_gets_the_gradient_it_would_get_alone(name, precision):
    """Mixed precision caches the casts of weights, and an attack before the step must not leave
    it casts that are cut off from their weights."""
    torch.manual_seed(0)
    model = models.build("resnet10s", 2, 4, 1).train()
    objective = objectives.from_spec(Pretrain(objective=name, **SPECS[name]))
    with devices.computing(model, devices.reduced(precision, torch.device("cpu"))):
        loss = objective.loss(model, torch.rand(6, 3, 8, 8), torch.arange(6) % 2)
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_spec_names_its_objective():
    made = {n: objectives.from_spec(Pretrain(objective=n, **kw)) for n, kw in SPECS.items()}
    assert {n for n, o in made.items() if o.threat} == {"pgd", "trades", "free"}
    assert {n: o.replays for n, o in made.items() if o.replays != 1} == {"free": 4}
    spec = Pretrain(objective="pgd", norm="linf", eps="8/255", steps=7, step_size=0.01)
    assert objectives.from_spec(spec).threat == Threat("linf", 8 / 255, 7, 0.01)
    x, y = batch()
    loss = {
        beta: objectives.from_spec(Pretrain(objective="trades", eps=0.1, beta=beta)).loss
        for beta in (0.0, 6.0)
    }
    assert loss[6.0](linear(), x, y) > loss[0.0](linear(), x, y)
