"""Sums of soft assignments over vectors, and their gradients, without the N x K matrix.

    s[n,:]     = softmax over k of -|z_n - e_k|² / T
    P[k]       = sum over n of s[n,k]
    H          = sum over n of -sum over k of s[n,k] ln s[n,k]

**Logits.** A softmax is unchanged by a constant per row, so |z_n - e_k|² may be replaced by |z_n - e_k|² - |z_n - c|²,
with c the code nearest to the mean vector. With x_n = a (z_n - c), y_k = a (e_k - c) and a² = 2 / (T ln 2),

    l[n,k] = x_n·y_k - |y_k|²/2          s[n,k] = 2^(l[n,k] - m_n) / Z_n
    m_n    = max over k of l[n,k]        Z_n    = sum over k of 2^(l[n,k] - m_n)

l is the logit in bits, because 2^x is faster than e^x. Subtracting c avoids cancellation if all vectors and codes are
far from the origin; c is a code, not the mean code, so that this also holds if other codes are far away.

**Gradients.** Let v[k] = dL/dP[k] and h = dL/dH. Up to a constant per row, which the softmax removes,

    u[n,k]     = v[k] - h ln s[n,k]
    g[n,k]     = dL/dl[n,k] / ln 2 = s[n,k] (u[n,k] - sum over j of s[n,j] u[n,j])
    dL/dz_n    = a ln 2 · sum over k of g[n,k] y_k
    dL/de_k    = a ln 2 · (sum over n of g[n,k] x_n - y_k sum over n of g[n,k])

The forward pass visits blocks of rows and keeps only m and Z; the backward pass computes l of each block again (as
FlashAttention does: Dao et al. 2022, 3.1).

Shapes: N vectors, R rows of a block, K codes, D dimensions.
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

# Logits of one block; each thread allocates twice as many. With many codes a block has at least this many rows, to
# amortise the overhead of its operations, as long as it does not exceed the maximum number of logits.
_LOGITS_PER_BLOCK = 1 << 20
_MIN_ROWS_PER_BLOCK = 1 << 6
_MAX_LOGITS_PER_BLOCK = 1 << 21


class SoftSums(NamedTuple):
    """Sums over vectors of their soft assignments s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""

    assignment: Tensor
    """(K,) P, sum over n of s[n,k]."""
    entropy: Tensor
    """() H, sum over n of the entropy of s[n,:] in nats; 0 if it was not requested."""


def soft_sums(
    vectors: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    entropy: bool,
    rows_per_block: int | None = None,
) -> SoftSums:
    """Return the sums of the soft assignments of vectors to codes.

    Args:
        vectors: z (N, D), float64, float32, bfloat16 or float16.
        codebook: e (K, D), same dtypes.
        temperature: T, a positive number or tensor (), in squared units of the vectors; no gradient reaches it.
        entropy: whether to sum the entropies.
        rows_per_block: maximum number of vectors processed at a time by a thread; default: chosen for speed.

    Returns:
        The sums, in the wider of both dtypes and at least float32; gradients reach `vectors` and `codebook`.
    """
    dtype = torch.promote_types(torch.promote_types(vectors.dtype, codebook.dtype), torch.float32)
    rows_per_block = rows_per_block or default_rows_per_block(*codebook.shape)
    return SoftSums(*_SoftSums.apply(vectors.to(dtype), codebook.to(dtype), temperature, entropy, rows_per_block))


