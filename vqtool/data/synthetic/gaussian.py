"""An isotropic Gaussian: what the best codebook of a given size can reach on it is known from theory."""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.synthetic.base import SourceSettings


class GaussianSettings(SourceSettings):
    """Vectors of independent standard normal numbers."""

    kind: Literal["gaussian"] = "gaussian"
    dim: int = Field(8, ge=1, description="dimensions of a vector")
    layout: ClassVar = "C"

    @property
    def numbers(self) -> int:
        return self.dim

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        return random.standard_normal((samples, self.dim), dtype=np.float32)
