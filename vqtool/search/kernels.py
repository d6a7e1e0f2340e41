"""Compiled loops of the search on a CPU: from scores, or from vectors of few dimensions, to the exact nearest codes.

A row of scores has one score per code, lower for nearer codes, and a tolerance: the score of the exact nearest code is
at most limit = minimum + tolerance. Codes within that limit are the candidates. Their distances are computed in
float64; the code with the smallest distance is the nearest, and ties go to the lowest index.

A row is read while it is in the cache. Code k belongs to lane k mod W. The minima of all lanes are computed by SIMD
instructions, W at a time, and only lanes whose minimum is within the limit are searched for candidates.

Shapes: R vectors, K codes, D dimensions, W lanes of G codes, C = W G codes with padding (infinite scores).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel

# Largest D of `search_small_dim`, which pads D to it with zeros: four such vectors fit in the SIMD registers.
MAX_SMALL_DIM = 8
# Maximum number of candidates per vector. With more, scores of higher precision are faster.
MAX_CANDIDATES = 64
# Per-dimension bounds on the relative and absolute difference between two sums of the same squares in any order.
_REORDER_EPS, _REORDER_TINY = 2.0**-50, 2.0**-1020
# Bound on (1 + u) / (1 - u), u = 2^-8: the best bfloat16 score may be rounded down by u, that of the nearest code up.
BFLOAT16_ROUNDING = np.float32(1 + 1.1 * 2**-7)

Array = NDArray[Any]
Scalar = Any


@strict_kernel
def _squared_difference(vector: Array, code: Array, dim: int) -> Scalar:
    difference = np.float64(vector[dim]) - np.float64(code[dim])
    return difference * difference


@strict_kernel
def exact_distance(vector: Array, code: Array) -> Scalar:
    """Return |z - e|² in float64, summed in the same order on every machine: the order of `numpy.sum` for D <= 128."""
    unrolled = vector.size - vector.size % 8
    a = b = c = d = e = f = g = h = 0.0
    for dim in range(0, unrolled, 8):
        a += _squared_difference(vector, code, dim)
        b += _squared_difference(vector, code, dim + 1)
        c += _squared_difference(vector, code, dim + 2)
        d += _squared_difference(vector, code, dim + 3)
        e += _squared_difference(vector, code, dim + 4)
        f += _squared_difference(vector, code, dim + 5)
        g += _squared_difference(vector, code, dim + 6)
        h += _squared_difference(vector, code, dim + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for dim in range(unrolled, vector.size):
        total += _squared_difference(vector, code, dim)
    return total


@strict_kernel
def _exact_nearest(candidates: Array, vector: Array, codes: Array) -> int:
    """Return the candidate with the smallest `exact_distance`; the lowest index among equal, also infinite, distances.

    Args:
        candidates: (n,) indices of codes in any order, n >= 1.
        vector: (D,) finite.
        codes: (K, D) without NaN.
    """
    nearest, smallest = candidates[0], np.inf
    for i in range(candidates.size):
        code = candidates[i]
        distance = exact_distance(vector, codes[code])
        if distance < smallest or (distance == smallest and code < nearest):
            nearest, smallest = code, distance
    return nearest


@cached_kernel
def exhaustive_search(vectors: Array, codes: Array, nearest: Array) -> None:
    """Set `nearest` (R,) int64 to the index of the exact nearest code from all distances.

    Vectors (R, D) must be finite; codes (K, D) must not contain NaN.
    """
    candidates = np.arange(len(codes))
    for row in range(len(vectors)):
        nearest[row] = _exact_nearest(candidates, vectors[row], codes)


@inline_kernel
def _fast_distance(vector: Array, code: Array) -> Scalar:
    """Return |z - e|² in float64, summed in any order."""
    total = 0.0
    for dim in range(vector.size):
        difference = np.float64(vector[dim]) - np.float64(code[dim])
        total += difference * difference
    return total


@inline_kernel
def _min(numbers: Array) -> Scalar:
    smallest = numbers[0]
    for i in range(numbers.size):
        smallest = min(smallest, numbers[i])
    return smallest


@inline_kernel
def _min_per_lane(scores: Array, lane_min: Array) -> Scalar:
    """Set `lane_min` (W,) to the minimum of each lane of scores (C,), and return the minimum of all; 4 W divides C."""
    lanes = lane_min.size
    for lane in range(lanes):
        lane_min[lane] = scores[lane]
    for start in range(0, scores.size, 4 * lanes):  # four scores per lane at once, to write `lane_min` less often
        first, second = scores[start : start + lanes], scores[start + lanes : start + 2 * lanes]
        third, fourth = scores[start + 2 * lanes : start + 3 * lanes], scores[start + 3 * lanes : start + 4 * lanes]
        for lane in range(lanes):
            smallest = min(min(first[lane], second[lane]), min(third[lane], fourth[lane]))
            lane_min[lane] = min(lane_min[lane], smallest)
    return _min(lane_min)


@inline_kernel
def _rerank(candidates: Array, count: int, distances: Array, vector: Array, codes: Array) -> int:
    """Return the exact nearest of the first `count` candidates; -1 if `count` is 0 or above `MAX_CANDIDATES`.

    `_fast_distance` selects the candidates whose exact distance may be the smallest, and `_exact_nearest` the nearest
    of them. Overwrites `candidates` (`count` or more,) and the buffer `distances` (`MAX_CANDIDATES`,).
    """
    if count == 1:
        return candidates[0]
    if count == 0 or count > MAX_CANDIDATES:
        return -1
    smallest = np.inf
    for i in range(count):
        distances[i] = _fast_distance(vector, codes[candidates[i]])
        smallest = min(smallest, distances[i])
    limit = smallest * (1 + vector.size * _REORDER_EPS) + vector.size * _REORDER_TINY
    close = 0
    for i in range(count):
        if distances[i] <= limit:
            candidates[close] = candidates[i]
            close += 1
    return candidates[0] if close == 1 else _exact_nearest(candidates[:close], vector, codes)


@inline_kernel
def _collect_candidates(scores: Array, lane_min: Array, limit: Scalar, candidates: Array) -> int:
    """Write the indices of the scores (C,) of at most `limit` to `candidates`, lane by lane; return their number.

    Stop at `MAX_CANDIDATES` + 1 indices, the length of `candidates`. `lane_min` (W,) is the minimum of each lane.
    """
    count = 0
    for lane in range(lane_min.size):
        if lane_min[lane] <= limit:
            for code in range(lane, scores.size, lane_min.size):
                if scores[code] <= limit:
                    candidates[count] = code
                    count += 1
                    if count > MAX_CANDIDATES:
                        return count
    return count


@cached_kernel
def rerank_scores(scores: Array, lanes: int, tolerance: Array, vectors: Array, codes: Array, nearest: Array) -> None:
    """Set `nearest` (R,) to the exact nearest codes, given scores.

    Args:
        scores: (R, C) float32 or float64, infinite for padding; may be NaN only in rows of infinite tolerance.
        lanes: W; C is a multiple of 4 W.
        tolerance: (R,) upper bound on the nearest code's score minus the row's minimum; infinite: unknown.
        vectors: (R, D).
        codes: (K, D).
        nearest: (R,) int64; -1 for a row with more than `MAX_CANDIDATES` candidates or with an infinite tolerance or
            limit.
    """
    lane_min = np.empty(lanes, scores.dtype)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    for row in range(len(scores)):
        nearest[row] = -1
        if tolerance[row] < np.inf:
            limit = _min_per_lane(scores[row], lane_min) + tolerance[row]
            if limit < np.inf:
                count = _collect_candidates(scores[row], lane_min, limit, candidates)
                nearest[row] = _rerank(candidates, count, distances, vectors[row], codes)


@cached_kernel
def rerank_bfloat16(scores: Array, lanes: int, tolerance: Array, vectors: Array, codes: Array, nearest: Array) -> None:
    """Set `nearest` (R,) to the exact nearest codes, given the bits of bfloat16 scores as int16 (R, C).

    No score is negative, so scores are ordered like their bits. Other arguments: see `rerank_scores`.
    """
    lane_min = np.empty(lanes, scores.dtype)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    limit = np.empty(1, np.float32)
    limit_bits = limit.view(np.int32)
    for row in range(len(scores)):
        nearest[row] = -1
        if tolerance[row] < np.inf:
            limit_bits[0] = np.int32(_min_per_lane(scores[row], lane_min)) << 16
            limit[0] = limit[0] * BFLOAT16_ROUNDING + tolerance[row]
            if limit[0] < np.inf:
                count = _collect_candidates(scores[row], lane_min, np.int16(limit_bits[0] >> 16), candidates)
                nearest[row] = _rerank(candidates, count, distances, vectors[row], codes)


@inline_kernel
def _as_registers(numbers: Array) -> tuple[Scalar, ...]:
    """Return `MAX_SMALL_DIM` numbers as a tuple, which the compiler keeps in registers."""
    return numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]


@inline_kernel
def _score(row: tuple[Scalar, ...], columns: Array, half_sq_norms: Array, code: int) -> Scalar:
    """Return the score |e|²/2 - z·e of code `code` among n.

    Args:
        row: -z, `MAX_SMALL_DIM` numbers.
        columns: (`MAX_SMALL_DIM`, n), one code per column.
        half_sq_norms: (n,) |e|²/2.
        code: 0 to n - 1.
    """
    score = half_sq_norms[code]
    for dim in range(MAX_SMALL_DIM):
        score += row[dim] * columns[dim, code]
    return score


@inline_kernel
def _min_per_lane_of_four_rows(rows: Array, start: int, columns: Array, half_sq_norms: Array, lane_min: Array) -> None:
    """Set `lane_min` (4, W) to the minimum of each lane for rows `start` to `start` + 3.

    The codes are read once for all four rows. Other arguments: see `search_small_dim`.
    """
    first, second, third, fourth = (
        _as_registers(rows[start]),
        _as_registers(rows[start + 1]),
        _as_registers(rows[start + 2]),
        _as_registers(rows[start + 3]),
    )
    a, b, c, d = lane_min[0], lane_min[1], lane_min[2], lane_min[3]
    for lane in range(a.size):
        a[lane] = b[lane] = c[lane] = d[lane] = np.inf
    for group in range(len(columns)):
        group_columns, group_norms = columns[group], half_sq_norms[group]
        for lane in range(group_norms.size):
            a[lane] = min(a[lane], _score(first, group_columns, group_norms, lane))
            b[lane] = min(b[lane], _score(second, group_columns, group_norms, lane))
            c[lane] = min(c[lane], _score(third, group_columns, group_norms, lane))
            d[lane] = min(d[lane], _score(fourth, group_columns, group_norms, lane))


@inline_kernel
def _pop_within(numbers: Array, limit: Scalar) -> Scalar:
    """Return the position of the last of the numbers that is at most `limit`, and set it to infinity; -1 if none is."""
    last: Any = np.int32(-1)
    for i in range(np.int32(numbers.size)):
        last = max(last, np.int32(i) if numbers[i] <= limit else np.int32(-1))
    numbers[max(last, 0)] = np.inf  # if there is none, numbers[0] is above the limit, and may be overwritten
    return last


@inline_kernel
def _collect_small_dim(
    row: Array,
    lane_columns: Array,
    lane_norms: Array,
    lane_min: Array,
    limit: Scalar,
    scores: Array,
    candidates: Array,
) -> int:
    """Do the same as `_collect_candidates`, with scores that are computed again for each lane that has a candidate.

    Overwrites `lane_min` (W,) and the buffer `scores` (G,).

    Args:
        row: (`MAX_SMALL_DIM`,) -z.
        lane_columns, lane_norms: `lane_columns` and `lane_half_sq_norms` of `search_small_dim`.
    """
    registers, count = _as_registers(row), 0
    lane = _pop_within(lane_min, limit)
    while lane >= 0 and count <= MAX_CANDIDATES:
        columns, norms = lane_columns[lane], lane_norms[lane]
        for group in range(scores.size):
            scores[group] = _score(registers, columns, norms, group)
        group = _pop_within(scores, limit)
        while group >= 0 and count <= MAX_CANDIDATES:
            candidates[count] = lane_min.size * group + lane
            count += 1
            group = _pop_within(scores, limit)
        lane = _pop_within(lane_min, limit)
    return count


@cached_kernel
def search_small_dim(
    rows: Array,
    tolerance: Array,
    vectors: Array,
    columns: Array,
    half_sq_norms: Array,
    lane_columns: Array,
    lane_half_sq_norms: Array,
    codes: Array,
    nearest: Array,
) -> None:
    """Set `nearest` (R,) to the exact nearest codes; scores are computed in registers and never stored for all codes.

    The codes are given twice: with lanes contiguous, for the minima, and with the codes of a lane contiguous, for the
    candidates.

    Args:
        rows: (R + 3 or more, `MAX_SMALL_DIM`) float32, finite; -z of each vector, relative to the centre of the codes.
        tolerance: (R,) upper bound on the nearest code's score minus the row's minimum; infinite: unknown.
        vectors: (R, D).
        columns: (G, `MAX_SMALL_DIM`, W), code g W + w at [g, :, w], relative to the centre.
        half_sq_norms: (G, W) |e|²/2, infinite for padding.
        lane_columns: (W, `MAX_SMALL_DIM`, G), `columns` with the first and last axis swapped.
        lane_half_sq_norms: (W, G), the transpose of `half_sq_norms`.
        codes: (K, D).
        nearest: (R,) int64; -1 for a row with more than `MAX_CANDIDATES` candidates or with an infinite tolerance or
            limit.
    """
    lane_min, scores = np.empty((4, half_sq_norms.shape[1]), np.float32), np.empty(len(half_sq_norms), np.float32)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    for row in range(len(tolerance)):
        if row % 4 == 0:
            _min_per_lane_of_four_rows(rows, row, columns, half_sq_norms, lane_min)
        nearest[row] = -1
        row_min = lane_min[row % 4]
        limit = _min(row_min) + tolerance[row] if tolerance[row] < np.inf else tolerance[row]
        if limit < np.inf:
            count = _collect_small_dim(rows[row], lane_columns, lane_half_sq_norms, row_min, limit, scores, candidates)
            nearest[row] = _rerank(candidates, count, distances, vectors[row], codes)
