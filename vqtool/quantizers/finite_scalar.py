"""Finite scalar quantization (Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple").

Shapes: D dimensions; (...) any leading axes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vqtool.quantizers.scalar import ScalarQuantizer, ScalarSettings
from vqtool.runtime.distributed import BatchShard

# Widens the range of tanh, so that its output can round to the outermost values (`eps` in the authors' code).
_MARGIN = 1e-3


class FiniteScalarQuantizer(ScalarQuantizer):
    """Bound each dimension by tanh and round it to one of `levels[d]` values in [-1, 1] (FSQ).

    With n = levels[d], h = (n - 1) · 1.001 / 2, and shift = 0.5 for even n, else 0, at depth 0:

        preprocessed = (tanh(z + atanh(shift / h)) · h - shift) / floor(n / 2)
        quantized = round(preprocessed · floor(n / 2)) / floor(n / 2)

    As in the paper, the shift of half a step makes 0 one of an even number of values. The commitment loss is 0, because
    tanh already bounds the vectors. The paper has no entropy loss; it is optional here. In a residual quantizer, only
    the input is bounded by tanh, not the residuals.

    Args:
        levels: number of values of each of the D dimensions, at least 2; the codebook size K is their product.
        temperature: temperature of the soft assignment in the entropy loss, in squared units of the preprocessed
            vectors. At greater depth it is scaled down like the squared values of the dimension with the most values.
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment in the entropy loss.
        depth: level in a residual quantizer, from 0; the values of each level lie within half a step of the previous
            level, to both sides of 0.
    """

    def __init__(
        self, levels: Sequence[int], temperature: float = 0.1, sample_entropy_weight: float = 0.0, depth: int = 0
    ) -> None:
        values = [_values(count, depth) for count in levels]
        super().__init__(values, temperature * (0.5 / (max(levels) // 2)) ** (2 * depth), sample_entropy_weight)
        self._shifts = [0.5 if count % 2 == 0 else 0.0 for count in levels]

    def preprocess(self, vectors: Tensor) -> Tensor:
        levels = vectors.new_tensor(self.values_per_dim)
        shift = vectors.new_tensor(self._shifts)
        half_range = (levels - 1) * (1 + _MARGIN) / 2
        bounded = torch.tanh(vectors + torch.atanh(shift / half_range)) * half_range - shift
        return bounded / (levels // 2)

    def commitment_loss(self, preprocessed: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        return preprocessed.new_zeros(())


def _values(count: int, depth: int) -> list[float]:
    """Return the `count` values of a dimension at level `depth` of a residual quantizer, ascending."""
    half = count // 2
    # The half-step shift of an even count is undone after the first level, because residuals are symmetric about 0.
    shift = 0.5 if depth and count % 2 == 0 else 0.0
    return [(value - half + shift) / half * (0.5 / half) ** depth for value in range(count)]


class FiniteScalarSettings(ScalarSettings):
    """Finite scalar quantization (FSQ): each dimension is rounded to a few values; no learned codebook."""

    kind: Literal["fsq"] = "fsq"
    levels: Annotated[list[Annotated[int, Field(ge=2, le=1 << 16)]], Field(min_length=1)] = Field(
        description="number of values of each dimension; K is their product, at most 2^24"
    )
    temperature: float = Field(
        0.1,
        ge=1e-30,
        le=1e30,
        description="temperature of the soft assignment in the entropy loss, in squared units of the values, which "
        "lie in [-1, 1]",
    )
    sample_entropy_weight: float = Field(
        0.0, ge=0, description="weight of the mean entropy of each latent's soft assignment in the entropy loss"
    )

    @field_validator("levels")
    @classmethod
    def _check_codebook_size(cls, levels: list[int]) -> list[int]:
        if math.prod(levels) > 1 << 24:
            raise ValueError(f"expected levels whose product is at most {1 << 24:,}, not {math.prod(levels):,}")
        return levels

    def dim(self, width: int) -> int:
        """Return D, the number of `levels`; `width` has no effect."""
        return len(self.levels)

    def build_level(self, depth: int) -> FiniteScalarQuantizer:
        return FiniteScalarQuantizer(self.levels, self.temperature, self.sample_entropy_weight, depth)
