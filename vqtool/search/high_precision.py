"""Search for vectors that have a crowd of candidates, where scores of few digits tell too few codes apart.

Shapes: R vectors, K codes, D dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.search.distinct import distinct_rows
from vqtool.search.kernels import exhaustive
from vqtool.search.scores import FullScores

# Codes further from the middle than so many times what half of them are within are far.
_FAR = 8.0
# Codes from which the middle is taken.
_SOME = 1 << 10


class HighPrecisionSearch:
    """Search for vectors that have a crowd of candidates: among codes that differ, by scores of more and more digits.

    Args:
        codebook: (K, D), any of which may equal an earlier one.
        again: whether scores in the type of the codes can tell more apart than those that did not.
    """

    def __init__(self, codebook: Tensor, again: bool) -> None:
        self._places = distinct_rows(codebook)[0]
        self._codes = codebook.index_select(0, self._places)
        again = again or len(self._codes) < len(codebook)
        self._kinds = dict.fromkeys([codebook.dtype, torch.float64] if again else [torch.float64])
        self._scores: dict[torch.dtype, FullScores] = {}
        self._without_far = _WithoutFar.of(self._codes)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The exact nearest (R,); the first code where a vector is not finite, or any code not a number."""
        nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        if self._codes.isnan().any():
            return nearest
        rows = _where(vectors.isfinite().all(dim=1))
        nearest[rows] = self._places.index_select(0, self._nearest(vectors.index_select(0, rows)))
        return nearest

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Places among the codes that differ, of finite vectors."""
        nearest = self._without_far.nearest(vectors) if self._without_far else _unsettled(vectors)
        for kind in self._kinds:
            left = _where(nearest < 0)
            if len(left):
                if kind not in self._scores:
                    self._scores[kind] = FullScores(self._codes.to(kind))
                nearest[left] = self._scores[kind].nearest(vectors.index_select(0, left).to(kind))
        left = _where(nearest < 0)
        if len(left):
            part = vectors.index_select(0, left)
            first, which = distinct_rows(part)  # what pads a chunk is one vector, many times
            nearest[left] = _exhaustive(part.index_select(0, first), self._codes).index_select(0, which)
        return nearest


class _WithoutFar(NamedTuple):
    """Search among codes without those so far from the others that the error of their scores hides all differences.

    By the triangle inequality none of these is the nearest of a vector that is nearer to the centre than half of the
    gap between their norms and those of the rest.
    """

    finer: HighPrecisionSearch
    """Among the codes that are left."""
    places: Tensor
    """Theirs, ascending."""
    centre: Tensor
    """(D,) in float64."""
    reach: Tensor
    """() how far from the centre vectors may be."""

    @classmethod
    def of(cls, codes: Tensor) -> "_WithoutFar | None":
        """None where no code (K, D) is far from the others."""
        centre = codes[:: 1 + len(codes) // _SOME].double().nanmedian(dim=0).values
        norms = (codes - centre).norm(dim=1)
        far = ~(norms <= _FAR * norms.nanmedian())
        left = _where(~far)
        if not len(left) or len(left) == len(codes):
            return None
        # Norms beyond this may have overflown, and are larger than they seem.
        gap = norms[far].nan_to_num(torch.inf).min().clamp_max(1e150) - norms.index_select(0, left).max()
        return cls(HighPrecisionSearch(codes.index_select(0, left), again=True), left, centre, 0.49 * gap)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The exact nearest (R,); -1 where it may be one of those that are far."""
        nearest = _unsettled(vectors)
        rows = _where((vectors - self.centre).norm(dim=1) < self.reach)
        nearest[rows] = self.places.index_select(0, self.finer.nearest(vectors.index_select(0, rows)))
        return nearest


def _exhaustive(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The exact nearest (R,) by every distance in float64."""
    nearest = torch.empty(len(vectors), dtype=torch.int64, device="cpu")
    exhaustive(vectors.cpu().numpy(), codebook.cpu().numpy(), nearest.numpy())
    return nearest.to(vectors.device)


def _unsettled(vectors: Tensor) -> Tensor:
    """(R,) -1 for each: no code yet."""
    return torch.full((len(vectors),), -1, device=vectors.device)


def _where(mask: Tensor) -> Tensor:
    """The places where a mask (n,) is true."""
    return mask.nonzero().squeeze(1)
