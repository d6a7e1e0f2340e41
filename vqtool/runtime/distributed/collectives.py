"""Rank, world size and collective operations. Without torch.distributed there is one rank, and tensors pass unchanged.

Collectives must be called by all ranks in the same order.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Gloo group for CPU tensors, because NCCL, the default on GPUs, does not support them. Empty: use the default group.
_cpu_group: list["dist.ProcessGroup"] = []
# Stack of open `async_any_rank` contexts: the tensor and the handle of the pending all-reduce, or None.
_pending_reductions: list[tuple[Tensor, Any] | None] = []


def world_size() -> int:
    """Return the number of processes; 1 if torch.distributed is not initialized."""
    return dist.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 if torch.distributed is not initialized."""
    return dist.get_rank() if _is_initialized() else 0


def is_rank0() -> bool:
    """Return whether this process has rank 0, the rank that writes files and logs."""
    return rank() == 0


def group_for(tensor: Tensor) -> "dist.ProcessGroup | None":
    """Return the process group for a tensor on its device; None: the default group."""
    return _cpu_group[0] if _cpu_group and tensor.device.type == "cpu" else None


def set_cpu_group(group: "dist.ProcessGroup | None") -> None:
    """Set the process group for CPU tensors; None: use the default group."""
    _cpu_group[:] = [] if group is None else [group]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the elementwise sum over all ranks, without a gradient; for a single rank, `tensor` itself."""
    return all_reduce(tensor, dist.ReduceOp.SUM) if world_size() > 1 else tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Return the elementwise maximum over all ranks, without a gradient; for a single rank, `tensor` itself."""
    return all_reduce(tensor, dist.ReduceOp.MAX) if world_size() > 1 else tensor


def all_reduce_min(tensor: Tensor) -> Tensor:
    """Return the elementwise minimum over all ranks, without a gradient; for a single rank, `tensor` itself."""
    return all_reduce(tensor, dist.ReduceOp.MIN) if world_size() > 1 else tensor


def all_reduce(tensor: Tensor, operation: "dist.ReduceOp.RedOpType") -> Tensor:
    """Return a new tensor, reduced elementwise over all ranks, without a gradient.

    Unlike `all_reduce_sum`, `_max` and `_min` it requires that torch.distributed is initialized.
    """
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, operation, group=group_for(result))
    return result


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all ranks in rank order to (N, ...); n may differ between ranks and may be 0."""
    if world_size() == 1:
        return rows
    lengths = all_gather_sizes(len(rows), rows.device)
    padded = torch.cat([rows, rows.new_zeros(max(lengths) - len(rows), *rows.shape[1:])])
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group_for(rows))
    return torch.cat([padded_rows[:length] for padded_rows, length in zip(received, lengths, strict=True)])


def all_gather_sizes(size: int, device: torch.device) -> list[int]:
    """Return the `size` of each rank, in rank order. Communicates through `device`; the host waits for the result."""
    sizes = torch.zeros(world_size(), dtype=torch.int64, device=device)
    sizes[rank()] = size
    return [int(rank_size) for rank_size in all_reduce_sum(sizes).tolist()]


@contextmanager
def async_any_rank() -> Iterator[None]:
    """Context in which `any_rank` combines the values of all ranks. No effect for a single rank.

    All ranks must call `any_rank` equally often inside it.
    """
    if world_size() == 1:
        yield
        return
    _pending_reductions.append(None)
    try:
        yield
        _wait_for_reduction()  # a rank that leaves with a pending all-reduce would abort it on the others
    finally:
        _pending_reductions.pop()


@contextmanager
def local_any_rank() -> Iterator[None]:
    """Context in which `any_rank` does not communicate, for code that only some ranks run."""
    outer = _pending_reductions[:]
    _pending_reductions.clear()
    try:
        yield
    finally:
        _pending_reductions[:] = outer


def any_rank(value: int) -> int:
    """Start an all-reduce of the maximum of `value`, and return the result of the previous call (0 for the first).

    The result is one call late so that no rank waits for the slowest one. All ranks get the same result. Outside
    `async_any_rank`, or for a single rank, return `value` itself at once.
    """
    if not _pending_reductions:
        return value
    previous = _wait_for_reduction()
    maximum = torch.tensor(value)
    _pending_reductions[-1] = (
        maximum,
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group_for(maximum), async_op=True),
    )
    return previous


def _wait_for_reduction() -> int:
    """Return the result of the pending all-reduce; 0 if there is none."""
    if _pending_reductions[-1] is None:
        return 0
    maximum, work = _pending_reductions[-1]
    _pending_reductions[-1] = None
    work.wait()
    return int(maximum)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
