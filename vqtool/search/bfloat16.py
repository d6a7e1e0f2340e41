"""Search by scores in bfloat16, which some processors multiply many times as fast as float32.

Shapes: N vectors, R of a block, K codes, D dimensions, C codes with padding.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel
from vqtool.search.kernels import Array, Scalar, rerank_bfloat16
from vqtool.search.scores import MatmulSearch

# The smallest normal float32, and a number below the largest bfloat16.
_SMALLEST_NORMAL, _LARGEST = np.float32(2**-126), np.float32(3.38e38)
# Bound on the relative growth of a number that is rounded to bfloat16.
_ROUND_UP = np.float32(1 + 2**-7)
# 1 with room for the rounding of the bounds themselves; 2 with room for that and for the rounding of the result.
_ONE_WITH_ROOM, _TWO_WITH_ROOM = np.float32(1.01), np.float32(2.2)
# Bits: 1.0 as bfloat16; all bits of a float32 but the sign; infinity as float32.
_BITS_OF_ONE, _MAGNITUDE_MASK, _BITS_OF_INFINITY = np.uint16(0x3F80), np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


class Bfloat16Search(MatmulSearch):
    """Search by scores in bfloat16 of float32 codes, on a CPU.

    With x = z - c rounded to x + dx and y = e - c rounded to y + dy,

        |x·y - (x + dx)·(y + dy)| <= |dx| |y| + |x + dx| |dy|        (Cauchy-Schwarz)

    and |dx|, |dy| are computed. The product is rounded to bfloat16 again, relative to its own magnitude.

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

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        rows = vectors.new_empty(len(vectors), len(self._columns), dtype=torch.bfloat16)
        tolerance = vectors.new_empty(len(vectors))
        inputs = (tensor.numpy() for tensor in (vectors, self._centre, self._bounds))
        _round_rows(*inputs, rows.view(torch.uint16).numpy(), tolerance.numpy())
        return rows, tolerance

    def _rerank(self, scores: Tensor, tolerance: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        arrays = (tensor.numpy() for tensor in (tolerance, vectors, self._codebook, nearest))
        rerank_bfloat16(scores.view(torch.int16).numpy(), self._lanes, *arrays)


@lru_cache(maxsize=1)
def has_bfloat16_matmul() -> bool:
    """Return whether the processor has instructions for matrix products in bfloat16."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@strict_kernel
def _subtract(minuend: Scalar, subtrahend: Scalar) -> Scalar:
    # Strict, because the result may be NaN, and kernels compiled with reassociation assume that there is none.
    return minuend - subtrahend


@inline_kernel
def _round_to_bfloat16(bits: Scalar) -> Scalar:
    """Return the upper 16 bits of a float32, given its bits, rounded to nearest with ties to even."""
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@inline_kernel
def _shift_and_tolerance(norm: Scalar, error_norm: Scalar, bounds: Array) -> tuple[Scalar, Scalar]:
    """Return a row's shift and tolerance, given |x| and |dx| (see `Bfloat16Search`).

    With m = max |e - c| and E the bound on the error of a score before its result is rounded,

        E     = |dx| m + (|x| + |dx|) max |dy| + error of the norm columns + 2 error of float32
        shift = min(|x|²/2, |x| m) + E >= -score, as x·y - |y|²/2 is at most either term of the minimum

    each with room for rounding. The tolerance is 2.2 E; it is infinite if a score or the shift may overflow.
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
    """Set `rounded` to the left factor of the product and `tolerance` to that of its scores.

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
