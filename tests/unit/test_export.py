"""Export: the files compute what the network does, and their cost is counted, not reckoned."""

import copy
import json
import math
import os
import statistics
import time
import zlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from robustlib import export as exports
from robustlib import models, tickets, training
from robustlib.compact import compact
from robustlib.data import Dataset, load
from robustlib.export import (
    bitmap,
    export,
    file_sizes,
    latencies,
    logits,
    quantise,
)
from robustlib.objectives import Objective, natural

SIZE = 16


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", SIZE, n_train=600)


@pytest.fixture(scope="module")
def trained(digits) -> nn.Module:
    torch.manual_seed(0)
    model = models.build("resnet10s", 10, width=16, stem_stride=2)
    recipe = training.Recipe(4, 0.1, 32, 5e-4, "none", "fp32", 0)
    training.fit(model, digits.train, Objective(natural), recipe)
    return model


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    return export(trained, tmp_path_factory.mktemp("onnx") / "made" / "net.onnx", SIZE)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))


def test_a_file_computes_what_torch_does_at_any_batch_size(trained, file, digits):
    for n in (1, 3, 70):
        with torch.no_grad():
            expected = trained.eval()(images(n, seed=n))
        torch.testing.assert_close(logits(file, images(n, seed=n)), expected, rtol=1e-4, atol=1e-4)
    theirs, y = training.logits(trained, digits.test)
    ours = logits(file, digits.test, batch_size=37)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (theirs.argmax(1) == y).float().mean() > 0.8  # so that to agree means something


def test_a_file_is_one_and_holds_its_weights(trained, file):
    assert os.listdir(file.parent) == ["net.onnx"]
    assert file.stat().st_size > 4 * models.parameters(trained)
    graph = onnx.load(file).graph
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert [(v.name, v.type.tensor_type.shape.dim[0].dim_param) for v in graph.input] == [
        ("images", "batch")
    ]
    assert [v.name for v in graph.output] == ["logits"]


