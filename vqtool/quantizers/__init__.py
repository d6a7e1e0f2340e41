"""Quantizers and their mathematics: one idea a file."""

from typing import Annotated

from pydantic import Field

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.binary import (
    BinarySphericalQuantizer,
    BinarySphericalSettings,
    LookupFreeQuantizer,
    LookupFreeSettings,
)
from vqtool.quantizers.finite_scalar import FiniteScalarQuantizer, FiniteScalarSettings
from vqtool.quantizers.kmeans import kmeans
from vqtool.quantizers.learning import CodebookLossLearning, EmaLearning, EntropyLearning, LinearLearning
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.product import ProductQuantizer, ProductQuantizerSettings
from vqtool.quantizers.projected import ProjectedQuantizer
from vqtool.quantizers.residual import ResidualQuantizer, ResidualQuantizerSettings
from vqtool.quantizers.revival import RevivalSettings
from vqtool.quantizers.search import nearest_codes
from vqtool.quantizers.vector import VectorQuantizer, VectorQuantizerSettings

# The one table of quantizers: `kind` chooses.
QuantizerSettings = Annotated[
    VectorQuantizerSettings
    | ResidualQuantizerSettings
    | ProductQuantizerSettings
    | FiniteScalarSettings
    | LookupFreeSettings
    | BinarySphericalSettings,
    Field(discriminator="kind"),
]

__all__ = [
    "BinarySphericalQuantizer",
    "CodebookLossLearning",
    "EmaLearning",
    "EntropyLearning",
    "FiniteScalarQuantizer",
    "LevelStatistics",
    "LinearLearning",
    "LookupFreeQuantizer",
    "ProductQuantizer",
    "ProjectedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "QuantizerSettings",
    "ResidualQuantizer",
    "RevivalSettings",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "kmeans",
    "nearest_codes",
]
