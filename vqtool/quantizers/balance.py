"""Balanced assignment in training: every code gets its share of the batch.

Shapes: N vectors, K codes, D dimensions.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vqtool.distributed import Share, largest
from vqtool.settings import Settings


@torch.no_grad()
def balanced_codes(
    vectors: Tensor, codebook: Tensor, epsilon: float, iterations: int, share: Share | None = None
) -> Tensor:
    """For each vector the code to which the most of it goes in a transport that fills all codes alike.

    Entropic optimal transport by Sinkhorn-Knopp (Cuturi 2013, "Sinkhorn Distances"), in the log domain; for quantizing
    as in SeLa (Asano et al. 2020, 3.2), for semantic ids as in LC-Rec (Zheng et al. 2024, eq. 5).

    Args:
        vectors: (N, D).
        codebook: (K, D).
        epsilon: of the entropy, relative to how much distances differ; smaller is sharper.
        iterations: of rescaling rows and columns.
        share: which vectors of a batch these are; left out, all of them.

    Returns:
        (N,) int64.
    """
    share = share or Share.alone(len(vectors))
    distances = torch.cdist(vectors, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
    # What a whole row or column has in common makes no difference to the plan, and must make none to the scale.
    columns = share.sum(distances.sum(dim=0)) / share.total
    distances = distances - columns - distances.mean(dim=1, keepdim=True) + columns.mean()
    scale = epsilon * share.mean(distances.square()).sqrt()
    plan = -distances / scale.clamp_min(torch.finfo(distances.dtype).tiny)
    each = math.log(share.total / len(codebook))
    for _ in range(iterations):
        plan = plan - _logsumexp(plan, share) + each
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan.argmax(dim=1)


def _logsumexp(plan: Tensor, share: Share) -> Tensor:
    """(K,) over the rows of all processes."""
    own = plan.logsumexp(dim=0)
    if not share.others:
        return own
    most = largest(own)
    return most + share.sum((own - most).exp()).log()


class SinkhornSettings(Settings):
    """In training, codes are assigned evenly over each batch; encoding takes the nearest code."""

    kind: Literal["sinkhorn"] = "sinkhorn"
    epsilon: float = Field(0.05, gt=0, description="relative to how much distances differ; smaller is sharper")
    iterations: int = Field(50, ge=1, le=10_000, description="of rescaling rows and columns")

    def assign(self, vectors: Tensor, codebook: Tensor, share: Share | None = None) -> Tensor:
        """`balanced_codes` with these settings."""
        return balanced_codes(vectors, codebook, self.epsilon, self.iterations, share)
