"""Backends of the search: approximate scores with an error bound, then exact distances of the candidates.

With c the mean code, the score of code k for vector n is

    score[n,k] = |e_k - c|²/2 - (z_n - c)·(e_k - c) = |z_n - e_k|²/2 - |z_n - c|²/2

The last term is the same for all codes, so scores order codes as distances do. Subtracting c from both sides leaves
distances unchanged and makes the terms, and with them the rounding errors, small. If every computed score is within
`error` of its exact value, the computed score of the nearest code is at most minimum + 2 error. The codes within that
tolerance are the candidates.

Shapes: N vectors, R of a block, K codes, D dimensions, C codes with padding, W lanes of G codes (see `kernels`).
"""

from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel
from vqtool.search.kernels import (
    MAX_SMALL_DIM,
    Array,
    Scalar,
    rerank_bfloat16,
    rerank_scores,
    search_small_dim,
)
from vqtool.search.rerank import rerank_exact

# A block of scores fits in the cache. With many codes a block has at least _MIN_ROWS_PER_BLOCK rows, to amortise
# reading the codes, but at most _MAX_SCORES_PER_BLOCK scores.
_SCORE_BYTES_PER_BLOCK = 1 << 23
_MIN_ROWS_PER_BLOCK = 1 << 7
_MAX_SCORES_PER_BLOCK = 1 << 24
# Number of lanes W of the kernels: with at most FEW_CODES codes, and with more.
_MATMUL_FEW_CODES, _MATMUL_LANES_FEW_CODES, _MATMUL_LANES = 128, 16, 64
_SMALL_DIM_FEW_CODES, _SMALL_DIM_LANES_FEW_CODES, _SMALL_DIM_LANES = 2048, 64, 128
# The smallest normal float32, and a number below the largest bfloat16.
_SMALLEST_NORMAL, _LARGEST = np.float32(2**-126), np.float32(3.38e38)
# Upper bound on the factor by which rounding to bfloat16 increases a number.
_ROUND_UP = np.float32(1 + 2**-7)
# 1 with room for the rounding of the bounds themselves; 2 with room for that and for rounding the score to bfloat16.
_ONE_WITH_ROOM, _TWO_WITH_ROOM = np.float32(1.01), np.float32(2.2)
# Bits: 1.0 as bfloat16; all bits of a float32 but the sign; infinity as float32.
_BITS_OF_ONE, _MAGNITUDE_MASK, _BITS_OF_INFINITY = np.uint16(0x3F80), np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


