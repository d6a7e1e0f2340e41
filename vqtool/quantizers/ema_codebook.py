"""Codebook updated by exponential moving averages.

Shapes: N vectors, S vectors of a sample, K codes, D dimensions.
"""

import torch
from torch import Tensor

from vqtool.quantizers.codebook import Codebook
from vqtool.runtime.distributed import all_reduce_sum

# Below this moving average of hits the mean is numerically meaningless, and the code is kept.
_VANISHED = 1e-20


class EmaCodebook(Codebook):
    """Codes that are the moving average of the vectors assigned to them (van den Oord et al. 2017, eqs. 6-8).

    The averages are initialised with 0, so the first update sets a code to the mean of its vectors. A code without
    hits keeps its value. Codes and averages are buffers; no gradient reaches them.

    Args:
        decay: EMA decay per step.
        min_ema_hits: minimum number of a code's own hits that its average covers. A code with few hits in a step
            decays less, a code without hits not at all. Otherwise a rarely hit code would follow its last few vectors.

    Attributes:
        counts: (K,) moving average of hits.
        sums: (K, D) moving average of the sums of the assigned vectors.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, decay: float, min_ema_hits: float = 0.0) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.decay, self.min_ema_hits = decay, min_ema_hits
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, codebook_dim))
        self._gathered: tuple[Tensor, Tensor] | None = None

    def _set_weight(self, weight: Tensor) -> None:
        self.register_buffer("weight", weight)

    @torch.no_grad()
    def gather(self, vectors: Tensor, indices: Tensor) -> None:
        if self._gathered is None:
            # In bfloat16 counting ends at 256.
            dtype = torch.promote_types(self.counts.dtype, torch.float32)
            self._gathered = (torch.zeros_like(self.counts, dtype=dtype), torch.zeros_like(self.sums, dtype=dtype))
        counts, sums = self._gathered
        counts.index_add_(0, indices, counts.new_ones(len(indices)))  # bincount would wait for the device
        sums.index_add_(0, indices, vectors.to(sums.dtype))

    @torch.no_grad()
    def update(self, good: Tensor | None = None) -> None:
        if self._gathered is None:
            return
        counts, sums = (all_reduce_sum(each).to(self.counts.dtype) for each in self._gathered)
        self.discard()
        if good is not None:  # what moves towards itself stays
            counts, sums = torch.where(good, counts, self.counts), torch.where(good, sums, self.sums)
        rate = self._rate(counts)
        self.counts.lerp_(counts, rate)
        self.sums.lerp_(sums, rate[:, None])
        # Counts and sums of a code without hits shrink together: their ratio holds, until they come near underflow.
        means = self.sums / self.counts.clamp_min(_VANISHED)[:, None]
        known = self.counts > _VANISHED if good is None else good & (self.counts > _VANISHED)
        self.weight.copy_(torch.where(known[:, None], means, self.weight))

    def discard(self) -> None:
        self._gathered = None

    def _rate(self, counts: Tensor) -> Tensor:
        """(K,): what the averages take of a step in which the codes have `counts` (K,) hits."""
        if not self.min_ema_hits:
            return torch.full_like(self.counts, 1 - self.decay)
        return (-torch.expm1(-counts.to(self.counts.dtype) / self.min_ema_hits)).clamp_max(1 - self.decay)

    @torch.no_grad()
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        super().init_codes(codes, counts)
        # The sample weighs as one step's batch would.
        self.counts.copy_(self._rate(counts) * counts)
        self.sums.copy_(self.counts[:, None] * codes)

    @torch.no_grad()
    def replace(self, which: Tensor, codes: Tensor) -> None:
        super().replace(which, codes)
        # They weigh as the average code does: the first vector that one wins would carry it off else.
        self.counts.copy_(torch.where(which, self.counts.mean(), self.counts))
        self.sums.copy_(torch.where(which[:, None], self.counts[:, None] * self.weight, self.sums))
