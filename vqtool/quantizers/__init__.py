"""Quantizers and their mathematics: one idea a file."""

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.codebook import CodebookLossLearning, EmaLearning, EntropyLearning
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.search import nearest_codes
from vqtool.quantizers.vector import VectorQuantizer, VectorQuantizerSettings

# The one table of quantizers. A second one makes it a union with Field(discriminator="kind"), as in vqtool.nets.
QuantizerSettings = VectorQuantizerSettings

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