class ScoreSearch(ABC):
    """Exact search in one codebook by scores of one precision; some vectors may be left unresolved (index -1).

    Args:
        codebook: (K, D) float32 or float64; vectors must have the same dtype and device.

    Attributes:
        codebook: the codebook, contiguous.
        is_low_precision: whether scores are less precise than the dtype of the codebook.
    """

    is_low_precision = False

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook.contiguous()
        self._centre = codebook.mean(dim=0)
        self._codes = codebook - self._centre
        self._half_sq_norms = self._codes.square().sum(dim=1) / 2
        dim, info = codebook.shape[1], torch.finfo(codebook.dtype)
        # () largest loss of a norm to underflow: each of its D squares may lose up to `tiny`.
        self._underflow = torch.full_like(self._centre[0], (dim * info.tiny) ** 0.5)
        self._max_norm = self._upper_norms(self._codes).max()
        # Coefficients of `_error`. The last one covers float64 re-ranking: its relative error is small, but applies to
        # distances, which can be far larger than the scores.
        float64_eps = torch.full_like(self._max_norm, torch.finfo(torch.float64).eps)
        terms = (self._max_norm.new_tensor(info.tiny), info.eps * self._max_norm + info.tiny, float64_eps)
        self._error_coefficients = (dim + 8) * torch.stack(terms)

    @abstractmethod
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (N,) int64 of the exact nearest code of contiguous vectors (N, D).

        It is -1 if the vector or one of its scores may not be finite, or if there are more than `MAX_CANDIDATES`
        candidates.
        """

    def _upper_norms(self, vectors: Tensor) -> Tensor:
        """Return upper bounds (n,), up to relative rounding, on the norms of vectors (n, D), including underflow."""
        return vectors.norm(dim=1) + self._underflow

    def _tolerance(self, norms: Tensor) -> Tensor:
        """Return 2 error (n,) for vectors with |z - c| = `norms` (n,); infinite if a score may overflow or be NaN.

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
        bytes_per_block: maximum bytes of one block of scores, if that is at least `min_rows_per_block` rows.
        min_rows_per_block: rows of a block even if it has more bytes; fewer if it would have more than
            `_MAX_SCORES_PER_BLOCK` scores, but at least 1.

    Attributes:
        columns: (D + 1 or more, C), right factor of the product.
    """

    def __init__(
        self,
        codebook: Tensor,
        bytes_per_block: int = _SCORE_BYTES_PER_BLOCK,
        min_rows_per_block: int = _MIN_ROWS_PER_BLOCK,
    ) -> None:
        super().__init__(codebook)
        self._bytes_per_block, self._min_rows_per_block = bytes_per_block, min_rows_per_block
        self._lanes = _MATMUL_LANES_FEW_CODES if len(codebook) <= _MATMUL_FEW_CODES else _MATMUL_LANES
        self.columns = self._pad(self._make_columns())

    def nearest(self, vectors: Tensor) -> Tensor:
        rows, tolerance = self.make_rows(vectors)
        nearest = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
        padded_codes = self.columns.shape[1]
        cached_rows = self._bytes_per_block // (padded_codes * rows.itemsize)
        rows_per_block = max(1, cached_rows, min(self._min_rows_per_block, _MAX_SCORES_PER_BLOCK // padded_codes))
        buffer = rows.new_empty(min(rows_per_block, len(rows)), padded_codes)
        blocks = (tensor.split(rows_per_block) for tensor in (rows, tolerance, vectors, nearest))
        for row_block, *rerank_blocks in zip(*blocks, strict=True):
            self.rerank(torch.mm(row_block, self.columns, out=buffer[: len(row_block)]), *rerank_blocks)
        return nearest

    @abstractmethod
    def _make_columns(self) -> Tensor:
        """Return the right factor of the product, transposed: (K, D + 1 or more), with |e - c|²/2 from column D on."""

    @abstractmethod
    def make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the left factor for vectors (N, D), (N, D + 1 or more), and the tolerance (N,) of their scores."""

    @abstractmethod
    def rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        """Set `nearest` (R,) int64 from scores (R, C), tolerance (R,) and vectors (R, D); -1 as in `nearest`."""

    def _pad(self, columns: Tensor) -> Tensor:
        """Pad (K, D + 1 or more) to C rows, a multiple of 4 W, with infinite scores; return the transpose."""
        padding = -len(columns) % (4 * self._lanes)
        columns = F.pad(columns, (0, 0, 0, padding))
        columns[len(columns) - padding :, self._codes.shape[1]] = torch.inf
        return columns.T.contiguous()


class SameDtypeSearch(MatmulSearch):
    """Search by scores in the dtype of the codebook."""

    def _make_columns(self) -> Tensor:
        return torch.cat([self._codes, self._half_sq_norms[:, None]], dim=1)

    def make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        shifted = self._centre - vectors
        return F.pad(shifted, (0, 1), value=1.0), self._tolerance(self._upper_norms(shifted))

    def rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        if scores.device.type == "cpu":
            arrays = (tensor.numpy() for tensor in (tolerance, vectors, self.codebook, nearest))
            rerank_scores(scores.numpy(), self._lanes, *arrays)
        else:
            nearest.copy_(rerank_exact(scores, tolerance, vectors, self.codebook))


