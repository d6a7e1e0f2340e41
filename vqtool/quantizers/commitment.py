"""The commitment loss, without the N x D differences being kept for its gradient.

Shapes: N vectors, K codes, D dimensions.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of one block of differences.
_BLOCK = 1 << 20


def commitment_loss(vectors: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
    """The mean over all elements of (z - stop(e[indices]))² (van den Oord et al. 2017, eq. 3); draws vectors to codes.

    Args:
        vectors: (N, D).
        codes: (K, D); no gradient reaches them.
        indices: (N,).

    Returns:
        ().
    """
    # A copy, as codes may be updated before the backward pass.
    loss: Tensor = _MeanSquare.apply(vectors, codes.detach().clone(), indices)
    return loss


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, codes, indices)
        sums = [(block - codes[chosen]).square_().sum() for block, chosen in _blocks(vectors, indices)]
        return torch.stack(sums).sum() / vectors.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        vectors, codes, indices = ctx.saved_tensors
        scale = gradient * (2 / max(1, vectors.numel()))
        of_vectors = torch.empty_like(vectors)
        for (block, chosen), (part, _) in zip(_blocks(vectors, indices), _blocks(of_vectors, indices), strict=True):
            torch.sub(block, codes[chosen], out=part).mul_(scale)
        return of_vectors, None, None


def _blocks(vectors: Tensor, indices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, _BLOCK // vectors.shape[1])
    return zip(vectors.split(rows), indices.split(rows), strict=True)
