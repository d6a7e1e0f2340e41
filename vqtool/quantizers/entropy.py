"""The entropy loss: even use of the codebook, through a soft assignment that has a gradient.

Shapes: N vectors, K codes, D dimensions.
"""

import torch
from torch import Tensor


def entropy_loss(vectors: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """Negative entropy of the mean soft assignment, sum_k p[k] ln(p[k] + 1e-10), in nats.

    The batch term of the entropy penalty of LFQ (Yu et al. 2023, "Language Model Beats Diffusion", eq. 5), over a
    learned codebook.

    Args:
        vectors: (N, D).
        codebook: (K, D).
        temperature: of the softmax over negative squared distances, in squared units of the vectors.

    Returns:
        (), between -ln K (even use) and 0; gradients reach both `vectors` and `codebook`.
    """
    return negative_entropy(soft_assignment(vectors, codebook, temperature).mean(dim=0))


def soft_assignment(vectors: Tensor, codebook: Tensor, temperature: float) -> Tensor:
    """softmax over k of -|z_n - e_k|² / temperature, (N, K)."""
    # |z|² is the same for all codes of a row and falls out of the softmax, as does a shift of both sides. Without
    # them nothing cancels where vectors lie far from the origin.
    centre = codebook.detach().mean(dim=0)
    vectors, codebook = vectors - centre, codebook - centre
    logits = torch.addmm(-codebook.square().sum(dim=1), vectors, codebook.T, alpha=2)
    return torch.softmax(logits / temperature, dim=1)


def negative_entropy(probabilities: Tensor) -> Tensor:
    """sum_k p[k] ln(p[k] + 1e-10) of a distribution (K,), in nats."""
    return (probabilities * torch.log(probabilities + 1e-10)).sum()
