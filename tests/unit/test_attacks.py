"""The attack: what it may do, what it must reach, and what it must leave alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustlib import models
from robustlib.attacks import Threat, evaluating, pgd, random_start, unwrapped

NORMS = ("l2", "linf")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.build("resnet10s", 5, 4, 1)


def images(n: int = 12, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of them inside (0, 1), half of nothing but 0 and 1, where the box binds at once."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(n, 3, size, size, generator=g) * 0.6 + 0.2
    x[n // 2 :] = (x[n // 2 :] > 0.5).float()
    return x, torch.arange(n) % 5


def linear(n: int = 8) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A two-class linear model, images around the middle, labels, and the direction [D] in which
    the loss of label 1 falls: the optimal attack is known."""
    g = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, 12, generator=g))
        model[1].bias.zero_()
    x = 0.5 + 0.1 * torch.rand(n, 3, 2, 2, generator=g)
    return model, x, torch.arange(n) % 2, (model[1].weight[1] - model[1].weight[0]).detach()


def norms(offset: torch.Tensor, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(offset.flatten(1), {"l2": 2, "linf": math.inf}[norm], dim=1)


def losses(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with evaluating(model), torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.6), ("linf", 0.05)])
def test_adversarial_images_stay_in_the_ball_and_in_the_box(norm, eps, steps, worst):
    (x, y), model = images(), network()
    before = x.clone()
    x_adv = pgd(model, x, y, Threat(norm, eps, steps), worst=worst)
    offset = norms(x_adv - x, norm)
    assert offset.max() <= eps * (1 + 1e-5)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    if steps == 7 and not worst:
        # Most do: a start on the far side of the ball is not always turned round in 7 steps.
        assert offset[:6].median() > 0.99 * eps, "where the box does not bind it goes to the edge"
    assert torch.equal(x, before) and not x_adv.requires_grad


@pytest.mark.parametrize(("norm", "eps"), [("l2", 1.0), ("linf", 0.1)])
def test_the_loss_grows_beyond_that_of_a_random_point_of_the_ball(norm, eps):
    (x, y), model = images(), network()
    threat = Threat(norm, eps, 10)
    torch.manual_seed(0)
    random = losses(model, (x + random_start(x, threat)).clamp(0, 1), y)
    found = losses(model, pgd(model, x, y, threat), y)
    assert (found > losses(model, x, y)).all()
    assert (found > random).all()


def test_worst_is_the_highest_loss_of_all_iterates():
    (x, y), model = images(), network()
    seen = []

    def recorded(logits):
        seen.append(F.cross_entropy(logits, y, reduction="none"))
        return seen[-1]

    # A step of twice the ball overshoots, so that the last iterate is often not the best.
    threat = Threat("l2", 1.0, steps=8, step_size=2.0)
    x_adv = pgd(model, x, y, threat, loss=recorded, worst=True)
    seen = torch.stack(seen).detach()
    assert len(seen) == threat.steps + 1, "the last iterate is looked at too"
    assert torch.equal(losses(model, x_adv, y), seen.max(0).values)
    assert (seen.max(0).values > seen[-1]).any(), "else this test could not tell worst from last"


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_it_reaches_the_closed_form(norm):
    model, x, y, w = linear()
    eps = 0.1
    ideal = eps * (w / w.norm() if norm == "l2" else w.sign())
    ideal = x + torch.where(y[:, None] == 1, -ideal, ideal).view_as(x)
    torch.manual_seed(0)
    found = pgd(model, x, y, Threat(norm, eps, steps=40, step_size=eps / 2))
    assert torch.allclose(found, ideal, atol=1e-5)
    # The default steps go 2.5 eps in all: from any corner of the cube to any other, but on the
    # ball a start at a right angle to the gradient ends 9 degrees from it, a worse one further.
    gain = losses(model, pgd(model, x, y, Threat(norm, eps, steps=20)), y) - losses(model, x, y)
    share = {"l2": 0.9, "linf": 0.9999}[norm]
    assert (gain > share * (losses(model, ideal, y) - losses(model, x, y))).all()


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("norm", NORMS)
def test_a_single_step_is_the_hand_worked_one(norm, share):
    """By default it ends on the edge of the ball; a quarter of eps leaves some images inside."""
    model, x, y, w = linear()
    eps, up = 0.1, torch.where(y[:, None] == 1, -w, w)
    threat, size = Threat(norm, eps, 1, share and share * eps), (share or 1.25) * eps
    torch.manual_seed(3)
    start = random_start(x, threat).flatten(1)
    if norm == "linf":
        expected = (start + size * up.sign()).clamp(-eps, eps)
    else:
        moved = start + size * up / w.norm()
        expected = moved * (eps / moved.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.manual_seed(3)
    found = (pgd(model, x, y, threat) - x).flatten(1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert share is None or norms(expected, norm).min() < 0.95 * eps


def test_a_start_is_uniform_in_the_cube_and_of_uniform_radius_in_the_ball():
    x = torch.zeros(4000, 3, 4, 4)
    torch.manual_seed(0)
    cube = random_start(x, Threat("linf", 0.2))
    assert cube.abs().max() <= 0.2 and abs(cube.mean()) < 1e-3
    assert cube.square().mean().sqrt() == pytest.approx(0.2 / math.sqrt(3), rel=0.01)
    ball = random_start(x, Threat("l2", 0.2))
    radius = norms(ball, "l2")
    # A uniform radius has quartiles at a quarter, a half and three quarters of eps.
    quartiles = radius.quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert torch.allclose(quartiles, torch.tensor([0.05, 0.1, 0.15]), atol=0.007)
    assert radius.max() <= 0.2 * (1 + 1e-5) and ball.mean().abs() < 1e-3


def test_the_model_is_left_as_it_was():
    (x, y), model = images(), network().train()
    model.layer2.eval()
    model.bn1.eval()
    modes = {n: m.training for n, m in model.named_modules()}
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    during = []
    hook = model.register_forward_hook(lambda m, *_: during.extend(c.training for c in m.modules()))
    pgd(model, x, y, Threat("l2", 0.5, 3), worst=True)
    hook.remove()
    assert during and not any(during), "every pass of the attack is in eval mode"
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert len(set(modes.values())) == 2
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, torch.ones_like(model.fc.weight))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "fc.weight")


