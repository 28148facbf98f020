"""What a network costs on a device: ONNX files in fp32 and int8, their size and their latency."""

import copy
import gzip
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustlib.compact import TOLERANCE
from robustlib.data import batches
from robustlib.data.splits import FileSplit, Split
from robustlib.files import whole
from robustlib.tickets import Mask, pack, prunable

WEIGHT_BITS = 7
"""Of an int8 file's weights: the form that no CPU saturates on."""
INPUT, OUTPUT = "images", "logits"
_BITS, _VALUES = ".bits", ".values"


@dataclass(frozen=True)
class Quantised:
    """An int8 file, how many of the `n` calibration images keep their class in it, and the bits of
    each weight."""

    path: Path
    agree: int
    n: int
    weight_bits: int


def export(model: nn.Module, path: str | Path, size: int) -> Path:
    """Writes a network as ONNX, one file with its weights, whole or absent; returns the path.

    `images` float [N, 3, size, size] in [0, 1], any N, to `logits` [N, K], in eval mode and fp32.
    The model is left as it was. Raises RuntimeError, and writes nothing, when onnxruntime computes
    something else than torch.
    """
    path, plain = Path(path), copy.deepcopy(model).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, size, size, generator=generator)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about its own parts
        program: Any = torch.onnx.export(
            plain,
            (images[:2],),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
    data = program.model_proto.SerializeToString()
    run = session(data)
    for n in (1, len(images)):
        with torch.no_grad():
            expected = plain(images[:n])
        apart = float((torch.from_numpy(_run(run, images[:n].numpy())) - expected).abs().max())
        if not apart <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise RuntimeError(f"{path}: logits of {n} images are {apart:.2g} from torch's")
    with whole(path) as file:
        file.write(data)
    return path


def quantise(
    path: str | Path, images: Split | FileSplit | Tensor, out: str | Path, batch_size: int = 64
) -> Quantised:
    """Writes the int8 form of an ONNX file, whole or absent: weights by channel, activations by
    their range on calibration images (onnxruntime's static quantisation, QDQ). Weights are within
    +-64, 7 bits, so that the file computes the same on any CPU; it says so in its metadata.

    images: a split, or a tensor [N, 3, H, W] in [0, 1]; training images, for the ranges are fitted
    to them, as the count of those that keep their class is. Raises ValueError for images that are
    none or do not fit the file, FileNotFoundError without the file.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path, out = Path(path), Path(out)
    before = logits(path, images, batch_size)
    feed = ({INPUT: x} for x in _arrays(images, batch_size))

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(feed, None)

    with tempfile.TemporaryDirectory(prefix="robustlib-") as folder:
        prepared, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(path, prepared)  # folds norms into convolutions
        quantization.quantize_static(
            prepared,
            made,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            # Unsigned times signed is what the int8 instructions of x86 multiply. Without VNNI they
            # add two products in 16 bits: 2 * 255 * 127 does not fit in these, 2 * 255 * 64 does.
            # Unsigned weights of 8 bits are safe too, and no more accurate, but slower than fp32.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        model = onnx.load(made)
        onnx.helper.set_model_props(model, {"weight_bits": str(WEIGHT_BITS)})
        onnx.save(model, made)
        after = logits(made, images, batch_size)
        with whole(out) as file:
            file.write(made.read_bytes())
    agree = int((before.argmax(1) == after.argmax(1)).sum())
    return Quantised(out, agree, len(before), WEIGHT_BITS)


def session(file: str | Path | bytes) -> Any:
    """An onnxruntime session on one thread of the CPU. Raises FileNotFoundError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not isinstance(file, bytes):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: there is no such file; `export` writes one")
        file = str(file)
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def logits(path: str | Path, images: Split | FileSplit | Tensor, batch_size: int = 64) -> Tensor:
    """Logits [N, K] that an ONNX file gives for images, as `quantise` takes them."""
    run = session(path)
    expected = tuple(run.get_inputs()[0].shape[2:])
    rows = []
    for x in _arrays(images, batch_size):
        if x.shape[2:] != expected:
            raise ValueError(f"images of {x.shape[2:]} px: {path} takes {expected}")
        rows.append(torch.from_numpy(_run(run, x)))
    return torch.cat(rows)


def latencies(
    files: Mapping[str, str | Path], size: int, batch_size: int, rounds: int = 30
) -> dict[str, list[float]]:
    """Milliseconds of one forward pass of `batch_size` images in onnxruntime, on one thread.

    files: ONNX files by name. They are timed in turn, `rounds` times, a number each: the speed of a
    shared machine drifts, so compare medians, or ratios within rounds, of one call. It is the
    thread's processor time, which is that of a clock when nothing else runs. Raises
    FileNotFoundError without a file.
    """
    runs = {name: session(file) for name, file in files.items()}
    images = np.random.default_rng(0).random((batch_size, 3, size, size), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(-2, rounds):  # two to warm up
        for name, run in runs.items():
            _run(run, images)  # its weights left the cache in the others' turns
            spent = 1000 * seconds(partial(_run, run, images))
            if i >= 0:
                times[name].append(spent)
    return times


def seconds(call: Callable[[], Any]) -> float:
    """What a call takes of this thread. Not by the clock on the wall: a long call is interrupted by
    others, a short one is not."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def file_sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of a network on disk, in fp32, all parameters and buffers included: `dense`, a
    safetensors file; `compressed`, the same through gzip at level 6; `bitmap`, the file of that."""
    from safetensors.torch import save

    dense = save(_state(model))
    sizes = {"dense": dense, "compressed": packed(dense), "bitmap": bitmap(model)}
    return {name: len(data) for name, data in sizes.items()}


def packed(data: bytes) -> bytes:
    """Bytes through gzip at level 6: 9 takes three times as long for a twentieth less."""
    return gzip.compress(data, 6, mtime=0)


def bitmap(model: nn.Module) -> bytes:
    """A network as a safetensors file in which zeros of convolutions take one bit: of each weight
    NAME of these it holds NAME.bits, 1 where it is not zero, 8 a byte, and NAME.values, those that
    are not, in order; all else as it is."""
    from safetensors.torch import save

    state = _state(model)
    weights = {name: state.pop(name) for name in prunable(model)}
    bits, shapes = pack(Mask({name: w != 0 for name, w in weights.items()}))
    state |= {name + _BITS: b for name, b in bits.items()}
    state |= {name + _VALUES: w[w != 0] for name, w in weights.items()}
    return save(state, metadata={"shapes": json.dumps(shapes)})


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers on the CPU, what is floating in fp32."""
    state = {n: t.float() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    return {n: t.cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}


def _run(run: Any, images: np.ndarray) -> np.ndarray:
    return run.run(None, {run.get_inputs()[0].name: images})[0]


def _arrays(images: Split | FileSplit | Tensor, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of images as onnxruntime takes them: float32 [B, 3, H, W]."""
    if not len(images):
        raise ValueError("images: there are none")
    if not isinstance(images, Tensor):
        yield from (x.contiguous().numpy() for x, _ in batches.ordered(images, batch_size))
        return
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images={got}: must be floats [N, 3, H, W] in [0, 1], or a split")
    if not (images.min() >= 0 and images.max() <= 1):
        got = f"{float(images.min()):g} to {float(images.max()):g}"
        raise ValueError(f"images from {got}: must be in [0, 1]")
    yield from (x.detach().cpu().float().contiguous().numpy() for x in images.split(batch_size))
