"""Finite scalar quantization (Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple").

Shapes: D dimensions; (...) stands for any leading axes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vqtool.distributed import Share
from vqtool.quantizers.scalar import ScalarQuantizer, ScalarSettings

# Keeps the outermost values in reach of tanh (the authors' code).
_MARGIN = 1e-3


class FiniteScalarQuantizer(ScalarQuantizer):
    """Bounds each dimension by tanh and rounds it to one of `levels[d]` values in [-1, 1].

    As in the paper, an even number of levels has its values shifted by half a step, so that 0 is among them. There is
    no commitment loss: nothing pulls a vector that is already held in bounds.

    Args:
        levels: values of each dimension, at least 2.
        temperature, confidence: of the entropy loss, which the paper does without.
        depth: level of a residual quantizer: each is half a step of the one before it wide.
    """

    def __init__(
        self, levels: Sequence[int], temperature: float = 0.1, confidence: float = 0.0, depth: int = 0
    ) -> None:
        values = [_values(count, depth) for count in levels]
        super().__init__(values, temperature * (0.5 / (max(levels) // 2)) ** (2 * depth), confidence)
        self._shifts = [0.5 if count % 2 == 0 else 0.0 for count in levels]

    def condition(self, vectors: Tensor) -> Tensor:
        sizes = vectors.new_tensor(self.sizes)
        shift = vectors.new_tensor(self._shifts)
        reach = (sizes - 1) * (1 + _MARGIN) / 2
        bounded = torch.tanh(vectors + torch.atanh(shift / reach)) * reach - shift
        return bounded / (sizes // 2)

    def commitment(self, conditioned: Tensor, chosen: Tensor, share: Share) -> Tensor:
        return conditioned.new_zeros(())


def _values(count: int, depth: int) -> list[float]:
    half = count // 2
    # What is left over lies evenly about 0: below the first level nothing is shifted.
    shift = 0.5 if depth and count % 2 == 0 else 0.0
    return [(value - half + shift) / half * (0.5 / half) ** depth for value in range(count)]


class FiniteScalarSettings(ScalarSettings):
    """Each dimension rounded to a few values (FSQ)."""

    kind: Literal["fsq"] = "fsq"
    levels: Annotated[list[Annotated[int, Field(ge=2, le=1 << 16)]], Field(min_length=1)] = Field(
        description="values of each dimension; the number of codes is their product"
    )
    temperature: float = Field(0.1, ge=1e-30, le=1e30, description="of the soft assignment; values lie in [-1, 1]")
    confidence: float = Field(0.0, ge=0, description="weight of the samples' own entropy in the entropy loss")

    @field_validator("levels")
    @classmethod
    def _are_few_enough(cls, levels: list[int]) -> list[int]:
        if math.prod(levels) > 1 << 24:
            raise ValueError(f"expected levels whose product is at most 2^24, got {math.prod(levels)}")
        return levels

    def dim(self, width: int) -> int:
        """D."""
        return len(self.levels)

    def build_level(self, depth: int) -> FiniteScalarQuantizer:
        return FiniteScalarQuantizer(self.levels, self.temperature, self.confidence, depth)
