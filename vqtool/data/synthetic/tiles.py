"""Tile maps: a floor plan divided into rooms by walls, each wall with a door, so that every room can be reached."""

from typing import ClassVar, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydantic import Field

from vqtool.data.synthetic.base import SourceSettings
from vqtool.runtime.progress import with_progress

FLOOR, WALL, DOOR = 0, 1, 2


class TilesSettings(SourceSettings):
    """Grids of three kinds of tile: floor 0, wall 1, door 2."""

    kind: Literal["tiles"] = "tiles"
    height: int = Field(16, ge=5, description="height in tiles")
    width: int = Field(16, ge=5, description="width in tiles")
    room: int = Field(3, ge=1, description="smallest side of a room, in tiles")
    layout: ClassVar = "HW"

    @property
    def numbers(self) -> int:
        return self.height * self.width

    def generate(self, samples: int, random: Generator) -> NDArray[np.uint8]:
        return np.stack([self._map(random) for _ in with_progress(range(samples), "generate data")])

    def _map(self, random: Generator) -> NDArray[np.uint8]:
        tiles = np.full((self.height, self.width), WALL, dtype=np.uint8)
        tiles[1:-1, 1:-1] = FLOOR
        self._divide(tiles[1:-1, 1:-1], 1, 1, random)
        return tiles

    def _divide(self, room: NDArray[np.uint8], top: int, left: int, random: Generator) -> None:
        """Divide a room, a view of the map whose corner is at (top, left), by a wall across its longer side."""
        if room.shape[0] < room.shape[1]:
            room, top, left = room.T, left, top
        # Walls are at even positions of the map and doors at odd ones, so that no wall blocks a door.
        walls = [i for i in range(self.room, room.shape[0] - self.room) if (top + i) % 2 == 0]
        doors = [i for i in range(room.shape[1]) if (left + i) % 2 == 1]
        if not walls or not doors:
            return
        wall = int(random.choice(walls))
        room[wall] = WALL
        room[wall, random.choice(doors)] = DOOR
        self._divide(room[:wall], top, left, random)
        self._divide(room[wall + 1 :], top + wall + 1, left, random)
