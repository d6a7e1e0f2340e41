"""One bit per dimension: lookup-free and binary spherical quantization.

Shapes: D dimensions; (...) any leading axes.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vqtool.quantizers.scalar import ScalarQuantizer, ScalarSettings


class LookupFreeQuantizer(ScalarQuantizer):
    """Quantize each dimension to its sign: at depth 0, 1 if z[d] > 0, else -1 (LFQ).

    Yu et al. 2023, "Language Model Beats Diffusion", eqs. 3 and 5. Bit d of the index is 1 if z[d] > 0; bit 0 is the
    least significant.

    Args:
        bits: D; the codebook size is K = 2^D.
        temperature: temperature of the soft assignment in the entropy loss, in multiples of the squared value of one
            dimension of a code at this depth.
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment in the entropy loss.
        depth: level in a residual quantizer, from 0; the values are ±magnitude(bits) · 0.5^depth.
    """

    def __init__(self, bits: int, temperature: float = 1.0, sample_entropy_weight: float = 1.0, depth: int = 0) -> None:
        value = self.magnitude(bits) * 0.5**depth
        super().__init__([[-value, value]] * bits, temperature * value**2, sample_entropy_weight)

    @staticmethod
    def magnitude(bits: int) -> float:
        """Return the absolute value of each dimension of a code of `bits` dimensions, at depth 0."""
        return 1.0

    def nearest(self, preprocessed: Tensor) -> Tensor:
        return ((preprocessed > 0) * self._place_values).sum(dim=-1)


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """Normalise vectors to unit length and quantize each dimension to its sign: ±1 / sqrt(D) at depth 0 (BSQ).

    Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization", eqs. 6 and 10. Arguments are
    those of `LookupFreeQuantizer`. In a residual quantizer only the input is normalised, not the residuals.
    """

    @staticmethod
    def magnitude(bits: int) -> float:
        return float(bits**-0.5)

    def preprocess(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


class _BinarySettings(ScalarSettings):
    """Settings of both binary quantizers."""

    bits: int = Field(ge=1, le=24, description="number of dimensions, one bit each; K = 2^bits")
    temperature: float = Field(
        1.0,
        ge=1e-30,
        le=1e30,
        description="temperature of the soft assignment in the entropy loss, relative to the squared value of one "
        "dimension of a code",
    )
    sample_entropy_weight: float = Field(
        1.0, ge=0, description="weight of the mean entropy of each latent's soft assignment in the entropy loss"
    )

    def dim(self, width: int) -> int:
        """Return D, which is `bits`; `width` has no effect."""
        return self.bits


class LookupFreeSettings(_BinarySettings):
    """Lookup-free quantization (LFQ): the sign of each dimension; no learned codebook."""

    kind: Literal["lfq"] = "lfq"

    def build_level(self, depth: int) -> LookupFreeQuantizer:
        return LookupFreeQuantizer(self.bits, self.temperature, self.sample_entropy_weight, depth)


class BinarySphericalSettings(_BinarySettings):
    """Binary spherical quantization (BSQ): the sign of each dimension of a unit vector; no learned codebook."""

    kind: Literal["bsq"] = "bsq"

    def build_level(self, depth: int) -> BinarySphericalQuantizer:
        return BinarySphericalQuantizer(self.bits, self.temperature, self.sample_entropy_weight, depth)
