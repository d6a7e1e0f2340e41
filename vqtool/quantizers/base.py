"""The interface of all quantizers.

Shapes: B batch, L tokens per sample, D dimensions, K codes, Q levels; (...) any leading axes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vqtool.quantizers.estimators import GRADIENT_ESTIMATORS, GradientEstimator
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.runtime.distributed import BatchShard, local_shard
from vqtool.runtime.precision import full_precision


class Quantizer(nn.Module, ABC):
    """Map vectors (..., D) to indices and back.

    `forward` does not change parameters or buffers. In training it gathers what the codebook update needs, and
    `update()` applies it once the step is known to be finite; `discard()` drops it. Three steps follow each other:
    `preprocess` (for example normalisation), `assign` (indices) and `quantize` (codes and losses).

    Attributes:
        codebook_sizes: K of each level.
        dim: D, width of input and output.
        has_levels: whether indices have a last axis Q.
        truncates: whether the first levels can be decoded without the others.
        gradient_estimator: how gradients pass the argmin.
        unquantized_fraction: fraction of the samples of a training batch that skip quantization.
        sample_entropy_weight: weight of the sample-entropy term in the entropy loss, the same at every level.
    """

    codebook_sizes: tuple[int, ...]
    dim: int
    has_levels: bool = False
    supports_prefix_decoding: bool = False
    gradient_estimator: GradientEstimator = "straight_through"
    unquantized_fraction: float = 0.0
    sample_entropy_weight: float = 0.0
    _entropy_wanted: bool = True

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """The codes (K, D); (Q, K, D) for a quantizer with Q levels."""

    @property
    def learned_codes(self) -> list[Tensor | None]:
        """The codes (K, D) of each level; None for a level without a learned codebook."""
        return [None] * len(self.codebook_sizes)

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize vectors (..., D).

        Losses are float64 for float64 input and float32 otherwise; autocast does not apply. If torch.distributed is
        initialised and the module is in training mode, every process must call `forward` with its part of the batch.
        Losses are then those of the whole batch, and their gradients are correct once averaged by
        DistributedDataParallel.

        Raises:
            ValueError: the vectors have another width than `dim`, or are not floating-point.
        """
        with full_precision(vectors.device):
            preprocessed = self.preprocess(self._checked(vectors))
            samples = len(vectors) if vectors.ndim > 1 else 1
            shard = local_shard(samples, vectors.device) if self.training else BatchShard.unsharded(samples)
            output = self.quantize(preprocessed, self.assign(preprocessed, shard), shard)
        return output._replace(quantized=output.quantized.to(vectors.dtype))

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the indices of vectors (..., D): (...) int64, or (..., Q) with levels."""
        with full_precision(vectors.device):
            return self.nearest(self.preprocess(self._checked(vectors)))

    @torch.no_grad()
    def statistics(self, vectors: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """Return the statistics of each level for vectors (..., D) and their indices from `forward` or `encode`."""
        with full_precision(vectors.device):
            return self.level_statistics(self.preprocess(self._checked(vectors)), indices)

    @torch.no_grad()
    def evaluate_padded(self, vectors: Tensor, samples: int) -> tuple[QuantizerOutput, list[LevelStatistics]]:
        """Return output and statistics of the first `samples` of a batch (B, L, D) that is padded to a fixed size.

        Codes are chosen over the padded batch, as in `encode`, because products of another shape may round
        differently.
        """
        with full_precision(vectors.device):
            preprocessed = self.preprocess(self._checked(vectors))
            indices = self.nearest(preprocessed)[:samples]
            preprocessed = preprocessed[:samples]
            output = self.quantize(preprocessed, indices, BatchShard.unsharded(samples))
            return output, self.level_statistics(preprocessed, indices)

    def preprocess(self, vectors: Tensor) -> Tensor:
        """Return the vectors (..., D) that are compared with codes, for example normalised ones."""
        return vectors

    @property
    def needs_init(self) -> bool:
        """Whether the codebook is not initialised yet; until then vectors pass unquantized in training."""
        return False

    @abstractmethod
    def nearest(self, preprocessed: Tensor) -> Tensor:
        """Return the indices of the nearest codes of conditioned vectors."""

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        """Return the indices for a share of a batch; in training they may differ from the nearest."""
        return self.nearest(preprocessed)

    @abstractmethod
    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        """Return the output for conditioned vectors and their indices; in training, gather for `update`."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """Return the quantized vectors (..., D) of `indices`; with prefix decoding, indices may have fewer levels."""

    def embed(self, indices: Tensor) -> Tensor:
        """Return the vectors (..., d) of `indices` in code space: `decode` without the output projection."""
        return self.decode(indices)

    @abstractmethod
    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """Return the statistics of each level over conditioned vectors."""

    def init_codes(self, preprocessed: Tensor) -> None:
        """Initialise the codes from a sample (S, D) of conditioned vectors; no effect without a learned codebook."""

    def run_init(self, only_if_complete: bool = False) -> None:
        """Initialise the codes from the latents gathered so far, if they are not initialised yet.

        Args:
            only_if_complete: initialise only if the sample is complete; otherwise use the latents gathered so far.

        Raises:
            Stopped: a signal was received; the codes are not initialised.
        """

    def skip_entropy(self) -> None:
        """Return an entropy loss of 0 from now on, to save its computation if its weight is 0."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module._entropy_wanted = False

    def update(self, good: Tensor | None = None) -> None:
        """Apply the codebook update for the batches since the last call; call it after each optimizer step.

        Updates EMA averages, resets dead codes, and initialises codes whose k-means sample is complete. With several
        processes, all of them must call it.

        Args:
            good: () bool on the device; if false, nothing changes. It must be true while codes are not initialised.
                Default: the step is applied.
        """
        self.apply_update(good)
        if self.needs_init:
            self.run_init(only_if_complete=True)

    def apply_update(self, good: Tensor | None = None) -> None:
        """Apply what `forward` gathered since the last call, without initialising codes.

        Args:
            good: () bool on the device; if false, nothing changes. The host does not synchronise to read it. It must be
                true while codes are not initialised.
        """

    def discard(self) -> None:
        """Drop what `forward` gathered since the last update; call it instead of `update()` to skip a step."""

    def pass_gradient(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        """Return the codes (..., D) with a gradient for the vectors (..., D).

        In training, the first `unquantized_fraction` of the samples are returned unquantized (Défossez et al. 2024,
        "Moshi", 3.3, quantization rate). Batches are in random order, so no sampling is needed.
        """
        pass_on = GRADIENT_ESTIMATORS[self.gradient_estimator]
        passed = (
            shard.count_in_first(round(self.unquantized_fraction * shard.total))
            if self.training and vectors.ndim > 1
            else 0
        )
        if not passed:  # a slice of everything would have its gradient copied
            return pass_on(vectors, codes)
        return torch.cat([vectors[:passed], pass_on(vectors[passed:], codes[passed:])])

    def _checked(self, vectors: Tensor) -> Tensor:
        """Return the vectors in the dtype of the computation, at least float32.

        Raises:
            ValueError: the vectors have another width than `dim`, or are not floating-point.
        """
        if vectors.ndim < 1 or vectors.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of shape (..., {self.dim}), got {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"expected floating-point vectors, got {vectors.dtype}")
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
