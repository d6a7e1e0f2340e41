"""The interface of all quantizers, and their output.

Shapes: B batch, L tokens per sample, D dimensions, K codes, Q levels; (...) any leading axes.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqtool.quantizers.gradient_estimators import GRADIENT_ESTIMATORS, GradientEstimator
from vqtool.runtime.distributed import BatchShard, local_shard
from vqtool.runtime.precision import full_precision


class QuantizerOutput(NamedTuple):
    """Output of every quantizer; (...) are the leading axes of its input, z the preprocessed input."""

    quantized: Tensor
    """(..., D) `decode(indices)` up to rounding, in the dtype of the input; the gradient reaches z through the gradient
    estimator. In training, some samples may be z itself (`unquantized_fraction`, and all before initialisation), or the
    sum of the first levels only (`level_dropout`)."""
    indices: Tensor
    """(...) int64 indices of the codes, from 0 to K - 1; (..., Q) for a residual or product quantizer."""
    commitment_loss: Tensor
    """() mean over all elements of (z - stop(e[indices]))², plus the codebook loss if the update has one; mean over
    levels. 0 for FSQ, and in training before initialisation."""
    entropy_loss: Tensor
    """() negative entropy of the batch-mean soft assignment, in nats (-ln K for even usage), plus
    `sample_entropy_weight` times the mean entropy of each vector's soft assignment; mean over levels. 0 after
    `skip_entropy_loss`, and in training before initialisation."""


class LevelStatistics(NamedTuple):
    """Sums over the N preprocessed vectors of one level, on the CPU; those of several batches can be added.

    From the second level of a residual quantizer on, the vectors are residuals. D is the width of the level's codes.
    """

    counts: Tensor
    """(K,) int64, hits of each code."""
    soft_assignment: Tensor
    """(F, M) float64, soft assignments summed over the vectors. A vector quantizer has F = 1 and M = K; a scalar
    quantizer has a row for each of its F = D dimensions, padded with zeros to the largest number of values M."""
    sample_entropy: Tensor
    """() float64, entropy of each vector's soft assignment in nats, summed over the vectors."""
    squared_distance: Tensor
    """() float64, squared distance of each vector to its code, summed over the vectors."""
    elements: Tensor
    """() int64, N · D: number of terms in `squared_distance`."""
    vector_sum: Tensor
    """(D,) float64, sum of the vectors."""
    squared_norm_sum: Tensor
    """() float64, sum of the squared norms of the vectors."""
    squared_distance_per_code: Tensor = torch.zeros(())
    """(K,) float64, `squared_distance` split by code; () 0 for a quantizer without a learned codebook."""


