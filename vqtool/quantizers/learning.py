"""The ways that codes learn: settings that each build their codebook. `kind` chooses in one table."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vqtool.quantizers.codebook import Codebook, GradientCodebook
from vqtool.quantizers.ema_codebook import EmaCodebook
from vqtool.quantizers.linear_codebook import LinearCodebook
from vqtool.settings import Settings


class EntropyLearning(Settings):
    """The bare form: codes learn from the entropy loss alone."""

    kind: Literal["entropy"] = "entropy"
    needs: ClassVar = "entropy"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return Codebook(codebook_size, codebook_dim)


class CodebookLossLearning(Settings):
    """Codes learn by gradient, from the codebook loss (and the entropy loss)."""

    kind: Literal["codebook_loss"] = "codebook_loss"
    weight: float = Field(1.0, gt=0, description="of the codebook loss, relative to the commitment loss")
    needs: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return GradientCodebook(codebook_size, codebook_dim, self.weight)


class LinearLearning(Settings):
    """Codes are fixed ones under one linear map, which learns by the codebook loss (SimVQ)."""

    kind: Literal["linear"] = "linear"
    weight: float = Field(1.0, gt=0, description="of the codebook loss, relative to the commitment loss")
    needs: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return LinearCodebook(codebook_size, codebook_dim, self.weight)


class EmaLearning(Settings):
    """Codes learn as the moving average of the vectors they win; no gradient moves them."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.9, ge=0, lt=1, description="of the moving average, a step")
    memory: float = Field(15.0, ge=0, description="hits of a code that it reaches back over at least")
    needs: ClassVar = None

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return EmaCodebook(codebook_size, codebook_dim, self.decay, self.memory)


Learning = Annotated[EntropyLearning | CodebookLossLearning | LinearLearning | EmaLearning, Field(discriminator="kind")]
