"""A process' share of a batch: what is a mean over the batch is one over all shares, and so is its gradient."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.collectives import reduced, sizes
from vqtool.runtime.distributed.ranks import rank, world_size

# The samples of the whole batch, where they are known to be parted as `Share.own` does.
_planned: list[int] = []


class Share(NamedTuple):
    """Consecutive samples of a batch that several processes may share."""

    start: int
    """How many samples stand before them, in the shares of lower ranks."""
    samples: int
    """How many they are, perhaps none."""
    total: int
    """Those of the whole batch."""
    others: bool
    """Whether other processes have shares, and sums run over them."""

    @classmethod
    def alone(cls, samples: int) -> "Share":
        """The whole of a batch."""
        return cls(0, samples, samples, False)

    @classmethod
    def own(cls, total: int) -> "Share":
        """This process' share of a batch of `total`, as even as can be."""
        size = world_size()
        start, stop = (total * number // size for number in (rank(), rank() + 1))
        return cls(start, stop - start, total, size > 1)

    def times(self, number: int) -> "Share":
        """Of the `number` parts that each sample has, such as its positions."""
        return Share(self.start * number, self.samples * number, self.total * number, self.others)

    def first(self, count: int) -> int:
        """How many of the first so many samples of the whole batch are among these."""
        return min(max(0, count - self.start), self.samples)

    def sum(self, part: Tensor) -> Tensor:
        """The sum over all processes of what each has of it.

        Its gradient is the sum of the gradients in all processes. Where each of them has the loss of the whole batch,
        that is so many times the gradient of a single process as there are processes, and DistributedDataParallel's
        mean over them is what one process alone would have got.
        """
        summed: Tensor = _Sum.apply(part) if self.others else part
        return summed

    def mean(self, values: Tensor) -> Tensor:
        """() the mean over the whole batch of values (samples, ...), whose other axes are alike everywhere."""
        return self.sum(values.sum()) / max(1, self.total * math.prod(values.shape[1:]))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return reduced(part, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduced(gradient, dist.ReduceOp.SUM)


def share_of(samples: int, device: torch.device) -> Share:
    """The share that so many samples are. Unless it is planned, all processes are asked for theirs."""
    if world_size() == 1:
        return Share.alone(samples)
    if _planned:
        share = Share.own(_planned[-1])
        assert share.samples == samples, f"{samples} samples, but planned were {share}"
        return share
    every = sizes(samples, device)
    return Share(sum(every[: rank()]), samples, sum(every), True)


@contextmanager
def planned(total: int) -> Iterator[None]:
    """Within, each batch has `total` samples, of which every process takes `Share.own`: nobody needs to ask."""
    _planned.append(total)
    try:
        yield
    finally:
        _planned.pop()
