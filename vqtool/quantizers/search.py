"""Nearest-code search, exact: the winner is settled in float64, so that block, thread or precision changes no token.

Shapes: N vectors, K codes, D dimensions.
"""

import torch
from torch import Tensor

from vqtool.quantizers.precision import full_precision

# Elements of one block of scores, and of one block of exact differences: what bounds the memory.
_BLOCK = 1 << 22


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The code with the smallest squared distance, summed in float64; among equals the lowest index.

    A matrix product finds, for each vector, the codes that lie within its own rounding error of the best; where these
    are several, their distances are computed again in float64 from the differences.

    Args:
        vectors: (N, D), any floating type.
        codebook: (K, D), on the same device.

    Returns:
        (N,) int64.

    Raises:
        ValueError: the shapes do not fit, or there is no code.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1]:
        raise ValueError(f"expected (N, D) vectors and (K, D) codes, got {_shape(vectors)} and {_shape(codebook)}")
    if 0 in codebook.shape:
        raise ValueError(f"the codebook is empty: {_shape(codebook)}")
    rows = max(1, _BLOCK // len(codebook))
    with torch.no_grad(), full_precision(vectors.device):
        return torch.cat([_nearest_in_block(block, codebook) for block in vectors.split(rows)])


def _nearest_in_block(vectors: Tensor, codebook: Tensor) -> Tensor:
    scores, error = _scores(vectors, codebook)
    best, indices = scores.min(dim=1)
    # Negated, so that a row with a NaN or an overflow keeps every code in the running.
    candidates = ~(scores > (best + 2 * error)[:, None])
    contested = candidates.sum(dim=1) != 1
    if contested.any():
        indices[contested] = _settle(vectors[contested], codebook, candidates[contested])
    return indices


def _scores(vectors: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """|e|²/2 - z·e, which orders codes as the distance does, and a bound (N,) on its rounding error.

    Distances are unchanged when both sides are shifted; about the mean code the terms are small, and so is the error.
    The bound is the textbook one for inner products, |fl(x·y) - x·y| <= D u |x||y| / (1 - D u) (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, eq. 3.5), with room for the shift and the other roundings.
    """
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    vectors, codebook = vectors.to(dtype), codebook.to(dtype)
    centre = codebook.mean(dim=0)
    vectors, codebook = vectors - centre, codebook - centre
    half_norms = codebook.square().sum(dim=1) / 2
    scores = torch.addmm(half_norms, vectors, codebook.T, alpha=-1)
    dim = codebook.shape[1]
    largest = (2 * half_norms.max()).sqrt()
    furthest = vectors.norm(dim=1) + largest
    # The float64 sums that settle a contest round, too: by eps of the distances, which can be far above the products.
    rounding = torch.finfo(dtype).eps * largest + torch.finfo(torch.float64).eps * furthest
    return scores, (dim + 8) * rounding * furthest + dim * torch.finfo(dtype).tiny


def _settle(vectors: Tensor, codebook: Tensor, candidates: Tensor) -> Tensor:
    """The exact nearest among `candidates` (N, K) bool, at least one a row."""
    if vectors.device.type == "mps":  # which has no float64
        return _settle(vectors.cpu(), codebook.cpu(), candidates.cpu()).to(vectors.device)
    rows, codes = candidates.nonzero(as_tuple=True)
    pairs = max(1, _BLOCK // vectors.shape[1])
    distances = torch.cat(
        [
            (vectors[row].double() - codebook[code].double()).square().sum(dim=1)
            for row, code in zip(rows.split(pairs), codes.split(pairs), strict=True)
        ]
    )
    smallest = distances.new_full((len(vectors),), torch.inf).scatter_reduce(0, rows, distances, "amin")
    # Where distances are NaN nothing is above the smallest, and the first code wins, as with argmin.
    winners = torch.where(distances > smallest[rows], len(codebook), codes)
    return codes.new_full((len(vectors),), len(codebook)).scatter_reduce(0, rows, winners, "amin")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
