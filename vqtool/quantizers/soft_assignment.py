"""Soft assignments of vectors to codes, summed, and their gradient, without the N x K matrix of them.

Blocks of rows are walked once forward, for the sums, and once backward, where the assignments are computed again with
the gradients of the sums at hand, and with what scales each row. So memory is bounded by the block, two numbers a row,
and each thread's own sum for the codes' gradient. (Recomputing instead of keeping is how FlashAttention does without
its matrix: Dao et al. 2022, 3.1.)

Shapes: N vectors, R of a block, K codes, D dimensions.
"""

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtool.quantizers.precision import flushing_denormals, full_precision
from vqtool.threads import alone, over_rows, worth_threads

# Assignments of one block, which a cache holds; of more codes, as many rows as make a block worth its calls, but no
# more assignments than that. Codes of one tile of it.
_BLOCK = 1 << 19
_ROWS = 1 << 8
_MOST = 1 << 21
_TILE = 1 << 11


class SoftSums(NamedTuple):
    """Sums over vectors of their soft assignments s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""

    assignment: Tensor
    """(K,) s summed over the vectors."""
    entropy: Tensor
    """() the entropy of each row of s, in nats, summed over the vectors; 0 where it was not asked for."""


def soft_sums(vectors: Tensor, codebook: Tensor, temperature: float | Tensor, entropy: bool) -> SoftSums:
    """Sums of the soft assignments of vectors to codes; gradients reach both.

    Args:
        vectors: (N, D), float64, float32, bfloat16 or float16.
        codebook: (K, D), likewise. What is less than float32 is computed, and returned, in that.
        temperature: in squared units of the vectors; no gradient reaches it.
        entropy: whether to sum the entropies of the rows, too.
    """
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    return SoftSums(*_SoftSums.apply(vectors.to(dtype), codebook.to(dtype), temperature, entropy))


class _SoftSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, codebook: Tensor, temperature: float | Tensor, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        with full_precision(vectors.device):
            factors = alone(lambda: _Factors.of(vectors, codebook, temperature), vectors.device)
            parts = over_rows(lambda rows: _sums(factors, rows, entropy), *factors.work)
        ctx.save_for_backward(*factors)
        ctx.entropy = entropy
        assignments, entropies = zip(*parts, strict=True)
        assignment = torch.stack(assignments).sum(dim=0).view(-1)[: len(codebook)]
        return assignment.to(vectors.dtype), torch.stack(entropies).sum().to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, assignment: Tensor, entropy: Tensor) -> tuple[Tensor | None, ...]:
        factors = _Factors(*ctx.saved_tensors)
        of_vectors = factors.vectors.new_empty(factors.vectors.shape)
        values, weight = factors.in_tiles(assignment), entropy if ctx.entropy else None
        learned = ctx.needs_input_grad[1]  # codes that are buffers are not
        with full_precision(assignment.device):
            parts = over_rows(
                lambda rows: _gradients(factors, rows, values, weight, of_vectors, learned), *factors.work
            )
        if not learned:
            return of_vectors, None, None, None
        of_codes = alone(lambda: factors.gradient_of_codes(reduce(Tensor.add_, parts)), assignment.device)
        return of_vectors, of_codes[: len(assignment)], None, None


class _Factors(NamedTuple):
    """What logits are made of: those of a row need only be right but for what all codes of it share.

    |z|² is the same for all codes and falls out of the softmax, as does a shift of both sides. Without them nothing
    cancels where all vectors lie far from the origin, nor, about a code that is near them, where other codes lie far
    from them. Logits are in bits, since 2^x is found faster than e^x.
    """

    vectors: Tensor
    """(N, D)"""
    columns: Tensor
    """(T, D + 1, C) tiles of C codes about the centre, scaled, and a row of -|e|² / 2 of what that gives."""
    centre: Tensor
    """(D,) the code that is nearest to the mean vector."""
    scale: Tensor
    """() the square root of 2 / temperature, in bits. On both sides of a product, that is neither huge nor tiny."""
    most: Tensor
    """(N, 1) the greatest logit of each row; found on the way there, and kept for the way back."""
    sums: Tensor
    """(N, 1) what 2 to the power of the logits less the greatest adds up to; likewise."""

    @classmethod
    def of(cls, vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> "_Factors":
        """All but `most` and `sums`, for which there is room."""
        middle = (codebook - vectors.mean(dim=0)).square().sum(dim=1).argmin(dim=0, keepdim=True)
        centre = codebook.index_select(0, middle).squeeze(0)
        if isinstance(temperature, Tensor):
            scale = (2 / math.log(2) / temperature.to(codebook)).sqrt()
        else:  # a new tensor of one number, unlike a copy, waits for no device
            scale = codebook.new_full((), math.sqrt(2 / math.log(2)) / math.sqrt(temperature))
        codes = (codebook - centre) * scale
        last = codes.square().sum(dim=1, keepdim=True) / -2
        tiles = -(-len(codes) // _TILE)
        columns = F.pad(torch.cat([codes, last], dim=1), (0, 0, 0, -len(codes) % tiles))
        columns[len(codes) :, -1] = -torch.finfo(codes.dtype).max  # which 2 to the power of is nothing
        columns = columns.view(tiles, -1, columns.shape[1]).mT.contiguous()
        return cls(vectors, columns, centre, scale, *vectors.new_empty(2, len(vectors), 1))

    @property
    def work(self) -> tuple[int, int, torch.device]:
        """For `over_rows`. A soft assignment is as much worth another thread as two scores.

        However few they are, a thread of ours makes them: PyTorch's own do not flush denormals.
        """
        rows, dim = self.vectors.shape
        return rows, worth_threads(2 * rows * self._codes, dim), self.vectors.device

    @property
    def _codes(self) -> int:
        return self.columns.shape[0] * self.columns.shape[2]

    def in_tiles(self, values: Tensor) -> Tensor:
        """Values (K,) of codes as (T, C)."""
        return F.pad(values, (0, self._codes - len(values))).view(len(self.columns), -1)

    def blocks(self, rows: slice, tiles: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of rows, as (R, D + 1) with a column of ones, and room (tiles, R, C) for what is made of them.

        The room of a block is taken again by the next.
        """
        width = self.columns.shape[2]
        count = max(1, _BLOCK // self._codes, min(_ROWS, _MOST // self._codes))
        room = self.vectors.new_empty(tiles * min(count, rows.stop - rows.start) * width)
        for start in range(rows.start, rows.stop, count):
            part = slice(start, min(start + count, rows.stop))
            with flushing_denormals(False):  # of tiny vectors the differences may be, which are scaled up
                block = F.pad((self.vectors[part] - self.centre) * self.scale, (0, 1), value=1.0)
            yield part, block, room[: tiles * len(block) * width].view(tiles, len(block), width)

    def gradient_of_codes(self, sums: Tensor) -> Tensor:
        """(K, D), of logit gradients summed with the blocks as weights (T, D + 1, C)."""
        dim = self.vectors.shape[1]
        of_tiles = torch.addcmul(sums[:, :dim], sums[:, dim:], self.columns[:, :dim], value=-1)
        return of_tiles.mul_(self.scale * math.log(2)).mT.reshape(-1, dim)


@flushing_denormals(True)
def _sums(factors: _Factors, rows: slice, entropy: bool) -> tuple[Tensor, Tensor]:
    """Sums (T, C) of the assignments, and () of the entropies where these are asked for; note what scales each row."""
    assignment = factors.vectors.new_zeros(factors.columns.shape[::2], dtype=torch.float64)
    entropies = factors.vectors.new_zeros((), dtype=torch.float64)
    for part, block, powers in factors.blocks(rows, len(factors.columns)):
        tops = [
            torch.mm(block, columns, out=tile).amax(dim=1)
            for tile, columns in zip(powers, factors.columns, strict=True)
        ]
        most = torch.stack(tops, dim=1).amax(dim=1, keepdim=True)
        each = [tile.sub_(most).exp2_().sum(dim=1) for tile in powers]
        sums = torch.stack(each, dim=1).sum(dim=1)
        factors.most[part], factors.sums[part] = most, sums[:, None]
        shares = 1 / sums
        if entropy:
            entropies += sums.log().sum()
        for total, tile in zip(assignment, powers, strict=True):
            total += shares @ tile
            if entropy:
                entropies -= shares @ torch.xlogy(tile, tile).sum(dim=1)
    return assignment, entropies


@flushing_denormals(True)
def _gradients(
    factors: _Factors,
    rows: slice,
    assignment: Tensor,
    entropy: Tensor | None,
    of_vectors: Tensor,
    learned: bool,
) -> Tensor:
    """Fill in the gradients `of_vectors` (N, D); logit gradients summed with the blocks as weights (T, D + 1, C), or
    zeros where codes are not learned.
    """
    of_codes = torch.zeros_like(factors.columns)
    for part, block, room in factors.blocks(rows, len(factors.columns) + 1):
        powers, of_logits = room[:-1], room[-1]
        most, sums = factors.most[part], factors.sums[part]
        # The softmax passes v on as s (v - sum s v). Of the sums v is their gradient; of the entropy -ln s.
        inner = torch.zeros_like(sums)
        for tile, columns, values in zip(powers, factors.columns, assignment[:, :, None], strict=True):
            torch.mm(block, columns, out=tile).sub_(most).exp2_()
            inner += tile @ values
            if entropy is not None:
                inner -= entropy * torch.xlogy(tile, tile).sum(dim=1, keepdim=True)
        inner /= sums
        weights, mine = (block / sums).T, of_vectors[part].zero_()
        for tile, columns, values, of_tile in zip(powers, factors.columns, assignment, of_codes, strict=True):
            torch.sub(values, inner, out=of_logits).mul_(tile)
            if entropy is not None:
                of_logits -= entropy * torch.xlogy(tile, tile)
            mine.addmm_(of_logits, columns[:-1].T)
            if learned:
                of_tile.addmm_(weights, of_logits)
        mine.div_(sums).mul_(factors.scale * math.log(2))
    return of_codes
