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
        reach: how far it is set down from the code of a current vector towards that vector; 1 is on it. In many
            dimensions a vector is far from all others, and a code upon it would win nothing else; a short way from the
            code of its neighbours it takes a share of theirs (splitting: Linde, Buzo & Gray 1980, "An Algorithm for
            Vector Quantizer Design").

    Attributes:
        hits: (K,) int64 in the window so far.
        dead: (K,) bool, found dead and not yet set down: there are no more in a step than vectors.
    """

    hits: Tensor
    dead: Tensor

    def __init__(self, codebook_size: int, window: int, least: int = 1, reach: float = 1.0) -> None:
        super().__init__()
        self._needed, self._least, self._reach = window * codebook_size, least, reach
        self.register_buffer("hits", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("dead", torch.zeros(codebook_size, dtype=torch.bool))
        self._left = 0  # the sum of dead, known likewise
        self._counted = 0  # the sum of hits, known without asking the device
        self._gathered: Tensor | None = None
        self._batches: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        """Count a training batch in: `vectors` (N, D) and their `indices` (N,)."""
        if self._gathered is None:
            self._gathered = torch.zeros_like(self.hits)
        self._gathered += torch.bincount(indices, minlength=len(self.hits))
        self._batches.append((vectors, indices))

    @torch.no_grad()
    def update(self, codebook: Codebook, good: Tensor | None = None) -> None:
        """Apply what was gathered since the last update, and revive codes of `codebook` where a window ends.

        Where `good` () bool is false no code is counted or set down.
        """
        if self._gathered is None:
            return
        good = torch.ones_like(self.dead[0]) if good is None else good
        self.hits += self._gathered * good
        self._counted += sum(len(vectors) for vectors, _ in self._batches)
        if self._counted >= self._needed:
            self.dead.copy_(torch.where(good, self.hits < self._least, self.dead))
            self._left = int(self.dead.sum())  # waits for the device, once a window
            self.hits *= ~good
            self._counted = 0
        if self._left:
            self._set_down(codebook, good)
        self.discard()

    def _set_down(self, codebook: Codebook, good: Tensor) -> None:
        """Set dead codes down by vectors spread over the batch, as many as there are."""
        vectors = torch.cat([batch for batch, _ in self._batches])
        owners = codebook.codes[torch.cat([indices for _, indices in self._batches])]
        number = min(self._left, len(vectors))
        rank = self.dead.cumsum(0) - 1
        now = self.dead & (rank < number) & good
        rows = rank.clamp(0, number - 1) * len(vectors) // number
        # Where most codes are dead they lie far from all vectors, and small steps would not bring them there.
        reach = 1.0 if self._left > len(self.hits) // 2 else self._reach
        codebook.replace(now, torch.lerp(owners.to(vectors.dtype), vectors, reach)[rows])
        self.dead &= ~now
        self._left -= number

    def discard(self) -> None:
        """Forget what was gathered since the last update."""
        self._gathered, self._batches = None, []

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._counted, self._left = int(self.hits.sum()), int(self.dead.sum())


class RevivalSettings(Settings):
    """Dead codes are set down where the latents are."""

    window: int = Field(20, ge=1, le=1 << 31, description="hits of the average code that make a window")
    least: int = Field(
        2, ge=1, le=1 << 31, description="hits in a window with which a code lives on; 1: rare codes stay, too"
    )
    reach: float = Field(0.1, gt=0, le=1, description="how far a revived code is from another towards its vector")

    def build(self, codebook_size: int) -> Revival:
        return Revival(codebook_size, self.window, self.least, self.reach)
