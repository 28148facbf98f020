"""Batches: every image once, every step on its own, the augmentation what it says it is."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from robustlib.data import Split, batches, files
from robustlib.data.splits import FileSplit
from robustlib.specs import AUGMENTS


def noise(n: int, size: int = 16, channels: int = 3) -> Split:
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, size, size, channels), dtype=torch.uint8, generator=g)
    return Split(x, torch.arange(n))  # the label says which image it is


def feed(split, batch_size=8, augment="crop-flip", seed=3, epoch=0, start=0):
    parts = {"augment": augment, "seed": seed, "epoch": epoch, "start": start}
    return list(batches.epoch(split, batch_size, **parts))


def test_seed_is_the_same_for_ever_and_for_numpy_and_torch_numbers() -> None:
    assert batches.seed_for(0, 1, "init") == 7322451495351348291
    assert batches.seed_for(np.int64(4), torch.tensor(2)) == batches.seed_for(4, 2)
    seeds = [batches.seed_for(*p) for p in [(1, 23), (12, 3), (1, 2, 3), ("1", 23), (23, 1)]]
    assert len(set(seeds)) == 5 and all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("channels", [1, 3])
def test_to_float(channels: int) -> None:
    x = noise(4, channels=channels).x
    out = batches.to_float(x, "cpu")
    expected = x.numpy().transpose(0, 3, 1, 2).repeat(3 // channels, axis=1) / np.float32(255)
    assert np.array_equal(out.numpy(), expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert batches.to_float(torch.full((1, 2, 2, 1), 255, dtype=torch.uint8), "cpu").max() == 1


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (17, 1)])
def test_crop_and_flip_are_those_of_a_loop_over_images(augment, size, channels) -> None:
    """Each result is one of the crops of its image padded by numpy; all are drawn, about evenly."""
    split, pad, repeats = noise(5, size, channels), size // 8, 400
    rows = torch.arange(5).repeat(repeats)
    out = batches.gather(split, rows, augment, torch.Generator().manual_seed(0))[0].numpy()
    crops = {}
    for i, image in enumerate(split.x.numpy()):
        padded = np.pad(image, [(pad, pad), (pad, pad), (0, 0)], mode="reflect")
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                crop = padded[top : top + size, left : left + size]
                crops[crop.tobytes()] = (i, top, left, False)
                if augment == "crop-flip":
                    crops[crop[:, ::-1].tobytes()] = (i, top, left, True)
    found = [crops[image.tobytes()] for image in out]  # a KeyError is an image that is no crop
    assert [f[0] for f in found] == rows.tolist()
    for column, n_values in ((1, 2 * pad + 1), (2, 2 * pad + 1)):
        counts = np.bincount([f[column] for f in found], minlength=n_values)
        assert counts.min() > 0.7 * len(out) / n_values
    assert len({f[1:3] for f in found}) == (2 * pad + 1) ** 2  # rows and columns independently
    flipped = np.mean([f[3] for f in found])
    assert 0.4 < flipped < 0.6 if augment == "crop-flip" else flipped == 0


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_step_does_not_need_the_steps_before_it(augment: str) -> None:
    split = noise(37)
    whole = feed(split, augment=augment)
    for start in range(5):
        rest = feed(split, augment=augment, start=start)
        assert len(rest) == 4 - start
        for (x, y), (x2, y2) in zip(whole[start:], rest, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)


def test_an_epoch_has_each_image_at_most_once_and_the_next_one_another_order() -> None:
    split = noise(37)
    orders = [torch.cat([y for _, y in feed(split, epoch=e, seed=s)]) for e, s in [(0, 3), (1, 3)]]
    for order in orders:
        assert len(order) == 32 == len(order.unique())
    assert not torch.equal(*orders)
    assert not torch.equal(orders[0], torch.cat([y for _, y in feed(split, seed=4)]))
    seen = torch.cat([y for e in range(12) for _, y in feed(split, epoch=e)])
    assert len(seen.unique()) == 37  # what one epoch drops, others have


def test_images_stay_with_their_labels() -> None:
    split = noise(20)
    for x, y in feed(split, augment="none"):
        assert torch.equal(x, batches.to_float(split.x[y], "cpu"))


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    split = noise(5)
    assert batches.steps(split, 8) == 1 == len(feed(split))
    assert sorted(feed(split)[0][1].tolist()) == list(range(5))
    assert batches.steps(noise(16), 8) == 2 == batches.steps(noise(23), 8)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    split = noise(20)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = feed(split)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, feed(split), strict=True))


def test_passes_without_gradients_are_small_on_a_cpu_and_change_no_bit(monkeypatch) -> None:
    from robustlib import models, training

    torch.manual_seed(0)
    model = models.build("resnet10s", 3, width=8)
    split = Split(torch.randint(0, 256, (230, 24, 24, 3), dtype=torch.uint8), torch.arange(230) % 3)
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    small, _ = training.outputs(model, split)
    monkeypatch.setattr(batches, "of_pass", lambda device: 500)
    large, _ = training.outputs(model, split)
    assert sizes == [100, 100, 30, 230] and torch.equal(small, large)


def test_ordered_is_all_of_it_in_order() -> None:
    split = noise(23)
    pairs = list(batches.ordered(split, 10))
    assert [len(y) for _, y in pairs] == [10, 10, 3]
    assert torch.equal(torch.cat([y for _, y in pairs]), split.y)
    assert torch.equal(torch.cat([x for x, _ in pairs]), batches.to_float(split.x, "cpu"))


def test_a_batch_costs_little() -> None:
    """Batch 128 at 32 px: a small ResNet's step takes 100 ms and more on the same thread."""
    split, times = noise(4000, 32), []
    feed_ = batches.epoch(split, 128, augment="crop-flip", seed=0, epoch=0)
    for _ in range(30):
        start = time.process_time()
        next(feed_)
        times.append(time.process_time() - start)
    assert min(times) < 0.003


