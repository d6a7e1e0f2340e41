"""Entropy of soft assignments: of the batch mean, and of each vector; both are differentiable.

Shapes: N vectors, K codes, D dimensions, F factors of M values.
"""

import torch
from torch import Tensor

from vqtool.quantizers.soft_assignment import soft_sums
from vqtool.runtime.distributed import BatchShard


def entropy_loss(
    vectors: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    sample_entropy_weight: float = 0.0,
    shard: BatchShard | None = None,
) -> Tensor:
    """Return the negative entropy of the mean soft assignment, sum_k p[k] ln(p[k] + 1e-10), plus the sample term.

    The entropy penalty of LFQ (Yu et al. 2023, "Language Model Beats Diffusion", eq. 5) for a learned codebook. The
    batch term is minimal for even usage, the sample term for hard assignments.

    Args:
        vectors: (N, D).
        codebook: (K, D).
        temperature: temperature of the softmax over negative squared distances, in squared units of the vectors.
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment.
        share: position of these vectors in the global batch; default: they are the whole batch.

    Returns:
        () in nats, without the sample term between -ln K (even usage) and 0; gradients reach `vectors` and `codebook`.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    own = soft_sums(vectors, codebook, temperature, entropy=sample_entropy_weight > 0)
    means = shard.sum(torch.cat([own.assignment, own.entropy[None]])) / max(1, shard.total)
    loss = negative_entropy(means[:-1])
    return loss + sample_entropy_weight * means[-1] if sample_entropy_weight else loss


def negative_entropy(probabilities: Tensor) -> Tensor:
    """Return sum p ln(p + 1e-10) in nats, of one distribution (K,) or of F independent ones (F, M)."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum()


def sample_entropies(soft: Tensor) -> Tensor:
    """Return the entropy (N,) in nats of each row of soft assignments (N, K)."""
    # xlogy is 0, with gradient 0, where a probability has underflowed.
    return -torch.special.xlogy(soft, soft.clamp_min(torch.finfo(soft.dtype).tiny)).sum(dim=1)
