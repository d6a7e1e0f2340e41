"""Beam search for the codes of a residual quantizer.

Shapes: N vectors, D dimensions, K codes, Q levels, W beams.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Maximum number of scores computed at a time, which bounds the memory.
_SCORES_PER_BLOCK = 1 << 22


@torch.no_grad()
def beam_search(
    vectors: Tensor, codebooks: Sequence[Tensor], beam_size: int, scores_per_block: int = _SCORES_PER_BLOCK
) -> Tensor:
    """Return the indices of one code per level whose sum is close to each vector.

        indices[n] approximates argmin over (k_1, ..., k_Q) of |z_n - sum over q of e_q[k_q]|²

    At each level, each of the W best partial sums is extended by every code, and the W best results are kept (Babenko &
    Lempitsky 2014, "Additive Quantization for Extreme Vector Compression", 3.2; in a residual quantizer: Liu et al.
    2015, "Improved Residual Vector Quantization"). With W = 1 it is greedy search, up to ties and rounding.

    Args:
        vectors: z (N, D).
        codebooks: e_q (K, D) of each level, in the dtype of the vectors; K may differ.
        beam_size: W, at least 1.
        scores_per_block: maximum number of scores computed at a time, but at least those of one vector.

    Returns:
        (N, Q) int64 indices. Partial sums are compared in the dtype of the vectors, the W final sums in float64.
    """
    largest = max(len(codes) for codes in codebooks)
    rows = max(1, scores_per_block // (beam_size * max(largest, vectors.shape[1])))
    return torch.cat([_search_block(block, codebooks, beam_size) for block in vectors.split(rows)])


def _search_block(vectors: Tensor, codebooks: Sequence[Tensor], beam_size: int) -> Tensor:
    """Return the result of `beam_search` for a block of vectors (n, D): indices (n, Q)."""
    residuals = vectors[:, None]  # (N, W, D), vector minus partial sum
    indices = torch.empty(*residuals.shape[:2], 0, dtype=torch.int64, device=vectors.device)
    for codes in codebooks:
        # |r - e|² = |r|² - 2 r·e + |e|², relative to the mean code to avoid cancellation far from the origin.
        centre = codes.mean(dim=0)
        r, e = residuals - centre, codes - centre
        scores = e.square().sum(dim=1) - 2 * r @ e.T
        scores = (scores + r.square().sum(dim=2, keepdim=True)).flatten(1)
        best = scores.topk(min(beam_size, scores.shape[1]), dim=1, largest=False).indices
        beams, best_codes = best // len(codes), best % len(codes)
        indices = indices.gather(1, beams[..., None].expand(-1, -1, indices.shape[2]))
        indices = torch.cat([indices, best_codes[..., None]], dim=2)
        residuals = residuals.gather(1, beams[..., None].expand(-1, -1, vectors.shape[1])) - codes[best_codes]
    sums = torch.stack([codes[indices[..., level]].double() for level, codes in enumerate(codebooks)]).sum(dim=0)
    nearest = (vectors.double()[:, None] - sums).square().sum(dim=2).argmin(dim=1)
    return indices[torch.arange(len(indices), device=indices.device), nearest]
