"""Join and leave the process group of a job, and run code on rank 0 for all ranks."""

import io
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vqtool.errors import ConfigError, Stopped, TrainingError, VqtoolError
from vqtool.runtime.distributed.collectives import (
    all_reduce_max,
    group_for,
    is_rank0,
    local_any_rank,
    set_cpu_group,
    world_size,
)
from vqtool.runtime.torchrun import rank_info

T = TypeVar("T")

# Long, because ranks wait while rank 0 scans all data or initialises a large codebook. Gloo notices at once when a
# process ends.
_CPU_GROUP_TIMEOUT = timedelta(hours=2)


class Rank0FailedError(VqtoolError):
    """Rank 0 raised an exception in `on_rank0`; raised on the other ranks. Rank 0 reports the cause."""


@contextmanager
def process_group() -> Iterator[None]:
    """Context in which torch.distributed is initialized, from torchrun's environment.

    If the context ends without an exception, it waits for all ranks. Then it destroys the process group, also after an
    exception. If the caller has already initialized a process group, that group is used and not destroyed. A single
    process runs without a process group.

    Raises:
        ConfigError: the processes of the job cannot connect.
        TrainingError: another process of the job ended or cannot be reached, at any time in the context.
    """
    if world_size() == rank_info().world_size == 1:
        yield
        return
    was_initialized = dist.is_initialized()
    try:
        with _convert_connection_errors():
            _join(was_initialized)
            yield
            barrier()
    finally:
        set_cpu_group(None)
        if not was_initialized and dist.is_initialized():
            dist.destroy_process_group()


def barrier() -> None:
    """Wait until all ranks have called this function."""
    all_reduce_max(torch.zeros(()))


def on_rank0(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and return its result on all ranks.

    The result is sent by torch.save: it may consist of tensors, numbers, strings, None, lists, tuples and dicts. The
    other ranks receive its tensors on the CPU. `any_rank` does not communicate inside `function`.

    Raises:
        Stopped: on all ranks, if a signal stopped rank 0 in `function`.
        Rank0FailedError: on the other ranks, if `function` raised anything else; rank 0 raises that exception.
    """
    if world_size() == 1:
        return function()
    if not is_rank0():
        return _receive_result()
    try:
        with local_any_rank():
            result = function()
    except Stopped as stopped:
        _broadcast({"signal": stopped.signal, "message": str(stopped)})
        raise
    except BaseException:
        _broadcast({})
        raise
    _broadcast({"result": result})
    return result


def _join(was_initialized: bool) -> None:
    try:
        with _default_signal_handlers():
            if not was_initialized:
                dist.init_process_group()
            set_cpu_group(dist.new_group(backend="gloo", timeout=_CPU_GROUP_TIMEOUT))
    except ValueError as error:
        raise ConfigError(
            f"the {rank_info().world_size} processes of the job cannot connect to each other: {error}"
        ) from error


@contextmanager
def _default_signal_handlers() -> Iterator[None]:
    """Let SIGINT and SIGTERM end the process: a Python handler would not run while torch waits for other ranks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _convert_connection_errors() -> Iterator[None]:
    """Convert the error of torch.distributed for an unreachable rank to a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo raises a plain RuntimeError
            raise TrainingError(
                "another process of the job has ended or cannot be reached; if the run has a checkpoint, --resume "
                "continues from it"
            ) from error
        raise


def _broadcast(message: dict[str, Any]) -> None:
    """Send a message from rank 0: its length in bytes, then its bytes."""
    buffer = io.BytesIO()
    torch.save(message, buffer)
    length = torch.tensor(buffer.tell())
    dist.broadcast(length, 0, group=group_for(length))
    content = torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)
    dist.broadcast(content, 0, group=group_for(content))


def _receive_result() -> Any:
    """Receive the message of rank 0, and return the result in it or raise the exception that it describes."""
    length = torch.tensor(0)
    dist.broadcast(length, 0, group=group_for(length))
    content = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0, group=group_for(content))
    message = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
    if "signal" in message:
        raise Stopped(message["signal"], message["message"])
    if "result" not in message:
        raise Rank0FailedError("stopped: rank 0 failed; see its error message")
    return message["result"]