@pytest.fixture
def photographs(tmp_path) -> FileSplit:
    rng = np.random.default_rng(0)
    paths = []
    for i, (width, height) in enumerate([(40, 30), (30, 50), (64, 64)] * 4):
        paths.append(str(tmp_path / f"{i}.png"))
        pixels = rng.integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(paths[-1])
    return FileSplit(tuple(paths), torch.arange(12), 24)


def test_files_are_evaluated_on_their_middle(photographs: FileSplit) -> None:
    reference = v2.Compose([v2.Resize(27), v2.CenterCrop(24)])
    pairs = list(batches.ordered(photographs, 5))
    assert torch.equal(torch.cat([y for _, y in pairs]), torch.arange(12))
    x = torch.cat([x for x, _ in pairs])
    for image, path in zip(x, photographs.paths, strict=True):
        expected = np.array(reference(Image.open(path)))
        assert torch.equal(image, batches.to_float(torch.from_numpy(expected)[None], "cpu")[0])


@pytest.mark.parametrize("augment", AUGMENTS)
def test_files_are_augmented_alike_by_any_number_of_workers(
    photographs: FileSplit, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.get_rng_state()
    whole = feed(photographs, 3, augment)  # by a worker process
    monkeypatch.setattr(files.torch, "get_num_threads", lambda: 0)
    alone = feed(photographs, 3, augment)  # in this process
    rest = feed(photographs, 3, augment, start=2)
    assert len(whole) == 4 and len(rest) == 2 and not feed(photographs, 3, augment, start=4)
    for (x, y), (x2, y2) in zip(whole + whole[2:], alone + rest, strict=True):
        assert x.shape == (3, 3, 24, 24) and torch.equal(x, x2) and torch.equal(y, y2)
    assert torch.equal(state, torch.get_rng_state())
    again = feed(photographs, 3, augment, epoch=1)
    images = [
        {int(k): x for xs, ys in pairs for x, k in zip(xs, ys, strict=True)}
        for pairs in (whole, again)
    ]
    assert sorted(images[0]) == sorted(images[1]) == list(range(12))
    same = [torch.equal(images[0][k], images[1][k]) for k in range(12)]
    assert all(same) if augment == "none" else sum(same) < 3


def test_a_file_that_is_no_image_is_named(photographs: FileSplit) -> None:
    with open(photographs.paths[4], "wb") as file:
        file.write(b"\x89PNG but not really")
    with pytest.raises(ValueError, match="4.png"):
        list(batches.ordered(photographs, 100))


def test_each_file_has_a_crop_of_its_own(photographs: FileSplit) -> None:
    same = FileSplit(photographs.paths[:1] * 8, torch.arange(8), 24)
    ((x, _),) = feed(same, 8, "crop")
    assert len({image.numpy().tobytes() for image in x}) == 8
