"""Exact nearest-code search.

    indices[n] = argmin over k of sum over d of (z[n,d] - e[k,d])², summed in float64; ties go to the lowest index

`nearest_codes` computes this faster than the formula: a backend scores all codes with rounding errors of known bound,
keeps the codes that may be the nearest within these errors, and re-ranks them by the formula.

    backends.py        SameDtypeSearch: scores from a matrix product in float32, or in float64 for float64 inputs
                       Bfloat16Search: the same in bfloat16, for float32 on processors with instructions for it
                       SmallDimSearch: scores in registers, for float32 and few dimensions
    high_precision.py  HighPrecisionSearch: vectors that the backends leave unresolved
    rerank.py          exact re-ranking on any device
    kernels.py         compiled loops for a CPU: minima, candidates, exact re-ranking

Shapes: N vectors, K codes, D dimensions.
"""

import torch
from torch import Tensor

from vqtool.runtime.precision import full_precision
from vqtool.runtime.threads import map_rows, on_one_thread, useful_threads
from vqtool.search.backends import Bfloat16Search, SameDtypeSearch, ScoreSearch, SmallDimSearch, has_bfloat16_matmul
from vqtool.search.high_precision import HighPrecisionSearch
from vqtool.search.kernels import MAX_SMALL_DIM

# Vectors searched at a time, which bounds the memory; twice this number for codebooks of at most _FEW_CODES codes.
_ROWS_PER_BLOCK = 1 << 12
_FEW_CODES = 1 << 10
# With fewer multiplications (N·K·D) than this, bfloat16 saves less time than rounding to it takes.
_BFLOAT16_MIN_PRODUCTS = 1 << 21
# Work per vector besides its K scores, as the number of scores that take the same time.
_OVERHEAD_PER_VECTOR = 1 << 9


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the nearest code of each vector.

    The nearest code has the smallest squared distance summed in float64; ties go to the lowest index. A fast search
    selects the codes within its rounding error of the best score. If there are several, their distances are recomputed
    in float64. The result does not depend on block size, number of threads or precision of the fast search. The index
    is 0 for a vector with a NaN or infinite element, and for all vectors if a code contains NaN.

    Args:
        vectors: (N, D), float64, float32, bfloat16 or float16; N may be 0.
        codebook: (K, D), of any of these dtypes, on the device of the vectors.

    Returns:
        (N,) int64 indices.

    Raises:
        ValueError: the shapes do not match, or the codebook is empty.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"expected vectors (N, D) and codebook (K, D), got shapes {tuple(vectors.shape)} and "
            f"{tuple(codebook.shape)}"
        )
    if 0 in codebook.shape:
        raise ValueError(f"codebook is empty: shape {tuple(codebook.shape)}")
    return _operators.nearest_codes(vectors.detach(), codebook.detach())


def _nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Implementation of the operator; the arguments are those of `nearest_codes`, already checked."""
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    codes, device = codebook.to(dtype), vectors.device
    backend = select_backend(vectors, codes)
    threads = useful_threads(len(vectors) * (len(codes) + _OVERHEAD_PER_VECTOR), codes.shape[1])
    with torch.no_grad(), full_precision(device):
        if not threads:
            return search_in_blocks(vectors, codes, backend(codes))
        if threads == 1:
            return on_one_thread(lambda: search_in_blocks(vectors, codes, backend(codes)), device)
        search = on_one_thread(lambda: backend(codes), device)
        return torch.cat(
            map_rows(lambda rows: search_in_blocks(vectors[rows], codes, search), len(vectors), threads, device)
        )


def select_backend(
    vectors: Tensor, codes: Tensor, bfloat16_min_products: int = _BFLOAT16_MIN_PRODUCTS
) -> type[ScoreSearch]:
    """Return the class of the fastest backend for these sizes, the dtype of `codes` (at least float32) and the device.

    Args:
        vectors: (N, D).
        codes: (K, D).
        bfloat16_min_products: smallest N·K·D for which `Bfloat16Search` is chosen.
    """
    if codes.dtype != torch.float32 or codes.device.type != "cpu":
        return SameDtypeSearch
    if codes.shape[1] <= MAX_SMALL_DIM:
        return SmallDimSearch
    if vectors.numel() * len(codes) >= bfloat16_min_products and has_bfloat16_matmul():
        return Bfloat16Search
    return SameDtypeSearch


# A custom operator, so that torch.compile does not trace into it: compiled code may round differently, and the error
# bounds would not hold.
_library = torch.library.Library("vqtool", "DEF")
_library.define("nearest_codes(Tensor vectors, Tensor codebook) -> Tensor")
_library.impl("nearest_codes", _nearest_codes, "CompositeExplicitAutograd")
_operators = torch.ops.vqtool
torch.library.register_fake(
    "vqtool::nearest_codes",
    lambda vectors, codebook: vectors.new_empty(len(vectors), dtype=torch.int64),
    lib=_library,
)


def search_in_blocks(
    vectors: Tensor, codes: Tensor, search: ScoreSearch, rows_per_block: int = _ROWS_PER_BLOCK
) -> Tensor:
    """Return the index (N,) of the nearest code: from `search`, and from `HighPrecisionSearch` where that returns -1.

    Once `search` has returned -1 for more than half of a block, it is skipped for all following blocks.

    Args:
        vectors: (N, D), any dtype; each block is converted to the dtype of `codes`.
        codes: (K, D) float32 or float64.
        search: search in `codes`.
        rows_per_block: vectors per block; doubled if K <= `_FEW_CODES`.
    """
    indices = [torch.empty(0, dtype=torch.int64, device=vectors.device)]
    high_precision, skip_search = None, False
    for block in vectors.split(2 * rows_per_block if len(codes) <= _FEW_CODES else rows_per_block):
        block = block.to(codes.dtype).contiguous()
        if high_precision and skip_search:
            indices.append(high_precision.nearest(block))
            continue
        nearest = search.nearest(block)
        unresolved = (nearest < 0).nonzero().squeeze(1)
        if len(unresolved):
            high_precision = high_precision or HighPrecisionSearch(codes, search.is_low_precision)
            nearest[unresolved] = high_precision.nearest(block.index_select(0, unresolved))
            skip_search = 2 * len(unresolved) > len(block)
        indices.append(nearest)
    return torch.cat(indices)
