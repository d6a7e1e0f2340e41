"""Codebook updated by gradients.

Shapes: N vectors, S vectors of a sample, K codes, D dimensions.
"""

import torch
from torch import Tensor, nn

from vqtool.runtime.distributed import BatchShard


class Codebook(nn.Module):
    """Codes as a parameter `weight` (K, D), updated by the optimizer; without a codebook loss, by the entropy loss.

    Args:
        codebook_size: K.
        codebook_dim: D.
    """

    weight: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self._set_weight(torch.empty(codebook_size, codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    def _set_weight(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight)

    @property
    def codes(self) -> Tensor:
        """The codes (K, D)."""
        return self.weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor | None:
        """Return the codebook loss () of the chosen `codes` (N, D) for `vectors` (N, D); None if there is none."""
        return None

    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        """Gather what `update` needs from a training batch: `vectors` (N, D) and their `indices` (N,)."""

    def update(self, good: Tensor | None = None) -> None:
        """Apply what all processes gathered since the last update; no effect if `good` () bool is false."""

    def discard(self) -> None:
        """Drop what was gathered since the last update."""

    @torch.no_grad()
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        """Set all codes to `codes` (K, D), each the mean of `counts` (K,) vectors of a sample."""
        self.replace(torch.ones_like(counts, dtype=torch.bool), codes)

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        """Set the codes selected by the mask `which` (K,) to the rows of `codes` (K, D)."""
        self.weight.copy_(torch.where(which[:, None], codes.to(self.weight.dtype), self.weight))


class GradientCodebook(Codebook):
    """Codes updated by the codebook loss, weight · mean((stop(z) - e)²) (van den Oord et al. 2017, eq. 3)."""

    def __init__(self, codebook_size: int, codebook_dim: int, weight: float) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.loss_weight = weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        return self.loss_weight * shard.mean((vectors.detach() - codes).square())
