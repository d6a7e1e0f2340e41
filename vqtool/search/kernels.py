"""The search's loops for a CPU: from scores, or vectors of few dimensions, to the nearest codes.

Each row of scores is read while a cache holds it, and no pass writes it again. Codes are taken in classes, of every so
many-th code: the least scores of all classes are found by steps that do as many at once as the processor can, and only
classes whose least may be the nearest's are looked through.

Shapes: R vectors, K codes, D dimensions, C codes with padding, G of them a class, W classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.runtime.numba_jit import cached_kernel, inline_kernel, strict_kernel

# Numbers of a vector of few dimensions, with zeros after its own: of four vectors, a processor has registers for all.
MAX_SMALL_DIM = 8
# The most codes whose distance from a vector is computed. With more, finer scores are sooner made.
MAX_CANDIDATES = 64
# More than what a sum in another order is off by, for each of its terms.
_EPS, _TINY = 2.0**-50, 2.0**-1020
# A bfloat16's (1 + u) / (1 - u), and more: the best may be rounded down by u of it, the nearest up.
_ROUNDED = np.float32(1 + 1.1 * 2**-7)

Array = NDArray[Any]
Scalar = Any


@strict_kernel
def _square_apart(vector: Array, code: Array, dim: int) -> Scalar:
    apart = np.float64(vector[dim]) - np.float64(code[dim])
    return apart * apart


@strict_kernel
def _exact_distance(vector: Array, code: Array) -> Scalar:
    """Squared, in float64, and summed in one order on every machine: NumPy's, of up to 128 dimensions."""
    whole = vector.size - vector.size % 8
    a = b = c = d = e = f = g = h = 0.0
    for dim in range(0, whole, 8):
        a += _square_apart(vector, code, dim)
        b += _square_apart(vector, code, dim + 1)
        c += _square_apart(vector, code, dim + 2)
        d += _square_apart(vector, code, dim + 3)
        e += _square_apart(vector, code, dim + 4)
        f += _square_apart(vector, code, dim + 5)
        g += _square_apart(vector, code, dim + 6)
        h += _square_apart(vector, code, dim + 7)
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for dim in range(whole, vector.size):
        total += _square_apart(vector, code, dim)
    return total


@strict_kernel
def _nearest_of(candidates: Array, vector: Array, codes: Array) -> int:
    """The exact nearest, the lowest of equals; the first where every distance is infinite."""
    nearest, smallest = candidates[0], np.inf
    for place in range(candidates.size):
        code = candidates[place]
        distance = _exact_distance(vector, codes[code])
        if distance < smallest or (distance == smallest and code < nearest):
            nearest, smallest = code, distance
    return nearest


@cached_kernel
def exhaustive(vectors: Array, codes: Array, nearest: Array) -> None:
    """Sets (R,) to the exact nearest codes of vectors (R, D), by all distances from codes (K, D)."""
    candidates = np.arange(len(codes))
    for row in range(len(vectors)):
        nearest[row] = _nearest_of(candidates, vectors[row], codes)


@inline_kernel
def _distance(vector: Array, code: Array) -> Scalar:
    """Squared, in float64."""
    total = 0.0
    for dim in range(vector.size):
        apart = np.float64(vector[dim]) - np.float64(code[dim])
        total += apart * apart
    return total


@inline_kernel
def _smallest(numbers: Array) -> Scalar:
    found = numbers[0]
    for place in range(numbers.size):
        found = min(found, numbers[place])
    return found


@inline_kernel
def _least_of_classes(scores: Array, least: Array) -> Scalar:
    """The least score (C,) of each class (W,), and of all; C is a multiple of 4 W."""
    width = least.size
    for which in range(width):
        least[which] = scores[which]
    for start in range(0, scores.size, 4 * width):  # four at once, so that `least` is seldom written
        first, second = scores[start : start + width], scores[start + width : start + 2 * width]
        third, fourth = scores[start + 2 * width : start + 3 * width], scores[start + 3 * width : start + 4 * width]
        for which in range(width):
            both = min(min(first[which], second[which]), min(third[which], fourth[which]))
            least[which] = min(least[which], both)
    return _smallest(least)


@inline_kernel
def _closest(candidates: Array, count: int, distances: Array, vector: Array, codes: Array) -> int:
    """The exact nearest of so many candidates; -1 of none, or of a crowd. Both tables are scratch afterwards."""
    if count == 1:
        return candidates[0]
    if count == 0 or count > MAX_CANDIDATES:
        return -1
    smallest = np.inf
    for place in range(count):
        distances[place] = _distance(vector, codes[candidates[place]])
        smallest = min(smallest, distances[place])
    limit = smallest * (1 + vector.size * _EPS) + vector.size * _TINY
    close = 0
    for place in range(count):
        if distances[place] <= limit:
            candidates[close] = candidates[place]
            close += 1
    return candidates[0] if close == 1 else _nearest_of(candidates[:close], vector, codes)


@inline_kernel
def _within(scores: Array, least: Array, limit: Scalar, candidates: Array) -> int:
    """How many codes have a score that is not above the limit, a crowd at the most, and which they are."""
    count = 0
    for which in range(least.size):
        if least[which] <= limit:
            for code in range(which, scores.size, least.size):
                if scores[code] <= limit:
                    candidates[count] = code
                    count += 1
                    if count > MAX_CANDIDATES:
                        return count
    return count


