"""The entropy of soft assignments: even use over a batch, and confidence in each sample. Both have a gradient.

Shapes: N vectors, K codes, D dimensions, F factors of M values.
"""

import torch
from torch import Tensor

from vqtool.distributed import Share
from vqtool.quantizers.soft_assignment import soft_sums


def entropy_loss(
    vectors: Tensor,
    codebook: Tensor,
    temperature: float | Tensor,
    confidence: float = 0.0,
    share: Share | None = None,
) -> Tensor:
    """Negative entropy of the mean soft assignment, sum_k p[k] ln(p[k] + 1e-10), in nats; plus the confidence term.

    The entropy penalty of LFQ (Yu et al. 2023, "Language Model Beats Diffusion", eq. 5), over a learned codebook: its
    batch term is minimised where codes are used evenly, its confidence term where each sample is sure of its code.

    Args:
        vectors: (N, D).
        codebook: (K, D).
        temperature: of the softmax over negative squared distances, in squared units of the vectors.
        confidence: weight of the mean entropy of the samples' own soft assignments.
        share: which vectors of a batch these are; left out, all of them.

    Returns:
        (), without the confidence term between -ln K (even use) and 0; gradients reach `vectors` and `codebook`.
    """
    share = share or Share.alone(len(vectors))
    own = soft_sums(vectors, codebook, temperature, entropy=confidence > 0)
    means = share.sum(torch.cat([own.assignment, own.entropy[None]])) / max(1, share.total)
    loss = negative_entropy(means[:-1])
    return loss + confidence * means[-1] if confidence else loss


def negative_entropy(probabilities: Tensor) -> Tensor:
    """sum p ln(p + 1e-10) of a distribution (K,), or of F independent ones (F, M) together, in nats."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum()


def sample_entropies(soft: Tensor) -> Tensor:
    """The entropy (N,) of each row of soft assignments (N, K), in nats."""
    # xlogy is 0, with a gradient of 0, where a probability has underflown.
    return -torch.special.xlogy(soft, soft.clamp_min(torch.finfo(soft.dtype).tiny)).sum(dim=1)
