"""Codebooks and how they are updated: by gradients, by moving averages (EMA), or through one linear map (SimVQ).

Each update has a settings class, selected by `kind`, that builds its codebook. Its `required_loss` names the loss whose
weight must not be 0, because this loss trains the codes; None: no loss is needed.

Shapes: N vectors, K codes, D dimensions.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.runtime.distributed import BatchShard, all_reduce_sum
from vqtool.runtime.settings import Settings

# A code with N_k at or below this keeps its value: m_k / N_k is rounding noise.
_MIN_EMA_COUNT = 1e-20


class Codebook(nn.Module):
    """Codes e as a parameter `weight` (K, D), updated by the optimizer; the base class of all codebooks.

    Without a codebook loss, the only gradient is that of the entropy loss. Codes are initialised uniformly in
    (-1/K, 1/K). Subclasses may store codes otherwise, so read them from `codes`.

    Args:
        codebook_size: K.
        codebook_dim: D.
    """

    weight: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self._register_codes(torch.empty(codebook_size, codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    def _register_codes(self, codes: Tensor) -> None:
        """Register random `codes` (K, D) as a parameter; subclasses may register other parameters and buffers."""
        self.weight = nn.Parameter(codes)

    @property
    def codes(self) -> Tensor:
        """The codes (K, D)."""
        return self.weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor | None:
        """Return the weighted codebook loss () of the global batch, or None if this codebook has none.

        Args:
            vectors: z (N, D).
            codes: e[indices] (N, D).
            shard: position of these vectors in the global batch.
        """
        return None

    def accumulate(self, vectors: Tensor, indices: Tensor) -> None:
        """Accumulate what `update` needs from a training batch: `vectors` (N, D) and their `indices` (N,).

        Batches add up until the next `update`. The base class needs nothing, and ignores the batch.
        """

    def update(self, step_is_finite: Tensor | None = None) -> None:
        """Apply what all ranks accumulated since the last update; all ranks must call it.

        Args:
            step_is_finite: () bool on the device; if false, drop what was accumulated and change nothing else.
                Default: true.
        """

    def discard(self) -> None:
        """Drop what was accumulated since the last update."""

    @torch.no_grad()
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        """Set all codes to `codes` (K, D) from k-means; `counts` (K,) int64 are their hits in the k-means sample."""
        self.replace(torch.ones_like(counts, dtype=torch.bool), codes)

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        """Set the codes selected by `mask` (K,) bool to the same rows of `codes` (K, D)."""
        self.weight.copy_(torch.where(mask[:, None], codes.to(self.weight.dtype), self.weight))


class GradientCodebook(Codebook):
    """Codes updated by the codebook loss, and by the entropy loss where it has a weight.

    codebook_loss = loss_weight · mean over all elements of (stop(z) - e[indices])² (van den Oord et al. 2017, eq. 3).
    """

    def __init__(self, codebook_size: int, codebook_dim: int, loss_weight: float) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.loss_weight = loss_weight

    def codebook_loss(self, vectors: Tensor, codes: Tensor, shard: BatchShard) -> Tensor:
        return self.loss_weight * shard.mean((vectors.detach() - codes).square())


class EmaCodebook(Codebook):
    """Codes that are the moving average of the vectors assigned to them (van den Oord et al. 2017, eqs. 6-8).

    With n_k the hits of code k in a step, over all ranks, and g_k its decay:

        N_k <- g_k N_k + (1 - g_k) n_k
        m_k <- g_k m_k + (1 - g_k) · sum of the vectors assigned to k
        e_k <- m_k / N_k
        g_k  = max(decay, exp(-n_k / min_ema_hits)), or decay if min_ema_hits = 0

    N and m are initialised with 0, so the first step that hits a code sets it to the mean of its vectors. A code
    without hits keeps its value: N_k and m_k decay together. Codes and averages are buffers; no gradient reaches them.

    Args:
        codebook_size: K.
        codebook_dim: D.
        decay: EMA decay per step.
        min_ema_hits: minimum number of a code's own hits that its average covers. With a constant decay, a rarely hit
            code would follow its last few vectors. Here its decay is closer to 1, and exactly 1 in a step without hits.

    Attributes:
        counts: (K,) N, moving average of the hits per step.
        sums: (K, D) m, moving average of the sum of the assigned vectors per step.
    """

    counts: Tensor
    sums: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, decay: float, min_ema_hits: float = 0.0) -> None:
        super().__init__(codebook_size, codebook_dim)
        self.decay, self.min_ema_hits = decay, min_ema_hits
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, codebook_dim))
        self._pending: tuple[Tensor, Tensor] | None = None

    def _register_codes(self, codes: Tensor) -> None:
        self.register_buffer("weight", codes)

    @torch.no_grad()
    def accumulate(self, vectors: Tensor, indices: Tensor) -> None:
        if self._pending is None:
            # At least float32: in bfloat16, 256 + 1 = 256.
            dtype = torch.promote_types(self.counts.dtype, torch.float32)
            self._pending = (torch.zeros_like(self.counts, dtype=dtype), torch.zeros_like(self.sums, dtype=dtype))
        counts, sums = self._pending
        counts.index_add_(0, indices, counts.new_ones(len(indices)))  # bincount would wait for the device
        sums.index_add_(0, indices, vectors.to(sums.dtype))

    @torch.no_grad()
    def update(self, step_is_finite: Tensor | None = None) -> None:
        if self._pending is None:
            return
        counts, sums = (all_reduce_sum(pending).to(self.counts.dtype) for pending in self._pending)
        self.discard()
        if step_is_finite is not None:  # lerp towards itself changes nothing, and needs no branch on the host
            counts = torch.where(step_is_finite, counts, self.counts)
            sums = torch.where(step_is_finite, sums, self.sums)
        rate = self._rate(counts)
        self.counts.lerp_(counts, rate)
        self.sums.lerp_(sums, rate[:, None])
        means = self.sums / self.counts.clamp_min(_MIN_EMA_COUNT)[:, None]
        valid = self.counts > _MIN_EMA_COUNT
        if step_is_finite is not None:
            valid = step_is_finite & valid
        self.weight.copy_(torch.where(valid[:, None], means, self.weight))

    def discard(self) -> None:
        self._pending = None

    def _rate(self, hits: Tensor) -> Tensor:
        """Return 1 - g (K,) for a step with `hits` n (K,)."""
        if not self.min_ema_hits:
            return torch.full_like(self.counts, 1 - self.decay)
        return (-torch.expm1(-hits.to(self.counts.dtype) / self.min_ema_hits)).clamp_max(1 - self.decay)

    @torch.no_grad()
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        super().init_codes(codes, counts)
        # The sample counts as the batch of one step.
        self.counts.copy_(self._rate(counts) * counts)
        self.sums.copy_(self.counts[:, None] * codes)

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        super().replace(mask, codes)
        # N_k = mean of N: with N_k near 0, the first vector assigned to a replaced code would move it all the way.
        self.counts.copy_(torch.where(mask, self.counts.mean(), self.counts))
        self.sums.copy_(torch.where(mask[:, None], self.counts[:, None] * self.weight, self.sums))


class SimVQCodebook(GradientCodebook):
    """Codes e = B W, with a basis B (K, D), which no gradient reaches, and a learned linear map W (D, D).

    The codebook loss trains W, as does the entropy loss where it has a weight. Every step thus moves every code, with
    or without hits (SimVQ: Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One
    Linear Layer", eq. 6). At first B is normal with standard deviation 1 / sqrt(D), and W the identity. `init_codes`
    sets B to the codes and W to the identity; `replace` sets rows of B. It has no attribute `weight`.

    Attributes:
        basis: (K, D) B, a buffer.
        transform: (D, D) W, a parameter.
    """

    basis: Tensor

    def _register_codes(self, codes: Tensor) -> None:
        dim = codes.shape[1]
        self.register_buffer("basis", torch.randn_like(codes) * dim**-0.5)
        self.transform = nn.Parameter(torch.eye(dim, dtype=codes.dtype, device=codes.device))

    @property
    def codes(self) -> Tensor:
        return self.basis @ self.transform

    @torch.no_grad()
    def init_codes(self, codes: Tensor, counts: Tensor) -> None:
        self.basis.copy_(codes)
        self.transform.copy_(torch.eye(len(self.transform)))

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        # b = e pinv(W) solves b W = e, in the least-squares sense if W is singular.
        basis = codes.to(self.basis.dtype) @ torch.linalg.pinv(self.transform)
        self.basis.copy_(torch.where(mask[:, None], basis, self.basis))


class EntropyOnlyUpdate(Settings):
    """Update codes by the gradient of the entropy loss only.

    This is what `VectorQuantizer` does without an `update`. Reconstructions stay poor: nothing moves codes towards
    the latents.
    """

    kind: Literal["entropy_only"] = "entropy_only"
    required_loss: ClassVar = "entropy"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return Codebook(codebook_size, codebook_dim)


class CodebookLossUpdate(Settings):
    """Update codes by the gradient of the codebook loss, and of the entropy loss where it has a weight.

    The codebook loss is weight · mean((stop(z) - e)²) (van den Oord et al. 2017, eq. 3); it is part of
    `commitment_loss`.
    """

    kind: Literal["codebook_loss"] = "codebook_loss"
    weight: float = Field(1.0, gt=0, description="weight of the codebook loss, relative to the commitment loss")
    required_loss: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return GradientCodebook(codebook_size, codebook_dim, self.weight)


class SimVQUpdate(Settings):
    """Update all codes e = B W together: the codebook loss trains one linear map W (D, D) of a basis B (K, D).

    No gradient reaches B. It is random or initialised by k-means, and dead-code reset replaces rows of it (SimVQ: Zhu
    et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", eq. 6).
    """

    kind: Literal["simvq"] = "simvq"
    weight: float = Field(1.0, gt=0, description="weight of the codebook loss, relative to the commitment loss")
    required_loss: ClassVar = "commitment"

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return SimVQCodebook(codebook_size, codebook_dim, self.weight)


class EmaUpdate(Settings):
    """Update each code to an exponential moving average of the latents assigned to it.

    No gradient reaches the codes (van den Oord et al. 2017, eqs. 6-8). In each step the moving averages of a code's
    hits and latents are multiplied by max(decay, exp(-hits / min_ema_hits)), or by `decay` if min_ema_hits is 0. With
    few hits in a step this factor is closer to 1, so the code changes less.
    """

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.9, ge=0, lt=1, description="EMA decay per step")
    min_ema_hits: float = Field(
        15.0,
        ge=0,
        description="minimum number of a code's own hits that its average covers; the effective decay rises for rarely "
        "hit codes; 0: no minimum",
    )
    required_loss: ClassVar = None

    def build(self, codebook_size: int, codebook_dim: int) -> Codebook:
        return EmaCodebook(codebook_size, codebook_dim, self.decay, self.min_ema_hits)


CodebookUpdate = Annotated[
    EntropyOnlyUpdate | CodebookLossUpdate | SimVQUpdate | EmaUpdate, Field(discriminator="kind")
]
