"""Commitment loss, entropy loss, and the moving average of the quantization error as a unit of temperature.

Shapes: N vectors, K codes, D dimensions, F factors of M values.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vqtool.quantizers.soft_assignment import soft_sums
from vqtool.runtime.distributed import BatchShard

# Maximum number of differences z[n,d] - e[k,d] computed at a time, which bounds the memory.
_ELEMENTS_PER_BLOCK = 1 << 18


def commitment_loss(
    vectors: Tensor,
    codes: Tensor,
    indices: Tensor,
    shard: BatchShard | None = None,
    elements_per_block: int = _ELEMENTS_PER_BLOCK,
) -> Tensor:
    """Return the mean over all elements of (z - stop(e[indices]))² (van den Oord et al. 2017, eq. 3).

    The N x D differences are recomputed in the backward pass instead of saved.

    Args:
        vectors: z (N, D).
        codes: e (K, D); no gradient reaches them.
        indices: (N,) int64.
        shard: position of these vectors in the global batch, over which the mean is taken; default: they are the whole
            batch.
        elements_per_block: maximum number of differences computed at a time, but at least those of one vector.

    Returns:
        () loss; gradients reach `vectors` only.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    # A copy, because codes may be updated before the backward pass.
    local_sum: Tensor = _SumOfSquares.apply(vectors, codes.detach().clone(), indices, elements_per_block)
    return shard.sum(local_sum) / max(1, shard.total * vectors.shape[1])


class _SumOfSquares(torch.autograd.Function):
    """Sum over n of |z_n - e[indices[n]]|², with gradient 2 (z_n - e[indices[n]]) for z_n and none for the codes."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, codes: Tensor, indices: Tensor, elements_per_block: int) -> Tensor:
        ctx.save_for_backward(vectors, codes, indices)
        ctx.elements_per_block = elements_per_block
        blocks = list(_blocks(vectors, indices, elements_per_block))
        # Allocated first: small tensors that live on between large temporaries fragment the memory.
        sums = vectors.new_empty(len(blocks))
        for i, (block, block_indices) in enumerate(blocks):
            sums[i] = (block - codes[block_indices]).square_().sum()
        return sums.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, codes, indices = ctx.saved_tensors
        grad_vectors = torch.empty_like(vectors)
        blocks = _blocks(vectors, indices, ctx.elements_per_block)
        grad_blocks = _blocks(grad_vectors, indices, ctx.elements_per_block)
        for (block, block_indices), (grad_block, _) in zip(blocks, grad_blocks, strict=True):
            torch.sub(block, codes[block_indices], out=grad_block).mul_(2 * grad_output)
        return grad_vectors, None, None, None


def _blocks(vectors: Tensor, indices: Tensor, elements_per_block: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, elements_per_block // vectors.shape[1])
    return zip(vectors.split(rows), indices.split(rows), strict=True)


def entropy_loss(
    vectors: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    sample_entropy_weight: float = 0.0,
    shard: BatchShard | None = None,
) -> Tensor:
    """Return the negative entropy of the mean soft assignment, plus the weighted mean entropy per vector.

        s[n,:] = softmax over k of -|z_n - e_k|² / temperature
        p[k]   = mean over n of s[n,k]
        loss   = sum over k of p[k] ln(p[k] + 1e-10) + sample_entropy_weight · mean over n of H(s[n,:])

    with H the entropy in nats. The first term is minimal (-ln K) for even usage, the second (0) for hard assignments.
    This is the entropy penalty of LFQ (Yu et al. 2023, "Language Model Beats Diffusion", eq. 5) for a learned codebook.

    Args:
        vectors: z (N, D).
        codebook: e (K, D).
        temperature: positive number or tensor (), in squared units of the vectors; no gradient reaches it.
        sample_entropy_weight: weight of the second term, at least 0.
        shard: position of these vectors in the global batch, over which means are taken; default: they are the whole
            batch.

    Returns:
        () in nats, between -ln K and sample_entropy_weight · ln K; gradients reach `vectors` and `codebook`.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    local = soft_sums(vectors, codebook, temperature, entropy=sample_entropy_weight > 0)
    means = shard.sum(torch.cat([local.assignment, local.entropy[None]])) / max(1, shard.total)
    loss = negative_entropy(means[:-1])
    return loss + sample_entropy_weight * means[-1] if sample_entropy_weight else loss


def negative_entropy(probabilities: Tensor) -> Tensor:
    """Return the sum () in nats of p ln(p + 1e-10) over all elements of a distribution (K,) or of F of them (F, M)."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum()


def sample_entropies(soft: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of each row of soft assignments (N, K)."""
    # xlogy is 0, with gradient 0, where a probability has underflowed.
    return -torch.special.xlogy(soft, soft.clamp_min(torch.finfo(soft.dtype).tiny)).sum(dim=1)


class ErrorScale(nn.Module):
    """Moving average of the mean squared quantization error per dimension, the unit `quantization_error`.

    At a temperature of twice this value, the soft assignment is the posterior of a mixture of Gaussians centred on the
    codes whose variance is the quantization error (Bishop 2006, "Pattern Recognition and Machine Learning", 9.3.2). It
    is state rather than the error of the batch, so that metrics do not depend on the batch size.

    With error_t the error of step t:

        error  <- decay · error  + (1 - decay) · error_t
        weight <- decay · weight + (1 - decay)
        scale   = error / weight, at least 1e-12

    The division corrects the bias of an average initialised with 0 (Kingma & Ba 2015, "Adam", section 3).

    Args:
        decay: decay per step.

    Attributes:
        error: () moving average of errors; 0 until the first update.
        weight: () bias correction; 0 until the first update.
    """

    error: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("error", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self._pending: list[tuple[Tensor, int]] = []

    def forward(self) -> Tensor:
        """Return the scale () in squared units of the vectors; 1 before the first update."""
        tiny = torch.finfo(self.error.dtype).tiny
        return torch.where(self.weight > 0, self.error / self.weight.clamp_min(tiny), 1.0).clamp_min(1e-12)

    @torch.no_grad()
    def reset(self, error: Tensor) -> None:
        """Set the average to the mean squared error () of a sample, with the weight of one step."""
        self.weight.fill_(1 - self.decay)
        self.error.copy_(self.weight * error)

    def accumulate(self, error: Tensor, elements: int) -> None:
        """Accumulate the mean squared error () of a global batch of `elements` = N · D numbers, equal on all ranks."""
        self._pending.append((error.detach(), elements))

    @torch.no_grad()
    def update(self, step_is_finite: Tensor | None = None) -> None:
        """Apply the errors accumulated since the last update as one step; drop them if `step_is_finite` () is false.

        error_t is the mean of their errors, weighted by `elements`. `step_is_finite` is bool; default: true.
        """
        elements = sum(count for _, count in self._pending)
        if elements:
            error = torch.stack([error * (count / elements) for error, count in self._pending]).sum()
            error, weight = error.to(self.error.dtype), torch.ones_like(self.weight)
            if step_is_finite is not None:  # lerp towards itself changes nothing, and needs no branch on the host
                error = torch.where(step_is_finite, error, self.error)
                weight = torch.where(step_is_finite, weight, self.weight)
            self.error.lerp_(error, 1 - self.decay)
            self.weight.lerp_(weight, 1 - self.decay)
        self.discard()

    def discard(self) -> None:
        """Drop what was accumulated since the last update."""
        self._pending = []
