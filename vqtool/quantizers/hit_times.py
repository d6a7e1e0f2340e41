"""When each code was hit first, and when last: whether a dead code was never reached, or lost along the way.

Shapes: K codes of a level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqtool.runtime.distributed import all_reduce_max, all_reduce_min

# Indices, and steps, that are kept until they are looked at: of many steps that takes little more than of one.
_KEPT, _STEPS = 1 << 16, 1 << 10


class HitTimes(nn.Module):
    """Remembers steps of training, counted from 1, of the codes of all levels.

    Args:
        codebook_sizes: K of each level.

    Attributes:
        first, last: (sum of K,) int32, the steps; 0 where there was none. As of the last look, which `agree`, `levels`
            and `state_dict` take.
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
        self._kept: list[tuple[Tensor, int, Tensor | None]] = []
        self._numbers = 0
        self.register_state_dict_pre_hook(_look)
        self.register_load_state_dict_post_hook(_forget)

    def note(self, indices: Tensor, step: int, good: Tensor | None = None) -> None:
        """Note the indices (..., Q), or (...) of one level, of a step; nothing where `good` () bool is false."""
        self._kept.append((indices.detach(), step, good))
        self._numbers += indices.numel()
        if self._numbers >= _KEPT or len(self._kept) >= _STEPS:
            self._look()

    @torch.no_grad()
    def _look(self) -> None:
        """At what was kept."""
        if not self._kept:
            return
        codes = torch.cat([self._codes(indices) for indices, _, _ in self._kept])
        steps = torch.cat([self._steps(*kept) for kept in self._kept])
        self._forget()
        never = torch.iinfo(self.first.dtype).max
        self.last.scatter_reduce_(0, codes, steps, "amax")
        first = torch.full_like(self.first, never).scatter_reduce_(0, codes, steps.where(steps > 0, never), "amin")
        self.first.copy_(torch.where((self.first == 0) & (first < never), first, self.first))

    def _forget(self) -> None:
        self._kept.clear()
        self._numbers = 0

    def _codes(self, indices: Tensor) -> Tensor:
        """Places among those of all levels (n,)."""
        return (indices.reshape(-1, len(self._sizes)) + self._starts).flatten()

    def _steps(self, indices: Tensor, step: int, good: Tensor | None) -> Tensor:
        """The step of each, or 0 (n,)."""
        steps = torch.full_like(indices, step, dtype=self.last.dtype).flatten()
        return steps if good is None else steps * good

    @torch.no_grad()
    def agree(self) -> None:
        """Take over what other processes noted of their shares."""
        self._look()
        never = torch.iinfo(self.first.dtype).max
        first = all_reduce_min(torch.where(self.first == 0, never, self.first))
        self.first.copy_(torch.where(first == never, 0, first))
        self.last.copy_(all_reduce_max(self.last))

    def levels(self) -> list[tuple[Tensor, Tensor]]:
        """First and last (K,) of each level."""
        self._look()
        return list(zip(self.first.split(self._sizes), self.last.split(self._sizes), strict=True))


def _look(times: HitTimes, *_: object) -> None:
    times._look()


def _forget(times: HitTimes, *_: object) -> None:
    times._forget()
