"""Scores that order codes as their distances do, with a bound on how far they are off.

A score is |z - e|²/2 less something that all codes of a row share. Distances are unchanged when both sides are shifted;
about the mean code the terms are small, and so are the errors.

Shapes: N vectors, R of a block, K codes, D dimensions, C codes with padding.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.search.kernels import settle_full
from vqtool.search.rerank import rerank_exact

# Bytes of the scores of one block, which a cache holds; of more codes, as many rows as make it worth reading the codes,
# but no more scores than that.
_BLOCK = 1 << 23
_ROWS = 1 << 7
_MOST = 1 << 24
# Classes of up to so many codes, and of more.
_FEW, _NARROW, _WIDE = 128, 16, 64


class Scores(ABC):
    """A codebook made ready to score vectors.

    Args:
        codebook: (K, D), in the type that is computed in.

    Attributes:
        coarse: whether other scores tell codes apart better.
    """

    coarse = False

    def __init__(self, codebook: Tensor) -> None:
        self._codebook = codebook.contiguous()
        self._centre = codebook.mean(dim=0)
        self._codes = codebook - self._centre
        self._half_norms = self._codes.square().sum(dim=1) / 2
        dim, info = codebook.shape[1], torch.finfo(codebook.dtype)
        # Squares may be too small for their type: what is added to norms for that.
        self._least = torch.full_like(self._centre[0], (dim * info.tiny) ** 0.5)
        self._largest = self._norms(self._codes).max()
        # The float64 sums that settle a contest round, too: by eps of the distances, which can be far above the scores.
        exact = torch.full_like(self._largest, torch.finfo(torch.float64).eps)
        parts = (self._largest.new_tensor(info.tiny), info.eps * self._largest + info.tiny, exact)
        self._rounding = (dim + 8) * torch.stack(parts)

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor:
        """The exact nearest (N,) of vectors (N, D), in the type of the codes.

        It is -1 where a vector or its scores may not be finite, or where these leave too many codes to tell apart.
        """

    def _norms(self, vectors: Tensor) -> Tensor:
        """The norms (n,) of vectors (n, D), or more."""
        return vectors.norm(dim=1) + self._least

    def _slack(self, norms: Tensor) -> Tensor:
        """How far above the best the score of the nearest may be (n,), of vectors of such norms (n,).

        Where a score may overflow, it is infinite: none is above the square.
        """
        safe = (norms + self._largest).square().isfinite()
        return (2 * self._error(norms)).where(safe, torch.inf)

    def _error(self, norms: Tensor) -> Tensor:
        """Bound (n,) on the rounding of a score, in the type of the codes, of vectors of these norms (n,).

        |fl(x·y) - x·y| <= D u |x||y| / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq.
        3.5), with room for the shift and the other roundings.
        """
        furthest = norms + self._largest
        constant, linear, square = self._rounding
        return constant + furthest * (linear + furthest * square)


class ProductScores(Scores):
    """Scores from a matrix product, in blocks. The norms of the codes are a column of it, which saves a pass."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__(codebook)
        self._classes = _NARROW if len(codebook) <= _FEW else _WIDE
        self._columns = self._pad(self._make_columns())

    def nearest(self, vectors: Tensor) -> Tensor:
        rows, slack = self._make_rows(vectors)
        nearest = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        width = self._columns.shape[1]
        count = max(1, _BLOCK // (width * rows.itemsize), min(_ROWS, _MOST // width))
        buffer = rows.new_empty(min(count, len(rows)), width)
        blocks = (each.split(count) for each in (rows, slack, vectors, nearest))
        for operand, *rest in zip(*blocks, strict=True):
            self._settle(torch.mm(operand, self._columns, out=buffer[: len(operand)]), *rest)
        return nearest

    @abstractmethod
    def _make_columns(self) -> Tensor:
        """(K, D + m), what rows are multiplied with; the column at D is a half norm."""

    @abstractmethod
    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, D + m) of vectors, and (N,) the slack of their scores."""

    @abstractmethod
    def _settle(self, scores: Tensor, slack: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        """Sets (R,) to the nearest of vectors (R, D), by their scores (R, C) and slack (R,)."""

    def _pad(self, columns: Tensor) -> Tensor:
        """(K, D + m) as (D + m, C), C four times a multiple of the classes; what is added is never the least."""
        padding = -len(columns) % (4 * self._classes)
        columns = F.pad(columns, (0, 0, 0, padding))
        columns[len(columns) - padding :, self._codes.shape[1]] = torch.inf
        return columns.T.contiguous()


class FullScores(ProductScores):
    """Scores in the type of the codes."""

    def _make_columns(self) -> Tensor:
        return torch.cat([self._codes, self._half_norms[:, None]], dim=1)

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._centre - vectors
        return F.pad(shifted, (0, 1), value=1.0), self._slack(self._norms(shifted))

    def _settle(self, scores: Tensor, slack: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        if scores.device.type == "cpu":
            rest = (each.numpy() for each in (slack, vectors, self._codebook, nearest))
            settle_full(scores.numpy(), self._classes, *rest)
        else:
            nearest.copy_(rerank_exact(scores, slack, vectors, self._codebook))
