"""Scores in bfloat16, which some processors multiply many times as fast as float32.

Shapes: N vectors, R of a block, K codes, D dimensions, C codes with padding.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel
from vqtool.search.kernels import Array, Scalar, settle_bfloat16
from vqtool.search.scores import ProductScores

# The least that is not denormal, and the largest.
_LEAST, _LARGEST = np.float32(2**-126), np.float32(3.38e38)
# By what a number may grow when it is rounded to bfloat16.
_GROWN = np.float32(1 + 2**-7)
# More than 1, for the roundings of bounds themselves; and than 2, for those and u of the nearest's own score.
_ROOM, _SLACK = np.float32(1.01), np.float32(2.2)
# Bits: of 1 as a bfloat16; of a float32 without its sign; and of the infinite one.
_ONE, _MAGNITUDE, _INFINITE = np.uint16(0x3F80), np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)


class BfloatScores(ProductScores):
    """Scores in bfloat16 of float32 codes, on a CPU.

    Rounding z to z + dz and e to e + de costs |z·e - (z + dz)·(e + de)| <= |dz| |e| + |z + dz| |de|, by Cauchy-Schwarz;
    the norms of what was lost are known. The result is rounded again, by its own magnitude.

    Each row is shifted until none of its scores is negative. Those are ordered as their bits are, and least integers
    are found faster than least bfloat16.
    """

    coarse = True

    def _make_columns(self) -> Tensor:
        low = self._codes.bfloat16()
        lost = self._norms(self._codes - low.float()).max()
        # A norm needs more than eight bits: a second column has what the first leaves over.
        first = self._half_norms.bfloat16()
        second = (self._half_norms - first.float()).bfloat16()
        norm_lost = (self._half_norms - first.float() - second.float()).abs().max()
        # As `_shift_and_slack` takes them apart; the last three are those of `_error`.
        bounds = torch.stack([self._least, self._largest, lost, norm_lost, *self._rounding])
        self._bounds = bounds.nan_to_num(torch.inf, torch.inf)
        return torch.cat([low, torch.stack([first, second, torch.ones_like(first)], dim=1)], dim=1)

    def _make_rows(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        rows = vectors.new_empty(len(vectors), len(self._columns), dtype=torch.bfloat16)
        slack = vectors.new_empty(len(vectors))
        made = (rows.view(torch.uint16), slack)
        _round_rows(*(each.numpy() for each in (vectors, self._centre, self._bounds, *made)))
        return rows, slack

    def _settle(self, scores: Tensor, slack: Tensor, vectors: Tensor, nearest: Tensor) -> None:
        rest = (each.numpy() for each in (slack, vectors, self._codebook, nearest))
        settle_bfloat16(scores.view(torch.int16).numpy(), self._classes, *rest)


@lru_cache(maxsize=1)
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


@strict_kernel
def _minus(one: Scalar, other: Scalar) -> Scalar:
    """Which may be NaN."""
    return one - other


@inline_kernel
def _to_bfloat16(bits: Scalar) -> Scalar:
    """A float32's bits, rounded to the upper half, a tie to even."""
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


@inline_kernel
def _shift_and_slack(norm: Scalar, lost: Scalar, bounds: Array) -> tuple[Scalar, Scalar]:
    """By how much a row's scores are shifted so that none is negative, and their slack; see `BfloatScores`.

    The slack is infinite where a score may be.
    """
    least, largest, code_lost, norm_lost = bounds[0], bounds[1], bounds[2], bounds[3]
    norm, lost = norm + least, lost + least
    shift, slack = np.float32(0), np.float32(np.inf)
    if norm < np.inf and largest < np.inf:
        furthest = norm + largest
        error = bounds[4] + furthest * (bounds[5] + furthest * bounds[6])
        errors = _ROOM * (lost * largest + (norm + lost) * code_lost + norm_lost) + 2 * error
        # Neither of these can z·e - |e|²/2 exceed. The less the shift, the less is rounded off the scores.
        most = min(norm * norm / 2, norm * largest)
        shift = (most + errors) * _GROWN + _LEAST
        # No score is above this sum, nor a shift that was rounded.
        if _ROOM * shift + furthest * furthest + errors < _LARGEST / 2:
            slack = _SLACK * errors
    return shift, slack


@cached_kernel
def _round_rows(vectors: Array, centre: Array, bounds: Array, rounded: Array, slack: Array) -> None:
    """Vectors as seen from the centre, in bfloat16, with what makes the codes' norms and a shift part of their product.

    Args:
        vectors: (R, D) float32.
        centre: (D,) float32.
        bounds: (7,) float32, those of `BfloatScores`.
        rounded: (R, D + 3) uint16, which become the bits of centre - vectors, of two ones, and of the shift; all zero
            where a score may not be finite.
        slack: (R,) float32, how far above the best of a row the nearest's score may be; infinite with those zeros.
    """
    dims = centre.size
    whole, part, shift = np.empty(dims, np.float32), np.empty(dims, np.float32), np.empty(1, np.float32)
    bits, kept, bits_of_shift = whole.view(np.uint32), part.view(np.uint32), shift.view(np.uint32)
    for row in range(len(vectors)):
        greatest = np.uint32(0)
        for dim in range(dims):
            whole[dim] = _minus(centre[dim], vectors[row, dim])
        for dim in range(dims):
            above = _to_bfloat16(bits[dim])
            rounded[row, dim] = above
            kept[dim] = above << np.uint32(16)
            greatest = max(greatest, bits[dim] & _MAGNITUDE)
        slack[row] = np.inf
        if greatest < _INFINITE:
            square, off = np.float32(0), np.float32(0)
            for dim in range(dims):
                square += whole[dim] * whole[dim]
                off += (whole[dim] - part[dim]) * (whole[dim] - part[dim])
            shift[0], slack[row] = _shift_and_slack(np.sqrt(square), np.sqrt(off), bounds)
        if slack[row] < np.inf:
            rounded[row, dims] = rounded[row, dims + 1] = _ONE
            rounded[row, dims + 2] = _to_bfloat16(bits_of_shift[0])
        else:
            rounded[row] = 0
