"""When each code was hit first, and when last: whether a dead code was never reached, or lost along the way.

Shapes: K codes of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtool.distributed import largest, smallest


class HitTimes(nn.Module):
    """Remembers steps of training, counted from 1, of the codes of all levels.

    Args:
        codebook_sizes: K of each level.

    Attributes:
        first, last: (sum of K,) int32, the steps; 0 where there was none.
    """

    first: Tensor
    last: Tensor

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        super().__init__()
        self._sizes = list(codebook_sizes)
        for name in ("first", "last"):
            self.register_buffer(name, torch.zeros(sum(codebook_sizes), dtype=torch.int32))
        starts = torch.tensor([0, *self._sizes[:-1]]).cumsum(0)
        self.register_buffer("_starts", starts, persistent=False)
        self._starts: Tensor

    @torch.no_grad()
    def note(self, indices: Tensor, step: int, good: Tensor) -> None:
        """Note the indices (..., Q), or (...) of one level, of a step; nothing where `good` () bool is false."""
        codes = (indices.reshape(-1, len(self._sizes)) + self._starts).flatten()
        hit = torch.zeros_like(self.last, dtype=torch.bool).index_fill_(0, codes, True).logical_and_(good)
        self.last.masked_fill_(hit, step)
        self.first.masked_fill_(hit.logical_and_(self.first == 0), step)

    @torch.no_grad()
    def agree(self) -> None:
        """Take over what other processes noted of their shares."""
        never = torch.iinfo(self.first.dtype).max
        first = smallest(torch.where(self.first == 0, never, self.first))
        self.first.copy_(torch.where(first == never, 0, first))
        self.last.copy_(largest(self.last))

    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """First and last (K,) of each level."""
        return list(zip(self.first.split(self._sizes), self.last.split(self._sizes), strict=True))
