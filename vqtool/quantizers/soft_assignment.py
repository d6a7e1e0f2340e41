"""Soft assignments of vectors to codes, summed, and their gradient, without the N x K matrix of them.

Blocks of rows are walked once forward, for the sums, and once backward, where the assignments are computed again with
the gradients of the sums at hand. So memory is bounded by the block. (Recomputing instead of keeping is how
FlashAttention does without its matrix: Dao et al. 2022, 3.1.)

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

from vqtool.quantizers.precision import full_precision
from vqtool.threads import over_rows

# Assignments of one block, and codes of one tile of it: what the caches hold, and what bounds the memory.
_BLOCK = 1 << 21
_TILE = 1 << 11
# Products of numbers that are worth another thread.
_THREAD = 1 << 22


class SoftSums(NamedTuple):
    """Sums over vectors of their soft assignments s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""

    assignment: Tensor
    """(K,) s summed over the vectors."""
    entropy: Tensor
    """() the entropy of each row of s, in nats, summed over the vectors; 0 where it was not asked for."""


def soft_sums(vectors: Tensor, codebook: Tensor, temperature: float | Tensor, entropy: bool) -> SoftSums:
    """Sums of the soft assignments of vectors to codes; gradients reach both.

    Args:
        vectors: (N, D).
        codebook: (K, D), of the same type.
        temperature: in squared units of the vectors; no gradient reaches it.
        entropy: whether to sum the entropies of the rows, too.
    """
    return SoftSums(*_SoftSums.apply(vectors, codebook, temperature, entropy))


class _SoftSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, codebook: Tensor, temperature: float | Tensor, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        factors = _Factors.of(vectors, codebook, temperature)
        norms = vectors.new_empty(len(vectors))
        with full_precision(vectors.device):
            parts = over_rows(lambda rows: _sums(factors, rows, entropy, norms), *factors.work)
        ctx.save_for_backward(*factors, norms)
        ctx.entropy = entropy
        assignments, entropies = zip(*parts, strict=True)
        assignment = torch.stack(assignments).sum(dim=0).view(-1)[: len(codebook)]
        return assignment.to(vectors.dtype), torch.stack(entropies).sum().to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, assignment: Tensor, entropy: Tensor) -> tuple[Tensor | None, ...]:
        *saved, norms = ctx.saved_tensors
        factors = _Factors(*saved)
        of_vectors = factors.vectors.new_empty(factors.vectors.shape)
        values, weight = factors.in_tiles(assignment), entropy if ctx.entropy else None
        with full_precision(assignment.device):
            parts = over_rows(lambda rows: _gradients(factors, rows, norms, values, weight, of_vectors), *factors.work)
        return of_vectors, factors.gradient_of_codes(reduce(Tensor.add_, parts))[: len(assignment)], None, None


