"""Tensors of all processes, added up or put together. Alone, each is returned as it is.

Shapes: n rows of this process, N of all, in order of the ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.ranks import group_of, rank, world_size


def add_up(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes. It has no gradient."""
    return reduced(tensor, dist.ReduceOp.SUM) if world_size() > 1 else tensor


def largest(tensor: Tensor) -> Tensor:
    """The largest of each number over all processes."""
    return reduced(tensor, dist.ReduceOp.MAX) if world_size() > 1 else tensor


def smallest(tensor: Tensor) -> Tensor:
    """The smallest of each number over all processes."""
    return reduced(tensor, dist.ReduceOp.MIN) if world_size() > 1 else tensor


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes, (N, ...); n may differ between them, and be 0."""
    if world_size() == 1:
        return rows
    lengths = sizes(len(rows), rows.device)
    longest = max(lengths)
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    received = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(received, padded, group=group_of(rows))
    return torch.cat([part[:length] for part, length in zip(received, lengths, strict=True)])


def sizes(size: int, device: torch.device) -> list[int]:
    """A number of each process; it travels by `device`, for which the host waits."""
    every = torch.zeros(world_size(), dtype=torch.int64, device=device)
    every[rank()] = size
    return [int(each) for each in add_up(every).tolist()]


def reduced(tensor: Tensor, operation: "dist.ReduceOp.RedOpType") -> Tensor:
    """What all processes' tensors come to by an operation, number by number, without a gradient."""
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(result, operation, group=group_of(result))
    return result
