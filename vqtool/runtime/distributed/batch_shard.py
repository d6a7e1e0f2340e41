"""The part of a batch on one rank, and sums and means over the whole batch with the gradients of a single process.

Let x_r be the partial sum that rank r computes from its samples, y = Σ_r x_r, R the number of ranks and l(y) the loss.

    one process:   dl/dw = l'(y) · Σ_r dx_r/dw
    R ranks:       every rank computes y by all-reduce, and therefore the same loss l(y)
    backward:      `BatchShard.sum` sums the incoming gradients over ranks: Σ_r l'(y) = R · l'(y)
                   the gradient on rank r is R · l'(y) · dx_r/dw
    DDP:           DistributedDataParallel averages over ranks: (1/R) · Σ_r R · l'(y) · dx_r/dw = dl/dw
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from vqtool.runtime.distributed.collectives import all_gather_sizes, all_reduce, rank, world_size

# Stack of open `fixed_global_batch` contexts: samples of the global batch, split as `BatchShard.for_rank` does.
_fixed_totals: list[int] = []


class BatchShard(NamedTuple):
    """Consecutive samples of a batch: the part of this rank, or the whole batch of a single process.

    Samples may also be tokens (see `scaled`).
    """

    start: int
    """Samples of the batch on lower ranks."""
    samples: int
    """Samples on this rank; may be 0."""
    total: int
    """Samples of the whole batch."""
    is_sharded: bool
    """Whether other ranks hold the rest of the batch, so that sums run over ranks."""

    @classmethod
    def unsharded(cls, samples: int) -> "BatchShard":
        """Return the shard that is a whole batch of `samples`."""
        return cls(0, samples, samples, False)

    @classmethod
    def for_rank(cls, total: int) -> "BatchShard":
        """Return this rank's part of a batch of `total` samples; parts differ by at most one sample.

        Rank r of R holds samples total·r // R to total·(r+1) // R.
        """
        ranks = world_size()
        start, stop = (total * number // ranks for number in (rank(), rank() + 1))
        return cls(start, stop - start, total, ranks > 1)

    def scaled(self, factor: int) -> "BatchShard":
        """Return the shard counted in tokens, for `factor` tokens per sample."""
        return BatchShard(self.start * factor, self.samples * factor, self.total * factor, self.is_sharded)

    def count_in_first(self, count: int) -> int:
        """Return how many of the first `count` samples of the whole batch are in this shard."""
        return min(max(0, count - self.start), self.samples)

    def sum(self, partial: Tensor) -> Tensor:
        """Return the sum over ranks of `partial`, any shape but the same on all ranks; `partial` if not sharded.

        Differentiable: the backward pass sums the incoming gradients over ranks (see the module's docstring).
        """
        total: Tensor = _AllReduceSum.apply(partial) if self.is_sharded else partial
        return total

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean () over the whole batch of `values` (samples, ...), whose other axes are equal on all ranks.

        Equals `sum` of values.sum(), divided by total · (elements per sample); 0 for an empty batch.
        """
        return self.sum(values.sum()) / max(1, self.total * math.prod(values.shape[1:]))


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, partial: Tensor) -> Tensor:
        return all_reduce(partial, dist.ReduceOp.SUM)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient, dist.ReduceOp.SUM)


def local_shard(samples: int, device: torch.device) -> BatchShard:
    """Return the shard of this rank, which holds `samples` samples of the global batch.

    All ranks exchange their numbers of samples through `device`, except inside `fixed_global_batch`.
    """
    if world_size() == 1:
        return BatchShard.unsharded(samples)
    if _fixed_totals:
        shard = BatchShard.for_rank(_fixed_totals[-1])
        assert shard.samples == samples, f"{samples} samples, expected {shard}"
        return shard
    rank_samples = all_gather_sizes(samples, device)
    return BatchShard(sum(rank_samples[: rank()]), samples, sum(rank_samples), True)


@contextmanager
def fixed_global_batch(total: int) -> Iterator[None]:
    """Context in which every batch has `total` samples, split by `BatchShard.for_rank`, so `local_shard` is local."""
    _fixed_totals.append(total)
    try:
        yield
    finally:
        _fixed_totals.pop()
