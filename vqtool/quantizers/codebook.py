"""The codes, as a parameter that gradients move.

Shapes: N vectors, S vectors of a sample, K codes, D dimensions.
"""

import torch
from torch import Tensor, nn

from vqtool.distributed import Share


class Codebook(nn.Module):
    """Codes as a parameter, `weight` (K, D), moved by whatever gradient reaches it: in the bare form, the entropy's.

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

    def codebook_loss(self, vectors: Tensor, codes: Tensor, share: Share) -> Tensor | None:
        """What pulls the chosen `codes` (N, D) towards `vectors` (N, D), a share of a batch, by gradient; None where
        nothing does."""
        return None

    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        """Add what `update` needs of a training batch: `vectors` (N, D) and their `indices` (N,)."""

    def update(self, good: Tensor | None = None) -> None:
        """Apply what all processes gathered since the last update; nothing where `good` () bool is false."""

    def discard(self) -> None:
        """Forget what was gathered since the last update: the step was no good."""

    @torch.no_grad()
    def initialise(self, codes: Tensor, counts: Tensor) -> None:
        """Start from `codes` (K, D), each the mean of `counts` (K,) vectors of a sample."""
        self.replace(torch.ones_like(counts, dtype=torch.bool), codes)

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        """Set the codes that the mask `which` (K,) names to those of `codes` (K, D)."""
        self.weight.copy_(torch.where(which[:, None], codes.to(self.weight.dtype), self.weight))


class GradientCodebook(Codebook):
    """Codes that follow the codebook loss, weight · mean((stop(z) - e)²) (van den Oord et al. 2017, eq. 3)."""

    def __init__(self, codebook_size: int, codebook_dim: int, weight: float) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.loss_weight = weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor, share: Share) -> Tensor:
        return self.loss_weight * share.mean((vectors.detach() - codes).square())
