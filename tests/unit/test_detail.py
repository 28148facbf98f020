"""Detail: what a task's images show, apart from their size; and the stem that a fine source has."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from robustlib import Pretrain, Ticket, Transfer, models, network, run, specs
from robustlib.data import Split, batches, load, splits
from robustlib.data.splits import FileSplit, take
from robustlib.stages import transfer

NET = Pretrain(source="glyphs", width=4, size=32, n_train=460, epochs=1, augment="crop")


def spectrum_beyond(x: torch.Tensor, detail: int) -> float:
    """The share of the energy of images [N, H, W, C] at frequencies beyond `detail` px."""
    images = x.float().mean(3)
    power = torch.fft.fft2(images - images.mean((1, 2), keepdim=True)).abs().square().mean(0)
    f = torch.fft.fftfreq(x.shape[1]).abs() * x.shape[1]
    fine = (f[:, None] > detail / 2) | (f[None, :] > detail / 2)
    return float(power[fine].sum() / power.sum())


def test_all_three_splits_lose_what_the_detail_cannot_hold_and_keep_their_size():
    fine, coarse = load("glyphs", 32), load("glyphs", 32, detail=8)
    for split in ("train", "val", "test"):
        before, after = getattr(fine, split), getattr(coarse, split)
        assert after.x.shape == before.x.shape and torch.equal(after.y, before.y)
        assert spectrum_beyond(before.x, 8) > 0.1
        assert spectrum_beyond(after.x, 8) < 0.5 * spectrum_beyond(before.x, 8)


def test_the_images_are_reduced_antialiased_and_scaled_up_again():
    fine, coarse = load("glyphs", 32), load("glyphs", 32, detail=16)
    x = fine.test.x[:50].permute(0, 3, 1, 2).float()
    small = F.interpolate(x, (16, 16), mode="bilinear", antialias=True).round().clamp(0, 255)
    back = F.interpolate(small, (32, 32), mode="bilinear", antialias=True).round().clamp(0, 255)
    assert torch.equal(coarse.test.x[:50].permute(0, 3, 1, 2).float(), back)


def test_a_detail_beyond_the_images_changes_nothing():
    plain, same = load("digits", 32), load("digits", 32, detail=16)  # scans of 8 px
    assert plain.native == 8 and torch.equal(plain.test.x, same.test.x)
    assert not torch.equal(plain.test.x, load("digits", 32, detail=4).test.x)


def test_the_detail_of_the_source_is_none_and_more_is_refused():
    full = Transfer(Ticket(NET), "glyphs", detail=32)
    assert full.detail is None and specs.key(full) == specs.key(replace(full, detail=None))
    with pytest.raises(ValueError, match="detail=33: must be at most the source's size, 32"):
        replace(full, detail=33)
    with pytest.raises(ValueError, match="detail=3: "):
        replace(full, detail=3)
    with pytest.raises(ValueError, match="detail=16: mode='segment' does not use it"):
        replace(full, detail=16, mode="segment")


def test_a_transfer_trains_and_is_measured_on_the_reduced_images():
    spec = Transfer(Ticket(NET), "glyphs", "linear", n_train=230, detail=8)
    found, net = run(spec), network(spec)
    x = load("glyphs", 32, detail=8).test
    images = x.x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1).float() / 255
    with torch.no_grad():
        right = int((net(images).argmax(1) == x.y).sum())
    assert abs(right / len(x) - found.row["accuracy"]) < 2e-3
    assert (found.row["detail"], found.row["native_detail"]) == (8, 32)
    assert found.row["accuracy"] != run(replace(spec, detail=None)).row["accuracy"]


def test_the_stem_of_imagenet_is_that_of_the_large_networks():
    small = models.of(replace(NET, stem="imagenet"), 5)
    large = models.build("resnet18", 5)
    assert isinstance(small.maxpool, nn.MaxPool2d) and isinstance(
        models.of(NET, 5).maxpool, nn.Identity
    )
    for name in ("kernel_size", "stride", "padding"):
        assert getattr(small.conv1, name) == getattr(large.conv1, name)
        assert getattr(small.maxpool, name) == getattr(large.maxpool, name)
    assert small.pyramid(torch.rand(1, 3, 64, 64))[0].shape == (1, 4, 16, 16)


def test_the_stem_is_of_small_networks_and_has_one_stride():
    with pytest.raises(ValueError, match="stem='imagenet': arch='resnet18' has that stem already"):
        Pretrain(arch="resnet18", stem="imagenet")
    with pytest.raises(ValueError, match="stem_stride=1: stem='imagenet' does not use it"):
        Pretrain(stem_stride=1, stem="imagenet")


def test_a_network_of_that_stem_is_pretrained_and_comes_back():
    spec = replace(NET, stem="imagenet")
    net = network(spec)
    assert net.conv1.weight.shape[-1] == 7 and run(spec).row["stem"] == "imagenet"
    assert run(spec).row["multiply_adds"] < run(NET).row["multiply_adds"]


def test_grey_takes_the_colour_of_all_three_splits_and_nothing_else(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (69, 8, 8, 3)).astype(np.uint8)
    pack = {"x_train": colour[9:], "y_train": np.arange(60) % 3, "x_test": colour[:9]}
    names = np.array(["a", "b", "c"])
    np.savez(tmp_path / "own.npz", **pack, y_test=np.arange(9) % 3, class_names=names)
    plain, grey = (load("own", 8, root=tmp_path, grey=g) for g in (False, True))
    for split in ("train", "val", "test"):
        before, after = getattr(plain, split), getattr(grey, split)
        assert torch.equal(after.y, before.y) and after.x.shape == before.x.shape
        # PIL's own conversion, another implementation of ITU-R 601-2.
        own = np.stack([np.asarray(Image.fromarray(x).convert("L")) for x in before.x.numpy()])
        assert (after.x[..., :1].int() - torch.tensor(own).int()[..., None]).abs().max() <= 1
        assert (after.x == after.x[..., :1]).all() and not torch.equal(after.x, before.x)
    assert torch.equal(load("digits", grey=True).test.x, load("digits").test.x)
    many = Split(torch.tensor(colour).repeat(8, 1, 1, 1), torch.zeros(552).long())  # in two pieces
    one = splits.greyed(take(many, np.arange(69))).x
    assert torch.equal(splits.greyed(many).x, one.repeat(8, 1, 1, 1))


def test_a_transfer_is_measured_on_the_grey_images_and_its_key_is_another():
    spec = Transfer(Ticket(NET), "glyphs", "linear", n_train=230, grey=True)
    assert specs.key(spec) != specs.key(replace(spec, grey=False))
    assert transfer.data(spec).test.x.shape[3] == 1  # glyphs have no colour: nothing to take
    with pytest.raises(ValueError, match="grey=True: mode='segment' does not use it"):
        replace(spec, mode="segment")


def test_files_of_a_large_set_lose_their_colour_too(tmp_path):
    Image.fromarray(np.full((40, 40, 3), (200, 30, 90), np.uint8)).save(tmp_path / "one.png")
    split = FileSplit((str(tmp_path / "one.png"),), torch.zeros(1).long(), 16, grey=True)
    (x, _), *_ = batches.ordered(split)
    assert x.shape[1] == 3 and (x[:, 0] == x[:, 1]).all() and (x[:, 1] == x[:, 2]).all()
