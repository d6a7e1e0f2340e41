"""Search by scores: approximate distances with an error bound, then exact distances of the candidates.

With c the mean code, the score of code k for vector n is

    score[n,k] = |e_k - c|²/2 - (z_n - c)·(e_k - c) = |z_n - e_k|²/2 - |z_n - c|²/2

The last term is the same for all codes, so scores order codes as distances do. Subtracting c from both sides leaves
distances unchanged and makes the terms, and with them the rounding errors, small. If every computed score is within
`error` of its exact value, the computed score of the nearest code is at most minimum + 2 error. The codes within that
tolerance are the candidates.

Shapes: N vectors, R of a block, K codes, D dimensions, C codes with padding.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.search.kernels import rerank_scores
from vqtool.search.rerank import rerank_exact

# A block of scores fits in the cache. With many codes a block has at least this many rows, to amortise reading the
# codes, as long as it does not exceed the maximum number of scores.
_SCORE_BYTES_PER_BLOCK = 1 << 23
_MIN_ROWS_PER_BLOCK = 1 << 7
_MAX_SCORES_PER_BLOCK = 1 << 24
# Number of lanes for at most, and for more than, this many codes; see `kernels`.
_FEW_CODES, _LANES_FEW_CODES, _LANES = 128, 16, 64


class ScoreSearch(ABC):
    """Exact search in one codebook by scores of one precision.

    Args:
        codebook: (K, D); its dtype is the dtype of all vectors.

    Attributes:
        is_low_precision: whether scores are less precise than the dtype of the codebook.
    """

    is_low_precision = False

    def __init__(self, codebook: Tensor) -> None:
        self._codebook = codebook.contiguous()
        self._centre = codebook.mean(dim=0)
        self._codes = codebook - self._centre
        self._half_sq_norms = self._codes.square().sum(dim=1) / 2
        dim, info = codebook.shape[1], torch.finfo(codebook.dtype)
        # Each square may lose up to `tiny` to underflow.
        self._underflow = torch.full_like(self._centre[0], (dim * info.tiny) ** 0.5)
        self._max_norm = self._upper_norms(self._codes).max()
        # Coefficients of `_error`. float64 re-ranking has a relative error of eps, too, of distances that can be far
        # larger than the scores.
        float64_eps = torch.full_like(self._max_norm, torch.finfo(torch.float64).eps)
        terms = (self._max_norm.new_tensor(info.tiny), info.eps * self._max_norm + info.tiny, float64_eps)
        self._error_coefficients = (dim + 8) * torch.stack(terms)

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (N,) of the exact nearest code of vectors (N, D).

        It is -1 if the vector or one of its scores may not be finite, or if there are more than `MAX_CANDIDATES`
        candidates.
        """

    def _upper_norms(self, vectors: Tensor) -> Tensor:
        """Return upper bounds (n,) on the norms of vectors (n, D), including underflow."""
        return vectors.norm(dim=1) + self._underflow

    def _tolerance(self, norms: Tensor) -> Tensor:
        """Return 2 error (n,) for vectors with |z - c| = `norms` (n,); infinite if a score may overflow.

        No score exceeds (|z - c| + max |e - c|)².
        """
        cannot_overflow = (norms + self._max_norm).square().isfinite()
        return (2 * self._error(norms)).where(cannot_overflow, torch.inf)

    def _error(self, norms: Tensor) -> Tensor:
        """Return a bound (n,) on the rounding error of a score, for vectors with |z - c| = `norms` (n,).

            error = (D + 8) (tiny + r (eps m + tiny) + r² eps64),   m = max |e - c|,   r = |z - c| + m

        From |fl(x·y) - x·y| <= D u |x||y| / (1 - D u) (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
        eq. 3.5); 8 leaves room for the subtraction of c and the other roundings. eps and tiny are those of the dtype,
        eps64 that of float64.
        """
        furthest = norms + self._max_norm
        constant, linear, quadratic = self._error_coefficients
        return constant + furthest * (linear + furthest * quadratic)


class MatmulSearch(ScoreSearch):
    """Search by scores from a matrix product, in blocks of rows.

    Rows are [c - z, 1, ...] and columns [e - c, |e - c|²/2, ...], so that the product is the score.

    Args:
        codebook: (K, D).
        bytes_per_block: bytes of one block of scores.
        min_rows_per_block: number of rows of a block even if it has more bytes.
    """

    def __init__(
        self,
        codebook: Tensor,
        bytes_per_block: int = _SCORE_BYTES_PER_BLOCK,
        min_rows_per_block: int = _MIN_ROWS_PER_BLOCK,
    ) -> None:
        super().__init__(codebook)
        self._bytes_per_block, self._min_rows_per_block = bytes_per_block, min_rows_per_block
        self._lanes = _LANES_FEW_CODES if len(codebook) <= _FEW_CODES else _LANES
        self._columns = self._pad(self._make_columns())

    def nearest(self, vectors: Tensor) -> Tensor:
        rows, tolerance = self._make_rows(vectors)
        nearest = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        width = self._columns.shape[1]
        cached_rows = self._bytes_per_block // (width * rows.itemsize)
        rows_per_block = max(1, cached_rows, min(self._min_rows_per_block, _MAX_SCORES_PER_BLOCK // width))
        buffer = rows.new_empty(min(rows_per_block, len(rows)), width)
        blocks = (tensor.split(rows_per_block) for tensor in (rows, tolerance, vectors, nearest))
        for row_block, *others in zip(*blocks, strict=True):
            self._rerank(torch.mm(row_block, self._columns, out=buffer[: len(row_block)]), *others)
        return nearest

    @abstractmethod
    def _make_columns(self) -> Tensor:
        """Return the right factor (K, D + m) of the product, with |e - c|²/2 in column D."""

    @abstractmethod
    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the left factor (N, D + m) for vectors (N, D), and the tolerance (N,) of their scores."""

    @abstractmethod
    def _rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        """Set `nearest` (R,) from scores (R, C), tolerance (R,) and vectors (R, D)."""

    def _pad(self, columns: Tensor) -> Tensor:
        """Transpose (K, D + m) to (D + m, C), C a multiple of 4 lanes; the scores of the padding are infinite."""
        padding = -len(columns) % (4 * self._lanes)
        columns = F.pad(columns, (0, 0, 0, padding))
        columns[len(columns) - padding :, self._codes.shape[1]] = torch.inf
        return columns.T.contiguous()


class SameDtypeSearch(MatmulSearch):
    """Search by scores in the dtype of the codebook."""

    def _make_columns(self) -> Tensor:
        return torch.cat([self._codes, self._half_sq_norms[:, None]], dim=1)

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._centre - vectors
        return F.pad(shifted, (0, 1), value=1.0), self._tolerance(self._upper_norms(shifted))

    def _rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        if scores.device.type == "cpu":
            arrays = (tensor.numpy() for tensor in (tolerance, vectors, self._codebook, nearest))
            rerank_scores(scores.numpy(), self._lanes, *arrays)
        else:
            nearest.copy_(rerank_exact(scores, tolerance, vectors, self._codebook))
