"""Search for vectors that the backends leave unresolved: non-finite scores, or too many candidates.

Shapes: R vectors, K codes, D dimensions, U unique codes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtool.search.backends import SameDtypeSearch
from vqtool.search.kernels import exhaustive_search

# A code is an outlier if its distance to the centre is more than this multiple of the median distance.
_OUTLIER_FACTOR = 8.0
# The centre is the median of at most this many codes, evenly spaced in the codebook.
_MEDIAN_SAMPLE = 1 << 10
# Elements hashed or compared at a time, which bounds the memory.
_ELEMENTS_PER_BLOCK = 1 << 18


class HighPrecisionSearch:
    """Exact search in stages of increasing cost, each for the vectors that the stage before left unresolved.

    1. Duplicate codes are removed; of equal codes, the lowest index remains.
    2. Codes without outliers, if there are outliers and the vector is close to the centre (`_InlierSearch`).
    3. Scores in the dtype of the codebook, if `retry_dtype` or if duplicates were removed.
    4. Scores in float64.
    5. All distances in float64.

    Args:
        codebook: (K, D) float32 or float64; vectors must have the same dtype and device.
        retry_dtype: whether scores in the dtype of the codebook are more precise than those that left the vectors
            unresolved.
    """

    def __init__(self, codebook: Tensor, retry_dtype: bool) -> None:
        self._unique = unique_rows(codebook)[0]
        self._codes = codebook.index_select(0, self._unique)
        retry_dtype = retry_dtype or len(self._codes) < len(codebook)
        self._dtypes = dict.fromkeys([codebook.dtype, torch.float64] if retry_dtype else [torch.float64])
        self._searches: dict[torch.dtype, SameDtypeSearch] = {}
        self._inlier_search = _InlierSearch.build(self._codes)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (R,) int64 of the exact nearest code of vectors (R, D); never -1.

        It is 0 for a vector with a NaN or infinite element, and for all vectors if a code contains NaN.
        """
        nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        if self._codes.isnan().any():
            return nearest
        rows = _true_positions(vectors.isfinite().all(dim=1))
        nearest[rows] = self._unique.index_select(0, self._nearest_unique(vectors.index_select(0, rows)))
        return nearest

    def _nearest_unique(self, vectors: Tensor) -> Tensor:
        """Return, for finite vectors (R, D), the position (R,) of the nearest code among the unique codes (U, D)."""
        nearest = self._inlier_search.nearest(vectors) if self._inlier_search else _all_unresolved(vectors)
        for dtype in self._dtypes:
            rows = _true_positions(nearest < 0)
            if len(rows):
                if dtype not in self._searches:
                    self._searches[dtype] = SameDtypeSearch(self._codes.to(dtype))
                nearest[rows] = self._searches[dtype].nearest(vectors.index_select(0, rows).to(dtype))
        rows = _true_positions(nearest < 0)
        if len(rows):
            remaining = vectors.index_select(0, rows)
            unique, inverse = unique_rows(remaining)  # padding repeats one vector many times
            by_distances = _nearest_by_all_distances(remaining.index_select(0, unique), self._codes)
            nearest[rows] = by_distances.index_select(0, inverse)
        return nearest