class SmallDimSearch(ScoreSearch):
    """Search by float32 scores of codes with D <= `MAX_SMALL_DIM`, on a CPU.

    Scores stay in registers: writing them to memory would take longer than computing them.
    """

    def __init__(self, codebook: Tensor) -> None:
        super().__init__(codebook)
        lanes = _SMALL_DIM_LANES_FEW_CODES if len(codebook) <= _SMALL_DIM_FEW_CODES else _SMALL_DIM_LANES
        padding = -len(codebook) % lanes
        codes = F.pad(self._codes, (0, MAX_SMALL_DIM - codebook.shape[1], 0, padding)).view(-1, lanes, MAX_SMALL_DIM)
        half_sq_norms = F.pad(self._half_sq_norms, (0, padding), value=torch.inf).view(-1, lanes)
        self._code_arguments = {
            "columns": codes.mT.contiguous(),
            "half_sq_norms": half_sq_norms,
            "lane_columns": codes.permute(1, 2, 0).contiguous(),
            "lane_half_sq_norms": half_sq_norms.T.contiguous(),
            "codes": self.codebook,
        }

    def nearest(self, vectors: Tensor) -> Tensor:
        shifted = self._centre - vectors
        tolerance = self._tolerance(self._upper_norms(shifted))
        # The kernel computes scores of four rows at a time, also of unresolved ones, and must not meet NaN or infinity.
        shifted = shifted.masked_fill_(tolerance.isinf()[:, None], 0)
        rows = F.pad(shifted, (0, MAX_SMALL_DIM - vectors.shape[1], 0, 3))
        nearest = torch.empty(len(vectors), dtype=torch.int64)
        arguments = {"rows": rows, "tolerance": tolerance, "vectors": vectors, "nearest": nearest}
        search_small_dim(**{name: tensor.numpy() for name, tensor in (arguments | self._code_arguments).items()})
        return nearest


class Bfloat16Search(MatmulSearch):
    """Search by scores in bfloat16 of float32 codes, on a CPU.

    With x = z - c rounded to x + dx and y = e - c rounded to y + dy,

        |x·y - (x + dx)·(y + dy)| <= |dx| |y| + |x + dx| |dy|        (Cauchy-Schwarz)

    and |dx| of each vector and the largest |dy| are computed. The matrix product rounds each score to bfloat16 once
    more, by an error relative to the score; `rerank_bfloat16` allows for it.

    |e - c|²/2 needs more than the 8 bits of a bfloat16, so it is the sum of two columns. A third column adds a constant
    per row, the shift, that makes all scores of the row non-negative. Such numbers are ordered like their bits, and the
    minimum of integers is computed faster than that of bfloat16.
    """

    is_low_precision = True

    def _make_columns(self) -> Tensor:
        rounded = self._codes.bfloat16()
        code_error = self._upper_norms(self._codes - rounded.float()).max()
        norm_high = self._half_sq_norms.bfloat16()
        norm_low = (self._half_sq_norms - norm_high.float()).bfloat16()
        norm_error = (self._half_sq_norms - norm_high.float() - norm_low.float()).abs().max()
        # Read by `_shift_and_tolerance` in this order; the last three are the coefficients of `_error`.
        bounds = torch.stack([self._underflow, self._max_norm, code_error, norm_error, *self._error_coefficients])
        self._bounds = bounds.nan_to_num(torch.inf, torch.inf)
        return torch.cat([rounded, torch.stack([norm_high, norm_low, torch.ones_like(norm_high)], dim=1)], dim=1)

    def make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        rows = vectors.new_empty(len(vectors), len(self.columns), dtype=torch.bfloat16)
        tolerance = vectors.new_empty(len(vectors))
        arguments = (vectors, self._centre, self._bounds, rows.view(torch.uint16), tolerance)
        _round_rows(*(tensor.numpy() for tensor in arguments))
        return rows, tolerance

    def rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        arrays = (tensor.numpy() for tensor in (tolerance, vectors, self.codebook, nearest))
        rerank_bfloat16(scores.view(torch.int16).numpy(), self._lanes, *arrays)


