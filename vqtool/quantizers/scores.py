"""Scores that order codes as their distances do, from one matrix product, with a bound on how far they are off.

A score is |z - e|²/2 less something that all codes of a row share. Distances are unchanged when both sides are shifted;
about the mean code the terms are small, and so are the errors. The norms of the codes are columns of the product, which
saves a pass over the scores.

Shapes: N vectors, R of a block, K codes, D dimensions, G groups of codes, P candidates.
"""

from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes of the scores of one block, which a cache holds; of more codes, as many rows as make it worth reading the codes,
# but no more scores than that.
_BLOCK = 1 << 23
_ROWS = 1 << 7
_MOST = 1 << 24


class Scores(ABC):
    """A codebook made ready to score vectors.

    Args:
        codebook: (K, D), in the type that is computed in.

    Attributes:
        group: how many codes are a group. The least score of each is found first, so that few are looked at one by one.
        crowd: the most groups that are looked at for a row, where rows have many.
        most: the most candidates of a row, where rows have many.
        coarse: whether other scores tell codes apart better.
    """

    group = 64
    crowd = 16
    most = 64
    coarse = False

    def __init__(self, codebook: Tensor) -> None:
        self._centre = codebook.mean(dim=0)
        self._codes = codebook - self._centre
        self._half_norms = self._codes.square().sum(dim=1) / 2
        self._largest = self._norms(self._codes).max()
        self._columns = self._pad(self._make_columns())

    def candidates(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and codes (P,) each, in the order of rows, then codes: for each of (N, D) whatever may be nearest.

        A row has none where it or its scores may not be finite, or where more than `most` codes or those of a crowd of
        groups may be nearest, and those of other rows are many, too.
        """
        operand, slack = self._make_rows(vectors)
        columns = self._columns.shape[1]
        count = max(1, _BLOCK // (columns * operand.itemsize), min(_ROWS, _MOST // columns))
        buffer = operand.new_empty(min(count, len(operand)), columns)
        found = [torch.empty(0, dtype=torch.int64, device=vectors.device)]
        for start in range(0, len(operand), count):
            scores = torch.mm(operand[start : start + count], self._columns, out=buffer[: len(operand) - start])
            found.append(self._within(scores, slack[start : start + count]).add_(start * columns))
        hits = torch.cat(found)
        rows = _quotients(hits, columns)
        codes = hits - rows * columns
        real = slack.isfinite().index_select(0, rows) & (codes < len(self._codes))
        return (rows, codes) if real.all() else (rows[real], codes[real])

    @abstractmethod
    def _make_columns(self) -> Tensor:
        """(K, D + m), what rows are multiplied with; the column at D is a half norm."""

    @abstractmethod
    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, D + m) of vectors, and (N,) the limits of their scores, less what these grow by with the best."""

    @abstractmethod
    def _limits(self, best: Tensor, slack: Tensor) -> Tensor:
        """What scores are not above, of all that may be nearest, by the best (R,) as it was computed."""

    def _ordered(self, scores: Tensor) -> Tensor:
        """Scores as what is compared."""
        return scores

    def _within(self, scores: Tensor, slack: Tensor) -> Tensor:
        """The places (P,), counted through `scores`, of those that may be nearest."""
        groups = self._ordered(scores).view(len(scores), -1, self.group)
        least = groups.amin(dim=2)
        limits = self._limits(least.amin(dim=1), slack)
        near = _uncrowded(_not_above(least, limits), least, self.crowd)
        members = groups.view(-1, self.group).index_select(0, near)
        hits = _not_above(members, limits.index_select(0, _quotients(near, least.shape[1])))
        which = _quotients(hits, self.group)
        return _uncrowded((near.index_select(0, which) - which) * self.group + hits, scores, self.most)

    def _norms(self, vectors: Tensor) -> Tensor:
        """The norms (n,) of vectors (n, D), or more: squares may be too small for their type."""
        return vectors.norm(dim=1) + (vectors.shape[1] * torch.finfo(vectors.dtype).tiny) ** 0.5

    def _error(self, norms: Tensor) -> Tensor:
        """Bound (N,) on the rounding of a product, in the type of the codes, with vectors of these norms (N,).

        |fl(x·y) - x·y| <= D u |x||y| / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq.
        3.5), with room for the shift and the other roundings.
        """
        dim = self._codes.shape[1]
        info = torch.finfo(self._codes.dtype)
        furthest = norms + self._largest
        # The float64 sums that settle a contest round, too: by eps of the distances, which can be far above the scores.
        rounding = info.eps * self._largest + torch.finfo(torch.float64).eps * furthest
        return (dim + 8) * (rounding * furthest + info.tiny * (1 + furthest))

    def _pad(self, columns: Tensor) -> Tensor:
        """(K, D + m) as (D + m, K up to a multiple of the group); what is added is never the least."""
        padding = -len(columns) % self.group
        columns = F.pad(columns, (0, 0, 0, padding))
        columns[len(columns) - padding :, self._codes.shape[1]] = torch.inf
        return columns.T.contiguous()


class FullScores(Scores):
    """Scores in the type of the codes."""

    def _make_columns(self) -> Tensor:
        return torch.cat([self._codes, self._half_norms[:, None]], dim=1)

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._centre - vectors
        norms = self._norms(shifted)
        # No score is above this. Where it overflows, so may the row's scores.
        safe = (norms + self._largest).square().isfinite()
        return F.pad(shifted, (0, 1), value=1.0), (2 * self._error(norms)).where(safe, torch.inf)

    def _limits(self, best: Tensor, slack: Tensor) -> Tensor:
        return best + slack


class BfloatScores(Scores):
    """Scores in bfloat16, twice as fast where the processor multiplies it, for float32 codes.

    Rounding z to z + dz and e to e + de costs |z·e - (z + dz)·(e + de)| <= |dz| |e| + |z + dz| |de|, by Cauchy-Schwarz;
    the norms of what was lost are known. The result is rounded again, by its own magnitude.

    Each row is shifted until none of its scores is negative. Those are ordered as their bits are, and least integers
    are found faster than least bfloat16.
    """

    coarse = True

    def __init__(self, codebook: Tensor) -> None:
        # The least of a large group is sooner found, a small one sooner looked at.
        self.group = 64 if len(codebook) < 4096 else 256
        super().__init__(codebook)

    def _make_columns(self) -> Tensor:
        low = self._codes.bfloat16()
        self._lost = self._norms(self._codes - low.float()).max()
        # A norm needs more than eight bits: a second column has what the first leaves over.
        first = self._half_norms.bfloat16()
        second = (self._half_norms - first.float()).bfloat16()
        self._norm_lost = (self._half_norms - first.float() - second.float()).abs().max()
        return torch.cat([low, torch.stack([first, second, torch.ones_like(first)], dim=1)], dim=1)

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._centre - vectors
        rows = shifted.new_ones(len(vectors), len(self._columns), dtype=torch.bfloat16)
        low = rows[:, :-3].copy_(shifted)
        norms = self._norms(shifted)
        lost = self._norms(shifted.sub_(low.float()))  # sooner than of two types
        errors = 1.01 * (lost * self._largest + (norms + lost) * self._lost + self._norm_lost) + 2 * self._error(norms)
        info = torch.finfo(torch.bfloat16)
        # Neither of these can z·e - |e|²/2 exceed. The less the shift, the less is rounded off the scores.
        most = torch.minimum(norms.square() / 2, norms * self._largest)
        rows[:, -1] = shift = (most + errors) * (1 + info.eps) + info.tiny
        # No score is above this sum, nor a shift that was rounded. Where it may overflow, so may the row's scores.
        safe = 1.01 * shift + (norms + self._largest).square() + errors < info.max / 2
        # On processors with AMX, oneDNN lets a row that is not finite spoil the products of the row before it.
        rows.index_fill_(0, places(~safe), 0)
        return rows, (2.2 * errors).where(safe, torch.inf)

    def _ordered(self, scores: Tensor) -> Tensor:
        return scores.view(torch.int16)

    def _limits(self, best: Tensor, slack: Tensor) -> Tensor:
        # (1 + u) / (1 - u) of the best, for its rounding and that of the nearest, with eps = 2 u. Rounded, the limit is
        # below no score that it was not below.
        eps = torch.finfo(torch.bfloat16).eps
        return torch.add(slack, best.view(torch.bfloat16), alpha=1 + 1.1 * eps).bfloat16().view(torch.int16)


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def places(mask: Tensor) -> Tensor:
    """Where a mask is true, counted through it."""
    if mask.device.type == "cpu":  # where NumPy counts several times as fast
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().squeeze(1)


def _uncrowded(found: Tensor, through: Tensor, crowd: int) -> Tensor:
    """Of places `found`, counted `through` (n, m): where they are many, those of rows that have no crowd of them."""
    rows, width = through.shape
    if len(found) <= crowd * rows // 4:
        return found
    owners = _quotients(found, width)
    few = owners.bincount(minlength=rows) <= crowd
    return found.index_select(0, places(few.index_select(0, owners)))


def _quotients(numbers: Tensor, divisor: int) -> Tensor:
    """Numbers divided by another, rounded down."""
    if numbers.device.type == "cpu":  # NumPy divides several times as fast, too
        return torch.from_numpy(numbers.numpy() // divisor)
    return numbers // divisor


def _not_above(values: Tensor, limits: Tensor) -> Tensor:
    """The places, counted through (n, m), of values that are not above the limit (n,) of their row."""
    if values.device.type == "cpu":  # NumPy compares several times as fast, too
        return places(torch.from_numpy(values.numpy() <= limits.numpy()[:, None]))
    return places(values <= limits[:, None])
