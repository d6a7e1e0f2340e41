"""Exact re-ranking of candidates with PyTorch operations, for any device; `kernels` does it on a CPU.

Shapes: R vectors, K codes, D dimensions, C codes with padding, P candidates of all vectors together.
"""

import torch
from torch import Tensor

from vqtool.search.kernels import MAX_CANDIDATES

# Elements z[n,d] - e[k,d] computed at a time, which bounds the memory. A block may have twice as many, and has at least
# two pairs (n, k).
_ELEMENTS_PER_BLOCK = 1 << 19


def rerank_exact(
    scores: Tensor,
    tolerance: Tensor,
    vectors: Tensor,
    codebook: Tensor,
    elements_per_block: int = _ELEMENTS_PER_BLOCK,
) -> Tensor:
    """Return the index (R,) of the exact nearest code among the candidates of each vector.

    Candidates are the codes with score <= limit = minimum + tolerance. The nearest has the smallest squared distance in
    float64; ties go to the lowest index.

    Args:
        scores: (R, C), infinite for padding.
        tolerance: (R,) upper bound on the nearest code's score minus the row's minimum; infinite: unknown.
        vectors: (R, D).
        codebook: (K, D).
        elements_per_block: approximate number of differences computed at a time.

    Returns:
        (R,) int64; -1 for a row with more than `MAX_CANDIDATES` candidates, or with an infinite or NaN limit.
    """
    limits = scores.amin(dim=1) + tolerance
    is_candidate = scores <= limits.where(limits.isfinite(), torch.nan)[:, None]
    has_few_candidates = is_candidate.sum(dim=1) <= MAX_CANDIDATES
    rows, codes = (is_candidate & has_few_candidates[:, None]).nonzero().unbind(dim=1)
    distances = _distances(vectors, codebook, rows, codes, elements_per_block)
    smallest = distances.new_full((len(vectors),), torch.inf).scatter_reduce(0, rows, distances, "amin")
    is_nearest = distances <= smallest.index_select(0, rows)
    nearest = torch.full((len(vectors),), -1, device=vectors.device)
    return nearest.scatter_reduce(0, rows[is_nearest], codes[is_nearest], "amin", include_self=False)


def _distances(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor, elements_per_block: int) -> Tensor:
    """Return |vectors[rows] - codebook[codes]|² (P,) in float64, for row and code indices (P,)."""
    # At least two pairs per block: PyTorch splits a single sum over threads, which rounds it differently, and equal
    # codes would have unequal distances.
    blocks = max(1, min(len(rows) * vectors.shape[1] // elements_per_block, len(rows) // 2))
    pairs = zip(rows.tensor_split(blocks), codes.tensor_split(blocks), strict=True)
    return torch.cat([(vectors[row].double() - codebook[code]).square_().sum(dim=1) for row, code in pairs])
