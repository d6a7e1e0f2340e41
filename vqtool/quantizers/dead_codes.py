"""Dead codes: the training steps in which codes were hit, and the reset of codes that are not hit any more.

Shapes: N vectors, K codes, D dimensions, Q levels, R codes reset in a step; (...) any leading axes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.quantizers.codebook_update import Codebook
from vqtool.runtime.distributed import BatchShard, all_reduce_max, all_reduce_min, all_reduce_sum
from vqtool.runtime.settings import Settings

# Numbers of indices and of steps that `HitSteps` buffers at most. One scatter over many steps costs little more than
# over one step.
_MAX_PENDING_INDICES, _MAX_PENDING_STEPS = 1 << 16, 1 << 10


class DeadCodeReset(nn.Module):
    """Count hits over a window of steps; at its end, reset codes with too few hits.

    Random restarts (Dhariwal et al. 2020, "Jukebox", 3.1). A window ends when the mean number of hits per code reaches
    `window_hits`, so "dead" does not depend on batch size or codebook size. A reset code is placed at

        e[indices[n]] + step_size · (z[n] - e[indices[n]])

    for a vector z[n] of the batches accumulated since the last update, on all ranks; the vectors are evenly spaced in
    them, as batches are in random order. The host synchronises with the device only at the end of a window.

    Args:
        codebook_size: K.
        window_hits: length of the window, in mean hits per code.
        min_hits: codes with fewer hits in a window are dead.
        step_size: fraction, in (0, 1], of the way from the code e[indices[n]] to the vector z[n]. In many dimensions a
            vector is far from all others, and a code placed on it (1) gets no other hits. A code placed near an
            existing code takes over some of that code's vectors (Linde, Buzo & Gray 1980, "An Algorithm for Vector
            Quantizer Design", splitting). While more than half of the codes are dead, 1 is used.

    Attributes:
        hits: (K,) int64, hits in the current window, over all ranks.
        dead: (K,) bool, dead codes that are not reset yet; a step resets at most one code per vector.
    """

    hits: Tensor
    dead: Tensor

    def __init__(self, codebook_size: int, window_hits: int, min_hits: int = 1, step_size: float = 1.0) -> None:
        super().__init__()
        self._hits_per_window, self._min_hits, self._step_size = window_hits * codebook_size, min_hits, step_size
        self.register_buffer("hits", torch.zeros(codebook_size, dtype=torch.int64))
        self.register_buffer("dead", torch.zeros(codebook_size, dtype=torch.bool))
        # Copies of hits.sum() and dead.sum() on the host, which does not have to wait for the device to read them.
        self._num_hits = self._num_dead = 0
        self._pending_hits: Tensor | None = None
        self._batches: list[tuple[Tensor, Tensor, BatchShard]] = []

    @torch.no_grad()
    def accumulate(self, vectors: Tensor, indices: Tensor, shard: BatchShard) -> None:
        """Accumulate a training batch for `update`.

        Args:
            vectors: z (N, D).
            indices: (N,) int64.
            shard: position of these vectors in the global batch, counted in vectors.
        """
        if self._pending_hits is None:
            self._pending_hits = torch.zeros_like(self.hits)
        self._pending_hits.index_add_(0, indices, torch.ones_like(indices))  # bincount would wait for the device
        self._batches.append((vectors, indices, shard))

    @torch.no_grad()
    def update(self, codebook: Codebook, step_is_finite: Tensor | None = None) -> None:
        """Count the hits accumulated by all processes; at the end of a window, reset dead codes.

        If there are more dead codes than vectors, the next steps reset the others. All processes must call it.

        Args:
            codebook: the codebook whose codes (K, D) are reset.
            step_is_finite: () bool on the device; if false, `hits`, `dead` and the codes do not change, and the length
                of the current window is no longer exact. Default: true.
        """
        if self._pending_hits is None:
            return
        step_is_finite = torch.ones_like(self.dead[0]) if step_is_finite is None else step_is_finite
        num_vectors = sum(shard.total for *_, shard in self._batches)
        self.hits += all_reduce_sum(self._pending_hits) * step_is_finite
        self._num_hits += num_vectors
        if self._num_hits >= self._hits_per_window:
            self.dead.copy_(torch.where(step_is_finite, self.hits < self._min_hits, self.dead))
            self._num_dead = int(self.dead.sum())  # waits for the device, once per window
            self.hits *= ~step_is_finite
            self._num_hits = 0
        if self._num_dead:
            num_reset = min(self._num_dead, num_vectors)
            position = self.dead.cumsum(0) - 1  # of each dead code in the list of dead codes
            selected = self.dead & (position < num_reset) & step_is_finite
            # If most codes are dead, the existing codes are far from all vectors; small steps would not reach them.
            step_size = 1.0 if self._num_dead > len(self.hits) // 2 else self._step_size
            rows = torch.arange(num_reset, device=position.device) * num_vectors // num_reset
            reset_codes = self._reset_codes(codebook.codes, rows, step_size)
            codebook.replace(selected, reset_codes[position.clamp(0, num_reset - 1)])
            self.dead &= ~selected
            self._num_dead -= num_reset
        self.discard()

    def _reset_codes(self, codes: Tensor, rows: Tensor, step_size: float) -> Tensor:
        """Return e[indices[n]] + step_size · (z[n] - e[indices[n]]) (R, D) for the vectors n in `rows`.

        Each process computes the vectors of its own shards and leaves the other rows 0; the rows are then summed over
        processes.

        Args:
            codes: e (K, D); not modified.
            rows: (R,) int64 numbers n, counted over the accumulated batches, each with the shards of all processes.
            step_size: fraction of the way from the code to the vector.
        """
        reset_codes = codes.new_zeros(len(rows), codes.shape[1], dtype=self._batches[0][0].dtype)
        batch_start = 0
        for vectors, indices, shard in self._batches:
            local_rows = rows - batch_start - shard.start
            is_local = (local_rows >= 0) & (local_rows < len(vectors))
            if len(vectors):
                local_rows = local_rows.clamp(0, len(vectors) - 1)
                assigned_codes = codes[indices[local_rows]].to(vectors.dtype)
                moved = torch.lerp(assigned_codes, vectors[local_rows], step_size)
                reset_codes = torch.where(is_local[:, None], moved, reset_codes)
            batch_start += shard.total
        return all_reduce_sum(reset_codes)

    def discard(self) -> None:
        """Drop the batches accumulated since the last update."""
        self._pending_hits, self._batches = None, []

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._num_hits, self._num_dead = int(self.hits.sum()), int(self.dead.sum())


class DeadCodeResetSettings(Settings):
    """Reset codes that are rarely used.

    A reset code is moved next to an existing code, towards one of its latents. The window is counted in mean hits per
    code, so the settings do not depend on batch size or codebook size.
    """

    window_hits: int = Field(20, ge=1, le=1 << 31, description="length of the window, in mean hits per code")
    min_hits: int = Field(
        2,
        ge=1,
        le=1 << 31,
        description="codes with fewer hits in a window are reset; 1: only codes without a hit",
    )
    step_size: float = Field(
        0.1,
        gt=0,
        le=1,
        description="where a reset code is placed, as a fraction of the way from an existing code to one of its "
        "latents; 1: on the latent",
    )

    def build(self, codebook_size: int) -> DeadCodeReset:
        """Return the dead-code reset of K = `codebook_size` codes."""
        return DeadCodeReset(codebook_size, self.window_hits, self.min_hits, self.step_size)


class HitSteps(nn.Module):
    """First and last training step in which each code was hit, for the codes of all levels.

    They distinguish codes that were never hit from codes that died during training.

    Args:
        codebook_sizes: K of each level.
        max_pending_indices: with this many buffered indices, the buffered steps are written to `first` and `last`.
        max_pending_steps: the same with this many buffered steps.

    Attributes:
        first: (sum of all K,) int32, step of the first hit, counted from 1; 0: never hit. The levels are concatenated.
            Buffered steps are missing; `synchronize`, `per_level` and `state_dict` write them first. Steps of other
            processes are missing until `synchronize`.
        last: the same for the last hit.
    """

    first: Tensor
    last: Tensor
    _offsets: Tensor

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        *,
        max_pending_indices: int = _MAX_PENDING_INDICES,
        max_pending_steps: int = _MAX_PENDING_STEPS,
    ) -> None:
        super().__init__()
        self._codebook_sizes = list(codebook_sizes)
        self._max_pending_indices, self._max_pending_steps = max_pending_indices, max_pending_steps
        for name in ("first", "last"):
            self.register_buffer(name, torch.zeros(sum(codebook_sizes), dtype=torch.int32))
        offsets = torch.tensor([0, *self._codebook_sizes[:-1]]).cumsum(0)
        self.register_buffer("_offsets", offsets, persistent=False)
        self._pending: list[tuple[Tensor, int, Tensor | None]] = []
        self._num_pending_indices = 0
        self.register_state_dict_pre_hook(_flush)
        self.register_load_state_dict_post_hook(_clear)

    def record(self, indices: Tensor, step: int, step_is_finite: Tensor | None = None) -> None:
        """Record this process's hits of a training step.

        Args:
            indices: (..., Q) int64, or (...) with one level.
            step: number of the step, counted from 1; it must not decrease from call to call.
            step_is_finite: () bool on the device; if false, nothing is recorded. Default: true.
        """
        self._pending.append((indices.detach(), step, step_is_finite))
        self._num_pending_indices += indices.numel()
        if self._num_pending_indices >= self._max_pending_indices or len(self._pending) >= self._max_pending_steps:
            _flush(self)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Merge the hits that each process recorded; all processes must call it."""
        _flush(self)
        never = torch.iinfo(self.first.dtype).max
        first = all_reduce_min(torch.where(self.first == 0, never, self.first))
        self.first.copy_(torch.where(first == never, 0, first))
        self.last.copy_(all_reduce_max(self.last))

    def per_level(self) -> list[tuple[Tensor, Tensor]]:
        """Return `first` (K,) and `last` (K,) of each level, including the buffered steps of this process."""
        _flush(self)
        sizes = self._codebook_sizes
        return list(zip(self.first.split(sizes), self.last.split(sizes), strict=True))


@torch.no_grad()
def _flush(module: HitSteps, *_: object) -> None:
    """Write the buffered steps to `first` and `last`."""
    if not module._pending:
        return
    codes, steps = [], []
    for indices, step, step_is_finite in module._pending:
        codes.append((indices.reshape(-1, len(module._codebook_sizes)) + module._offsets).flatten())
        hit_steps = torch.full_like(codes[-1], step, dtype=module.last.dtype)
        steps.append(hit_steps if step_is_finite is None else hit_steps * step_is_finite)  # step 0: no hit
    _clear(module)
    code, step_of_hit = torch.cat(codes), torch.cat(steps)
    never = torch.iinfo(module.first.dtype).max
    module.last.scatter_reduce_(0, code, step_of_hit, "amax")
    first = torch.full_like(module.first, never)
    first.scatter_reduce_(0, code, step_of_hit.where(step_of_hit > 0, never), "amin")
    module.first.copy_(torch.where((module.first == 0) & (first < never), first, module.first))


def _clear(module: HitSteps, *_: object) -> None:
    """Drop the buffered steps."""
    module._pending.clear()
    module._num_pending_indices = 0
