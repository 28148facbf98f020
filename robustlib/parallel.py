"""Data parallelism: one training over several processes of this machine, each with its share.

What one process does with a batch, N processes do with a Nth of it each. The images, the BatchNorm
statistics (`synchronised`), the gradients (DistributedDataParallel), the reported loss (`agree`)
and a checkpoint (`gathered`) are those of the whole batch but for the order of floating-point sums.
Random draws are not: each process has a seed of its own, so noise and starts of attacks are others
than those of one process.
"""

import inspect
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def processes() -> int:
    """How many processes this one trains with, itself included."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is: 0 reports and writes checkpoints."""
    return dist.get_rank() if processes() > 1 else 0


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
    if (n := processes()) == 1:
        return part
    parts: list[Any] = [None] * n
    dist.all_gather_object(parts, part.cpu())
    return torch.cat(parts)


def agree(loss: Tensor, due: bool) -> tuple[Tensor, bool]:
    """The mean loss over all processes, nan if that of one is, and whether rank 0 says `due`."""
    if (n := processes()) == 1:
        return loss, due
    both = torch.stack([loss.double(), loss.new_tensor(due and rank() == 0).double()])
    dist.all_reduce(both)
    return both[0] / n, bool(both[1])


def wrapped(model: nn.Module, where: torch.device) -> nn.Module:
    """The network with its gradients averaged over all processes; itself where there is one."""
    if processes() == 1:
        return model
    # No buffers are broadcast: BatchNorm's agree (`synchronised`), and a broadcast before the
    # second pass of TRADES would change what the first needs for its gradient.
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {sync: False, "device_ids": [where] if where.type == "cuda" else None}
    return DistributedDataParallel(model, **options)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient, as each has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dist.all_reduce(x := x.clone())
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        dist.all_reduce(grad := grad.contiguous().clone())
        return grad


@contextmanager
def synchronised(model: nn.Module) -> Iterator[None]:
    """In this context BatchNorm in train mode takes its statistics from the whole batch; in eval
    mode, as in an attack, nothing is communicated. The modules and the names of their state stay as
    they are. (torch's SyncBatchNorm refuses the CPU.)"""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)] if processes() > 1 else []
    for m in norms:
        m.forward = partial(_norm, m)  # type: ignore[method-assign]  # the swap is meant
    try:
        yield
    finally:
        for m in norms:
            del m.forward


def _norm(m: Any, x: Tensor) -> Tensor:
    if not m.training:
        return type(m).forward(m, x)
    n, wide = processes(), x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, [d for d in range(x.dim()) if d != 1], correction=0)
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
    out = (wide - mean.view(shape)) * (var + m.eps).rsqrt().view(shape)
    if m.affine:
        out = out * m.weight.view(shape) + m.bias.view(shape)
    return out.to(x.dtype)


def launch(function: Callable[..., Any], args: tuple, n: int, where: torch.device) -> Any:
    """function(*args) in n processes that form a group; returns what that of rank 0 returns.

    With n = 1 it is a plain call. Else torchrun's launcher starts n fresh Pythons that import
    `function` by its name, each on a GPU of its own or with its part of the CPU's threads, and all
    end with this process. Tensors come back on the CPU; rank 0's warnings are given here. Raises
    the first error of any (if it cannot be sent, a RuntimeError with its message).
    """
    if n == 1:
        return function(*args)
    # Here, for they take a second.
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory(prefix="robustlib-") as folder:
        threads = max(1, torch.get_num_threads() // n)
        call = pickle.dumps((function, args))
        Path(folder, "call").write_bytes(pickle.dumps((call, where.type, threads, os.getpid())))
        here: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
        here |= {"local_addr": "localhost", "run_id": "robustlib", "max_restarts": 0}
        # Unless one is named it takes Ctrl-C, and keeps it from a notebook when it is done.
        if "signals_to_handle" in LaunchConfig.__dataclass_fields__:
            here["signals_to_handle"] = "SIGUSR2"
        config = LaunchConfig(1, 1, n, logs_specs=DefaultLogsSpecs(log_dir=folder), **here)
        # A command, not a function: for that multiprocessing runs the caller's script again unless
        # it guards its main, and refuses a daemon such as a Dask worker.
        path = [p or str(Path.cwd()) for p in sys.path]
        code = f"import sys; sys.path[:] = {path}; from robustlib import parallel as p; "
        try:
            elastic_launch(config, sys.executable)("-P", "-c", code + f"p._member({folder!r})")
        except ChildFailedError as failed:
            raise _failure(folder, n, failed) from None
        saved = Path(folder, "result")
        result, warned = torch.load(saved, map_location="cpu", weights_only=False)
    for warning in warned:
        warnings.warn(warning, stacklevel=2)
    return result


def _failure(folder: str, n: int, failed: Any) -> BaseException:
    """What came first: the errors of the others are often that a peer has gone."""
    errors = sorted(Path(folder).glob("error-*"), key=lambda p: p.stat().st_mtime_ns)
    codes = {r: f.exitcode for r, f in failed.failures.items()}
    silent = [r for r in codes if not Path(folder, f"error-{r}").exists()]
    # The launcher ends those that are left, and a group that has lost a peer may abort.
    ended = (-signal.SIGTERM, -signal.SIGABRT)
    dead = [r for r in silent if codes[r] not in ended] or silent * (not errors)
    if not dead:
        return pickle.loads(errors[0].read_bytes())
    r, code = dead[0], codes[dead[0]]
    how = f"killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return RuntimeError(
        f"process {r} of {n} was {how}. Out of memory? A smaller batch_size or "
        "ROBUSTLIB_DEVICES needs less"
    )


def _sendable(error: BaseException, note: str) -> bytes:
    """The error with a note, pickled; one with its message where it cannot be made again."""
    for e in (error, RuntimeError(f"{type(error).__name__}: {error}")):
        e.add_note(note)
        with suppress(Exception):  # whatever its class does
            pickle.loads(data := pickle.dumps(e))
            break
    return data


def _member(folder: str) -> None:
    call, kind, threads, parent = pickle.loads(Path(folder, "call").read_bytes())

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    r = int(os.environ["RANK"])
    os.environ["ROBUSTLIB_DEVICE"] = f"cuda:{r}" if kind == "cuda" else kind
    try:
        function, args = pickle.loads(call)
        if kind == "cuda":
            torch.cuda.set_device(r)
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        with warnings.catch_warnings(record=True) as seen:
            result = function(*args)
        if r == 0:
            torch.save((result, [w.message for w in seen]), Path(folder, "result"))
    except BaseException as e:  # noqa: BLE001 - the caller raises it, whatever it is
        note = f"In process {r} of {os.environ['WORLD_SIZE']}:\n{traceback.format_exc()}"
        Path(folder, f"error-{r}").write_bytes(_sendable(e, note))
        # At once: closing the group would wait for the others.
        os._exit(1)
    dist.destroy_process_group()
