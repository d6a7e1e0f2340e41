"""What the rest of vqtool asks of a quantizer.

Shapes: B batch, L positions per sample, D dimensions, K codes, Q levels; (...) stands for any leading axes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vqtool.distributed import Share, share_of
from vqtool.quantizers.gradient import GRADIENTS, GradientName
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.precision import full_precision


class Quantizer(nn.Module, ABC):
    """Vectors to indices and back. `forward` changes no state: it gathers, and `update` applies what was gathered.

    A vector is first conditioned (made a unit vector, say), then a code is chosen, then it is quantized. Quantizers
    that are made of others call these steps of theirs.

    Attributes:
        codebook_sizes: K of each level.
        dim: D, the width of the vectors it takes and gives.
        has_levels: whether indices have an axis Q.
        truncates: whether the first levels alone stand for a coarser vector.
        gradient: how the gradient passes the choice of a code.
        bypass: share of the samples of a training batch that pass unquantized.
        confidence: weight of the confidence term in the entropy loss, the same at every level.
    """

    codebook_sizes: tuple[int, ...]
    dim: int
    has_levels: bool = False
    truncates: bool = False
    gradient: GradientName = "straight_through"
    bypass: float = 0.0
    confidence: float = 0.0
    _entropy_wanted: bool = True

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """The codes (K, D); (Q, K, D) of a quantizer of levels, each of as many codes."""

    @property
    def learned_codes(self) -> list[Tensor | None]:
        """The codes (K, D) of each level; None of one whose codes are given, and not learned."""
        return [None] * len(self.codebook_sizes)

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize (..., D): losses in float64 for float64, in float32 for anything less.

        Where torch.distributed has been begun, training is one of a batch that all processes share: all of them call
        this, and losses are those of the whole batch, with a gradient that DistributedDataParallel averages.
        """
        with full_precision(vectors.device):
            conditioned = self.condition(self._checked(vectors))
            samples = len(vectors) if vectors.ndim > 1 else 1
            share = share_of(samples, vectors.device) if self.training else Share.alone(samples)
            output = self.quantize(conditioned, self.choose(conditioned, share), share)
        return output._replace(quantized=output.quantized.to(vectors.dtype))

    def encode(self, vectors: Tensor) -> Tensor:
        """The indices of (..., D) alone: (...), or (..., Q)."""
        with full_precision(vectors.device):
            return self.nearest(self.condition(self._checked(vectors)))

    @torch.no_grad()
    def measure(self, vectors: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """The raw terms of each level over (..., D) and the indices that `forward` or `encode` gave them."""
        with full_precision(vectors.device):
            return self.statistics(self.condition(self._checked(vectors)), indices)

    @torch.no_grad()
    def assess(self, vectors: Tensor, samples: int) -> tuple[QuantizerOutput, list[LevelStatistics]]:
        """Output and raw terms of the first so many `samples` of a batch (B, L, D) that is padded to a fixed size.

        Codes are chosen over the whole batch, just as `encode` does: products of another shape may round differently.
        """
        with full_precision(vectors.device):
            conditioned = self.condition(self._checked(vectors))
            indices = self.nearest(conditioned)[:samples]
            conditioned = conditioned[:samples]
            output = self.quantize(conditioned, indices, Share.alone(samples))
            return output, self.statistics(conditioned, indices)

    def condition(self, vectors: Tensor) -> Tensor:
        """Vectors as codes are compared with them: (..., D) to (..., D)."""
        return vectors

    @property
    def waits(self) -> bool:
        """Whether codes still wait for their first sample, and vectors pass unquantized in training."""
        return False

    @abstractmethod
    def nearest(self, conditioned: Tensor) -> Tensor:
        """The indices of conditioned vectors, by distance."""

    def choose(self, conditioned: Tensor, share: Share) -> Tensor:
        """The indices to quantize a share of a batch by; in training they need not be the nearest."""
        return self.nearest(conditioned)

    @abstractmethod
    def quantize(self, conditioned: Tensor, indices: Tensor, share: Share) -> QuantizerOutput:
        """The output for conditioned vectors, a share of a batch, and their indices; in training, gathers."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """The vectors (..., D) that `indices` stand for; where it `truncates`, of as many levels as are given."""

    def embed(self, indices: Tensor) -> Tensor:
        """The vectors (..., d) of `indices` in the space of the codes: as `decode`, but before any projection."""
        return self.decode(indices)

    @abstractmethod
    def statistics(self, conditioned: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """The raw terms of each level over conditioned vectors."""

    def initialise(self, conditioned: Tensor) -> None:
        """Set the codes to fit a sample (S, D) of conditioned vectors. Quantizers without learned codes have nothing to
        set."""

    def start(self, full: bool = False) -> None:
        """Start from what was gathered so far, if codes still wait for their first sample.

        Args:
            full: only where the sample is; else do not wait for more.

        Raises:
            Stopped: a signal came; the codes wait as they did.
        """

    def skip_entropy(self) -> None:
        """Give an entropy loss of 0 from now on: where it has no weight, there is no need to compute it."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module._entropy_wanted = False

    def update(self, good: Tensor | None = None) -> None:
        """Apply what forward gathered in training since the last update, and start codes whose sample is full.

        Args:
            good: as in `learn`.
        """
        self.learn(good)
        if self.waits:
            self.start(full=True)

    def learn(self, good: Tensor | None = None) -> None:
        """Apply what forward gathered in training since the last time, and nothing more.

        Args:
            good: () bool, on the device; where it is false nothing changes, and the host does not wait to learn of it.
                While codes wait for their start it must be known to be true.
        """

    def discard(self) -> None:
        """Forget what forward gathered since the last update."""

    def pass_gradient(self, vectors: Tensor, codes: Tensor, share: Share) -> Tensor:
        """The codes (..., D), with a gradient for the vectors (..., D); in training, some samples as they came.

        Some vectors without the error of quantizing help encoder and decoder to learn (Défossez et al. 2024, "Moshi",
        3.3, quantization rate). Batches are in random order already: which samples pass need not be drawn.
        """
        pass_on = GRADIENTS[self.gradient]
        passed = share.first(round(self.bypass * share.total)) if self.training and vectors.ndim > 1 else 0
        if not passed:  # a slice of everything would have its gradient copied
            return pass_on(vectors, codes)
        return torch.cat([vectors[:passed], pass_on(vectors[passed:], codes[passed:])])

    def _checked(self, vectors: Tensor) -> Tensor:
        """Vectors in the type that is computed in, float32 at least.

        Raises:
            ValueError: they are not (..., D), or not floating-point.
        """
        if vectors.ndim < 1 or vectors.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of width {self.dim}, got shape {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"expected floating-point vectors, got {vectors.dtype}")
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
