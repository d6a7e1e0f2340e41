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
    """Assign vectors to codes so that all codes receive about the same number of vectors.

    Solves an entropic optimal transport problem by Sinkhorn-Knopp iterations in the log domain (Cuturi 2013, "Sinkhorn
    Distances") and takes the code with the largest mass for each vector. Used for quantization in SeLa (Asano et al.
    2020, 3.2) and for semantic ids in LC-Rec (Zheng et al. 2024, eq. 5).

    Args:
        vectors: (N, D).
        codebook: (K, D).
        epsilon: entropic regularisation, relative to the spread of the distances; smaller is closer to nearest-code.
        iterations: number of row and column rescalings.
        share: position of these vectors in the global batch; default: they are the whole batch.

    Returns:
        (N,) int64 indices.
    """
    shard = shard or BatchShard.unsharded(len(vectors))
    distances = torch.cdist(vectors, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
    # What a whole row or column has in common makes no difference to the plan, and must make none to the scale.
    columns = shard.sum(distances.sum(dim=0)) / shard.total
    distances = distances - columns - distances.mean(dim=1, keepdim=True) + columns.mean()
    scale = epsilon * shard.mean(distances.square()).sqrt()
    plan = -distances / scale.clamp_min(torch.finfo(distances.dtype).tiny)
    each = math.log(shard.total / len(codebook))
    for _ in range(iterations):
        plan = plan - _logsumexp(plan, shard) + each
        plan = plan - plan.logsumexp(dim=1, keepdim=True)
    return plan.argmax(dim=1)


def _logsumexp(plan: Tensor, shard: BatchShard) -> Tensor:
    """(K,) logsumexp over the rows of all processes."""
    own = plan.logsumexp(dim=0)
    if not shard.is_sharded:
        return own
    most = all_reduce_max(own)
    return most + shard.sum((own - most).exp()).log()


class NearestAssignment(Settings):
    """Assign each latent to its nearest code, in training as in encoding."""

    kind: Literal["nearest"] = "nearest"

    def assign(self, vectors: Tensor, codebook: Tensor, shard: BatchShard | None = None) -> Tensor:
        """Return the indices (N,) of the nearest codes (K, D) to vectors (N, D)."""
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
        """Return the balanced indices (N,) of vectors (N, D) among codes (K, D); see `sinkhorn_codes`."""
        return sinkhorn_codes(vectors, codebook, self.epsilon, self.iterations, shard)


CodeAssignment = Annotated[NearestAssignment | SinkhornAssignment, Field(discriminator="kind")]
