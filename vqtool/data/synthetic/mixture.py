"""A mixture of Gaussians around known centres: a good codebook of as many codes finds every one."""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.synthetic.base import SourceSettings


class MixtureSettings(SourceSettings):
    """Equally likely Gaussians of unit standard deviation."""

    kind: Literal["mixture"] = "mixture"
    components: int = Field(64, ge=2, le=4096, description="number of Gaussians")
    dim: int = Field(16, ge=1, description="dimensions of a vector")
    separation: float = Field(
        8.0, gt=0, le=1e6, description="distance of the two closest centres, in standard deviations"
    )
    layout: ClassVar = "C"

    @property
    def numbers(self) -> int:
        return self.dim

    @property
    def shared_numbers(self) -> int:
        return self.components * self.dim

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        centres = self.centres(random)
        owners = random.integers(self.components, size=samples)
        return centres[owners] + random.standard_normal((samples, self.dim), dtype=np.float32)

    def centres(self, random: Generator) -> NDArray[np.float32]:
        """The centres (components, dim) that `generate` draws first from a generator in the same state."""
        centres = random.standard_normal((self.components, self.dim))
        closest = min(np.linalg.norm(centres[i + 1 :] - centres[i], axis=1).min() for i in range(self.components - 1))
        return (centres * (self.separation / closest)).astype(np.float32)
