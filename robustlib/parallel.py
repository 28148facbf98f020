"""Data parallelism: one training over several processes of this machine, each with its share.

What one process does with a batch, N processes do with a Nth of it each, and what they find agrees
but for the order of floating-point sums: the images, the random draws (`drawn`), the
BatchNorm statistics (`synchronised`), the reported loss (`agree`) and a checkpoint (`gathered`) are
those of the whole batch. Gradients are averaged by DistributedDataParallel, which lightning-fabric
sets up (`devices.fabric`).
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

POLL_SECONDS = 0.05


def processes() -> int:
    """How many processes this one trains with, itself included."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Which of them this one is: 0 reports and writes checkpoints."""
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def check_shares(images: int, batch_size: int, n: int) -> None:
    """Raises ValueError if n processes cannot take equal shares of every batch."""
    batch = min(images, batch_size)
    if batch % n:
        why = "" if batch == batch_size else f", of which the {images} training images fill one"
        raise ValueError(
            f"batch_size={batch_size}{why}: {n} processes cannot take equal shares of a batch of "
            f"{batch}; choose a multiple of {n}, or set ROBUSTLIB_DEVICES to a divisor of {batch}"
        )


def own(whole: Tensor) -> Tensor:
    """This process's rows of a tensor of the whole batch [B, ...]."""
    n = len(whole) // processes()
    return whole[rank() * n : (rank() + 1) * n]


def gathered(part: Tensor) -> Tensor:
    """The tensor of the whole batch [B, ...] from each process's rows [B / N, ...], all in the
    same order of memory. Every process must call it."""
    if processes() == 1:
        return part
    whole = _larger(part).zero_()
    own(whole).copy_(part)
    # All others add zeros, which changes no bit. Flat, for a collective wants contiguous tensors.
    dist.all_reduce(whole.as_strided((whole.numel(),), (1,)))
    return whole


def _larger(part: Tensor) -> Tensor:
    """Room for the rows of all processes, in the order of memory of `part`."""
    shape = (processes() * len(part), *part.shape[1:])
    return torch.empty_strided(shape, part.stride(), dtype=part.dtype, device=part.device)


_sharing = False


@contextmanager
def sharing() -> Iterator[None]:
    """Within it the batches at hand are this process's shares, and `drawn` heeds that."""
    global _sharing
    before, _sharing = _sharing, processes() > 1
    try:
        yield
    finally:
        _sharing = before


