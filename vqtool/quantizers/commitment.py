"""Commitment loss that does not keep the N x D differences for the backward pass.

Shapes: N vectors, K codes, D dimensions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtool.runtime.distributed import BatchShard

# Numbers of one block of differences.
_BLOCK = 1 << 18


def commitment_loss(vectors: Tensor, codes: Tensor, indices: Tensor, shard: BatchShard | None = None) -> Tensor:
    """Return the mean over all elements of (z - stop(e[indices]))² (van den Oord et al. 2017, eq. 3).

    Args:
        vectors: (N, D).
        codes: (K, D); no gradient reaches them.
        indices: (N,).
        share: position of these vectors in the global batch; default: they are the whole batch.

    Returns:
        () loss; gradients reach `vectors` only.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    # A copy, because codes may be updated before the backward pass.
    own: Tensor = _SumOfSquares.apply(vectors, codes.detach().clone(), indices)
    return shard.sum(own) / max(1, shard.total * vectors.shape[1])


class _SumOfSquares(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, codes, indices)
        blocks = list(_blocks(vectors, indices))
        # Made first: small tensors that stay between large ones break up the memory.
        sums = vectors.new_empty(len(blocks))
        for place, (block, chosen) in enumerate(blocks):
            sums[place] = (block - codes[chosen]).square_().sum()
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        vectors, codes, indices = ctx.saved_tensors
        of_vectors = torch.empty_like(vectors)
        for (block, chosen), (part, _) in zip(_blocks(vectors, indices), _blocks(of_vectors, indices), strict=True):
            torch.sub(block, codes[chosen], out=part).mul_(2 * gradient)
        return of_vectors, None, None


def _blocks(vectors: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _BLOCK // vectors.shape[1])
    return zip(vectors.split(rows), indices.split(rows), strict=True)
