"""Where training runs: which device, in how many processes, in which precision and layout."""

import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch
from torch import nn

from robustlib.specs import Precision

_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp", "avx512bw", "avx2")
_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


def device() -> torch.device:
    """Where to run: $ROBUSTLIB_DEVICE if set, else a GPU if there is one, else the CPU."""
    given = os.environ.get("ROBUSTLIB_DEVICE")
    return torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))


def _flags() -> frozenset[str]:
    """What this CPU can do, in Linux's words; nothing elsewhere."""
    with suppress(OSError):  # there is none, or it cannot be read
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if flags := re.search(r"^(?:flags|Features)\s*:(.*)$", about, re.MULTILINE):
            return frozenset(flags[1].split())
    return frozenset()


def instructions() -> str:
    """What this CPU multiplies int8 with, the fastest that it has, as Linux calls it: avx512_vnni,
    avx2; elsewhere the architecture."""
    has = _flags()
    return next((i for i in _INT8 if i in has), platform.machine())


def devices() -> int:
    """How many processes share a pretraining: $ROBUSTLIB_DEVICES if set, else one. On GPUs each has
    one of its own. Raises ValueError for what is no such number, or more than there are GPUs."""
    given, where = os.environ.get("ROBUSTLIB_DEVICES") or "1", device()
    n = int(given) if given.isdecimal() else 0
    if n < 1:
        raise ValueError(f"ROBUSTLIB_DEVICES={given!r}: must be a whole number, at least 1")
    if n == 1 or where.type == "cpu":
        return n
    if where.index is not None:
        raise ValueError(
            f"ROBUSTLIB_DEVICES={n}: ROBUSTLIB_DEVICE={where} names one GPU; leave its number out"
        )
    if n > (there := torch.cuda.device_count() if where.type == "cuda" else 1):
        raise ValueError(f"ROBUSTLIB_DEVICES={n}: must be at most {there}, the number of GPUs here")
    return n


def layout(model: nn.Module, where: torch.device) -> torch.memory_format:
    """How the weights and images of a network lie in memory wherever gradients are taken.

    channels_last, the fastest; but not on a CPU for a network with a strided 1x1 convolution of
    fewer than 16 input channels: there the backward pass of torch (2.14, through oneDNN) writes
    beyond its memory, below 8 channels with AVX2 and, on maps from 64 px, below 16 with AVX-512.
    """
    narrow = any(
        m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    return torch.contiguous_format if where.type == "cpu" and narrow else torch.channels_last


def hardware(precision: Precision, where: torch.device) -> bool:
    """Whether a device multiplies in a precision itself, rather than by way of fp32."""
    if precision == "fp32":
        return True
    if where.type == "cuda":
        least = (8, 0) if precision == "bf16" else (7, 0)
        return torch.cuda.get_device_capability(where) >= least
    return precision == "bf16" and not _flags().isdisjoint(_BF16)


@cache
def _slower(dtype: torch.dtype, where: torch.device) -> float:
    """How many times as long as in fp32 a small training step takes, measured in a second."""
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).to(where)
    x = torch.ones(32, 32, 16, 16, device=where)

    def seconds(reduced: bool) -> float:
        took, end = list[float](), time.perf_counter() + 0.4
        while len(took) < 3 or time.perf_counter() < end:
            began = time.perf_counter()
            with torch.autocast(where.type, dtype, enabled=reduced):
                loss = net(x).float().mean()
            loss.backward()
            loss.item()
            took.append(time.perf_counter() - began)
        return min(took)  # what else the machine does only adds

    return seconds(True) / seconds(False)


def reduced(precision: Precision, where: torch.device) -> torch.dtype | None:
    """The type that a precision other than fp32 computes in. Raises ValueError for fp16 on a CPU.
    Warns of what it costs where it is not in hardware."""
    if precision == "fp16" and where.type == "cpu":
        raise ValueError("precision='fp16': needs a GPU; on a CPU choose one of fp32, bf16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is not None and not hardware(precision, where):
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else "this CPU"
        warnings.warn(
            f"precision={precision!r}: {name} has no {precision} in hardware; a small training "
            f"step takes {_slower(dtype, where):.1f} times as long as in fp32. Choose fp32",
            stacklevel=3,
        )
    return dtype


@contextmanager
def computing(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """In this context the network computes in `dtype`, if given, and puts out fp32: a loss of bf16
    has two digits. Its weights stay in fp32."""
    if dtype is None:
        yield
        return
    hook = model.register_forward_hook(lambda _, inputs, out: out.float())
    with hook, torch.autocast(next(model.parameters()).device.type, dtype):
        yield