class _InlierSearch(NamedTuple):
    """Search among the codes that are not outliers.

    The rounding error of a score grows with the largest norm of a code, so one outlier hides the differences between
    all others. Let c be the centre, a the largest |e - c| of an inlier and b the smallest |e - c| of an outlier. If
    |z - c| < (b - a) / 2, then by the triangle inequality an outlier is at least b - |z - c| away from z and every
    inlier at most a + |z - c|, which is less. So no outlier is the nearest code.
    """

    search: HighPrecisionSearch
    """Search among the inliers."""
    inliers: Tensor
    """(number of inliers,) their indices, ascending."""
    centre: Tensor
    """(D,) float64, c."""
    radius: Tensor
    """() float64, the bound on |z - c|: 0.49 (b - a), which leaves room for rounding."""

    @classmethod
    def build(cls, codes: Tensor) -> "_InlierSearch | None":
        """Return the search among the inliers of `codes` (U, D); None if there are no outliers, or only outliers."""
        centre = codes[:: 1 + len(codes) // _MEDIAN_SAMPLE].double().nanmedian(dim=0).values
        norms = (codes - centre).norm(dim=1)
        is_outlier = ~(norms <= _OUTLIER_FACTOR * norms.nanmedian())
        inliers = _true_positions(~is_outlier)
        if not len(inliers) or len(inliers) == len(codes):
            return None
        # A norm above 1e150 may have overflowed to infinity or NaN; 1e150 is a lower bound for it.
        min_outlier_norm = norms[is_outlier].nan_to_num(torch.inf).min().clamp_max(1e150)
        gap = min_outlier_norm - norms.index_select(0, inliers).max()
        search = HighPrecisionSearch(codes.index_select(0, inliers), retry_dtype=True)
        return cls(search, inliers, centre, 0.49 * gap)

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (R,) in `codes` of the exact nearest code of finite vectors (R, D).

        It is -1 for a vector with |z - c| >= `radius`.
        """
        nearest = _all_unresolved(vectors)
        rows = _true_positions((vectors - self.centre).norm(dim=1) < self.radius)
        nearest[rows] = self.inliers.index_select(0, self.search.nearest(vectors.index_select(0, rows)))
        return nearest


def unique_rows(table: Tensor, elements_per_block: int = _ELEMENTS_PER_BLOCK) -> tuple[Tensor, Tensor]:
    """Return the indices of the unique rows and, for each row, the position of its equal among them.

    Like `torch.unique(dim=0, return_inverse=True)` with indices instead of rows, in order of first occurrence, bit by
    bit (0.0 and -0.0 differ). Rows are sorted by a hash of their bits, which is many times as fast as sorting them by
    their columns. If two different rows have the same hash, all rows are returned as unique. That costs only time:
    the caller does not rely on uniqueness.

    Args:
        table: (n, D), float32 or float64.
        elements_per_block: number of elements hashed or compared at a time, rounded down to whole rows (at least one).

    Returns:
        Indices (U,) of first occurrences, ascending, and positions (n,) among them: `table[indices][positions]` equals
        `table`.
    """
    factors = _hash_factors(table.shape[1]).to(table.device)
    blocks = table.split(max(1, elements_per_block // table.shape[1]))
    hashes, order = torch.cat([(_bits(block) * factors).sum(dim=1) for block in blocks]).sort(stable=True)
    is_new = F.pad(hashes[1:] != hashes[:-1], (1, 0), value=True)[: len(table)]
    # first[i]: the lowest row with the hash of row i, because the sort is stable.
    first = torch.empty_like(order).index_put_((order,), order[is_new].index_select(0, is_new.cumsum(0) - 1))
    rows = torch.arange(len(table), device=table.device)
    duplicates = _true_positions(first != rows)
    for block in duplicates.split(len(blocks[0])):
        originals = first.index_select(0, block)
        if not torch.equal(_bits(table.index_select(0, block)), _bits(table.index_select(0, originals))):
            return rows, rows
    is_first = first == rows
    return rows[is_first], (is_first.cumsum(0) - 1).index_select(0, first)


def _bits(rows: Tensor) -> Tensor:
    """Return the bits of rows (n, D), float32 or float64, as int64 (n, D)."""
    return rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()


def _hash_factors(columns: int) -> Tensor:
    """Return random odd int64 numbers (columns,) below 2^63 from a fixed seed, on the CPU."""
    return torch.randint(1 << 62, (columns,), generator=torch.Generator().manual_seed(0), device="cpu") * 2 + 1


def _nearest_by_all_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index (R,) of the exact nearest code from all R·K distances in float64, computed on the CPU."""
    nearest = torch.empty(len(vectors), dtype=torch.int64, device="cpu")
    exhaustive_search(vectors.cpu().numpy(), codebook.cpu().numpy(), nearest.numpy())
    return nearest.to(vectors.device)


def _all_unresolved(vectors: Tensor) -> Tensor:
    """Return the index -1 (R,), "unresolved", for each of the vectors (R, D)."""
    return torch.full((len(vectors),), -1, device=vectors.device)


def _true_positions(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
