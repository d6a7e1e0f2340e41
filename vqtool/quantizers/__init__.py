"""Quantizers and their settings, k-means, and the nearest-code search."""

from typing import Annotated

from pydantic import Field

from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.quantizers.binary import (
    BinarySphericalQuantizer,
    BinarySphericalSettings,
    LookupFreeQuantizer,
    LookupFreeSettings,
)
from vqtool.quantizers.codebook_update import CodebookLossUpdate, EmaUpdate, EntropyOnlyUpdate, SimVQUpdate
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.quantizers.finite_scalar import FiniteScalarQuantizer, FiniteScalarSettings
from vqtool.quantizers.kmeans import kmeans
from vqtool.quantizers.product import ProductQuantizer, ProductQuantizerSettings
from vqtool.quantizers.projected import ProjectedQuantizer
from vqtool.quantizers.residual import ResidualQuantizer, ResidualQuantizerSettings
from vqtool.quantizers.vector import VectorQuantizer, VectorQuantizerSettings
from vqtool.search import nearest_codes

# The one table of quantizers, selected by `kind`. Each settings class has `dim` (D for an encoder width),
# `follows_width` (whether D depends on that width), `resolve` (fill in `auto`), `updates` (codebook updates by key) and
# `build`. Those that can be a level of a residual quantizer also have `build_level` and `init`.
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
    "CodebookLossUpdate",
    "DeadCodeResetSettings",
    "EmaUpdate",
    "EntropyOnlyUpdate",
    "FiniteScalarQuantizer",
    "LevelStatistics",
    "LookupFreeQuantizer",
    "ProductQuantizer",
    "ProjectedQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "QuantizerSettings",
    "ResidualQuantizer",
    "SimVQUpdate",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "kmeans",
    "nearest_codes",
]
