"""Dead-code reset: move unused codes to current latents (random restarts: Dhariwal et al. 2020, "Jukebox", 3.1).

Shapes: N vectors, K codes, D dimensions.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.quantizers.codebook import Codebook
from vqtool.runtime.distributed import BatchShard, all_reduce_sum
from vqtool.runtime.settings import Settings


class DeadCodeReset(nn.Module):
    """Count hits over a window of steps and reset codes with too few hits at its end.

    The window ends when the mean number of hits per code reaches `window`, so "dead" does not depend on batch size or
    codebook size. The host synchronises with the device only at the end of a window. The vectors are taken evenly from
    the batch, which is already in random order.

    Args:
        codebook_size: K.
        window: length of the window, in mean hits per code.
        least: codes with fewer hits in a window are reset.
        reach: position of a reset code between an existing code (0) and one of its vectors (1). In many dimensions a
            vector is far from all others, and a code placed on it gets no other hits. A code placed near an existing
            code splits that code's vectors (Linde, Buzo & Gray 1980, "An Algorithm for Vector Quantizer Design").

    Attributes:
        hits: (K,) int64, hits in the current window.
        dead: (K,) bool, dead codes that are not reset yet; a step resets at most as many codes as it has vectors.
    """

    hits: Tensor
    dead: Tensor

    def __init__(self, codebook_size: int, window: int, least: int = 1, reach: float = 1.0) -> None:
        super().__init__()
        self._needed, self._least, self._reach = window * codebook_size, least, reach
        self.register_buffer("hits", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("dead", torch.zeros(codebook_size, dtype=torch.bool))
        self._left = 0  # the sum of dead, kept on the host
        self._counted = 0  # the sum of hits, kept on the host
        self._gathered: Tensor | None = None
        self._batches: list[tuple[Tensor, Tensor, BatchShard]] = []

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor, shard: BatchShard) -> None:
        """Count a training batch in: `vectors` (N, D) and their `indices` (N,), a share of it."""
        if self._gathered is None:
            self._gathered = torch.zeros_like(self.hits)
        self._gathered.index_add_(0, indices, torch.ones_like(indices))  # bincount would wait for the device
        self._batches.append((vectors, indices, shard))

    @torch.no_grad()
    def update(self, codebook: Codebook, good: Tensor | None = None) -> None:
        """Apply what all processes gathered since the last update, and reset dead codes at the end of a window.

        If `good` () bool is false, no hit is counted and no code is reset.
        """
        if self._gathered is None:
            return
        good = torch.ones_like(self.dead[0]) if good is None else good
        self.hits += all_reduce_sum(self._gathered) * good
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
        """Reset dead codes, one per vector at most, towards vectors spread evenly over the batch."""
        number = min(self._left, self._vectors)
        rank = self.dead.cumsum(0) - 1
        now = self.dead & (rank < number) & good
        # If most codes are dead, the existing codes are far from all vectors; small steps would not reach them.
        reach = 1.0 if self._left > len(self.hits) // 2 else self._reach
        spread = torch.arange(number, device=rank.device) * self._vectors // number
        codebook.replace(now, self._beside(codebook.codes, spread, reach)[rank.clamp(0, number - 1)])
        self.dead &= ~now
        self._left -= number

    @property
    def _vectors(self) -> int:
        """Number of gathered vectors, over all processes."""
        return sum(shard.total for *_, shard in self._batches)

    def _beside(self, codes: Tensor, rows: Tensor, reach: float) -> Tensor:
        """Return positions (n, D) at the fraction `reach` of the way from a code (K, D) to the gathered vectors `rows`.

        Each process fills in the rows that it holds.
        """
        places, first = codes.new_zeros(len(rows), codes.shape[1], dtype=self._batches[0][0].dtype), 0
        for vectors, indices, shard in self._batches:
            own = rows - first - shard.start
            mine = (own >= 0) & (own < len(vectors))
            if len(vectors):
                at = own.clamp(0, len(vectors) - 1)
                found = torch.lerp(codes[indices[at]].to(vectors.dtype), vectors[at], reach)
                places = torch.where(mine[:, None], found, places)
            first += shard.total
        return all_reduce_sum(places)

    def discard(self) -> None:
        """Drop what was gathered since the last update."""
        self._gathered, self._batches = None, []

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._counted, self._left = int(self.hits.sum()), int(self.dead.sum())


class DeadCodeResetSettings(Settings):
    """Reset codes that are rarely used.

    A reset code is moved next to an existing code, towards one of its latents. The window is counted in mean hits per
    code, so the settings do not depend on batch size or codebook size.
    """

    window_hits: int = Field(20, ge=1, le=1 << 31, description="length of the window, in mean hits per code")
    min_hits: int = Field(
        2,
        ge=1,
        le=1 << 31,
        description="codes with fewer hits in a window are reset; 1: only codes without a hit",
    )
    step_size: float = Field(
        0.1,
        gt=0,
        le=1,
        description="where a reset code is placed, as a fraction of the way from an existing code to one of its "
        "latents; 1: on the latent",
    )

    def build(self, codebook_size: int) -> DeadCodeReset:
        return DeadCodeReset(codebook_size, self.window_hits, self.min_hits, self.step_size)