def default_rows_per_block(
    codebook_size: int,
    dim: int,
    logits_per_block: int = _LOGITS_PER_BLOCK,
    min_rows: int = _MIN_ROWS_PER_BLOCK,
    max_logits: int = _MAX_LOGITS_PER_BLOCK,
) -> int:
    """Return R for K = `codebook_size` and D = `dim`, at least 1; the limits are explained at their defaults."""
    widest = max(dim + 1, codebook_size)  # with few codes, the rows [x, 1] are larger than their logits
    return max(1, logits_per_block // widest, min(min_rows, max_logits // widest))


class _SoftSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        codebook: Tensor,
        temperature: float | Tensor,
        entropy: bool,
        rows_per_block: int,
    ) -> tuple[Tensor, Tensor]:
        with full_precision(vectors.device):
            factors = on_one_thread(lambda: _Factors.build(vectors, codebook, temperature), vectors.device)
            sums = map_rows(lambda rows: _sums(factors, rows, entropy, rows_per_block), *factors.work)
        assignment, entropies = (torch.stack(parts).sum(dim=0).to(vectors.dtype) for parts in zip(*sums, strict=True))
        ctx.save_for_backward(assignment, *factors)
        ctx.entropy, ctx.rows_per_block = entropy, rows_per_block
        return assignment, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_assignment: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        assignment, *saved = ctx.saved_tensors
        factors = _Factors(*saved)
        grad_vectors = factors.vectors.new_empty(factors.vectors.shape)
        entropy_weight = grad_entropy if ctx.entropy else None
        needs_codes = ctx.needs_input_grad[1]
        with full_precision(assignment.device):
            # Subtracting the mean under p[k] = P[k] / N changes no gradient, and avoids cancellation in float32.
            values = grad_assignment - (assignment / len(factors.vectors)) @ grad_assignment
            sums = map_rows(
                lambda rows: _gradients(
                    factors, rows, values, entropy_weight, grad_vectors, needs_codes, ctx.rows_per_block
                ),
                *factors.work,
            )
        if not needs_codes:
            return grad_vectors, None, None, None, None
        grad_codes = on_one_thread(lambda: factors.code_gradient(reduce(Tensor.add_, sums)), assignment.device)
        return grad_vectors, grad_codes, None, None, None


