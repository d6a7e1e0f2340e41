"""Soft assignments of vectors to codes, summed, and their gradient, without the N x K matrix of them.

Blocks of rows are walked once forward, for the sums, and once backward, where the assignments are computed again with
the gradients of the sums at hand. So memory is bounded by the block. (Recomputing instead of keeping is how
FlashAttention does without its matrix: Dao et al. 2022, 3.1.)

Shapes: N vectors, R of a block, K codes, D dimensions.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vqtool.quantizers.precision import full_precision
from vqtool.threads import over_rows

# Assignments of one block: what a cache holds, and what bounds the memory.
_BLOCK = 1 << 20
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
        with full_precision(vectors.device):
            parts = over_rows(lambda rows: _sums(factors, rows, entropy), *factors.work)
        ctx.save_for_backward(*factors)
        ctx.entropy = entropy
        assignments, entropies = zip(*parts, strict=True)
        return torch.stack(assignments).sum(dim=0).to(vectors.dtype), torch.stack(entropies).sum().to(vectors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, assignment: Tensor, entropy: Tensor) -> tuple[Tensor | None, ...]:
        factors = _Factors(*ctx.saved_tensors)
        of_vectors = torch.empty_like(factors.vectors)
        weight = entropy if ctx.entropy else None
        with full_precision(assignment.device):
            parts = over_rows(lambda rows: _gradients(factors, rows, assignment, weight, of_vectors), *factors.work)
        return of_vectors, factors.gradient_of_codes(reduce(Tensor.add_, parts)), None, None


class _Factors(NamedTuple):
    """What logits are made of: those of a row need only be right but for what all codes of it share.

    |z|² is the same for all codes and falls out of the softmax, as does a shift of both sides. Without them nothing
    cancels where vectors lie far from the origin.
    """

    vectors: Tensor
    """(N, D)"""
    columns: Tensor
    """(K, D + 1) codes about their mean, and a column of -|e|² / temperature."""
    centre: Tensor
    """(D,) that mean."""
    scale: Tensor
    """() 2 / temperature."""

    @classmethod
    def of(cls, vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> "_Factors":
        centre = codebook.mean(dim=0)
        codes = codebook - centre
        scale = 2 / torch.as_tensor(temperature, dtype=codes.dtype, device=codes.device)
        return cls(
            vectors, torch.cat([codes, codes.square().sum(dim=1, keepdim=True) * (-scale / 2)], dim=1), centre, scale
        )

    @property
    def work(self) -> tuple[int, int, torch.device]:
        """For `over_rows`."""
        return len(self.vectors), self.vectors.numel() * len(self.columns) // _THREAD, self.vectors.device

    def blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Blocks of rows, as (R, D + 1) with a column of ones; their logits and soft assignments (R, K).

        The last two are in memory that the next block takes again.
        """
        count = max(1, _BLOCK // len(self.columns))
        logits, soft = self.vectors.new_empty(2, min(count, rows.stop - rows.start), len(self.columns))
        for start in range(rows.start, rows.stop, count):
            part = slice(start, min(start + count, rows.stop))
            block = F.pad((self.vectors[part] - self.centre) * self.scale, (0, 1), value=1.0)
            of_block = torch.mm(block, self.columns.T, out=logits[: len(block)])
            yield part, block, of_block, torch.softmax(of_block, dim=1, out=soft[: len(block)])

    def gradient_of_codes(self, sums: Tensor) -> Tensor:
        """(K, D), of logit gradients summed with the blocks as weights (D + 1, K)."""
        return sums[:-1].T - sums[-1][:, None] * self.scale * self.columns[:, :-1]


def _sums(factors: _Factors, rows: slice, entropy: bool) -> tuple[Tensor, Tensor]:
    assignment = factors.vectors.new_zeros(len(factors.columns), dtype=torch.float64)
    entropies = factors.vectors.new_zeros((), dtype=torch.float64)
    for _, block, logits, soft in factors.blocks(rows):
        assignment += block[:, -1] @ soft  # the ones: a product sums columns faster than a sum does
        if entropy:
            entropies -= torch.linalg.vecdot(soft, _logarithms(logits, soft)).sum()
    return assignment, entropies


def _gradients(
    factors: _Factors, rows: slice, assignment: Tensor, entropy: Tensor | None, of_vectors: Tensor
) -> Tensor:
    """Fill in the gradients `of_vectors` (N, D); logit gradients summed with the blocks as weights (D + 1, K)."""
    codes = factors.columns[:, :-1] * factors.scale
    of_codes = codes.new_zeros(codes.shape[1] + 1, len(codes))
    for part, block, logits, soft in factors.blocks(rows):
        # The softmax passes v on as s (v - sum s v). Of the sums v is their gradient; of the entropy -ln s.
        if entropy is None:
            inner = (soft @ assignment)[:, None]
            of_logits = torch.sub(assignment, inner, out=logits).mul_(soft)
        else:
            towards = _logarithms(logits, soft).mul_(-entropy).add_(assignment)
            of_logits = towards.sub_(torch.linalg.vecdot(soft, towards)[:, None]).mul_(soft)
        torch.mm(of_logits, codes, out=of_vectors[part])
        of_codes.addmm_(block.T, of_logits)
    return of_codes


def _logarithms(logits: Tensor, soft: Tensor) -> Tensor:
    """ln s (R, K), in the memory of the logits; finite where s has underflown."""
    # They differ by one number a row, which is had best where s is greatest.
    return logits.sub_((logits.amax(dim=1) - soft.amax(dim=1).log())[:, None])
