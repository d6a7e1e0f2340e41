"""Beam search over the codes of all levels.

Shapes: N vectors, D dimensions, K codes, Q levels, W beams.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Elements of one block of scores.
_BLOCK = 1 << 22


@torch.no_grad()
def beam_search(vectors: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    """Return indices (N, Q) of codes whose sum is close to each vector.

    At each level, each of the `width` best partial sums is extended by every code, and the `width` best results are
    kept (Babenko & Lempitsky 2014, "Additive Quantization for Extreme Vector Compression", 3.2; in a residual
    quantizer: Liu et al. 2015, "Improved Residual Vector Quantization"). A width of 1 is greedy search, up to ties.

    Args:
        vectors: (N, D).
        codebooks: (K, D) of each level.
        width: W, beam width.
    """
    largest = max(len(codes) for codes in codebooks)
    rows = max(1, _BLOCK // (width * max(largest, vectors.shape[1])))
    return torch.cat([_search_block(block, codebooks, width) for block in vectors.split(rows)])


def _search_block(vectors: Tensor, codebooks: Sequence[Tensor], width: int) -> Tensor:
    remainders = vectors[:, None]  # (N, W, D), residuals of the partial sums
    indices = torch.empty(*remainders.shape[:2], 0, dtype=torch.int64, device=vectors.device)
    for codes in codebooks:
        # |r - e|² = |r|² - 2 r·e + |e|², centred on the mean code to avoid cancellation far from the origin.
        centre = codes.mean(dim=0)
        near, about = remainders - centre, codes - centre
        scores = about.square().sum(dim=1) - 2 * near @ about.T
        scores = (scores + near.square().sum(dim=2, keepdim=True)).flatten(1)
        best = scores.topk(min(width, scores.shape[1]), dim=1, largest=False).indices
        beams, chosen = best // len(codes), best % len(codes)
        indices = indices.gather(1, beams[..., None].expand(-1, -1, indices.shape[2]))
        indices = torch.cat([indices, chosen[..., None]], dim=2)
        remainders = remainders.gather(1, beams[..., None].expand(-1, -1, vectors.shape[1])) - codes[chosen]
    # The final choice among the beams is made in float64.
    sums = torch.stack([codes[indices[..., level]].double() for level, codes in enumerate(codebooks)]).sum(dim=0)
    nearest = (vectors.double()[:, None] - sums).square().sum(dim=2).argmin(dim=1)
    return indices[torch.arange(len(indices), device=indices.device), nearest]