def drawn(draw: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """draw(x), random numbers shaped as x; where `sharing`, those that the rows of x would get as
    rows of the whole batch, if all processes have one seed."""
    # A fill follows the order of memory, so the whole has the strides of the share.
    return own(draw(_larger(x))) if _sharing else draw(x)


def agree(loss: Tensor, due: bool) -> tuple[float, bool]:
    """The mean loss over all processes, nan if that of one is, and whether rank 0 says `due`."""
    if processes() == 1:
        return loss.item(), due
    both = torch.stack([loss.detach().double(), loss.new_tensor(due and rank() == 0).double()])
    dist.all_reduce(both)
    total, wanted = both.tolist()
    return total / processes(), wanted > 0


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, as each has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """Within it BatchNorm in train mode takes its statistics from the whole batch, on any device.

    torch's SyncBatchNorm refuses the CPU. The modules and the names of their state stay as they
    are; in eval mode, as in an attack, nothing is communicated. With one process nothing changes.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = norms if processes() > 1 else []
    for m in norms:
        m.forward = partial(_norm, m)
    try:
        yield
    finally:
        for m in norms:
            del m.forward


def _norm(m: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if not m.training:
        return type(m).forward(m, x)
    n, dims = processes(), [d for d in range(x.dim()) if d != 1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, dims, correction=0)
    # A row a process: the sum of tables that are zero elsewhere gathers them with gradients, and
    # from means and variances no digits cancel, as they do from sums of squares.
    table = F.pad(torch.cat([mean, var])[None], (0, 0, rank(), n - 1 - rank()))
    means, variances = _Sum.apply(table).chunk(2, 1)
    mean = means.mean(0)
    var = (variances + (means - mean).square()).mean(0)
    if m.track_running_stats:
        with torch.no_grad():
            m.num_batches_tracked += 1
            count = n * x.numel() / x.shape[1]
            rate = 1 / m.num_batches_tracked.item() if m.momentum is None else m.momentum
            m.running_mean.lerp_(mean, rate)
            m.running_var.lerp_(var * (count / max(count - 1, 1)), rate)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (var + m.eps).rsqrt()
    out = (wide - mean.view(shape)) * scale.view(shape)
    if m.affine:
        out = out * m.weight.view(shape) + m.bias.view(shape)
    return out.to(x.dtype)


def launch(function: Callable[..., Any], args: tuple, n: int, where: torch.device) -> Any:
    """function(*args) in n processes that form a group; returns what that of rank 0 returns.

    With n = 1 it is a plain call. Else each process is a fresh Python that imports `function` by
    its name, on a GPU of its own or on the CPU with its part of the threads; tensors come back on
    the CPU, and rank 0's warnings are given here. If one fails the others are ended and its error
    is raised, or a RuntimeError with its message if that cannot be sent. They end with this
    process, however it ends.
    """
    if n == 1:
        return function(*args)
    with tempfile.TemporaryDirectory(prefix="robustlib-") as folder:
        Path(folder, "call").write_bytes(pickle.dumps((function, args)))
        started: list[subprocess.Popen] = []
        try:
            started += [_start(folder, r, n, where) for r in range(n)]
            while any(p.poll() is None for p in started) and not any(p.poll() for p in started):
                time.sleep(POLL_SECONDS)
            if any(p.poll() for p in started):
                raise _failure(folder, started)
        finally:
            for p in started:
                p.kill()
                p.wait()
                p.stdin.close()
        result, warned = torch.load(Path(folder, "result"), weights_only=False)
    for warning in warned:
        warnings.warn(warning, stacklevel=2)
    return result


def _start(folder: str, r: int, n: int, where: torch.device) -> subprocess.Popen:
    # Not multiprocessing: its spawn runs the caller's script again unless that guards its main,
    # Fabric refuses it in a notebook, and a daemon such as a Dask worker may not use it.
    code = f"from robustlib import parallel; parallel._child({folder!r}, {r}, {n})"
    threads = str(max(1, torch.get_num_threads() // n))
    env = os.environ | {
        "ROBUSTLIB_DEVICE": f"cuda:{r}" if where.type == "cuda" else where.type,
        "LOCAL_RANK": str(r),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
    }
    return subprocess.Popen([sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, env=env)


def _failure(folder: str, started: list[subprocess.Popen]) -> BaseException:
    """The error that came first: those of the others are often that a peer has gone."""
    errors = [pickle.loads(p.read_bytes()) for p in Path(folder).glob("error-*[0-9]")]
    for r, code in enumerate(p.poll() for p in started):
        silent = code and not Path(folder, f"error-{r}").exists()
        # A group that has lost a peer may abort, too.
        if silent and not (code == -signal.SIGABRT and errors):
            how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
            return RuntimeError(
                f"process {r} of {len(started)} was {how}. Out of memory? A smaller batch_size or "
                "ROBUSTLIB_DEVICES needs less"
            )
    _, r, message, trace, data = min(errors)
    try:
        error = pickle.loads(data)
    except Exception:
        error = RuntimeError(message)
    error.add_note(f"In process {r} of {len(started)}:\n{trace}")
    return error


def _child(folder: str, r: int, n: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        function, args = pickle.loads(Path(folder, "call").read_bytes())
        on = torch.device(os.environ["ROBUSTLIB_DEVICE"])
        if on.type == "cuda":
            torch.cuda.set_device(on)
        # Met in a file: a free port may be taken by the time that all have started.
        dist.init_process_group(
            "nccl" if on.type == "cuda" else "gloo",
            init_method=f"file://{folder}/meeting",
            rank=r,
            world_size=n,
        )
        with warnings.catch_warnings(record=True) as seen:
            result = function(*args)
        if r == 0:
            _write(folder, "result", _on_the_cpu((result, [w.message for w in seen])))
    except BaseException as e:
        try:
            data = pickle.dumps(e)
        except Exception:
            data = b""
        at, message = time.monotonic_ns(), f"{type(e).__name__}: {e}"
        _write(folder, f"error-{r}", pickle.dumps((at, r, message, traceback.format_exc(), data)))
        # At once: closing the group would wait for the others.
        os._exit(1)
    dist.destroy_process_group()


def _on_the_cpu(data: Any) -> bytes:
    if isinstance(data[0], tuple):
        for part in data[0]:
            if isinstance(part, nn.Module):
                part.cpu()
    out = io.BytesIO()
    torch.save(data, out)
    return out.getvalue()


def _write(folder: str, name: str, data: bytes) -> None:
    partial_file = Path(folder, f"{name}.tmp")
    partial_file.write_bytes(data)
    os.replace(partial_file, Path(folder, name))


def _end_with_parent() -> None:
    # Only this process's parent holds the other end, and the kernel closes it when that dies.
    # Not sys.stdin: its lock is missed when the interpreter ends.
    os.read(0, 1)
    os._exit(1)
