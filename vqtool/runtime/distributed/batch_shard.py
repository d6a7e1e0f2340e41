"""A process' share of a batch: what is a mean over the batch is one over all shares, and so is its gradient."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.collectives import all_gather_sizes, all_reduce
from vqtool.runtime.distributed.ranks import rank, world_size

# The samples of the whole batch, where they are known to be parted as `BatchShard.for_rank` does.
_planned: list[int] = []


class BatchShard(NamedTuple):
    """Consecutive samples of a batch that several processes may share."""

    start: int
    """How many samples stand before them, in the shares of lower ranks."""
    samples: int
    """How many they are, perhaps none."""
    total: int
    """Those of the whole batch."""
    is_sharded: bool
    """Whether other processes have shares, and sums run over them."""

    @classmethod
    def unsharded(cls, samples: int) -> "BatchShard":
        """The whole of a batch."""
        return cls(0, samples, samples, False)

    @classmethod
    def for_rank(cls, total: int) -> "BatchShard":
        """This process' share of a batch of `total`, as even as can be."""
        size = world_size()
        start, stop = (total * number // size for number in (rank(), rank() + 1))
        return cls(start, stop - start, total, size > 1)

    def scaled(self, number: int) -> "BatchShard":
        """Of the `number` parts that each sample has, such as its positions."""
        return BatchShard(self.start * number, self.samples * number, self.total * number, self.is_sharded)

    def count_in_first(self, count: int) -> int:
        """How many of the first so many samples of the whole batch are among these."""
        return min(max(0, count - self.start), self.samples)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes of what each has of it.

        Its gradient is the sum of the gradients in all processes. Where each of them has the loss of the whole batch,
        that is so many times the gradient of a single process as there are processes, and DistributedDataParallel's
        mean over them is what one process alone would have got.
        """
        summed: Tensor = _Sum.apply(part) if self.is_sharded else part
        return summed

    def mean(self, values: Tensor) -> Tensor:
        """() the mean over the whole batch of values (samples, ...), whose other axes are alike everywhere."""
        return self.sum(values.sum()) / max(1, self.total * math.prod(values.shape[1:]))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return all_reduce(part, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient, dist.ReduceOp.SUM)


def local_shard(samples: int, device: torch.device) -> BatchShard:
    """The share that so many samples are. Unless it is planned, all processes are asked for theirs."""
    if world_size() == 1:
        return BatchShard.unsharded(samples)
    if _planned:
        shard = BatchShard.for_rank(_planned[-1])
        assert shard.samples == samples, f"{samples} samples, but planned were {shard}"
        return shard
    every = all_gather_sizes(samples, device)
    return BatchShard(sum(every[: rank()]), samples, sum(every), True)


@contextmanager
def fixed_global_batch(total: int) -> Iterator[None]:
    """Within, every batch has `total` samples, split by `BatchShard.for_rank`, so ranks need not communicate."""
    _planned.append(total)
    try:
        yield
    finally:
        _planned.pop()