class _Factors(NamedTuple):
    """What logits are made of: those of a row need only be right but for what all codes of it share.

    |z|² is the same for all codes and falls out of the softmax, as does a shift of both sides. Without them nothing
    cancels where vectors lie far from the origin. Logits are in bits, since 2^x is found faster than e^x.
    """

    vectors: Tensor
    """(N, D)"""
    columns: Tensor
    """(T, D + 2, C) tiles of C codes about their mean, a row of -|e|² / temperature in bits, and one of ones."""
    centre: Tensor
    """(D,) that mean."""
    scale: Tensor
    """() 2 / temperature, in bits."""

    @classmethod
    def of(cls, vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> "_Factors":
        centre = codebook.mean(dim=0)
        codes = codebook - centre
        scale = 2 / math.log(2) / torch.as_tensor(temperature, dtype=codes.dtype, device=codes.device)
        last = codes.square().sum(dim=1, keepdim=True) * (-scale / 2)
        columns = torch.cat([codes, last, torch.ones_like(last)], dim=1)
        tiles = -(-len(codes) // _TILE)
        padding = -len(codes) % tiles
        columns = F.pad(columns, (0, 0, 0, padding))
        columns[len(codes) :, -2] = -torch.finfo(codes.dtype).max  # which 2 to the power of is nothing
        return cls(vectors, columns.view(tiles, -1, columns.shape[1]).mT.contiguous(), centre, scale)

    @property
    def work(self) -> tuple[int, int, torch.device]:
        """For `over_rows`."""
        return len(self.vectors), self.vectors.numel() * self._codes // _THREAD, self.vectors.device

    @property
    def _codes(self) -> int:
        return self.columns.shape[0] * self.columns.shape[2]

    def in_tiles(self, values: Tensor) -> Tensor:
        """Values (K,) of codes as (T, C)."""
        return F.pad(values, (0, self._codes - len(values))).view(len(self.columns), -1)

    def blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Blocks of rows, as (R, D + 2) with two columns of ones; and room (T, R, C), which the next takes again."""
        count = max(1, min(_BLOCK // self._codes, rows.stop - rows.start))
        room = self.vectors.new_empty(len(self.columns) * count * self.columns.shape[2])
        for start in range(rows.start, rows.stop, count):
            part = slice(start, min(start + count, rows.stop))
            block = F.pad((self.vectors[part] - self.centre) * self.scale, (0, 2), value=1.0)
            shape = len(self.columns), len(block), self.columns.shape[2]
            yield part, block, room[: math.prod(shape)].view(shape)

    def gradient_of_codes(self, sums: Tensor) -> Tensor:
        """(K, D), of logit gradients summed with the blocks as weights (T, D + 1, C)."""
        dim = self.vectors.shape[1]
        of_tiles = sums[:, :dim] * math.log(2) - sums[:, dim:] * (self.scale * math.log(2)) * self.columns[:, :dim]
        return of_tiles.mT.reshape(-1, dim)


def _sums(factors: _Factors, rows: slice, entropy: bool, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Sums (T, C) of assignments and () of entropies; fill in the norms (N,), log2 of a row's sum of 2^logit."""
    assignment = factors.vectors.new_zeros(factors.columns.shape[::2], dtype=torch.float64)
    entropies = factors.vectors.new_zeros((), dtype=torch.float64)
    for part, block, soft in factors.blocks(rows):
        for tile, columns in zip(soft, factors.columns, strict=True):
            torch.mm(block[:, :-1], columns[:-1], out=tile)
        most = soft.amax(dim=(0, 2))
        sums, products = torch.zeros_like(most), torch.zeros_like(most)
        for tile in soft:
            tile.sub_(most[:, None]).exp2_()
            sums += tile.sum(dim=1)
            if entropy:
                products += torch.xlogy(tile, tile).sum(dim=1)
        shares = 1 / sums
        for total, tile in zip(assignment, soft, strict=True):
            total += shares @ tile
        norms[part] = most + sums.log2()
        if entropy:
            entropies += (sums.log() - products * shares).sum()
    return assignment, entropies


def _gradients(
    factors: _Factors, rows: slice, norms: Tensor, assignment: Tensor, entropy: Tensor | None, of_vectors: Tensor
) -> Tensor:
    """Fill in the gradients `of_vectors` (N, D); logit gradients summed with the blocks as weights (T, D + 1, C)."""
    codes = factors.columns[:, : factors.vectors.shape[1]].mT * (factors.scale * math.log(2))
    of_codes = torch.zeros_like(factors.columns[:, :-1])
    # The softmax passes v on as s (v - sum s v). Of the sums v is their gradient; of the entropy -ln s.
    for part, block, soft in factors.blocks(rows):
        block[:, -1] = -norms[part]
        sums, inner = block.new_zeros(2, len(block), 1)
        for tile, columns, values in zip(soft, factors.columns, assignment[:, :, None], strict=True):
            torch.mm(block, columns, out=tile).exp2_()
            sums += tile.sum(dim=1, keepdim=True)
            inner += tile @ values
            if entropy is not None:
                inner -= entropy * torch.xlogy(tile, tile).sum(dim=1, keepdim=True)
        # Logits are rounded by their own size, so that the assignments of a row may add up to a little more than 1.
        centre = inner / sums
        weights, mine, of_logits = (block[:, :-1] / sums).T, of_vectors[part].zero_(), torch.empty_like(soft[0])
        for tile, columns, values, of_tile in zip(soft, codes, assignment, of_codes, strict=True):
            torch.sub(values, centre, out=of_logits).mul_(tile)
            if entropy is not None:
                of_logits -= entropy * torch.xlogy(tile, tile)
            mine.addmm_(of_logits, columns)
            of_tile.addmm_(weights, of_logits)
        mine.div_(sums)
    return of_codes
