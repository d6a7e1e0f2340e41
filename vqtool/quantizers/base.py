"""What the rest of vqtool asks of a quantizer.

Shapes: B batch, L positions per sample, D dimensions, K codes, Q levels.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from vqtool.quantizers.output import LevelStatistics, QuantizerOutput


class Quantizer(nn.Module, ABC):
    """Vectors to indices and back. `forward` changes no state: it gathers, and `update` applies what was gathered.

    Attributes:
        codebook_sizes: K of each level.
        dim: D, the width of the vectors it takes and gives.
        has_levels: whether indices have an axis Q.
    """

    codebook_sizes: tuple[int, ...]
    dim: int
    has_levels: bool

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """The codes (K, D)."""

    @abstractmethod
    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize (..., D)."""

    @abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """The indices of (..., D) alone: (...), or (..., Q)."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """The vectors (..., D) that `indices` stand for."""

    @abstractmethod
    def measure(self, vectors: Tensor, indices: Tensor) -> list[LevelStatistics]:
        """The raw terms of each level over (..., D) and the indices that `forward` or `encode` gave them."""

    @abstractmethod
    def update(self) -> None:
        """Apply what forward gathered in training since the last update."""

    @abstractmethod
    def discard(self) -> None:
        """Forget what forward gathered since the last update."""
