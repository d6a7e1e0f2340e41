"""Synthetic data: seeded generators of vectors, sequences, images and tile maps.

Each generator is a settings class with a `kind`; `SyntheticSource` is the discriminated union of them all.
"""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.layout import LayoutName
from vqtool.runtime.progress import with_progress
from vqtool.runtime.settings import Settings

FLOOR, WALL, DOOR = 0, 1, 2


class SourceSettings(Settings):
    """Base class of the generators of synthetic samples."""

    kind: str
    # Layout of the generated rows.
    layout: ClassVar[LayoutName]

    @property
    def values_per_sample(self) -> int:
        """Number of values in one sample."""
        raise NotImplementedError

    @property
    def shared_values(self) -> int:
        """Number of values that are generated once for all samples, such as the centres of a mixture."""
        return 0

    def generate(self, samples: int, random: Generator) -> NDArray[Any]:
        """Return rows (samples, *row) in `layout`: float32 values, or uint8 classes."""
        raise NotImplementedError


class GaussianSettings(SourceSettings):
    """Vectors of independent standard normal numbers."""

    kind: Literal["gaussian"] = "gaussian"
    dim: int = Field(8, ge=1, description="dimensions of a vector")
    layout: ClassVar = "C"

    @property
    def values_per_sample(self) -> int:
        return self.dim

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        return random.standard_normal((samples, self.dim), dtype=np.float32)


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
    def values_per_sample(self) -> int:
        return self.dim

    @property
    def shared_values(self) -> int:
        return self.components * self.dim

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        centres = self.centres(random)
        components = random.integers(self.components, size=samples)
        return centres[components] + random.standard_normal((samples, self.dim), dtype=np.float32)

    def centres(self, random: Generator) -> NDArray[np.float32]:
        """Draw the centres (components, dim), at a distance of at least `separation` from each other.

        `generate` draws them first, so a generator with the same seed gives the centres of the generated samples.
        """
        centres = random.standard_normal((self.components, self.dim))
        closest = min(np.linalg.norm(centres[i + 1 :] - centres[i], axis=1).min() for i in range(self.components - 1))
        return (centres * (self.separation / closest)).astype(np.float32)


class SinusoidsSettings(SourceSettings):
    """Sequences: sums of sinusoids of random frequency, phase and amplitude, plus Gaussian noise."""

    kind: Literal["sinusoids"] = "sinusoids"
    channels: int = Field(1, ge=1, description="number of channels, each with its own tones")
    length: int = Field(128, ge=2, description="steps per sequence")
    tones: int = Field(3, ge=1, le=1 << 16, description="sinusoids per channel")
    noise: float = Field(0.02, ge=0, le=1e6, description="standard deviation of the added noise")
    layout: ClassVar = "CT"

    @property
    def values_per_sample(self) -> int:
        return self.channels * self.length

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        signal = random.normal(scale=self.noise, size=(samples, self.channels, self.length))
        time = np.arange(self.length) / self.length
        for _ in with_progress(range(self.tones), "generate data", "tones"):
            # cycles <= length / 2 is the Nyquist limit. The power distribution favours low frequencies.
            cycles = self.length / 2 * random.power(0.5, size=(samples, self.channels, 1))
            phase = random.uniform(0, 2 * np.pi, size=cycles.shape)
            signal += random.uniform(0.2, 1, size=cycles.shape) * np.sin(2 * np.pi * cycles * time + phase)
        return signal.astype(np.float32)


class TexturesSettings(SourceSettings):
    """Images in [0, 1] whose stripes differ in colour, width and direction on the two sides of an edge."""

    kind: Literal["textures"] = "textures"
    channels: int = Field(3, ge=1, description="number of channels")
    height: int = Field(32, ge=2, description="height in pixels")
    width: int = Field(32, ge=2, description="width in pixels")
    layout: ClassVar = "CHW"

    @property
    def values_per_sample(self) -> int:
        return self.channels * self.height * self.width

    def generate(self, samples: int, random: Generator) -> NDArray[np.float32]:
        return np.stack([self._image(random) for _ in with_progress(range(samples), "generate data")])

    def _image(self, random: Generator) -> NDArray[np.float32]:
        """Return an image (C, H, W) of two textures on the two sides of a straight edge."""
        y, x = np.mgrid[: self.height, : self.width].astype(np.float32)
        angle = random.uniform(0, 2 * np.pi)
        edge = np.cos(angle) * (x - self.width / 2) + np.sin(angle) * (y - self.height / 2)
        texture_a, texture_b = self._texture(random, x, y), self._texture(random, x, y)
        offset = random.normal(scale=min(self.height, self.width) / 6)
        return np.where(edge > offset, texture_a, texture_b).astype(np.float32)

    def _texture(self, random: Generator, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return stripes (C, H, W) in [0, 1], a sine wave between two colours, at the pixels x, y (H, W)."""
        angle, phase = random.uniform(0, 2 * np.pi, size=2)
        period = random.uniform(4, 12)
        wave = np.sin(2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        dark, bright = np.sort(random.uniform(0, 1, size=(2, self.channels)), axis=0)[..., None, None]
        texture: NDArray[np.float32] = dark + (bright - dark) * (wave + 1) / 2
        return texture


class TilesSettings(SourceSettings):
    """Grids of three kinds of tile: floor 0, wall 1, door 2."""

    kind: Literal["tiles"] = "tiles"
    height: int = Field(16, ge=5, description="height in tiles")
    width: int = Field(16, ge=5, description="width in tiles")
    room: int = Field(3, ge=1, description="smallest side of a room, in tiles")
    layout: ClassVar = "HW"

    @property
    def values_per_sample(self) -> int:
        return self.height * self.width

    def generate(self, samples: int, random: Generator) -> NDArray[np.uint8]:
        return np.stack([self._map(random) for _ in with_progress(range(samples), "generate data")])

    def _map(self, random: Generator) -> NDArray[np.uint8]:
        """Return a map (H, W) of rooms, with walls along its border."""
        tiles = np.full((self.height, self.width), WALL, dtype=np.uint8)
        tiles[1:-1, 1:-1] = FLOOR
        self._divide(tiles[1:-1, 1:-1], 1, 1, random)
        return tiles

    def _divide(self, room: NDArray[np.uint8], top: int, left: int, random: Generator) -> None:
        """Divide a room recursively by walls with one door each, perpendicular to the longer side of what they divide.

        A room without a valid position for a wall, with at least `room` tiles on both sides, or for a door stays whole.

        Args:
            room: view of the map; written in place.
            top, left: row and column in the map of the room's first tile.
        """
        if room.shape[0] < room.shape[1]:
            room, top, left = room.T, left, top
        # Walls lie at even positions of the map and doors at odd ones, so no wall can block a door.
        walls = [i for i in range(self.room, room.shape[0] - self.room) if (top + i) % 2 == 0]
        doors = [i for i in range(room.shape[1]) if (left + i) % 2 == 1]
        if not walls or not doors:
            return
        wall = int(random.choice(walls))
        room[wall] = WALL
        room[wall, random.choice(doors)] = DOOR
        self._divide(room[:wall], top, left, random)
        self._divide(room[wall + 1 :], top + wall + 1, left, random)


# `kind` selects the generator. A new generator is one class above and one entry here.
SyntheticSource = Annotated[
    GaussianSettings | MixtureSettings | TexturesSettings | TilesSettings | SinusoidsSettings,
    Field(discriminator="kind"),
]
