"""Textured images: two striped textures, parted by a straight edge."""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.synthetic.base import SourceSettings
from vqtool.runtime.progress import with_progress


class TexturesSettings(SourceSettings):
    """Images in [0, 1] whose stripes differ in colour, width and direction on the two sides of an edge."""

    kind: Literal["textures"] = "textures"
    channels: int = Field(3, ge=1, description="number of channels")
    height: int = Field(32, ge=2, description="height in pixels")
    width: int = Field(32, ge=2, description="width in pixels")
    layout: ClassVar = "CHW"

    @property
    def numbers(self) -> int:
        return self.channels * self.height * self.width

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        return np.stack([self._image(random) for _ in with_progress(range(samples), "generate data")])

    def _image(self, random: Generator) -> NDArray[np.float32]:
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        angle = random.uniform(0, 2 * np.pi)
        edge = np.cos(angle) * (x - self.width / 2) + np.sin(angle) * (y - self.height / 2)
        one, other = self._texture(random, x, y), self._texture(random, x, y)
        return np.where(edge > random.normal(scale=min(self.height, self.width) / 6), one, other).astype(np.float32)

    def _texture(self, random: Generator, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        angle, phase = random.uniform(0, 2 * np.pi, size=2)
        period = random.uniform(4, 12)
        wave = np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        dark, bright = np.sort(random.uniform(0, 1, size=(2, self.channels)), axis=0)[..., None, None]
        mixed: NDArray[np.float32] = dark + (bright - dark) * (wave + 1) / 2
        return mixed
