"""The job that processes make up together: joining it, and doing something once for all of them."""

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
from vqtool.runtime.distributed.collectives import all_reduce_max
from vqtool.runtime.distributed.ranks import group_for, is_rank0, set_host_group, world_size
from vqtool.runtime.distributed.votes import local_any_rank
from vqtool.runtime.torchrun import rank_info

T = TypeVar("T")

# How long processes wait for one of them, which may look over all data or seed a large codebook meanwhile. One that
# ends is noticed at once.
_PATIENCE = timedelta(hours=2)


class ElsewhereError(VqtoolError):
    """Another process of the job failed and reports the error itself."""


@contextmanager
def process_group() -> Iterator[None]:
    """Within, the processes that torchrun started work as one job; a process alone, or a job begun before, as it is.

    Raises:
        ConfigError: the job cannot be joined.
        TrainingError: another process of the job has ended.
    """
    if world_size() == rank_info().size == 1:
        yield
        return
    begun = dist.is_initialized()
    try:
        with _losses_told():
            _join(begun)
            yield
            barrier()
    finally:
        set_host_group(None)
        if not begun and dist.is_initialized():
            dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here."""
    all_reduce_max(torch.zeros(()))


def on_rank0(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, which alone calls it; tensors, numbers, texts, and lists and dicts of
    them.

    Raises:
        Stopped: a signal stopped the first process in it; in all of them.
        ElsewhereError: `make` raises something else; in the others.
    """
    if world_size() == 1:
        return make()
    if not is_rank0():
        return _received()
    try:
        with local_any_rank():
            made = make()
    except Stopped as stopped:
        _send({"signal": stopped.signal, "message": str(stopped)})
        raise
    except BaseException:
        _send({})
        raise
    _send({"made": made})
    return made


def _join(begun: bool) -> None:
    try:
        with _killable():
            if not begun:
                dist.init_process_group()
            set_host_group(dist.new_group(backend="gloo", timeout=_PATIENCE))
    except ValueError as error:
        raise ConfigError(
            f"the {rank_info().size} processes of the job cannot connect to each other: {error}"
        ) from error


@contextmanager
def _killable() -> Iterator[None]:
    """Within, SIGINT and SIGTERM end the process: a handler in Python would not run while others are waited for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _losses_told() -> Iterator[None]:
    """Turn what torch.distributed says where another process cannot be reached into something for the user."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # gloo has no error of its own
            raise TrainingError(
                "another process of the job has ended or cannot be reached; if the run has a checkpoint, --resume "
                "continues from it"
            ) from error
        raise


def _send(said: dict[str, Any]) -> None:
    content = io.BytesIO()
    torch.save(said, content)
    length = torch.tensor(content.tell())
    dist.broadcast(length, 0, group=group_for(length))
    whole = torch.frombuffer(bytearray(content.getbuffer()), dtype=torch.uint8)
    dist.broadcast(whole, 0, group=group_for(whole))


def _received() -> Any:
    length = torch.tensor(0)
    dist.broadcast(length, 0, group=group_for(length))
    content = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0, group=group_for(content))
    said = torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)
    if "signal" in said:
        raise Stopped(said["signal"], said["message"])
    if "made" not in said:
        raise ElsewhereError("stopped: rank 0 failed; see its error message")
    return said["made"]
