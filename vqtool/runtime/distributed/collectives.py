"""Tensors of all processes, added up or put together. Alone, each is returned as it is.

Shapes: n rows of this process, N of all, in order of the ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.ranks import group_for, rank, world_size


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes. It has no gradient."""
    return all_reduce(tensor, dist.ReduceOp.SUM) if world_size() > 1 else tensor


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The largest of each number over all processes."""
    return all_reduce(tensor, dist.ReduceOp.MAX) if world_size() > 1 else tensor


def all_reduce_min(tensor: Tensor) -> Tensor:
    """The smallest of each number over all processes."""
    return all_reduce(tensor, dist.ReduceOp.MIN) if world_size() > 1 else tensor


def all_gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, (N, ...); n may differ between them, and be 0."""
    if world_size() == 1:
        return rows
    lengths = all_gather_sizes(len(rows), rows.device)
    longest = max(lengths)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group_for(rows))
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


def all_gather_sizes(size: int, device: torch.device) -> list[int]:
    """A number of each process; it travels by `device`, for which the host waits."""
    every = torch.zeros(world_size(), dtype=torch.int64, device=device)
    every[rank()] = size
    return [int(each) for each in all_reduce_sum(every).tolist()]


def all_reduce(tensor: Tensor, operation: "dist.ReduceOp.RedOpType") -> Tensor:
    """What all processes' tensors come to by an operation, number by number, without a gradient."""
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, operation, group=group_for(result))
    return result
