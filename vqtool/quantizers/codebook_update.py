"""Codebook updates: one settings class per update, each of which builds its codebook. `kind` selects the class."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from vqtool.quantizers.codebook import Codebook, GradientCodebook
from vqtool.quantizers.ema_codebook import EmaCodebook
from vqtool.quantizers.simvq_codebook import SimVQCodebook
from vqtool.runtime.settings import Settings


class EntropyOnlyUpdate(Settings):
    """Update codes by the gradient of the entropy loss only.

    This is what `VectorQuantizer` does without an `update`. Reconstructions stay poor: nothing moves codes towards
    the latents.
    """

    kind: Literal["entropy_only"] = "entropy_only"
    required_loss: ClassVar = "entropy"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return Codebook(codebook_size, codebook_dim)


class CodebookLossUpdate(Settings):
    """Update codes by the gradient of the codebook loss, and of the entropy loss where it has a weight.

    The codebook loss is weight · mean((stop(z) - e)²) (van den Oord et al. 2017, eq. 3); it is part of
    `commitment_loss`.
    """

    kind: Literal["codebook_loss"] = "codebook_loss"
    weight: float = Field(1.0, gt=0, description="weight of the codebook loss, relative to the commitment loss")
    required_loss: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return GradientCodebook(codebook_size, codebook_dim, self.weight)


class SimVQUpdate(Settings):
    """Update all codes together through one learned linear map of fixed random codes.

    The map is trained by the codebook loss (SimVQ: Zhu et al. 2024, "Addressing Representation Collapse in Vector
    Quantized Models with One Linear Layer", eq. 6).
    """

    kind: Literal["simvq"] = "simvq"
    weight: float = Field(1.0, gt=0, description="weight of the codebook loss, relative to the commitment loss")
    required_loss: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return SimVQCodebook(codebook_size, codebook_dim, self.weight)


class EmaUpdate(Settings):
    """Update each code to an exponential moving average of the latents assigned to it.

    No gradient reaches the codes (van den Oord et al. 2017, eqs. 6-8). A code with few hits in a step decays more
    slowly: its effective decay is max(decay, exp(-hits / min_ema_hits)).
    """

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.9, ge=0, lt=1, description="EMA decay per step")
    min_ema_hits: float = Field(
        15.0,
        ge=0,
        description="minimum number of a code's own hits that its average covers; the effective decay rises for rarely "
        "hit codes; 0: no minimum",
    )
    required_loss: ClassVar = None

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return EmaCodebook(codebook_size, codebook_dim, self.decay, self.min_ema_hits)


CodebookUpdate = Annotated[
    EntropyOnlyUpdate | CodebookLossUpdate | SimVQUpdate | EmaUpdate, Field(discriminator="kind")
]
