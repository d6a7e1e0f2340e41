"""The entropy of soft assignments: even use over a batch, and confidence in each sample. Both have a gradient.

Shapes: N vectors, K codes, D dimensions, F factors of M values.
"""

import torch
from torch import Tensor


def entropy_loss(vectors: Tensor, codebook: Tensor, temperature: float | Tensor, confidence: float = 0.0) -> Tensor:
    """Negative entropy of the mean soft assignment, sum_k p[k] ln(p[k] + 1e-10), in nats; plus the confidence term.

    The entropy penalty of LFQ (Yu et al. 2023, "Language Model Beats Diffusion", eq. 5), over a learned codebook: its
    batch term is minimised where codes are used evenly, its confidence term where each sample is sure of its code.

    Args:
        vectors: (N, D).
        codebook: (K, D).
        temperature: of the softmax over negative squared distances, in squared units of the vectors.
        confidence: weight of the mean entropy of the samples' own soft assignments.

    Returns:
        (), without the confidence term between -ln K (even use) and 0; gradients reach `vectors` and `codebook`.
    """
    soft = soft_assignment(vectors, codebook, temperature)
    loss = negative_entropy(soft.mean(dim=0))
    return loss + confidence * sample_entropies(soft).mean() if confidence else loss


def soft_assignment(vectors: Tensor, codebook: Tensor, temperature: float | Tensor) -> Tensor:
    """softmax over k of -|z_n - e_k|² / temperature, (N, K)."""
    # |z|² is the same for all codes of a row and falls out of the softmax, as does a shift of both sides. Without
    # them nothing cancels where vectors lie far from the origin.
    centre = codebook.detach().mean(dim=0)
    vectors, codebook = vectors - centre, codebook - centre
    logits = torch.addmm(-codebook.square().sum(dim=1), vectors, codebook.T, alpha=2)
    return torch.softmax(logits / temperature, dim=1)


def negative_entropy(probabilities: Tensor) -> Tensor:
    """sum p ln(p + 1e-10) of a distribution (K,), or of F independent ones (F, M) together, in nats."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum()


def sample_entropies(soft: Tensor) -> Tensor:
    """The entropy (N,) of each row of soft assignments (N, K), in nats."""
    # xlogy is 0, with a gradient of 0, where a probability has underflown.
    return -torch.special.xlogy(soft, soft.clamp_min(torch.finfo(soft.dtype).tiny)).sum(dim=1)
