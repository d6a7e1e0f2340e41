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

from vqtool.runtime.precision import flush_denormals, full_precision
from vqtool.runtime.threads import map_rows, on_one_thread, useful_threads

# Assignments of one block, for which each thread has room twice; of more codes, as many rows as make a block worth its
# calls, but no more assignments than that.
_BLOCK = 1 << 20
_ROWS = 1 << 6
_MOST = 1 << 21


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
            factors = on_one_thread(lambda: _Factors.of(vectors, codebook, temperature), vectors.device)
            parts = map_rows(lambda rows: _sums(factors, rows, entropy), *factors.work)
        assignment, entropies = (torch.stack(each).sum(dim=0).to(vectors.dtype) for each in zip(*parts, strict=True))
        ctx.save_for_backward(assignment, *factors)
        ctx.entropy = entropy
        return assignment, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_assignment: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        assignment, *others = ctx.saved_tensors
        factors = _Factors(*others)
        of_vectors, weight = factors.vectors.new_empty(factors.vectors.shape), of_entropy if ctx.entropy else None
        learned = ctx.needs_input_grad[1]  # codes that are buffers are not
        with full_precision(assignment.device):
            # What all values share is nothing to the softmax, and to float32 too much to cancel in each row.
            values = of_assignment - (assignment / len(factors.vectors)) @ of_assignment
            parts = map_rows(lambda rows: _gradients(factors, rows, values, weight, of_vectors, learned), *factors.work)
        if not learned:
            return of_vectors, None, None, None
        of_codes = on_one_thread(lambda: factors.gradient_of_codes(reduce(Tensor.add_, parts)), assignment.device)
        return of_vectors, of_codes, None, None


class _Factors(NamedTuple):
    """What logits are made of: those of a row need only be right but for what all codes of it share.

    |z|² is the same for all codes and falls out of the softmax, as does a shift of both sides. Without them nothing
    cancels where all vectors lie far from the origin, nor, about a code that is near them, where other codes lie far
    from them. Logits are in bits, since 2^x is found faster than e^x.
    """

    vectors: Tensor
    """(N, D)"""
    codes: Tensor
    """(K, D) about the centre, scaled."""
    columns: Tensor
    """(D + 1, K) the same once more, as a product with a transposed view takes half as long again; and -|e|² / 2."""
    centre: Tensor
    """(D,) the code that is nearest to the mean vector."""
    scale: Tensor
    """() the square root of 2 / temperature, in bits. On both sides of a product, that is neither huge nor tiny."""
    most: Tensor
    """(N, 1) the greatest logit of each row; found on the way there, and kept for the way back."""
    sums: Tensor
    """(N, 1) what the powers, 2 to the logits less the greatest, add up to; likewise."""

    @classmethod
    def of(cls, vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> "_Factors":
        """All but `most` and `sums`, for which there is room."""
        middle = (codebook - vectors.mean(dim=0)).square().sum(dim=1).argmin(dim=0, keepdim=True)
        centre = codebook.index_select(0, middle).squeeze(0)
        if not isinstance(temperature, Tensor):  # a new tensor of one number, unlike a copy, waits for no device
            temperature = codebook.new_full((), temperature, dtype=torch.float64)
        scale = (math.sqrt(2 / math.log(2)) / temperature.double().sqrt()).to(codebook)
        codes = ((codebook - centre) * scale).contiguous()
        columns = torch.cat([codes, codes.square().sum(dim=1, keepdim=True) / -2], dim=1).T.contiguous()
        return cls(vectors, codes, columns, centre, scale, *vectors.new_empty(2, len(vectors), 1))

    @property
    def work(self) -> tuple[int, int, torch.device]:
        """For `map_rows`. A soft assignment is as much worth another thread as two scores.

        However few they are, a thread of ours makes them: PyTorch's own do not flush denormals.
        """
        rows, dim = self.vectors.shape
        return rows, useful_threads(2 * rows * len(self.codes), dim), self.vectors.device

    def blocks(self, rows: slice) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Blocks of rows, as (R, D + 1) with a column of ones, their logits (R, K), and as much room again.

        Both (R, K) are taken again by the next block.
        """
        widest = max(self.columns.shape)  # of few codes, a row of the block itself
        count = max(1, _BLOCK // widest, min(_ROWS, _MOST // widest))
        rooms = self.vectors.new_empty(2, min(count, rows.stop - rows.start), len(self.codes))
        for start in range(rows.start, rows.stop, count):
            part = slice(start, min(start + count, rows.stop))
            with flush_denormals(False):  # of tiny vectors the differences may be, which are scaled up
                block = F.pad((self.vectors[part] - self.centre) * self.scale, (0, 1), value=1.0)
            logits, room = rooms[:, : len(block)]
            yield part, block, torch.mm(block, self.columns, out=logits), room

    def gradient_of_codes(self, sums: Tensor) -> Tensor:
        """(K, D), of logit gradients summed with the blocks as weights (D + 1, K)."""
        return torch.addcmul(sums[:-1], sums[-1:], self.columns[:-1], value=-1).mul_(self.scale * math.log(2)).T


@flush_denormals(True)
def _sums(factors: _Factors, rows: slice, entropy: bool) -> tuple[Tensor, Tensor]:
    """Sums (K,) of the assignments, and () of the entropies where these are asked for; note what scales each row."""
    assignment = factors.vectors.new_zeros(len(factors.codes), dtype=torch.float64)
    entropies = factors.vectors.new_zeros((), dtype=torch.float64)
    for part, _, logits, room in factors.blocks(rows):
        most = torch.amax(logits, dim=1, keepdim=True, out=factors.most[part])
        powers = torch.exp2(logits.sub_(most), out=room)
        sums = torch.sum(powers, dim=1, keepdim=True, out=factors.sums[part])
        shares = 1 / sums.squeeze(1)
        assignment += shares @ powers
        if entropy:
            entropies += sums.log().sum() + shares @ torch.linalg.vecdot(powers, _surprise(logits))
    return assignment, entropies


@flush_denormals(True)
def _gradients(
    factors: _Factors, rows: slice, values: Tensor, entropy: Tensor | None, of_vectors: Tensor, learned: bool
) -> Tensor:
    """Fill in the gradients `of_vectors` (N, D); logit gradients summed with the blocks as weights (D + 1, K), or
    zeros where codes are not learned.
    """
    of_codes = torch.zeros_like(factors.columns)
    for part, block, logits, room in factors.blocks(rows):
        sums = factors.sums[part]
        powers = torch.exp2(logits.sub_(factors.most[part]), out=room)
        # The softmax s passes v on as s (v - sum s v). Of the sums v is their gradient; of the entropy -ln s.
        if entropy is None:
            inner = torch.mv(powers, values)[:, None] / sums
            of_logits = torch.sub(values, inner, out=logits).mul_(powers)
        else:
            of_row = _surprise(logits).mul_(entropy).add_(values)
            inner = torch.linalg.vecdot(powers, of_row)[:, None] / sums
            of_logits = of_row.sub_(inner).mul_(powers)
        torch.mm(of_logits, factors.codes, out=of_vectors[part]).mul_(factors.scale * math.log(2) / sums)
        if learned:
            of_codes.addmm_((block / sums).T, of_logits)
    return of_codes


def _surprise(logits: Tensor) -> Tensor:
    """-ln s but for what all codes share, in place of logits less the greatest; that of codes infinitely far, too, is a
    number, whose product with a power that is 0 is 0.
    """
    return logits.clamp_(min=math.log2(torch.finfo(logits.dtype).tiny)).mul_(-math.log(2))
