"""What a synthetic source promises."""

from typing import Any, ClassVar

from numpy.random import Generator
from numpy.typing import NDArray

from vqtool.data.layout import LayoutName
from vqtool.runtime.settings import Settings


class SourceSettings(Settings):
    """Settings of one source of made-up samples."""

    kind: str
    layout: ClassVar[LayoutName]

    @property
    def numbers(self) -> int:
        """How many numbers a row has."""
        raise NotImplementedError

    @property
    def shared_numbers(self) -> int:
        """How many are made up besides, whatever the number of rows."""
        return 0

    def generate(self, samples: int, random: Generator) -> NDArray[Any]:
        """(samples, *row): float32 values, or uint8 classes."""
        raise NotImplementedError
