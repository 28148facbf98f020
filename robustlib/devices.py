"""Where training runs: which device, in how many processes, in which precision and layout."""

from __future__ import annotations

import inspect
import logging
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from robustlib import parallel
from robustlib.specs import Precision

_FABRIC = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def device() -> torch.device:
    """Where to run: $ROBUSTLIB_DEVICE if set, else a GPU if there is one, else the CPU."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(os.environ.get("ROBUSTLIB_DEVICE", default))


_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp", "avx512bw", "avx2")


def instructions() -> str:
    """What this CPU multiplies int8 with, the fastest that it has, as Linux calls it: avx512_vnni,
    avx2; elsewhere the architecture."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", about, re.MULTILINE)
    has = flags[1].split() if flags else []
    return next((i for i in _INT8 if i in has), platform.machine())


def devices() -> int:
    """How many processes share a pretraining: $ROBUSTLIB_DEVICES if set, else one.

    On GPUs each has one of its own. Raises ValueError for what is no such number, or more than
    there are GPUs.
    """
    given, where = os.environ.get("ROBUSTLIB_DEVICES") or "1", device()
    try:
        n = int(given)
    except ValueError:
        n = 0
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

    channels_last, in which convolutions are fastest; but not on a CPU for a network with a strided
    1x1 convolution of fewer than 16 input channels: there the backward pass of torch (2.14, through
    oneDNN) writes beyond its memory, below 8 channels with AVX2 and, on maps from 64 px, below 16
    with AVX-512. It does so when either the weights or the images are in channels_last.
    """
    narrow = any(
        m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels < 16
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    return torch.contiguous_format if where.type == "cpu" and narrow else torch.channels_last


def fabric(precision: Precision, where: torch.device) -> Any:
    """A lightning-fabric for one device, or for this process's in a group of `parallel.launch`."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    accelerator = "cpu" if where.type == "cpu" else "gpu"
    if precision == "fp16" and accelerator == "cpu":
        raise ValueError("precision='fp16': needs a GPU; on a CPU choose one of fp32, bf16")
    options = {"accelerator": accelerator, "precision": _FABRIC[precision]}
    if (n := parallel.processes()) == 1:
        return Fabric(devices=1 if where.index is None else [where.index], **options)
    # No buffers are broadcast: BatchNorm's agree (`parallel.synchronised`), and a broadcast before
    # the second pass of TRADES would change what the first needs for its gradient. The environment
    # is named, for Fabric would take that of a Slurm job, whose tasks are something else.
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    strategy = DDPStrategy(**{sync: False})
    engine = Fabric(devices=n, strategy=strategy, plugins=[LightningEnvironment()], **options)
    engine.launch()
    return engine
