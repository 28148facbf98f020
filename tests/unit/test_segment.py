"""Dense prediction: the loss, the heads, the measures, and a ticket that learns to segment."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from robustlib import heads, models, stages, tickets, training
from robustlib.compact import compact
from robustlib.data import Dataset, Split, batches, packs
from robustlib.objectives import pixelwise
from robustlib.specs import ARCHS, Pretrain, Ticket, Transfer
from robustlib.tickets import Mask, omp
from robustlib.training import Recipe
from robustlib.transfer import segment
from robustlib.transfer.segment import confusions, iou_interval, measures, predicted

COLOURS = torch.tensor([[60, 60, 60], [190, 90, 60], [60, 90, 190]])
RECIPE = Recipe(
    epochs=2, lr=0.1, batch_size=8, weight_decay=5e-4, augment="crop-flip", precision="fp32", seed=0
)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setenv("ROBUSTLIB_DEVICE", "cpu")


def scene(n: int, seed: int, height: int = 16, width: int = 24) -> Split:
    """Noisy blocks whose class is their colour, their upper left pixels without a label."""
    g = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 3, (n, height // 8, width // 8), generator=g)
    y = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    x = COLOURS[y] + 20 * torch.randn((n, height, width, 3), generator=g)
    y[:, :4, :4] = 255
    return Split(x.clamp(0, 255).to(torch.uint8), y.to(torch.uint8))


@pytest.fixture(scope="module")
def data() -> Dataset:
    splits = scene(32, 0), scene(8, 1), scene(12, 2)
    return Dataset("blocks", *splits, ("a", "b", "c"), native=24, ignore=255)


def network(seed: int = 0, arch: str = "resnet10s", **fields) -> models.ResNet:
    torch.manual_seed(seed)
    return models.build(arch, 7, **({"width": 4} | fields))


def transfer(**fields) -> Transfer:
    return Transfer(**{"epochs": 6, "batch_size": 8, "lr": 0.1} | fields)


class Told(nn.Module):
    """Predicts what it was told, image after image."""

    def __init__(self, answers: Tensor, k: int) -> None:
        super().__init__()
        self.answers, self.k, self.at = answers.long(), k, 0

    def forward(self, x: Tensor) -> Tensor:
        self.at += len(x)
        return F.one_hot(self.answers[self.at - len(x) : self.at], self.k).movedim(3, 1).float()


def counted(answers: Tensor, truth: Tensor, k: int) -> Tensor:
    split = Split(torch.zeros(*truth.shape, 3, dtype=torch.uint8), truth.to(torch.uint8))
    return confusions(Told(answers, k), split, k, 255)


def random_case(n: int = 20, k: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, k, (n, 6, 9), generator=g)
    wrong = torch.randint(0, k, (n, 6, 9), generator=g)
    return torch.where(torch.rand((n, 6, 9), generator=g) < 0.6, truth, wrong), truth


# The loss


def test_the_loss_is_the_mean_over_labelled_pixels():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 5, 4, 6), generator=g).requires_grad_()
    y = torch.randint(0, 5, (3, 4, 6), generator=g).to(torch.uint8)
    y[0] = 255
    y[1, 2:] = 255
    loss = pixelwise(255).loss(lambda x: x, logits, y)
    rows = logits.movedim(1, 3)[y != 255].log_softmax(1)
    by_hand = -rows.gather(1, y[y != 255].long()[:, None]).mean()
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    unlabelled = (y == 255)[:, None].expand_as(logits)
    assert not logits.grad[unlabelled].any() and logits.grad[~unlabelled].all()
    moved = torch.where(unlabelled, logits + 100, logits)
    assert torch.equal(pixelwise(255).loss(lambda x: x, moved, y), loss)
    # Where nothing is labelled there is nothing to learn, not a nan.
    logits.grad = None
    pixelwise(255).loss(lambda x: x, logits, torch.full_like(y, 255)).backward()
    assert not logits.grad.any()


# The heads


@pytest.mark.parametrize("arch", ARCHS)
def test_any_size_of_image_gives_logits_of_that_size(arch):
    net = heads.segmenter(network(arch=arch, stem_stride=2), 5).eval()
    with torch.no_grad():
        for height, width in ((33, 50), (64, 40)):
            assert net(torch.rand(1, 3, height, width)).shape == (1, 5, height, width)
    assert isinstance(net.head, heads.Fusion) == arch.endswith("s")


def test_fusion_is_small_and_uses_every_map():
    backbone = network(width=32, stem_stride=2)
    net = heads.segmenter(backbone, 11).eval()
    n_head = sum(p.numel() for p in net.head.parameters())
    assert n_head < 0.05 * sum(p.numel() for p in backbone.parameters())
    with torch.no_grad():
        maps = backbone.pyramid(torch.rand(1, 3, 72, 96))
        assert [tuple(m.shape[2:]) for m in maps] == [(36, 48), (18, 24), (9, 12), (5, 6)]
        out = net.head(maps)
        assert out.shape == (1, 11, 36, 48)
        for i in range(4):
            other = [torch.zeros_like(m) if i == j else m for j, m in enumerate(maps)]
            assert not torch.allclose(net.head(other), out)
    assert "fc.weight" not in backbone.state_dict()


def test_fusion_is_the_sum_of_the_maps_from_the_coarsest_on_rectified_and_classified():
    torch.manual_seed(3)
    channels, sides = [3, 5, 2], [(11, 14), (6, 7), (3, 4)]
    maps = [torch.randn(2, c, *side) for c, side in zip(channels, sides, strict=True)]
    net = heads.Fusion(channels, 4, width=6).eval()
    for lateral in net.lateral:
        norm = lateral[1]
        for t in (norm.weight.data, norm.bias.data, norm.running_mean):
            t.normal_()
        norm.running_var.uniform_(0.5, 2)

    def projected(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
        x = torch.einsum("ij,njhw->nhwi", conv.weight[:, :, 0, 0], x)
        x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return (x * norm.weight + norm.bias).movedim(3, 1)

    def between(n: int, n_out: int) -> Tensor:
        """How much of each of n pixels a pixel of n_out takes: by distance of their centres."""
        at = ((torch.arange(n_out) + 0.5) * n / n_out - 0.5).clamp(0, n - 1)
        return (1 - (at[:, None] - torch.arange(n)).abs()).clamp(min=0)

    with torch.no_grad():
        total = projected(maps[2], *net.lateral[2])
        for i in (1, 0):
            (h, w), (h_out, w_out) = sides[i + 1], sides[i]
            total = between(h, h_out) @ total @ between(w, w_out).T
            total = total + projected(maps[i], *net.lateral[i])
        logits = torch.einsum("kj,njhw->nkhw", net.classify.weight[:, :, 0, 0], total.clamp(min=0))
        torch.testing.assert_close(net(maps), logits + net.classify.bias[:, None, None])


def test_a_ticket_without_whole_channels_gets_the_same_head():
    backbone = network(width=8)
    kept = {n: torch.ones_like(p, dtype=torch.bool) for n, p in tickets.prunable(backbone).items()}
    for name in ("conv1", "layer1.0.conv2", "layer3.0.conv2", "layer3.0.downsample.0"):
        kept[f"{name}.weight"][:5] = False
    small = compact(tickets.masked(backbone, Mask(kept), "channel"), 32).model
    widths = [m.shape[1] for m in small.pyramid(torch.rand(1, 3, 32, 32))]
    assert widths == [3, 16, 27, 64]
    net = heads.segmenter(small, 5).eval()
    assert [m[0].in_channels for m in net.head.lateral] == widths
    assert net(torch.rand(1, 3, 20, 28)).shape == (1, 5, 20, 28)
    assert net.head.classify.weight.shape == (5, 32, 1, 1)


def test_a_dilated_backbone_is_torchvisions():
    ours = network(arch="resnet50").eval()
    dilated = [False, True, True]
    theirs = torchvision.models.resnet50(num_classes=7, replace_stride_with_dilation=dilated).eval()
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing.unexpected_keys) == {"mean", "std"} and missing.missing_keys == []
    heads.dilate(ours)
    last = nn.Sequential(*list(theirs.children())[:-2])
    x = torch.rand(1, 3, 65, 48)
    with torch.no_grad():
        out = ours.pyramid(x)[-1]
        torch.testing.assert_close(out, last((x - ours.mean) / ours.std))
    assert out.shape == (1, 2048, 9, 6)


def test_dilated_basic_blocks_do_on_each_phase_what_they_did_on_the_strided_map():
    """torchvision dilates no basic blocks, but what a dilated one must do follows from the strided
    one: images a stride apart do not meet in it."""
    plain, ours = network(arch="resnet18").eval(), network(arch="resnet18").eval()
    heads.dilate(ours)
    for name, before in (("layer3", 1), ("layer4", 2)):
        (first, block), (first_plain, block_plain) = getattr(ours, name), getattr(plain, name)
        x = torch.randn(1, first.conv1.in_channels, 9, 14)
        y = torch.randn(1, block.conv1.in_channels, 9, 14)
        after = 2 * before
        with torch.no_grad():
            expected = first_plain(x[..., ::before, ::before])
            torch.testing.assert_close(first(x)[..., ::after, ::after], expected)
            out = block(y)
            for i in range(after):
                for j in range(after):
                    expected = block_plain(y[..., i::after, j::after])
                    torch.testing.assert_close(out[..., i::after, j::after], expected)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_dilated_network_has_the_strided_ones_map_between_its_own(arch):
    plain, ours = network(arch=arch).eval(), network(arch=arch).eval()
    heads.dilate(ours)
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        strided, dilated = plain.pyramid(x)[-1], ours.pyramid(x)[-1]
    atol = 1e-5 * float(strided.abs().max())
    torch.testing.assert_close(dilated[..., ::4, ::4], strided, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("head", ["fcn", "deeplab"])
def test_the_heads_of_torchvision_sit_on_the_last_map(head):
    net = heads.segmenter(network(arch="resnet18"), 21, head).eval()
    theirs = {"fcn": "FCNHead", "deeplab": "DeepLabHead"}[head]
    assert type(net.head.head).__name__ == theirs
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 48)
        last = net.backbone.pyramid(x)[-1]
        assert last.shape[2:] == (8, 6)
        expected = F.interpolate(net.head.head(last), (64, 48), mode="bilinear")
        torch.testing.assert_close(net(x), expected)


def test_multiply_adds_are_those_of_the_images_height_and_width():
    net = heads.segmenter(network(stem_stride=2), 5)
    assert models.multiply_adds(net, (32, 32)) == models.multiply_adds(net, 32)
    assert models.multiply_adds(net, (32, 96)) == 3 * models.multiply_adds(net, 32)


# Measures


def test_a_case_worked_by_hand():
    truth = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 255, 0]]])
    answers = torch.tensor([[[0, 1, 1, 0]], [[1, 2, 2, 0]]])
    counts = counted(answers, truth, 4)
    assert counts.dtype == torch.int32
    assert counts[0].tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert counts[1].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0] * 4, [0] * 4]
    found = measures(counts)
    # Class 0: 2 right of 3; class 1: 2 right, 1 missed, 1 false; 2 is predicted but never there.
    assert found["iou"] == [pytest.approx(2 / 3), pytest.approx(2 / 4), None, None]
    assert found["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["pixel_accuracy"] == pytest.approx(4 / 6) and found["n"] == 2


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_torchmetrics_and_scikit_learn(seed):
    k = 5
    answers, truth = random_case(k=k, seed=seed)
    truth[torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed)) < 0.1] = 255
    found = measures(counted(answers, truth, k))
    for average, name in ((None, "iou"), ("macro", "miou")):
        metric = MulticlassJaccardIndex(k, average=average, ignore_index=255)
        assert found[name] == pytest.approx(metric(answers, truth).numpy(), abs=1e-6)
    accuracy = MulticlassAccuracy(k, average="micro", ignore_index=255)(answers, truth)
    assert found["pixel_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
    y, p = truth[truth != 255].numpy(), answers[truth != 255].numpy()
    assert found["iou"] == pytest.approx(jaccard_score(y, p, average=None))


def test_the_limits_perfect_constant_and_wrong():
    _, truth = random_case()
    perfect = measures(counted(truth, truth, 5))
    assert perfect["miou"] == perfect["pixel_accuracy"] == 1 and perfect["iou"] == [1] * 5
    constant = measures(counted(torch.full_like(truth, 2), truth, 5))
    share = float((truth == 2).float().mean())
    assert constant["iou"] == pytest.approx([0, 0, share, 0, 0])
    assert constant["miou"] == pytest.approx(share / 5)
    assert constant["pixel_accuracy"] == pytest.approx(share)
    wrong = measures(counted((truth + 1) % 5, truth, 5))
    assert wrong["miou"] == wrong["pixel_accuracy"] == 0


def test_pixels_without_a_label_change_nothing_whatever_is_predicted_there():
    answers, truth = random_case()
    hidden = torch.rand(truth.shape, generator=torch.Generator().manual_seed(9)) < 0.3
    part = torch.where(hidden, 255, truth)
    counts = counted(answers, part, 5)
    assert torch.equal(counts, counted(torch.where(hidden, 0, answers), part, 5))
    assert torch.equal(counts.sum((1, 2)), (~hidden).sum((1, 2)))
    assert not torch.equal(counts, counted(answers, truth, 5))


def test_predictions_are_labels_in_the_order_of_the_images(data):
    net = heads.segmenter(network(), 3).eval()
    found = predicted(net, data.test, batch_size=5)
    with torch.no_grad():
        expected = net(batches.to_float(data.test.x)).argmax(1)
    assert found.dtype == torch.uint8 and torch.equal(found.long(), expected)


def test_measuring_leaves_the_network_and_the_callers_generator_as_they_are(data):
    net, state = heads.segmenter(network(), 3).train(), torch.random.get_rng_state()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    counts = confusions(net, data.test, 3, data.ignore)
    assert net.training and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    alone = confusions(net, data.test, 3, data.ignore, batch_size=1)
    assert torch.equal(counts, alone)


def test_the_interval_is_that_of_a_bootstrap_over_images():
    """Against percentiles of resamples drawn by numpy: BCa is near them for a smooth statistic."""
    counts = counted(*random_case(n=200), 5)
    mean, low, high = iou_interval(counts)
    assert mean == pytest.approx(measures(counts)["miou"], abs=1e-12) and low < mean < high
    rng = np.random.default_rng(5)
    drawn = [measures(counts[rng.integers(0, 200, 200)])["miou"] for _ in range(1000)]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], abs=0.15 * (high - low))
    assert iou_interval(counts) == (mean, low, high)
    fewer = iou_interval(counts[:50])
    assert 1.5 < (fewer[2] - fewer[1]) / (high - low) < 2.7  # sqrt(200 / 50) is 2
    narrow = iou_interval(counts, level=0.5)
    assert low < narrow[1] < narrow[2] < high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    hits = 0
    whole = counted(*random_case(n=4000), 5)
    truth = measures(whole)["miou"]
    for i in range(100):
        _, low, high = iou_interval(whole[40 * i : 40 * i + 40], level=0.8)
        hits += low <= truth <= high
    assert 68 <= hits <= 92  # three standard deviations of a binomial


def test_intervals_at_the_limits():
    answers, truth = random_case()
    assert iou_interval(counted(truth, truth, 5)) == (1, 1, 1)
    one = counted(answers, truth, 5)[:1]
    mean, low, high = iou_interval(one)
    assert mean == pytest.approx(measures(one)["miou"]) and math.isnan(low) and math.isnan(high)
    counts = counted(answers, truth, 5)
    blank = torch.cat([counts, torch.zeros_like(counts)])  # images without a labelled pixel
    assert iou_interval(blank) == iou_interval(counts)
    assert all(math.isnan(v) for v in iou_interval(torch.zeros_like(counts)))
    with pytest.raises(ValueError, match="level=1"):
        iou_interval(counts, level=1)


def test_the_interval_is_not_empty_where_leaving_out_any_image_changes_as_much():
    """Two kinds of images, as many of each and as well done: BCa is undefined, resamples differ."""
    half = torch.tensor([[[2, 2], [0, 0]], [[0, 0], [2, 2]]] * 4)
    found, low, high = iou_interval(half)
    rng = np.random.default_rng(5)
    drawn = [measures(half[rng.integers(0, 8, 8)])["miou"] for _ in range(2000)]
    assert found == pytest.approx(1 / 3)
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert high - low > 0.02


def test_images_are_resampled_and_not_pixels():
    """Half of the images are right and half wrong: pixels alone would be far too sure."""
    _, truth = random_case(n=60)
    answers = torch.where(torch.arange(60)[:, None, None] % 2 == 0, truth, (truth + 1) % 5)
    counts = counted(answers, truth, 5)
    _, low, high = iou_interval(counts)
    rng = np.random.default_rng(5)
    drawn = [measures(counts[rng.integers(0, 60, 60)])["miou"] for _ in range(1000)]
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.03)
    assert high - low > 0.15


def test_the_interval_of_a_difference_is_of_the_same_resampled_images():
    answers, truth = random_case(n=60)
    counts = counted(answers, truth, 5)
    assert iou_interval(counts, minus=counts) == (0, 0, 0)
    # A second network that is right at half of the first one's mistakes.
    better = torch.where(torch.arange(answers.shape[-1]) % 2 == 0, truth, answers)
    other = counted(better, truth, 5)
    found, low, high = iou_interval(other, minus=counts)
    assert found == pytest.approx(measures(other)["miou"] - measures(counts)["miou"], abs=1e-12)
    assert low < found < high
    back = iou_interval(counts, minus=other)
    assert [-v for v in back] == pytest.approx([found, high, low], abs=0.05 * (high - low))
    # Independent images would add the widths of the two in squares.
    alone = [high - low for _, low, high in map(iou_interval, (other, counts))]
    assert high - low < 0.8 * math.hypot(*alone)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(0, 60, 60) for _ in range(1000)]
    drawn = [measures(other[i])["miou"] - measures(counts[i])["miou"] for i in drawn]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], abs=0.2 * (high - low))


def test_the_interval_of_a_difference_worked_by_hand():
    """Each image has four pixels of one class; one network is right on all, the other on half of
    them: mean IoU 1 and, of two classes that are confused alike, 1/3, in any resample with both."""
    right = torch.tensor([[[4, 0], [0, 0]], [[0, 0], [0, 4]]] * 40)
    half = torch.tensor([[[2, 2], [0, 0]], [[0, 0], [2, 2]]] * 40)
    found, low, high = iou_interval(right, minus=half)
    assert found == pytest.approx(2 / 3) and 0.66 < low < found + 1e-9 and found < high < 0.7
    one = iou_interval(right[:1], minus=half[:1])
    assert one[0] == pytest.approx(1 - 1 / 2) and math.isnan(one[1]) and math.isnan(one[2])
    with pytest.raises(ValueError, match="must be of the same images"):
        iou_interval(right, minus=half.flip(0))
    with pytest.raises(ValueError, match="must be of the same images"):
        iou_interval(right, minus=half[:2])


# Training


def segmented(data: Dataset, net: nn.Module, **fields) -> tuple[nn.Module, Mask, dict]:
    mask = omp(net, 0.7)
    net, found = segment(mask.apply(net), data, transfer(**fields))
    return net, mask, found


def test_segmenting_learns_the_task_and_keeps_removed_weights_at_zero(data):
    backbone = network(stem_stride=1)
    start = {n: t.clone() for n, t in backbone.state_dict().items()}
    owned = dict(backbone.named_parameters())
    net, mask, found = segmented(data, backbone)
    assert net.backbone is backbone and not net.training
    for name, m in mask.items():
        w = net.get_parameter(f"backbone.{name}")
        assert w is owned[name]
        assert not w[~m].any() and (w[m] != start[name][m]).all(), name
    losses = [row["loss"] for row in found["curve"]]
    assert len(losses) == 6 and losses[-1] < 0.5 * losses[0]
    for split in ("val", "test"):
        part = getattr(data, split)
        counts = confusions(net, part, 3, data.ignore)
        assert torch.equal(found[f"{split}_confusion"], counts) and len(counts) == len(part)
        assert int(counts.sum()) == int((part.y != 255).sum())
        for k, v in measures(counts).items():
            assert found[f"{split}_{k}"] == v
    with torch.no_grad():
        answers = net(batches.to_float(data.test.x)).argmax(1)
    metric = MulticlassJaccardIndex(3, ignore_index=255)
    assert found["test_miou"] == pytest.approx(float(metric(answers, data.test.y.long())), abs=1e-6)
    assert found["test_miou"] > 0.7


def test_segmenting_follows_from_the_spec_and_the_training_images_alone(data):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = segment(network(), data, transfer(epochs=2))[0].state_dict()
    blind = replace(data, val=scene(8, 5), test=scene(9, 6))
    torch.random.set_rng_state(state)
    net = network()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    two = segment(net, blind, transfer(epochs=2))[0].state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(t, two[n]) for n, t in one.items())
    three = segment(network(), data, transfer(epochs=2, seed=1))[0].state_dict()
    assert not torch.equal(one["head.classify.weight"], three["head.classify.weight"])


def test_training_sees_only_its_own_images_and_then_val_and_test_once(data):
    splits = {name: getattr(data, name) for name in ("train", "val", "test")}
    owner = {x.numpy().tobytes(): name for name, split in splits.items() for x in split.x}
    assert len(owner) == 32 + 8 + 12
    net, seen = network(stem_stride=2), []

    def look(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        pixels = ((inputs[0] * net.std + net.mean) * 255).round().to(torch.uint8)
        for x in pixels.permute(0, 2, 3, 1).contiguous().numpy():
            seen.append((x.tobytes(), net.training))

    net.conv1.register_forward_pre_hook(look)
    segment(net, data, transfer(epochs=2, augment="none"))
    learnt, measured = seen[:64], seen[64:]
    assert all(training and owner[x] == "train" for x, training in learnt)
    assert set(Counter(x for x, _ in learnt).values()) == {2}
    assert not any(training for _, training in measured)
    held_out = [x for x, name in owner.items() if name != "train"]
    assert Counter(x for x, _ in measured) == Counter(held_out)


def test_unlabelled_pixels_and_images_do_not_enter_training(data):
    y = data.train.y.clone()
    y[::2] = 255
    half = replace(data, train=Split(data.train.x, y))
    other = data.train.y.flip(0).clone()
    other[::2] = 255
    one, two = (segment(network(), half, transfer(epochs=1))[0].state_dict() for _ in range(2))
    assert all(torch.equal(t, two[n]) for n, t in one.items())
    none = replace(data, train=Split(data.train.x, torch.full_like(y, 255)))
    net, found = segment(network(), none, transfer(epochs=1, weight_decay=0))
    assert found["curve"][0]["loss"] == 0
    assert torch.equal(net.backbone.conv1.weight, network().conv1.weight)


class Stopped(Exception):
    pass


def test_the_head_of_the_spec_is_trained(data):
    nets = [
        segment(network(), data, transfer(mode="segment", epochs=1, head=head))[0]
        for head in ("auto", "fusion", "deeplab")
    ]
    auto, fusion, deeplab = (net.state_dict() for net in nets)
    assert all(torch.equal(t, fusion[n]) for n, t in auto.items())
    assert isinstance(nets[2].head, heads.Deepest) and deeplab.keys() != auto.keys()


@pytest.mark.parametrize("stop_at", [3, 6])
def test_stopped_and_gone_on_it_ends_with_the_same_weights(data, tmp_path, monkeypatch, stop_at):
    spec, checkpoint = transfer(epochs=2, augment="crop-flip"), tmp_path / "unfinished.pt"

    def run(path):
        net = network()
        mask = omp(net, 0.5)
        return segment(mask.apply(net), data, spec, path)

    whole, found = run(None)
    rate, steps = training.learning_rate, []

    def stopping(recipe, step, total):
        if step == stop_at:
            raise Stopped
        return rate(recipe, step, total)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stopping)
        with pytest.raises(Stopped):
            run(checkpoint)
    assert checkpoint.exists()
    monkeypatch.setattr(training, "learning_rate", lambda *a: steps.append(a[1]) or rate(*a))
    resumed, found_2 = run(checkpoint)
    assert steps == [*range(stop_at, 8)]
    state = resumed.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.state_dict().items())
    assert torch.equal(found["test_confusion"], found_2["test_confusion"])
    assert [r["loss"] for r in found["curve"]] == [r["loss"] for r in found_2["curve"]]


def test_statistics_are_reestimated_on_images_of_any_shape(data):
    net = network()
    training.recalibrate(net, data.train)
    x = batches.to_float(data.train.x)
    expected = net.conv1((x - net.mean) / net.std).mean((0, 2, 3))
    torch.testing.assert_close(net.bn1.running_mean, expected.detach(), atol=1e-4, rtol=1e-4)


def test_the_spec_says_whether_statistics_are_reestimated_before_segmenting(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    splits = {name: getattr(data, name) for name in ("train", "val", "test")}
    arrays = {
        f"{a}_{s}": getattr(split, b).numpy()
        for s, split in splits.items()
        for a, b in ("xx", "my")
    }
    packs.write(tmp_path / "blocks.npz", packs.Pack(arrays, data.class_names))
    pretrain = Pretrain(source="digits", width=4, stem_stride=1, size=8, epochs=1)
    ticket = Ticket(pretrain, sparsity=0.5)
    # Without a step of training the statistics stay those that the transfer began with.
    kept, told = (
        stages.network(
            Transfer(ticket, "blocks", "segment", n_train=None, epochs=0, recalibrate=recalibrate)
        )
        for recalibrate in (False, True)
    )
    net, expected = stages.network(ticket), {}

    def statistics(name: str):
        def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            expected[name] = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))

        return note

    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 12
    for name, norm in norms.items():
        ours = kept.backbone.get_submodule(name)
        assert torch.equal(ours.running_mean, norm.running_mean)
        assert torch.equal(ours.running_var, norm.running_var)
        norm.register_forward_pre_hook(statistics(name))
    with torch.no_grad():
        net.train()(batches.to_float(data.train.x))
    for name, (mean, var) in expected.items():
        ours = told.backbone.get_submodule(name)
        torch.testing.assert_close(ours.running_mean, mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.running_var, var, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(kept.backbone.get_submodule(name).running_mean, mean, atol=1e-2)
