"""The codes and the ways they learn. Each way is a settings class that builds its codebook.

Shapes: N vectors, K codes, D dimensions.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.settings import Settings

# A moving average of hits below this says nothing any more: the code stays where it is.
_VANISHED = 1e-20


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

    def codebook_loss(self, vectors: Tensor, codes: Tensor) -> Tensor | None:
        """What pulls the chosen `codes` (N, D) towards `vectors` (N, D) by gradient; None where nothing does."""
        return None

    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        """Add what `update` needs of a training batch: `vectors` (N, D) and their `indices` (N,)."""

    def update(self) -> None:
        """Apply what was gathered since the last update."""

    def discard(self) -> None:
        """Forget what was gathered since the last update: the step was no good."""

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        """Set the codes that the mask `which` (K,) names to those of `codes` (K, D)."""
        self.weight.copy_(torch.where(which[:, None], codes.to(self.weight.dtype), self.weight))


class GradientCodebook(Codebook):
    """Codes that follow the codebook loss, weight · mean((stop(z) - e)²) (van den Oord et al. 2017, eq. 3)."""

    def __init__(self, codebook_size: int, codebook_dim: int, weight: float) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.loss_weight = weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor) -> Tensor:
        return self.loss_weight * (vectors.detach() - codes).square().mean()


class EmaCodebook(Codebook):
    """Codes as the moving average of the vectors they win (van den Oord et al. 2017, eqs. 6-8).

    The averages start from nothing, so that a code stands at the mean of its first vectors after their first update;
    a code that never won any keeps its first value. Codes and averages are buffers: no gradient writes to them.

    Attributes:
        counts: (K,) moving average of hits.
        sums: (K, D) moving average of the sums of the vectors won.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, decay: float) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.decay = decay
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, codebook_dim))
        self._gathered: tuple[Tensor, Tensor] | None = None

    def _set_weight(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        if self._gathered is None:
            self._gathered = (torch.zeros_like(self.counts), torch.zeros_like(self.sums))
        counts, sums = self._gathered
        counts += torch.bincount(indices, minlength=len(counts))
        sums.index_add_(0, indices, vectors.to(sums.dtype))

    @torch.no_grad()
    def update(self) -> None:
        if self._gathered is None:
            return
        counts, sums = self._gathered
        self._gathered = None
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        # Counts and sums of a code without hits shrink together: their ratio holds, until they come near underflow.
        means = self.sums / self.counts.clamp_min(_VANISHED)[:, None]
        self.weight.copy_(torch.where(self.counts[:, None] > _VANISHED, means, self.weight))

    def discard(self) -> None:
        self._gathered = None

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        super().replace(which, codes)
        self.counts *= ~which
        self.sums *= ~which[:, None]


class EntropyLearning(Settings):
    """The bare form: codes learn from the entropy loss alone."""

    kind: Literal["entropy"] = "entropy"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return Codebook(codebook_size, codebook_dim)


class CodebookLossLearning(Settings):
    """Codes learn by gradient, from the codebook loss (and the entropy loss)."""

    kind: Literal["codebook_loss"] = "codebook_loss"
    weight: float = Field(4.0, gt=0, description="of the codebook loss, relative to the commitment loss")

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return GradientCodebook(codebook_size, codebook_dim, self.weight)


class EmaLearning(Settings):
    """Codes learn as the moving average of the vectors they win; no gradient moves them."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.99, ge=0, lt=1, description="of the moving average, a step")

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return EmaCodebook(codebook_size, codebook_dim, self.decay)


Learning = Annotated[EntropyLearning | CodebookLossLearning | EmaLearning, Field(discriminator="kind")]