@cached_kernel
def settle_full(scores: Array, classes: int, slack: Array, vectors: Array, codes: Array, nearest: Array) -> None:
    """Sets (R,) to the exact nearest codes.

    Args:
        scores: (R, C), float32 or float64; those of no code are infinite.
        classes: W, of which C is four times a multiple.
        slack: (R,) how far above the best of a row the nearest's score may be; where it is infinite, the row is left.
        vectors: (R, D).
        codes: (K, D).
        nearest: (R,) int64; a row with more than `MAX_CANDIDATES` candidates, or one that is left, gets -1.
    """
    least = np.empty(classes, scores.dtype)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    for row in range(len(scores)):
        nearest[row] = -1
        if slack[row] < np.inf:
            limit = _least_of_classes(scores[row], least) + slack[row]
            if limit < np.inf:
                count = _within(scores[row], least, limit, candidates)
                nearest[row] = _closest(candidates, count, distances, vectors[row], codes)


@cached_kernel
def settle_bfloat16(scores: Array, classes: int, slack: Array, vectors: Array, codes: Array, nearest: Array) -> None:
    """The same for bfloat16 scores none of which is negative, as int16: those are ordered as their bits are."""
    least = np.empty(classes, scores.dtype)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    number = np.empty(1, np.float32)
    bits = number.view(np.int32)
    for row in range(len(scores)):
        nearest[row] = -1
        if slack[row] < np.inf:
            bits[0] = np.int32(_least_of_classes(scores[row], least)) << 16
            number[0] = number[0] * _ROUNDED + slack[row]
            if number[0] < np.inf:
                count = _within(scores[row], least, np.int16(bits[0] >> 16), candidates)
                nearest[row] = _closest(candidates, count, distances, vectors[row], codes)


@inline_kernel
def _eight(numbers: Array) -> tuple[Scalar, ...]:
    """As a tuple, whose numbers are kept in registers."""
    return numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]


@inline_kernel
def _score(row: tuple[Scalar, ...], columns: Array, heights: Array, code: int) -> Scalar:
    score = heights[code]
    for dim in range(MAX_SMALL_DIM):
        score += row[dim] * columns[dim, code]
    return score


@inline_kernel
def _short_least(rows: Array, start: int, columns: Array, heights: Array, least: Array) -> None:
    """The least scores (4, W) of four rows: a code, once read, serves all four."""
    first, second, third, fourth = (
        _eight(rows[start]),
        _eight(rows[start + 1]),
        _eight(rows[start + 2]),
        _eight(rows[start + 3]),
    )
    a, b, c, d = least[0], least[1], least[2], least[3]
    for which in range(a.size):
        a[which] = b[which] = c[which] = d[which] = np.inf
    for member in range(len(columns)):
        some, high = columns[member], heights[member]
        for which in range(high.size):
            a[which] = min(a[which], _score(first, some, high, which))
            b[which] = min(b[which], _score(second, some, high, which))
            c[which] = min(c[which], _score(third, some, high, which))
            d[which] = min(d[which], _score(fourth, some, high, which))


@inline_kernel
def _take(numbers: Array, limit: Scalar) -> Scalar:
    """The last place of a number that is not above the limit, which is infinite afterwards; -1 where there is none."""
    last: Any = np.int32(-1)
    for place in range(np.int32(numbers.size)):
        last = max(last, np.int32(place) if numbers[place] <= limit else np.int32(-1))
    numbers[max(last, 0)] = np.inf  # no number that is looked for, where there is none
    return last


@inline_kernel
def _short_within(
    row: Array, classes: Array, heights: Array, least: Array, limit: Scalar, scores: Array, candidates: Array
) -> int:
    """As `_within`; `scores` (G,) and `least` (W,) are scratch afterwards."""
    numbers, count = _eight(row), 0
    which = _take(least, limit)
    while which >= 0 and count <= MAX_CANDIDATES:
        some, high = classes[which], heights[which]
        for member in range(scores.size):
            scores[member] = _score(numbers, some, high, member)
        member = _take(scores, limit)
        while member >= 0 and count <= MAX_CANDIDATES:
            candidates[count] = least.size * member + which
            count += 1
            member = _take(scores, limit)
        which = _take(least, limit)
    return count


@cached_kernel
def settle_short(
    rows: Array,
    slack: Array,
    vectors: Array,
    columns: Array,
    heights: Array,
    classes: Array,
    heights_of_classes: Array,
    codes: Array,
    nearest: Array,
) -> None:
    """Sets (R,) to the exact nearest codes; -1: infinite slack, or more than `MAX_CANDIDATES` candidates.

    Args:
        rows: (R + 3 or more, `MAX_SMALL_DIM`) what is multiplied with columns, finite.
        slack: (R,) how far above the best of a row the nearest's score may be.
        vectors: (R, D).
        columns: (G, `MAX_SMALL_DIM`, W), the g-th code of each class.
        heights: (G, W), half the norms squared; infinite where there is no code.
        classes: (W, `MAX_SMALL_DIM`, G), the same by class.
        heights_of_classes: (W, G).
        codes: (K, D).
        nearest: (R,) int64.
    """
    least, scores = np.empty((4, heights.shape[1]), np.float32), np.empty(len(heights), np.float32)
    candidates, distances = np.empty(MAX_CANDIDATES + 1, np.int64), np.empty(MAX_CANDIDATES, np.float64)
    for row in range(len(slack)):
        if row % 4 == 0:
            _short_least(rows, row, columns, heights, least)
        nearest[row] = -1
        its = least[row % 4]
        limit = _smallest(its) + slack[row] if slack[row] < np.inf else slack[row]
        if limit < np.inf:
            count = _short_within(rows[row], classes, heights_of_classes, its, limit, scores, candidates)
            nearest[row] = _closest(candidates, count, distances, vectors[row], codes)