class Quantizer(nn.Module, ABC):
    """Map vectors z (..., D) to indices and back.

    `forward` has three steps, each a method. With d[n,k] = |z_n - e_k|² over preprocessed vectors:

        preprocess    for example unit length under the cosine metric
        assign        indices[n] = argmin_k d[n,k]; in training it may balance the codes (Sinkhorn)
        quantize      quantized = e[indices] with the gradient estimator; commitment and entropy loss

    `encode` is `preprocess` and `nearest`; `decode` returns e[indices]; `statistics` returns sums over a batch.

    Training. `forward` does not change parameters or buffers; in training mode it accumulates the batch. After each
    optimizer step, call `update`: it applies the accumulated batches to the codebook (EMA averages, dead-code reset).
    To skip a step, for example after a NaN, call `discard` instead, or pass a false `step_is_finite`.

    Initialisation. With k-means initialisation, `needs_init` is true at first. While it is, vectors pass unquantized in
    training, and updates only add them to a sample. When the sample is complete, `update` initialises the codes from it
    (`run_init`, which calls `init_codes`). Then `needs_init` is false. `apply_update` is `update` without `run_init`.

    Attributes:
        codebook_sizes: K of each level.
        dim: D, width of input and output.
        has_levels: whether indices have a last axis Q.
        supports_prefix_decoding: whether the first levels can be decoded without the others.
        gradient_estimator: how gradients pass the argmin. Product and projected quantizers do not use this attribute
            and the next one: the quantizers inside them apply their own.
        unquantized_fraction: fraction of the samples of a training batch that skip quantization, from 0 to 1.
        sample_entropy_weight: weight of the sample-entropy term in the entropy loss; that of the first level or group.
    """

    codebook_sizes: tuple[int, ...]
    dim: int
    has_levels: bool = False
    supports_prefix_decoding: bool = False
    gradient_estimator: GradientEstimator = "straight_through"
    unquantized_fraction: float = 0.0
    sample_entropy_weight: float = 0.0
    _computes_entropy_loss: bool = True

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """The codes (K, D); (Q, K, D) for a quantizer with Q levels, which must have the same K."""

    @property
    def learned_codes(self) -> list[Tensor | None]:
        """The codes (K, D) of each level; None for a level without a learned codebook."""
        return [None] * len(self.codebook_sizes)

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize vectors (..., D), whose first axis counts samples; one vector (D,) is one sample.

        Losses are float64 if the input or the codes are, else float32; autocast does not apply. If torch.distributed
        is initialised and the module is in training mode, every process must call `forward` with its shard of the
        batch. Losses are then those of the whole batch, and their gradients are correct once averaged by
        DistributedDataParallel.

        Raises:
            ValueError: the vectors have another width than `dim`, or are not floating-point.
        """
        with full_precision(vectors.device):
            preprocessed = self.preprocess(self._validate(vectors))
            samples = len(vectors) if vectors.ndim > 1 else 1
            shard = local_shard(samples, vectors.device) if self.training else BatchShard.unsharded(samples)
            output = self.quantize(preprocessed, self.assign(preprocessed, shard), shard)
        return output._replace(quantized=output.quantized.to(vectors.dtype))

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the indices of the nearest codes of vectors (..., D): (...) int64, or (..., Q) with levels.

        The same in training and evaluation mode, and before initialisation. Raises ValueError as `forward` does.
        """
        with full_precision(vectors.device):
            return self.nearest(self.preprocess(self._validate(vectors)))

    @torch.no_grad()
    def statistics(self, vectors: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """Return the statistics of each level for vectors (..., D) and their indices from `forward` or `encode`.

        They are not summed over processes.
        """
        with full_precision(vectors.device):
            return self.level_statistics(self.preprocess(self._validate(vectors)), indices)

    @torch.no_grad()
    def evaluate_padded(self, vectors: Tensor, samples: int) -> tuple[QuantizerOutput, list[LevelStatistics]]:
        """Return output and statistics of the first `samples` of a batch (B, ..., D) that is padded to a fixed size.

        For evaluation mode; processes do not communicate. The nearest codes are found for the padded batch, as
        in `encode`, because matrix products of another shape may round differently.
        """
        with full_precision(vectors.device):
            preprocessed = self.preprocess(self._validate(vectors))
            indices = self.nearest(preprocessed)[:samples]
            preprocessed = preprocessed[:samples]
            output = self.quantize(preprocessed, indices, BatchShard.unsharded(samples))
            return output, self.level_statistics(preprocessed, indices)

    def preprocess(self, vectors: Tensor) -> Tensor:
        """Return the vectors that are compared with codes, for example normalised ones. Default: unchanged.

        Shape (..., D); a projection changes the last axis to the width of the codes.
        """
        return vectors

    @abstractmethod
    def nearest(self, preprocessed: Tensor) -> Tensor:
        """Return the indices of the nearest codes for preprocessed vectors: (...) int64, or (..., Q) with levels."""

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        """Return the indices, as `nearest` does, of a shard of a batch; in training they may not be the nearest."""
        return self.nearest(preprocessed)

    @abstractmethod
    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        """Return the output for preprocessed vectors and their indices; in training, accumulate them."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """Return the quantized vectors (..., D) of `indices` (...), or (..., Q) with levels.

        The codes of several levels are summed (residual) or concatenated (product). If `supports_prefix_decoding`,
        indices (..., q) of the first q levels, 1 <= q <= Q, are also accepted.
        """

    def embed(self, indices: Tensor) -> Tensor:
        """Return `decode(indices)` without the output projection: (..., d), with d the width of the codes."""
        return self.decode(indices)

    @abstractmethod
    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """Return the statistics of each level for preprocessed vectors and their indices."""

    @property
    def needs_init(self) -> bool:
        """Whether the codes are still to be initialised from a sample of vectors."""
        return False

    def init_codes(self, preprocessed: Tensor) -> None:
        """Initialise the codes by k-means on preprocessed vectors (S, D); no effect without a learned codebook."""

    def run_init(self, only_if_complete: bool = False) -> None:
        """Initialise the codes from the sample, if `needs_init` and the sample is not empty.

        With several processes, all of them must call it.

        Args:
            only_if_complete: initialise only if the sample is complete.

        Raises:
            Stopped: a signal was received; `needs_init` is still true.
        """

    def skip_entropy_loss(self) -> None:
        """Make the entropy loss 0 from now on, here and in all levels and groups; saves its computation."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module._computes_entropy_loss = False

    def update(self, step_is_finite: Tensor | None = None) -> None:
        """Apply the batches accumulated since the last call to the codebook; call it after each optimizer step.

        Updates EMA averages, resets dead codes, and initialises codes whose k-means sample is complete. With several
        processes, all of them must call it.

        Args:
            step_is_finite: () bool on the device; if false, the batches are dropped and nothing else changes. It must
                be true while `needs_init`. Default: true.
        """
        self.apply_update(step_is_finite)
        if self.needs_init:
            self.run_init(only_if_complete=True)

    def apply_update(self, step_is_finite: Tensor | None = None) -> None:
        """Apply the batches accumulated since the last call to the codebook, without initialising codes.

        Args:
            step_is_finite: as in `update`; the host does not wait for the device to read it.
        """

    def discard(self) -> None:
        """Drop the batches accumulated since the last update; call it instead of `update` to skip a step."""

    def apply_gradient_estimator(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        """Return the assigned codes e[indices] (..., D), with a gradient for the vectors z (..., D).

        In training, the vectors of the first `unquantized_fraction` of the whole batch's samples are returned instead
        (Défossez et al. 2024, "Moshi", 3.3, quantization rate). Batches are in random order, so no sampling is needed.
        """
        estimator = GRADIENT_ESTIMATORS[self.gradient_estimator]
        unquantized = 0
        if self.training and vectors.ndim > 1:
            unquantized = shard.count_in_first(round(self.unquantized_fraction * shard.total))
        if not unquantized:  # slicing would copy the gradient
            return estimator(vectors, codes)
        return torch.cat([vectors[:unquantized], estimator(vectors[unquantized:], codes[unquantized:])])

    def _validate(self, vectors: Tensor) -> Tensor:
        """Return the vectors as float64 if they are, else as float32.

        Raises:
            ValueError: the vectors have another width than `dim`, or are not floating-point.
        """
        if vectors.ndim < 1 or vectors.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of shape (..., {self.dim}), got {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"expected floating-point vectors, got {vectors.dtype}")
        return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
