"""Nearest-code search, exact: the winner is settled in float64, so that block, thread or precision changes no token.

Shapes: N vectors, K codes, D dimensions.
"""

import torch
from torch import Tensor

from vqtool.runtime.precision import full_precision
from vqtool.runtime.threads import map_rows, on_one_thread, useful_threads
from vqtool.search.bfloat16 import BfloatScores, multiplies_bfloat16
from vqtool.search.high_precision import HighPrecisionSearch
from vqtool.search.kernels import MAX_SMALL_DIM
from vqtool.search.scores import FullScores, Scores
from vqtool.search.small_dim import SmallDimSearch

# Vectors whose candidates are settled together, twice as many of few codes: they bound the memory.
_ROWS = 1 << 12
_FEW = 1 << 10
# With fewer products of numbers, what bfloat16 saves is lost again on making it ready.
_PRODUCTS = 1 << 21
# Codes that are scored in the time that a vector takes beside its scores.
_BESIDE = 1 << 9


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code of each vector.

    The nearest code has the smallest squared distance summed in float64; ties go to the lowest index. A fast search
    selects the codes within its rounding error of the best score. If there are several, their distances are recomputed
    in float64. The result does not depend on block size, number of threads or precision of the fast search.

    Args:
        vectors: (N, D), float64, float32, bfloat16 or float16.
        codebook: (K, D), same dtypes, on the same device.

    Returns:
        (N,) int64 indices.

    Raises:
        ValueError: the shapes do not match, or the codebook is empty.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"expected vectors (N, D) and codebook (K, D), got shapes {_shape(vectors)} and {_shape(codebook)}"
        )
    if 0 in codebook.shape:
        raise ValueError(f"codebook is empty: shape {_shape(codebook)}")
    return _operators.nearest_codes(vectors.detach(), codebook.detach())


def _nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    codes, device = codebook.to(dtype), vectors.device
    kind = _kind(vectors, codes)
    most = useful_threads(len(vectors) * (len(codes) + _BESIDE), codes.shape[1])
    with torch.no_grad(), full_precision(device):
        if not most:
            return _nearest(vectors, codes, kind(codes))
        if most == 1:
            return on_one_thread(lambda: _nearest(vectors, codes, kind(codes)), device)
        scores = on_one_thread(lambda: kind(codes), device)
        return torch.cat(map_rows(lambda rows: _nearest(vectors[rows], codes, scores), len(vectors), most, device))


def _kind(vectors: Tensor, codes: Tensor) -> type[Scores]:
    """The scores that are soonest made of so many vectors and codes."""
    if codes.dtype != torch.float32 or codes.device.type != "cpu":
        return FullScores
    if codes.shape[1] <= MAX_SMALL_DIM:
        return SmallDimSearch
    worth = vectors.numel() * len(codes) >= _PRODUCTS
    return BfloatScores if worth and multiplies_bfloat16() else FullScores


# An operator of its own, as a compiler is to take it: traced, the roundings that are accounted for may be left out.
_library = torch.library.Library("vqtool", "DEF")
_library.define("nearest_codes(Tensor vectors, Tensor codebook) -> Tensor")
_library.impl("nearest_codes", _nearest_codes, "CompositeExplicitAutograd")
_operators = torch.ops.vqtool
torch.library.register_fake(
    "vqtool::nearest_codes",
    lambda vectors, codebook: vectors.new_empty(len(vectors), dtype=torch.int64),
    lib=_library,
)


def _nearest(vectors: Tensor, codes: Tensor, scores: Scores) -> Tensor:
    """By scores that tell the codes around a vector apart: by finer ones where these do not, or by all distances."""
    found = [torch.empty(0, dtype=torch.int64, device=vectors.device)]
    finer, lost = None, False
    for block in vectors.split(2 * _ROWS if len(codes) <= _FEW else _ROWS):
        block = block.to(codes.dtype).contiguous()
        if finer and lost:
            found.append(finer.nearest(block))
            continue
        nearest = scores.nearest(block)
        left = (nearest < 0).nonzero().squeeze(1)
        if len(left):
            finer = finer or HighPrecisionSearch(codes, scores.coarse)
            nearest[left] = finer.nearest(block.index_select(0, left))
            lost = 2 * len(left) > len(block)  # most of this block's time
        found.append(nearest)
    return torch.cat(found)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
