"""The job that processes make up together: joining it, and doing something once for all of them."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.distributed.ranks import group_of, is_first, set_host_group, world_size
from vqtool.distributed.reductions import largest
from vqtool.errors import TrainingError, VqtoolError
from vqtool.launcher import place

T = TypeVar("T")

# How long processes wait for one of them, which may look over all data or seed a large codebook meanwhile. One that
# ends is noticed at once.
_PATIENCE = timedelta(hours=2)


class ElsewhereError(VqtoolError):
    """Another process of the job could not go on, and says why."""


@contextmanager
def joined() -> Iterator[None]:
    """Within, the processes that torchrun started work as one job; a process alone, or a job begun before, as it is.

    Raises:
        TrainingError: another process of the job has ended.
    """
    if world_size() == place().size == 1:
        yield
        return
    begun = dist.is_initialized()
    try:
        if not begun:
            dist.init_process_group(timeout=_PATIENCE)
        set_host_group(dist.new_group(backend="gloo", timeout=_PATIENCE))
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise TrainingError(
            "another process of the job has ended; the last checkpoint stands, and --resume goes on from there"
        ) from error
    except BaseException:
        _leave(begun)
        raise
    else:
        wait_for_all()
        _leave(begun)
    finally:
        set_host_group(None)


def _leave(begun: bool) -> None:
    if not begun and dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until all processes are here."""
    largest(torch.zeros(()))


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, which alone calls it; tensors, numbers, texts, and lists and dicts of
    them.

    Raises:
        ElsewhereError: in the other processes, where `make` raises in the first.
    """
    if world_size() == 1:
        return make()
    if not is_first():
        return _received()
    try:
        made = make()
        content = io.BytesIO()
        torch.save(made, content)
    except BaseException:
        _send(b"")
        raise
    _send(content.getvalue())
    return made


def agreed(of_first: bool) -> bool:
    """What the first process says."""
    return from_first(lambda: of_first)


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give tensors, alike in all processes, the values that they have in the first."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0, group=group_of(tensor))


def _send(content: bytes) -> None:
    length = torch.tensor(len(content))
    dist.broadcast(length, 0, group=group_of(length))
    if content:
        whole = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.broadcast(whole, 0, group=group_of(whole))


def _received() -> Any:
    length = torch.tensor(0)
    dist.broadcast(length, 0, group=group_of(length))
    if not length:
        raise ElsewhereError("stopped: the first process of the job says why")
    content = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0, group=group_of(content))
    return torch.load(io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True)


def _is_loss(error: RuntimeError) -> bool:
    """Whether an error says that another process could not be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
