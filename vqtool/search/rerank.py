"""Which of a vector's candidates is the nearest, by PyTorch's own operations, for any device; for a CPU see `kernels`.

Shapes: R vectors, K codes, D dimensions, C codes with padding, P candidates.
"""

import torch
from torch import Tensor

from vqtool.search.kernels import MAX_CANDIDATES

# Numbers of one block of differences, of which there are less than twice as many: they bound the memory.
_BLOCK = 1 << 19


def rerank_exact(scores: Tensor, slack: Tensor, vectors: Tensor, codebook: Tensor) -> Tensor:
    """The exact nearest codes (R,), by all that may be nearest; -1 for a row with more than `MAX_CANDIDATES` of these.

    Args:
        scores: (R, C); those of no code are infinite.
        slack: (R,) how far above the best of a row the nearest's score may be; where it is infinite, the row is left.
        vectors: (R, D).
        codebook: (K, D).
    """
    limits = scores.amin(dim=1) + slack
    near = scores <= limits.where(limits.isfinite(), torch.nan)[:, None]
    rows, codes = (near & (near.sum(dim=1) <= MAX_CANDIDATES)[:, None]).nonzero().unbind(dim=1)
    distances = _distances(vectors, codebook, rows, codes)
    smallest = distances.new_full((len(vectors),), torch.inf).scatter_reduce(0, rows, distances, "amin")
    stays = distances <= smallest.index_select(0, rows)
    # Among equals the lowest.
    nearest = torch.full((len(vectors),), -1, device=vectors.device)
    return nearest.scatter_reduce(0, rows[stays], codes[stays], "amin", include_self=False)


def _distances(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor) -> Tensor:
    """Squared, from rows of the vectors to codes, (P,) each, in float64."""
    # No pair is alone: its sum might be shared out, and rounded otherwise than those of its equals.
    parts = max(1, min(len(rows) * vectors.shape[1] // _BLOCK, len(rows) // 2))
    pairs = zip(rows.tensor_split(parts), codes.tensor_split(parts), strict=True)
    return torch.cat([(vectors[row].double() - codebook[code]).square_().sum(dim=1) for row, code in pairs])