def test_modes_come_back_when_the_model_raises():
    (x, y), model = images(), network().train()
    model.layer1.eval()
    with pytest.raises(ZeroDivisionError):
        pgd(model, x, y, Threat("l2", 0.5, 3), loss=lambda logits: 1 / 0)
    assert model.training and model.layer2.training and not model.layer1.training


def test_without_gradients_around_it_finds_the_same_images():
    (x, y), model = images(), network()
    found = []
    for grad in (True, False):
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad):
            found.append(pgd(model, x, y, Threat("linf", 0.05, 3), worst=True))
    assert torch.equal(*found)


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_ball_holds_the_image_alone(norm):
    (x, y), model = images(), network()
    assert torch.equal(pgd(model, x, y, Threat(norm, 0.0, 3)), x)


def test_an_image_without_gradient_stays_finite():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    nn.init.zeros_(flat[1].weight)
    x, y = images()
    for norm in NORMS:
        assert pgd(flat, x, y, Threat(norm, 0.1, 3), worst=True).isfinite().all()


class Wrapper(nn.Module):
    """Like a wrapper of data parallelism: its own forward is not for attacks."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        raise AssertionError("the attack went through the wrapper")


def test_wrappers_are_taken_off():
    (x, y), model = images(), network()
    wrapped = Wrapper(nn.DataParallel(model))
    assert unwrapped(wrapped) is model and unwrapped(model) is model
    found = []
    for m in (model, wrapped):
        torch.manual_seed(0)
        found.append(pgd(m, x, y, Threat("l2", 0.5, 2)))
    assert torch.equal(*found)


def test_eps_is_read_as_a_fraction_and_step_sizes_have_their_defaults():
    threat = Threat("linf", "8/255", 10, step_size="2/255")
    assert (threat.eps, threat.step) == (8 / 255, 2 / 255)
    x, y = images()
    assert norms(pgd(network(), x, y, threat) - x, "linf").max() <= 8 / 255 * (1 + 1e-5)
    assert Threat("linf", 0.1, 1).step == pytest.approx(0.125)
    assert Threat("linf", 0.1, 10).step == pytest.approx(0.025)
    assert pgd(network(), x, y, Threat("l2", 0.1, 2.0)).shape == x.shape


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("norm", "l1"), ("eps", -0.1), ("eps", math.nan), ("eps", "a lot"), ("steps", 0)),
        *(("steps", 1.5), ("step_size", -1), ("step_size", "")),
    ],
)
def test_a_bad_threat_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}="):
        Threat(**{field: value})