def test_the_model_is_left_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet10s", 5, width=8).train()
    with torch.no_grad():
        for p in (model.conv1.weight, model.bn1.weight, model.bn1.bias):
            p[:3] = 0
    out = compact(model, SIZE)
    assert out.left == {"conv1.weight": 3}
    with torch.no_grad():
        expected = out.model(images(4))
    before = {k: v.clone() for k, v in out.model.train().state_dict().items()}
    state = torch.random.get_rng_state()
    path = export(out.model.double(), tmp_path / "net.onnx", SIZE)
    file_sizes(out.model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(m.training for m in out.model.modules())
    for k, v in out.model.state_dict().items():
        assert torch.equal(v, before[k].double() if v.is_floating_point() else v), k
    out.model(images(4).double()).sum().backward()
    assert not out.model.conv1.weight.grad[:3].any()  # the mask still holds
    torch.testing.assert_close(logits(path, images(4)), expected, rtol=1e-4, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    path = export(tiny(), tmp_path / "net.onnx", SIZE)
    whole, run = path.read_bytes(), exports._run
    for wrong in (lambda x: x + 1e-2, lambda x: x * math.nan):
        monkeypatch.setattr(exports, "_run", lambda *a, wrong=wrong: wrong(run(*a)))
        with pytest.raises(RuntimeError, match=r"net.onnx: logits of 1 images are .* from torch's"):
            export(tiny(), path, SIZE)
    monkeypatch.setattr(exports, "_run", run)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        export(tiny(), path, SIZE)
    with pytest.raises(OSError, match="full"):
        quantise(path, images(4), tmp_path / "int8.onnx")
    assert os.listdir(tmp_path) == ["net.onnx"] and path.read_bytes() == whole


def test_int8_is_a_quarter_of_the_bytes_and_keeps_the_classes(trained, file, digits, tmp_path):
    made = quantise(file, digits.train, tmp_path / "int8.onnx")
    assert os.listdir(tmp_path) == ["int8.onnx"] and made.path == tmp_path / "int8.onnx"
    assert made.path.stat().st_size < 0.4 * file.stat().st_size
    fp32, int8 = logits(file, digits.test), logits(made.path, digits.test)
    assert not torch.equal(fp32, int8)
    assert (fp32.argmax(1) == int8.argmax(1)).float().mean() > 0.97
    before, after = logits(file, digits.train), logits(made.path, digits.train)
    assert made.agree == int((before.argmax(1) == after.argmax(1)).sum())
    assert 0.97 * made.n < made.agree <= made.n == len(digits.train)
    nodes = onnx.load(made.path).graph
    scales = [i for i in nodes.initializer if "scale" in i.name and list(i.dims) == [16]]
    assert scales, "weights are not quantised by channel"


def simulated(path, split) -> Tensor:
    """Logits of an int8 file in floats: without optimisation each of its nodes runs by itself, and
    the numbers between them are those of int8, scaled."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        np.concatenate([exports._run(run, x) for x in exports._arrays(split, 64)])
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
def test_int8_computes_its_float_simulation_and_saturates_on_no_cpu(
    trained, digits, tmp_path, sparsity
):
    model = copy.deepcopy(trained)
    tickets.omp(model, sparsity).apply(model)
    file = export(model, tmp_path / "net.onnx", SIZE)
    made = quantise(file, digits.train, tmp_path / "int8.onnx")
    proto = onnx.load(made.path)
    weights = [onnx.numpy_helper.to_array(i).astype(int) for i in proto.graph.initializer]
    weights = [w for w in weights if w.ndim in (2, 4)]
    assert len(weights) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())
    for w in weights:
        # AVX2 without VNNI adds two products, of 8 bits without a sign and 8 with one, in 16 bits.
        assert 2 * 255 * np.abs(w).max() <= 2**15 - 1
        assert np.abs(w).max() > 60  # and what fits is used
    assert {p.key: p.value for p in proto.metadata_props}["weight_bits"] == "7"
    assert made.weight_bits == 7
    found, expected = logits(made.path, digits.test), simulated(made.path, digits.test)
    # A sum on the edge of two steps is rounded either way: seldom, and by one step.
    apart = (found - expected).abs()
    assert apart.mean() < 0.005 and apart.max() < 0.05 * expected.abs().max()
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.99
    right = [
        (x.argmax(1) == digits.test.y).float().mean() for x in (found, logits(file, digits.test))
    ]
    assert right[0] > right[1] - 0.02


def test_a_tensor_calibrates_as_the_split_does_and_the_range_matters(file, digits, tmp_path):
    x = digits.train.x[:64].expand(-1, -1, -1, 3).permute(0, 3, 1, 2) / 255
    one = quantise(file, x, tmp_path / "a.onnx")
    assert one.n == 64
    split = type(digits.train)(digits.train.x[:64], digits.train.y[:64])
    other = quantise(file, split, tmp_path / "b.onnx", batch_size=10)
    assert one.agree == other.agree
    torch.testing.assert_close(logits(one.path, x), logits(other.path, x), rtol=0, atol=1e-5)
    black = quantise(file, torch.zeros(8, 3, SIZE, SIZE), tmp_path / "black.onnx")
    exact = logits(file, digits.test)
    error = {
        p: float((logits(p, digits.test) - exact).abs().mean()) for p in (one.path, black.path)
    }
    assert error[one.path] < 0.5 * error[black.path]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (torch.rand(4, SIZE, SIZE), "floats .N, 3, H, W"),
        (torch.rand(4, 1, SIZE, SIZE), "floats .N, 3, H, W"),
        (torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8), "torch.uint8"),
        (255 * torch.ones(4, 3, SIZE, SIZE), "images from 255 to 255: must be in .0, 1"),
        (torch.full((4, 3, SIZE, SIZE), math.nan), "images from nan"),
        (torch.rand(0, 3, SIZE, SIZE), "there are none"),
        (torch.rand(4, 3, SIZE, 8), r"images of \(16, 8\) px: .* takes \(16, 16\)"),
    ],
)
def test_images_that_are_none_are_refused(file, tmp_path, bad, says):
    with pytest.raises(ValueError, match=says):
        quantise(file, bad, tmp_path / "int8.onnx")
    assert not os.listdir(tmp_path)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    for call in (
        lambda: quantise(tmp_path / "no.onnx", images(2), tmp_path / "x.onnx"),
        lambda: logits(tmp_path / "no.onnx", images(2)),
        lambda: latencies({"a": tmp_path / "no.onnx"}, SIZE, 1),
    ):
        with pytest.raises(FileNotFoundError, match=r"no.onnx"):
            call()
    assert not os.listdir(tmp_path)


def from_bitmap(data: bytes) -> dict[str, Tensor]:
    """The state_dict that a file of `bitmap` holds, read as its docstring says."""
    state = load_tensors(data)
    shapes = json.loads(json.loads(data[8 : header(data)])["__metadata__"]["shapes"])
    kept = tickets.unpack({name: state.pop(f"{name}.bits") for name in shapes}, shapes)
    for name, m in kept.items():
        state[name] = torch.zeros(m.shape).masked_scatter_(m, state.pop(f"{name}.values"))
    return state


def header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_sizes_of_a_half_zero_network_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))
    with torch.no_grad():
        model[0].weight.view(-1)[::2] = 0  # 68 of 135 weights
        model[3].weight.zero_()  # not a convolution's: stored whole
    others = 4 * (5 + 4 * 5 + 40 + 2) + 8  # bias, norm and its statistics, head, a counter
    dense = safetensors(model.state_dict())
    assert len(dense) - header(dense) == 4 * 135 + others
    packed = bitmap(model)
    assert len(packed) - header(packed) == math.ceil(135 / 8) + 4 * 67 + others
    sizes = file_sizes(model)
    assert sizes["dense"] == len(dense) and sizes["bitmap"] == len(packed)
    # gzip is zlib's stream between 10 bytes before and 8 after, not 2 and 4.
    assert sizes["compressed"] == len(zlib.compress(dense, 6)) + 12
    assert list(sizes) == ["dense", "compressed", "bitmap"]


def test_zeros_make_files_small_but_for_the_dense_one():
    torch.manual_seed(0)
    model = models.build("resnet10s", 5, width=16)
    full = file_sizes(model)
    assert 0.9 < full["compressed"] / full["dense"] < 1 < full["bitmap"] / full["dense"] < 1.05
    tickets.omp(model, 0.5).apply(model)
    half = file_sizes(model)
    tickets.omp(model, 0.9).apply(model)
    tenth = file_sizes(model)
    for sizes, density in ((full, 1), (half, 0.5), (tenth, 0.1)):
        # Norms, head and names are what the two hundredths are for.
        assert 0 < sizes["bitmap"] / sizes["dense"] - (density + 1 / 32) < 0.02
        assert sizes["compressed"] / sizes["dense"] < density + 0.05
    assert full["dense"] == half["dense"] == tenth["dense"]
    assert file_sizes(model.double()) == tenth


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.booleans())
def test_a_bitmap_loses_nothing(seed, sparsity, wide):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 7, (1, 3)))
    if wide:
        model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        for p in (model[0].weight, model[2].weight):
            p[torch.rand_like(p) < sparsity] = 0
    back = from_bitmap(bitmap(model))
    assert back.keys() == model.state_dict().keys()
    for name, t in model.state_dict().items():
        assert torch.equal(back[name], t) and back[name].dtype == t.dtype, name
    model.load_state_dict(back, strict=True)


class Counted:
    """A session that writes down when it is run, and on what."""

    def __init__(self, name: str, log: list) -> None:
        self.name, self.log = name, log

    def get_inputs(self) -> list:
        return [type("Input", (), {"name": "images"})]

    def run(self, _outputs: None, feed: dict[str, np.ndarray]) -> list:
        self.log.append((self.name, feed["images"].copy()))
        return [np.zeros((1, 1))]


def test_networks_are_timed_in_turn_on_the_same_images(monkeypatch):
    log: list = []
    monkeypatch.setattr(exports, "session", lambda path: Counted(path, log))
    times = latencies({"first": "a", "second": "b"}, 8, 3, rounds=4)
    assert {k: len(v) for k, v in times.items()} == {"first": 4, "second": 4}
    assert all(t > 0 for v in times.values() for t in v)
    assert [name for name, _ in log] == ["a", "a", "b", "b"] * 6
    images = log[0][1]
    assert images.shape == (3, 3, 8, 8) and images.dtype == np.float32
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
    assert all(np.array_equal(images, x) for _, x in log)


def test_a_network_with_sixteen_times_the_work_takes_longer(file, tmp_path):
    torch.manual_seed(0)
    wide = models.build("resnet10s", 10, width=64, stem_stride=2)
    big = export(wide, tmp_path / "big.onnx", SIZE)
    times = latencies({"small": file, "big": big, "same": file}, SIZE, 16, 15)
    middle = {k: statistics.median(v) for k, v in times.items()}
    assert middle["big"] > 4 * middle["small"]
    assert 0.5 < middle["same"] / middle["small"] < 2
    run, x = exports.session(big), np.zeros((16, 3, SIZE, SIZE), np.float32)
    started = time.thread_time()
    for _ in range(20):
        run.run(None, {"images": x})
    milliseconds = 1000 * (time.thread_time() - started) / 20
    assert 0.5 < middle["big"] / milliseconds < 2
