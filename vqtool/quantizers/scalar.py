"""Quantizers without a learned codebook: each dimension is rounded to one of a few fixed values.

The index of a code is a mixed-radix number with one digit per dimension, the first dimension being the least
significant: index = sum over d of digit[d] · M[0] · ... · M[d-1], where digit[d], from 0 to M[d] - 1, numbers the
values of dimension d in ascending order. Indices are found without a search, so the cost does not grow with K.

Shapes: N vectors, K codes, D dimensions, M the largest number of values of a dimension; (...) any leading axes.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.losses import negative_entropy, sample_entropies
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings

# Pads the values of dimensions that have fewer than M; so far away that its soft assignment is 0.
_PADDING_VALUE = 1e18


class ScalarQuantizer(Quantizer):
    """Round each dimension to the nearest of its values, which are evenly spaced.

    With v[d,m] value m of dimension d and T the temperature, s[n,d,:] = softmax over m of -(z[n,d] - v[d,m])² / T. The
    soft assignment of a vector to a code is the product over dimensions, so entropies are sums over dimensions:

        p[d,m] = mean over n of s[n,d,m]
        batch term = sum over d, m of p[d,m]·ln(p[d,m] + 1e-10)
        sample term = -mean over n of (sum over d, m of s[n,d,m]·ln(s[n,d,m]))
        entropy_loss = batch term + sample_entropy_weight · sample term

    The sample term is exact. The batch term is the negative entropy of the product of the marginals p[d,:]. The entropy
    of the mean assignment to codes is at most that entropy (Zhao et al. 2024, "Image and Video Tokenization with Binary
    Spherical Quantization", eq. 10).

    Args:
        values: values of each of the D dimensions: at least two, ascending and evenly spaced.
        temperature: temperature of the soft assignment, in squared units of the preprocessed vectors.
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment in the entropy loss.
    """

    values: Tensor
    _radix: Tensor
    _place_values: Tensor

    def __init__(self, values: Sequence[Sequence[float]], temperature: float, sample_entropy_weight: float) -> None:
        super().__init__()
        self.dim = len(values)
        self.values_per_dim = [len(row) for row in values]
        self.codebook_sizes = (math.prod(self.values_per_dim),)
        self.temperature, self.sample_entropy_weight = temperature, sample_entropy_weight
        largest = max(self.values_per_dim)
        padded = [[*row, *[_PADDING_VALUE] * (largest - len(row))] for row in values]
        place_values = [math.prod(self.values_per_dim[:d]) for d in range(self.dim)]
        # The settings determine these buffers, so checkpoints do not contain them.
        self.register_buffer("values", torch.tensor(padded), persistent=False)
        self.register_buffer("_radix", torch.tensor(self.values_per_dim), persistent=False)
        self.register_buffer("_place_values", torch.tensor(place_values), persistent=False)

    @property
    def codes(self) -> Tensor:
        return self.decode(torch.arange(self.codebook_sizes[0], device=self.values.device))

    def nearest(self, preprocessed: Tensor) -> Tensor:
        low, high = self.values[:, 0], self.values.gather(1, self._radix[:, None] - 1)[:, 0]
        # The difference of two neighbouring values would lose digits to cancellation.
        spacing = (high - low) / (self._radix - 1)
        digits = ((preprocessed - low) / spacing).round().clamp_min(0).minimum(self._radix - 1).long()
        return (digits * self._place_values).sum(dim=-1)

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        codes = self.decode(indices).to(preprocessed.dtype)
        return QuantizerOutput(
            quantized=self.apply_gradient_estimator(preprocessed, codes, shard),
            indices=indices,
            commitment_loss=self.commitment_loss(preprocessed, codes, shard),
            entropy_loss=self._entropy_loss(preprocessed, shard),
        )

    def commitment_loss(self, preprocessed: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        """Return the mean () over all elements of the global batch of (z - e[indices])².

        Args:
            preprocessed: z (..., D).
            codes: e[indices] (..., D).
            shard: position of these samples in the global batch.
        """
        return shard.mean((preprocessed - codes).square())

    def decode(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self._place_values % self._radix
        return self.values.gather(1, digits.reshape(-1, self.dim).T).T.reshape(digits.shape)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        flat, indices = preprocessed.reshape(-1, self.dim), indices.reshape(-1)
        soft = self._soft_assignment(flat)
        return [
            LevelStatistics(
                counts=torch.bincount(indices, minlength=self.codebook_sizes[0]).cpu(),
                soft_assignment=soft.sum(dim=0).cpu().double(),
                sample_entropy=sample_entropies(soft.flatten(1)).sum().cpu().double(),
                squared_distance=(flat - self.decode(indices)).square().sum().cpu().double(),
                elements=torch.tensor(flat.numel()),
                vector_sum=flat.sum(dim=0, dtype=torch.float64).cpu(),
                squared_norm_sum=flat.double().square().sum().cpu(),
            )
        ]

    def _entropy_loss(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        if not self._computes_entropy_loss:
            return preprocessed.new_zeros(())
        soft = self._soft_assignment(preprocessed.reshape(-1, self.dim))
        vectors = max(1, shard.total * math.prod(preprocessed.shape[1:-1]))
        loss = negative_entropy(shard.sum(soft.sum(dim=0)) / vectors)
        if self.sample_entropy_weight:
            # Over all dimensions and values of a vector, because entropies of independent dimensions add up.
            loss = loss + self.sample_entropy_weight * shard.sum(sample_entropies(soft.flatten(1)).sum()) / vectors
        return loss

    def _soft_assignment(self, flat: Tensor) -> Tensor:
        """Return s (N, D, M) for vectors (N, D); 0 at padding values."""
        return torch.softmax(-(flat[..., None] - self.values.to(flat.dtype)).square() / self.temperature, dim=-1)


class ScalarSettings(Settings):
    """Base class of the settings of quantizers without a learned codebook."""

    init: ClassVar[None] = None
    """The codes are fixed."""

    def resolve(self, width: int) -> Self:
        """Return these settings: none is `auto`."""
        return self

    @property
    def follows_width(self) -> bool:
        """Whether D follows the encoder's output width; it does not."""
        return False

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """The codebook updates by key; there are none."""
        return {}

    def build(self) -> ScalarQuantizer:
        """Return the quantizer."""
        return self.build_level(0)

    def build_level(self, depth: int) -> ScalarQuantizer:
        """Return the quantizer of level `depth` of a residual quantizer, counted from 0."""
        raise NotImplementedError