class _Factors(NamedTuple):
    """Factors of the logits l[n,k] = x_n·y_k - |y_k|²/2, and what the forward pass keeps of them."""

    vectors: Tensor
    """(N, D) z; x is computed per block."""
    codes: Tensor
    """(K, D) y."""
    columns: Tensor
    """(D + 1, K) y transposed and contiguous, as a product with a transposed view is slower; then a row -|y|²/2."""
    centre: Tensor
    """(D,) c."""
    scale: Tensor
    """() a. Scaling both factors by a, not one by a², keeps them away from overflow and underflow."""
    max_logits: Tensor
    """(N, 1) m, set by the forward pass."""
    normalizers: Tensor
    """(N, 1) Z, set by the forward pass."""

    @classmethod
    def build(cls, vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> "_Factors":
        """Return the factors, with `max_logits` and `normalizers` allocated but not set."""
        nearest = (codebook - vectors.mean(dim=0)).square().sum(dim=1).argmin(dim=0, keepdim=True)
        centre = codebook.index_select(0, nearest).squeeze(0)
        if not isinstance(temperature, Tensor):  # new_full, unlike a copy from the host, does not wait for the device
            temperature = codebook.new_full((), temperature, dtype=torch.float64)
        scale = (math.sqrt(2 / math.log(2)) / temperature.double().sqrt()).to(codebook)
        codes = ((codebook - centre) * scale).contiguous()
        columns = torch.cat([codes, codes.square().sum(dim=1, keepdim=True) / -2], dim=1).T.contiguous()
        return cls(vectors, codes, columns, centre, scale, *vectors.new_empty(2, len(vectors), 1))

    @property
    def work(self) -> tuple[int, int, torch.device]:
        """Number of rows, useful threads and device, for `map_rows`; a soft assignment costs as much as two scores."""
        rows, dim = self.vectors.shape
        return rows, useful_threads(2 * rows * len(self.codes), dim), self.vectors.device

    def blocks(self, rows: slice, rows_per_block: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Split `rows` into blocks of R rows, at most `rows_per_block`, and yield the factors and logits of each block.

        The caller may overwrite the logits and the buffer; the next block reuses their memory.

        Yields:
            The rows of the block as a slice of all N rows, [x, 1] (R, D + 1), the logits l (R, K), and an uninitialised
            buffer (R, K).
        """
        buffers = self.vectors.new_empty(2, min(rows_per_block, rows.stop - rows.start), len(self.codes))
        for start in range(rows.start, rows.stop, rows_per_block):
            block_rows = slice(start, min(start + rows_per_block, rows.stop))
            with flush_denormals(False):  # z - c may be denormal before it is scaled
                block = F.pad((self.vectors[block_rows] - self.centre) * self.scale, (0, 1), value=1.0)
            logits, buffer = buffers[:, : len(block)]
            yield block_rows, block, torch.mm(block, self.columns, out=logits), buffer

    def code_gradient(self, sums: Tensor) -> Tensor:
        """Return dL/de (K, D) from `sums` (D + 1, K), sum over n of g[n,k] x_n and of g[n,k]."""
        return torch.addcmul(sums[:-1], sums[-1:], self.columns[:-1], value=-1).mul_(self.scale * math.log(2)).T


@flush_denormals(True)
def _sums(factors: _Factors, rows: slice, entropy: bool, rows_per_block: int) -> tuple[Tensor, Tensor]:
    """Return P (K,) and H () of `rows`, in float64, and set their `max_logits` and `normalizers`.

    H is 0 if `entropy` is false.
    """
    assignment = factors.vectors.new_zeros(len(factors.codes), dtype=torch.float64)
    entropies = factors.vectors.new_zeros((), dtype=torch.float64)
    for block_rows, _, logits, buffer in factors.blocks(rows, rows_per_block):
        max_logits = torch.amax(logits, dim=1, keepdim=True, out=factors.max_logits[block_rows])
        powers = torch.exp2(logits.sub_(max_logits), out=buffer)
        normalizers = torch.sum(powers, dim=1, keepdim=True, out=factors.normalizers[block_rows])
        inverse = 1 / normalizers.squeeze(1)
        assignment += inverse @ powers
        if entropy:  # -sum s ln s = ln Z - sum s (l - m) ln 2
            surprisal = _unnormalized_surprisal(logits)
            entropies += normalizers.log().sum() + inverse @ torch.linalg.vecdot(powers, surprisal)
    return assignment, entropies


@flush_denormals(True)
def _gradients(
    factors: _Factors,
    rows: slice,
    values: Tensor,
    entropy_weight: Tensor | None,
    grad_vectors: Tensor,
    needs_codes: bool,
    rows_per_block: int,
) -> Tensor:
    """Set `grad_vectors` (N, D) of `rows`; return sum over n of g[n,k] x_n and of g[n,k] (D + 1, K).

    Args:
        factors: as the forward pass left them.
        rows: the rows of this thread.
        values: (K,) v, less a constant.
        entropy_weight: () h; None if the entropy was not requested.
        grad_vectors: (N, D) dL/dz.
        needs_codes: whether the codes need a gradient; if not, the returned sums are 0.
        rows_per_block: maximum number of rows processed at a time.
    """
    sums = torch.zeros_like(factors.columns)
    for block_rows, block, logits, buffer in factors.blocks(rows, rows_per_block):
        normalizers = factors.normalizers[block_rows]
        powers = torch.exp2(logits.sub_(factors.max_logits[block_rows]), out=buffer)
        # grad_logits = Z g; the division by Z is applied to the smaller factors below.
        if entropy_weight is None:
            inner = torch.mv(powers, values)[:, None] / normalizers
            grad_logits = torch.sub(values, inner, out=logits).mul_(powers)
        else:
            u = _unnormalized_surprisal(logits).mul_(entropy_weight).add_(values)
            inner = torch.linalg.vecdot(powers, u)[:, None] / normalizers
            grad_logits = u.sub_(inner).mul_(powers)
        torch.mm(grad_logits, factors.codes, out=grad_vectors[block_rows]).mul_(
            factors.scale * math.log(2) / normalizers
        )
        if needs_codes:
            sums.addmm_((block / normalizers).T, grad_logits)
    return sums


def _unnormalized_surprisal(logits: Tensor) -> Tensor:
    """Return -(l - m) ln 2 = -ln s - ln Z, in place of `logits`, which hold l - m.

    It is clamped to a finite number, because 0 times infinity would be NaN where s has underflowed.
    """
    return logits.clamp_(min=math.log2(torch.finfo(logits.dtype).tiny)).mul_(-math.log(2))