@lru_cache(maxsize=1)
def has_bfloat16_matmul() -> bool:
    """Return whether the processor has x86 instructions for matrix products in bfloat16 (AMX or AVX-512)."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@strict_kernel
def _subtract(minuend: Scalar, subtrahend: Scalar) -> Scalar:
    # Strict, because the result may be NaN, and kernels compiled with reassociation assume that there is none.
    return minuend - subtrahend


@inline_kernel
def _round_to_bfloat16(bits: Scalar) -> Scalar:
    """Round a float32, not NaN, to bfloat16, to nearest with ties to even; argument and result are bits as uint32."""
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@inline_kernel
def _shift_and_tolerance(norm: Scalar, error_norm: Scalar, bounds: Array) -> tuple[Scalar, Scalar]:
    """Return a row's shift and tolerance (see `Bfloat16Search`), all numbers float32.

    With m = max |e - c| and E the bound on the error of a score before its result is rounded,

        E     = |dx| m + (|x| + |dx|) max |dy| + error of the norm columns + 2 error of float32
        shift = min(|x|²/2, |x| m) + E >= -score, as x·y - |y|²/2 is at most either term of the minimum

    each with room for rounding. The tolerance is 2.2 E; it is infinite, and the shift is not to be used, if a score or
    the shift may overflow.

    Args:
        norm: |x|.
        error_norm: |dx|.
        bounds: (7,) `Bfloat16Search._bounds`.
    """
    underflow, max_code_norm, code_error, norm_error = bounds[0], bounds[1], bounds[2], bounds[3]
    norm, error_norm = norm + underflow, error_norm + underflow
    shift, tolerance = np.float32(0), np.float32(np.inf)
    if norm < np.inf and max_code_norm < np.inf:
        furthest = norm + max_code_norm
        float32_error = bounds[4] + furthest * (bounds[5] + furthest * bounds[6])
        rounding = error_norm * max_code_norm + (norm + error_norm) * code_error + norm_error
        score_error = _ONE_WITH_ROOM * rounding + 2 * float32_error
        max_product = min(norm * norm / 2, norm * max_code_norm)
        shift = (max_product + score_error) * _ROUND_UP + _SMALLEST_NORMAL
        if _ONE_WITH_ROOM * shift + furthest * furthest + score_error < _LARGEST / 2:
            tolerance = _TWO_WITH_ROOM * score_error
    return shift, tolerance


@cached_kernel
def _round_rows(vectors: Array, centre: Array, bounds: Array, rounded: Array, tolerance: Array) -> None:
    """Set `rounded` to the left factor of the product, and `tolerance` to the tolerance of its scores.

    Args:
        vectors: (R, D) float32.
        centre: (D,) float32.
        bounds: (7,) float32, `Bfloat16Search._bounds`.
        rounded: (R, D + 3) uint16, bits of bfloat16: c - z, 1, 1, shift; all zero if a score may not be finite.
        tolerance: (R,) float32; infinite if a score may not be finite.
    """
    dims = centre.size
    exact, low, shift = np.empty(dims, np.float32), np.empty(dims, np.float32), np.empty(1, np.float32)
    exact_bits, low_bits, shift_bits = exact.view(np.uint32), low.view(np.uint32), shift.view(np.uint32)
    for row in range(len(vectors)):
        largest_bits = np.uint32(0)
        for dim in range(dims):
            exact[dim] = _subtract(centre[dim], vectors[row, dim])
        for dim in range(dims):
            bfloat16_bits = _round_to_bfloat16(exact_bits[dim])
            rounded[row, dim] = bfloat16_bits
            low_bits[dim] = bfloat16_bits << np.uint32(16)
            largest_bits = max(largest_bits, exact_bits[dim] & _MAGNITUDE_MASK)
        tolerance[row] = np.inf
        if largest_bits < _BITS_OF_INFINITY:
            square, error_square = np.float32(0), np.float32(0)
            for dim in range(dims):
                square += exact[dim] * exact[dim]
                error_square += (exact[dim] - low[dim]) * (exact[dim] - low[dim])
            shift[0], tolerance[row] = _shift_and_tolerance(np.sqrt(square), np.sqrt(error_square), bounds)
        if tolerance[row] < np.inf:
            rounded[row, dims] = rounded[row, dims + 1] = _BITS_OF_ONE
            rounded[row, dims + 2] = _round_to_bfloat16(shift_bits[0])
        else:
            rounded[row] = 0
