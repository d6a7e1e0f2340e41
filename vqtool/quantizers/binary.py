"""One bit a dimension: look-up free and binary spherical quantization.

Shapes: D dimensions; (...) stands for any leading axes.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vqtool.quantizers.scalar import ScalarQuantizer, ScalarSettings


class LookupFreeQuantizer(ScalarQuantizer):
    """The sign of each dimension, -1 or 1 (LFQ: Yu et al. 2023, "Language Model Beats Diffusion", eqs. 3 and 5).

    Args:
        bits: D; K = 2^D.
        temperature, confidence: of the entropy loss.
        depth: level of a residual quantizer: each is half as wide as the one before it.
    """

    def __init__(self, bits: int, temperature: float = 1.0, confidence: float = 1.0, depth: int = 0) -> None:
        value = self.magnitude(bits) * 0.5**depth
        super().__init__([[-value, value]] * bits, temperature * value**2, confidence)

    @staticmethod
    def magnitude(bits: int) -> float:
        """What a dimension of a code may be, but for its sign."""
        return 1.0

    def nearest(self, conditioned: Tensor) -> Tensor:
        return ((conditioned > 0) * self._places).sum(dim=-1)


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """The sign of each dimension of a unit vector, ±1 / sqrt(D), a unit vector too.

    BSQ: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization", eqs. 6 and 10.
    """

    @staticmethod
    def magnitude(bits: int) -> float:
        return float(bits**-0.5)

    def condition(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


class _BinarySettings(ScalarSettings):
    bits: int = Field(ge=1, le=24, description="dimensions, one bit each; the number of codes is 2 to this power")
    temperature: float = Field(
        1.0, ge=1e-30, le=1e30, description="of the soft assignment, in units of a dimension's square"
    )
    confidence: float = Field(1.0, ge=0, description="weight of the samples' own entropy in the entropy loss")

    def dim(self, width: int) -> int:
        """D."""
        return self.bits


class LookupFreeSettings(_BinarySettings):
    """The sign of each dimension (LFQ)."""

    kind: Literal["lfq"] = "lfq"

    def build_level(self, depth: int) -> LookupFreeQuantizer:
        return LookupFreeQuantizer(self.bits, self.temperature, self.confidence, depth)


class BinarySphericalSettings(_BinarySettings):
    """The sign of each dimension of a unit vector (BSQ)."""

    kind: Literal["bsq"] = "bsq"

    def build_level(self, depth: int) -> BinarySphericalQuantizer:
        return BinarySphericalQuantizer(self.bits, self.temperature, self.confidence, depth)
