"""Which of a vector's candidates is the nearest: the contest is settled in float64, from the differences.

Shapes: R vectors, K codes, D dimensions, P candidates.
"""

import torch
from torch import Tensor

from vqtool.quantizers.scores import places

# Numbers of one block of differences, of which there are less than twice as many: they bound the memory.
_BLOCK = 1 << 19


def settle(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor) -> Tensor:
    """The exact nearest (R,) of the candidates, `rows` and `codes` (P,); -1 for a row without one."""
    nearest = unsettled(vectors).scatter_(0, rows, codes)
    # Most contests are not close, and decided in the vectors' own type.
    error = (vectors.shape[1] + 4) * torch.finfo(vectors.dtype).eps
    for dtype, slack in ((vectors.dtype, 2 * error), (torch.float64, 0.0)):
        contested = places(rows.bincount(minlength=len(vectors)).index_select(0, rows) > 1)
        rows, codes = rows.index_select(0, contested), codes.index_select(0, contested)
        if len(rows):
            stays = places(~_lost(vectors, codebook, rows, codes, dtype, slack))
            rows, codes = rows.index_select(0, stays), codes.index_select(0, stays)
            # Among equals the lowest. Where distances are NaN none has lost, and the first wins.
            nearest.scatter_reduce_(0, rows, codes, "amin", include_self=False)
    return nearest


def _lost(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor, dtype: torch.dtype, slack: float) -> Tensor:
    """Which candidates (P,) are further from their row than its nearest, by more than this share of the distance."""
    # No pair is alone: threads would share out its sum, and round otherwise than those of its equals.
    parts = max(1, min(len(rows) * vectors.shape[1] // _BLOCK, len(rows) // 2))
    pairs = zip(rows.tensor_split(parts), codes.tensor_split(parts), strict=True)
    distances = torch.cat([_distances(vectors, codebook, row, code, dtype) for row, code in pairs])
    smallest = distances.new_full((len(vectors),), torch.inf).scatter_reduce(0, rows, distances, "amin")
    least = torch.finfo(dtype).tiny * vectors.shape[1] if slack else 0.0
    return distances > (smallest * (1 + slack) + least).index_select(0, rows)


def _distances(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared, from rows of the vectors to codes, (P,) each."""
    apart = vectors.index_select(0, rows).to(dtype).sub_(codebook.index_select(0, codes))
    return apart.square_().sum(dim=1)


def unsettled(vectors: Tensor) -> Tensor:
    """(R,) -1 for each: no code yet."""
    return torch.full((len(vectors),), -1, device=vectors.device)
