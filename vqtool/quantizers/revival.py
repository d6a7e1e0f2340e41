"""Dead codes, set down anew where the encoder's vectors are (random restarts: Dhariwal et al. 2020, "Jukebox", 3.1).

Shapes: N vectors, K codes, D dimensions.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.quantizers.codebook import Codebook
from vqtool.settings import Settings


class Revival(nn.Module):
    """Counts hits over a window of steps; at its end, a code with too few takes the place of a current vector.

    The window ends once the average code has had a given number of hits, so that dead means the same for any batch size
    and codebook size. Nothing here waits for the device, and nothing is drawn: the batch is in random order already.

    Args:
        codebook_size: K.
        window: hits of the average code that make a window.
        least: hits in a window with which a code lives on.

    Attributes:
        hits: (K,) int64 in the window so far.
    """

    hits: Tensor

    def __init__(self, codebook_size: int, window: int, least: int = 1) -> None:
        super().__init__()
        self._needed, self._least = window * codebook_size, least
        self.register_buffer("hits", torch.zeros(codebook_size, dtype=torch.int64))
        self._counted = 0  # the sum of hits, known without asking the device
        self._gathered: Tensor | None = None
        self._vectors: list[Tensor] = []

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        """Count a training batch in: `vectors` (N, D) and their `indices` (N,)."""
        if self._gathered is None:
            self._gathered = torch.zeros_like(self.hits)
        self._gathered += torch.bincount(indices, minlength=len(self.hits))
        self._vectors.append(vectors)

    @torch.no_grad()
    def update(self, codebook: Codebook) -> None:
        """Apply what was gathered since the last update, and revive codes of `codebook` where a window ends."""
        if self._gathered is None:
            return
        self.hits += self._gathered
        self._counted += sum(len(batch) for batch in self._vectors)
        if self._counted >= self._needed:
            dead, vectors = self.hits < self._least, torch.cat(self._vectors)
            rows = (dead.cumsum(0) - 1).clamp_min(0) * len(vectors) // dead.sum().clamp_min(1)
            codebook.replace(dead, vectors[rows])
            self.hits.zero_()
            self._counted = 0
        self.discard()

    def discard(self) -> None:
        """Forget what was gathered since the last update."""
        self._gathered, self._vectors = None, []

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._counted = int(self.hits.sum())


class RevivalSettings(Settings):
    """Dead codes are set down where the latents are."""

    window: int = Field(20, ge=1, description="hits of the average code that make a window")
    least: int = Field(2, ge=1, description="hits in a window with which a code lives on")

    def build(self, codebook_size: int) -> Revival:
        return Revival(codebook_size, self.window, self.least)
