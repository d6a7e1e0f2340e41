"""Assignment of latents to codes in training: nearest, or balanced over the batch by Sinkhorn-Knopp.

Shapes: N vectors, K codes, D dimensions.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from vqtool.runtime.distributed import BatchShard, all_reduce_max
from vqtool.runtime.settings import Settings
from vqtool.search import nearest_codes


@torch.no_grad()
def sinkhorn_codes(
    vectors: Tensor, codebook: Tensor, epsilon: float, iterations: int, shard: BatchShard | None = None
) -> Tensor:
    """Return indices that assign about the same number of vectors to every code.

    Solves an optimal transport problem with entropic regularisation (Cuturi 2013, "Sinkhorn Distances"). The plan
    P[n,k] has row sums 1 and column sums N / K:

        cost[n,k]  = -2 (z_n - mean z)·(e_k - mean e)
        P          = argmin of sum of P · cost + epsilon · rms(cost) · sum of P ln P
        indices[n] = argmax over k of P[n,k]

    cost is the squared distance |z_n - e_k|², centred so that every row and every column has mean 0. Centring does not
    change P. It keeps the row and column means out of rms(cost), the unit of epsilon. The solver is the Sinkhorn-Knopp
    iteration in the log domain, which rescales columns and rows in turn. The method is used for clustering in SeLa
    (Asano et al. 2020, "Self-labelling via Simultaneous Clustering and Representation Learning", 3.2) and for semantic
    ids in LC-Rec (Zheng et al. 2024, eq. 5).

    Args:
        vectors: z (N, D).
        codebook: e (K, D).
        epsilon: entropic regularisation, positive, relative to rms(cost); a smaller value makes the plan sharper, and
            needs more iterations.
        iterations: number of iterations; each rescales all columns, then all rows.
        shard: position of these vectors in the global batch, over which codes are balanced; default: they are the
            whole batch.

    Returns:
        (N,) int64 indices.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    distances = torch.cdist(vectors, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
    column_means = shard.sum(distances.sum(dim=0)) / shard.total
    cost = distances - column_means - distances.mean(dim=1, keepdim=True) + column_means.mean()
    scale = epsilon * shard.mean(cost.square()).sqrt()
    log_plan = -cost / scale.clamp_min(torch.finfo(cost.dtype).tiny)
    log_column_sum = math.log(shard.total / len(codebook))
    for _ in range(iterations):
        log_plan = log_plan - _logsumexp_over_ranks(log_plan, shard) + log_column_sum
        log_plan = log_plan - log_plan.logsumexp(dim=1, keepdim=True)
    return log_plan.argmax(dim=1)


def _logsumexp_over_ranks(log_plan: Tensor, shard: BatchShard) -> Tensor:
    """Return the logsumexp (K,) over the rows of `log_plan` (N, K) on all ranks."""
    local = log_plan.logsumexp(dim=0)
    if not shard.is_sharded:
        return local
    largest = all_reduce_max(local)
    return largest + shard.sum((local - largest).exp()).log()


class NearestAssignment(Settings):
    """Assign each latent to its nearest code, in training as in encoding."""

    kind: Literal["nearest"] = "nearest"

    def assign(self, vectors: Tensor, codebook: Tensor, shard: BatchShard | None = None) -> Tensor:
        """Return the indices (N,) int64 of the nearest codes (K, D) to vectors (N, D); `shard` is not used."""
        return nearest_codes(vectors, codebook)


class SinkhornAssignment(Settings):
    """In training, assign latents so that all codes are used evenly in each batch; encoding uses the nearest code.

    Sinkhorn-Knopp, as in SeLa (Asano et al. 2020, 3.2).
    """

    kind: Literal["sinkhorn"] = "sinkhorn"
    epsilon: float = Field(
        0.05,
        gt=0,
        description="entropic regularisation, relative to the spread of the distances; smaller is closer to the "
        "nearest code",
    )
    iterations: int = Field(50, ge=1, le=10_000, description="number of Sinkhorn-Knopp iterations")

    def assign(self, vectors: Tensor, codebook: Tensor, shard: BatchShard | None = None) -> Tensor:
        """Return balanced indices (N,) int64 of vectors (N, D) among codes (K, D); see `sinkhorn_codes`."""
        return sinkhorn_codes(vectors, codebook, self.epsilon, self.iterations, shard)


CodeAssignment = Annotated[NearestAssignment | SinkhornAssignment, Field(discriminator="kind")]
