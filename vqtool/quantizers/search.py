"""Nearest-code search, exact: the winner is settled in float64, so that block, thread or precision changes no token.

Shapes: N vectors, R of a block, K codes, D dimensions, P candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.quantizers.distinct import distinct_rows
from vqtool.quantizers.precision import full_precision
from vqtool.quantizers.scores import BfloatScores, FullScores, Scores, multiplies_bfloat16, places
from vqtool.threads import alone, over_rows

# Vectors whose candidates are settled together, twice as many of few codes; and numbers of one block of exact
# differences, of which there are less than twice as many: they bound the memory.
_ROWS = 1 << 12
_FEW = 1 << 10
_BLOCK = 1 << 19
# Of no more codes than these, what bfloat16 saves is lost again on the candidates that it adds.
WORTH = 128
# Codes further from the middle than so many times what half of them are within are far.
_FAR = 8.0
# Products of numbers that are worth another thread.
_THREAD = 1 << 22


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The code with the smallest squared distance, summed in float64; among equals the lowest index.

    A matrix product finds, for each vector, the codes that lie within its own rounding error of the best; where these
    are several, their distances are computed again in float64 from the differences.

    Args:
        vectors: (N, D), float64, float32, bfloat16 or float16.
        codebook: (K, D), likewise, on the same device.

    Returns:
        (N,) int64.

    Raises:
        ValueError: the shapes do not fit, or there is no code.
    """
    if vectors.ndim != 2 or codebook.ndim != 2 or vectors.shape[1] != codebook.shape[1]:
        raise ValueError(f"expected (N, D) vectors and (K, D) codes, got {_shape(vectors)} and {_shape(codebook)}")
    if 0 in codebook.shape:
        raise ValueError(f"the codebook is empty: {_shape(codebook)}")
    return _operators.nearest_codes(vectors.detach(), codebook.detach())


def _nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    codes = codebook.to(dtype)
    with torch.no_grad(), full_precision(vectors.device):
        fast = dtype == torch.float32 and vectors.device.type == "cpu" and len(codes) > WORTH and multiplies_bfloat16()
        most = vectors.numel() * len(codes) // _THREAD
        scores = alone(lambda: BfloatScores(codes) if fast else FullScores(codes), most, vectors.device)
        return torch.cat(
            over_rows(lambda rows: _nearest(vectors[rows], codes, scores), len(vectors), most, vectors.device)
        )


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
        block = block.to(codes.dtype)
        if finer and lost:
            found.append(finer.nearest(block))
            continue
        nearest = _settle(block, codes, *scores.candidates(block))
        left = places(nearest < 0)
        if len(left):
            finer = finer or _Finer(codes, scores.coarse)
            nearest[left] = finer.nearest(block.index_select(0, left))
            lost = 2 * len(left) > len(block)  # most of this block's time
        found.append(nearest)
    return torch.cat(found)


class _Finer:
    """Search for vectors that have a crowd of candidates: among codes that differ, by scores of more and more digits.

    Args:
        codebook: (K, D), any of which may equal an earlier one.
        again: whether scores in the type of the codes can tell more apart than those that did not.
    """

    def __init__(self, codebook: Tensor, again: bool) -> None:
        self._places = distinct_rows(codebook)[0]
        self._codes = codebook.index_select(0, self._places)
        again = again or len(self._codes) < len(codebook)
        self._kinds = dict.fromkeys([codebook.dtype, torch.float64] if again else [torch.float64])
        self._scores: dict[torch.dtype, FullScores] = {}
        self._without_far = _WithoutFar.of(self._codes)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The exact nearest (R,); the first code where a vector or a code is not a number, or a vector not finite."""
        nearest = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
        if self._codes.isnan().any():
            return nearest
        rows = places(vectors.isfinite().all(dim=1))
        nearest[rows] = self._places.index_select(0, self._nearest(vectors.index_select(0, rows)))
        return nearest

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Places among the codes that differ, of finite vectors."""
        nearest = self._without_far.nearest(vectors) if self._without_far else _none(vectors)
        for kind in self._kinds:
            left = places(nearest < 0)
            if len(left):
                part, codes = vectors.index_select(0, left).to(kind), self._codes.to(kind)
                if kind not in self._scores:
                    self._scores[kind] = FullScores(codes)
                nearest[left] = _settle(part, codes, *self._scores[kind].candidates(part))
        left = places(nearest < 0)
        if len(left):
            part = vectors.index_select(0, left)
            first, which = distinct_rows(part)  # what pads a chunk is one vector, many times
            nearest[left] = _exhaustive(part.index_select(0, first), self._codes).index_select(0, which)
        return nearest


class _WithoutFar(NamedTuple):
    """Search among codes without some that are so far from them that the error of their scores hides all others.

    By the triangle inequality the nearest code of a vector is not one of these, if it is nearer to the rest than that
    half of the gap between the two.
    """

    finer: _Finer
    """Among the codes that are left."""
    places: Tensor
    """Theirs, ascending."""
    centre: Tensor
    """(D,) in float64."""
    reach: Tensor
    """() how far from the centre vectors may be."""

    @classmethod
    def of(cls, codes: Tensor) -> "_WithoutFar | None":
        """None where no code (K, D) is far from the others."""
        centre = codes.double().nanmedian(dim=0).values
        norms = (codes - centre).norm(dim=1)
        far = ~(norms <= _FAR * norms.nanmedian())
        left = places(~far)
        if not len(left) or len(left) == len(codes):
            return None
        # Norms beyond this may have overflown, and are larger than they seem.
        gap = norms[far].nan_to_num(torch.inf).min().clamp_max(1e150) - norms.index_select(0, left).max()
        return cls(_Finer(codes.index_select(0, left), again=True), left, centre, 0.49 * gap)

    def nearest(self, vectors: Tensor) -> Tensor:
        """The exact nearest (R,); -1 where it may be one of those that are far."""
        nearest = _none(vectors)
        rows = places((vectors - self.centre).norm(dim=1) < self.reach)
        nearest[rows] = self.places.index_select(0, self.finer.nearest(vectors.index_select(0, rows)))
        return nearest


def _none(vectors: Tensor) -> Tensor:
    """(R,) -1 for each: no code yet."""
    return torch.full((len(vectors),), -1, device=vectors.device)


def _exhaustive(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The exact nearest (R,) by every distance in float64."""
    codes = codebook.cpu().double()
    nearest = torch.zeros(len(vectors), dtype=torch.int64, device="cpu")
    for row, vector in enumerate(vectors.cpu().double()):
        distances = (vector - codes).square_().sum(dim=1)
        nearest[row] = (~(distances > distances.min())).nonzero()[0, 0]
    return nearest.to(vectors.device)


def _settle(vectors: Tensor, codebook: Tensor, rows: Tensor, codes: Tensor) -> Tensor:
    """The exact nearest (R,) of the candidates, `rows` and `codes` (P,); -1 for a row without one."""
    nearest = _none(vectors).scatter_(0, rows, codes)
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


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
