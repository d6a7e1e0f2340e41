"""Vector quantization with one codebook (van den Oord et al. 2017, "Neural Discrete Representation Learning").

Shapes: N vectors, K codes, D dimensions; (...) stands for any leading axes.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.codebook import EmaLearning, EntropyLearning, Learning
from vqtool.quantizers.entropy import entropy_loss, soft_assignment
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.precision import full_precision
from vqtool.quantizers.revival import RevivalSettings
from vqtool.quantizers.search import nearest_codes
from vqtool.settings import Settings


class VectorQuantizer(Quantizer):
    """Each vector goes to its nearest code.

    With the first three arguments alone it is the bare form: codes learn from the entropy loss and nothing else.

    Args:
        codebook_size: K.
        codebook_dim: D.
        temperature: of the soft assignment behind the entropy loss, in squared units of the vectors.
        learning: how codes learn: by EMA, by a codebook loss, or, left out, by the entropy loss alone.
        revival: when dead codes are set down anew; left out, never.

    Raises:
        ValueError: a size or the temperature is not positive, or vectors of another width come in.
    """

    has_levels = False

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        temperature: float = 1.0,
        learning: Learning | None = None,
        revival: RevivalSettings | None = None,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1 or not temperature > 0:
            raise ValueError(
                f"sizes and temperature must be positive, got codebook_size={codebook_size}, "
                f"codebook_dim={codebook_dim}, temperature={temperature}"
            )
        self.codebook_sizes = (codebook_size,)
        self.dim = codebook_dim
        self.temperature = temperature
        self.codebook = (learning or EntropyLearning()).build(codebook_size, codebook_dim)
        self.revival = revival.build(codebook_size) if revival else None

    @property
    def codes(self) -> Tensor:
        return self.codebook.weight

    def forward(self, vectors: Tensor) -> QuantizerOutput:
        """Quantize (..., D): losses in float64 for float64, in float32 for anything less."""
        with full_precision(vectors.device):
            flat, codes = self._flat(vectors)
            indices = nearest_codes(flat, codes)
            chosen = codes[indices]
            loss = (flat - chosen.detach()).square().mean()
            codebook_loss = self.codebook.codebook_loss(flat, chosen)
            output = QuantizerOutput(
                quantized=(flat + (chosen - flat).detach()).to(vectors.dtype).reshape(vectors.shape),
                indices=indices.reshape(vectors.shape[:-1]),
                commitment_loss=loss if codebook_loss is None else loss + codebook_loss,
                entropy_loss=entropy_loss(flat, codes, self.temperature),
            )
            if self.training:
                self.codebook.gather(flat.detach(), indices)
                if self.revival:
                    self.revival.gather(flat.detach(), indices)
        return output

    def encode(self, vectors: Tensor) -> Tensor:
        flat, codes = self._flat(vectors)
        return nearest_codes(flat, codes).reshape(vectors.shape[:-1])

    def decode(self, indices: Tensor) -> Tensor:
        return self.codebook.weight[indices]

    @torch.no_grad()
    def measure(self, vectors: Tensor, indices: Tensor) -> list[LevelStatistics]:
        flat, codes = self._flat(vectors)
        indices = indices.reshape(-1)
        with full_precision(vectors.device):
            soft = soft_assignment(flat, codes, self.temperature).sum(dim=0)
        return [
            LevelStatistics(
                counts=torch.bincount(indices, minlength=len(codes)).cpu(),
                soft_assignment=soft.cpu().double(),
                squared_distance=(flat - codes[indices]).square().sum().cpu().double(),
            )
        ]

    def update(self) -> None:
        self.codebook.update()
        if self.revival:
            self.revival.update(self.codebook)

    def discard(self) -> None:
        self.codebook.discard()
        if self.revival:
            self.revival.discard()

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_sizes[0]}, codebook_dim={self.dim}, temperature={self.temperature}"

    def _flat(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) and codes (K, D) in the type that both are computed in."""
        if vectors.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of width {self.dim}, got shape {tuple(vectors.shape)}")
        if not vectors.is_floating_point():
            raise ValueError(f"expected floating-point vectors, got {vectors.dtype}")
        codes = self.codebook.weight
        dtype = torch.promote_types(torch.promote_types(vectors.dtype, codes.dtype), torch.float32)
        return vectors.reshape(-1, self.dim).to(dtype), codes.to(dtype)


class VectorQuantizerSettings(Settings):
    """One codebook, nearest code."""

    kind: Literal["vector"] = "vector"
    codebook_size: int = Field(512, ge=1, le=1 << 24, description="K, the number of codes")
    codebook_dim: Annotated[int, Field(ge=1, le=1 << 16)] | Literal["auto"] = Field(
        "auto", description="D, the width of a code; auto: the encoder's own width"
    )
    temperature: float = Field(1.0, gt=0, description="of the soft assignment, in squared units of the latents")
    learning: Learning = Field(EmaLearning(), description="how codes learn")
    revival: RevivalSettings | None = Field(RevivalSettings(), description="of dead codes; null: never")

    def build(self, dim: int) -> VectorQuantizer:
        """A quantizer of vectors of width `dim`."""
        return VectorQuantizer(self.codebook_size, dim, self.temperature, self.learning, self.revival)
