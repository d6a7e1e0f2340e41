"""Dead codes, set down anew where the encoder's vectors are (random restarts: Dhariwal et al. 2020, "Jukebox", 3.1).

Shapes: N vectors, K codes, D dimensions.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.distributed import Share, add_up
from vqtool.quantizers.codebook import Codebook
from vqtool.settings import Settings


class Revival(nn.Module):
    """Counts hits over a window of steps; at its end, a code with too few takes the place of a current vector.

    The window ends once the average code has had a given number of hits, so that dead means the same for any batch size
    and codebook size. The device is waited for at its end alone. Nothing is drawn: a batch is in random order already.

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
        self._batches: list[tuple[Tensor, Tensor, Share]] = []

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor, share: Share) -> None:
        """Count a training batch in: `vectors` (N, D) and their `indices` (N,), a share of it."""
        if self._gathered is None:
            self._gathered = torch.zeros_like(self.hits)
        self._gathered.index_add_(0, indices, torch.ones_like(indices))  # bincount would wait for the device
        self._batches.append((vectors, indices, share))

    @torch.no_grad()
    def update(self, codebook: Codebook, good: Tensor | None = None) -> None:
        """Apply what all processes gathered since the last update, and revive codes of `codebook` where a window ends.

        Where `good` () bool is false no code is counted or set down.
        """
        if self._gathered is None:
            return
        good = torch.ones_like(self.dead[0]) if good is None else good
        self.hits += add_up(self._gathered) * good
        self._counted += self._vectors
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
        number = min(self._left, self._vectors)
        rank = self.dead.cumsum(0) - 1
        now = self.dead & (rank < number) & good
        # Where most codes are dead they lie far from all vectors, and small steps would not bring them there.
        reach = 1.0 if self._left > len(self.hits) // 2 else self._reach
        spread = torch.arange(number, device=rank.device) * self._vectors // number
        codebook.replace(now, self._beside(codebook.codes, spread, reach)[rank.clamp(0, number - 1)])
        self.dead &= ~now
        self._left -= number

    @property
    def _vectors(self) -> int:
        """How many were gathered, in all processes."""
        return sum(share.total for *_, share in self._batches)

    def _beside(self, codes: Tensor, rows: Tensor, reach: float) -> Tensor:
        """Places (n, D) as far as `reach` from a code (K, D) towards each of these vectors of all that were gathered.

        Each process fills in the rows that it has.
        """
        places, first = codes.new_zeros(len(rows), codes.shape[1], dtype=self._batches[0][0].dtype), 0
        for vectors, indices, share in self._batches:
            own = rows - first - share.start
            mine = (own >= 0) & (own < len(vectors))
            if len(vectors):
                at = own.clamp(0, len(vectors) - 1)
                found = torch.lerp(codes[indices[at]].to(vectors.dtype), vectors[at], reach)
                places = torch.where(mine[:, None], found, places)
            first += share.total
        return add_up(places)

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
