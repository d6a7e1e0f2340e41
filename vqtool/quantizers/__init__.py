"""Quantizers and their mathematics: one idea a file."""

from typing import Annotated

from pydantic import Field

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.codebook import CodebookLossLearning, EmaLearning, EntropyLearning
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.search import nearest_codes
from vqtool.quantizers.vector import VectorQuantizer, VectorQuantizerSettings

# The one table of quantizers: a second one joins as `VectorQuantizerSettings | OtherSettings, Field(discriminator="kind")`.
QuantizerSettings = Annotated[VectorQuantizerSettings, Field()]

__all__ = [
    "CodebookLossLearning",
    "EmaLearning",
    "EntropyLearning",
    "LevelStatistics",
    "Quantizer",
    "QuantizerOutput",
    "QuantizerSettings",
    "VectorQuantizer",
    "VectorQuantizerSettings",
    "nearest_codes",
]
