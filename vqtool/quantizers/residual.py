"""Residual quantization: each level quantizes the residual of the previous levels.

Shapes: B samples, D dimensions, Q levels; (...) any leading axes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.quantizers.beam_search import beam_search
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.initialization import CodebookInit
from vqtool.quantizers.kmeans import assign_with_progress
from vqtool.quantizers.sinkhorn import SinkhornAssignment
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings


class ResidualQuantizer(Quantizer):
    """Represent a vector as the sum of one code from each level.

    Juang & Gray 1982, "Multiple Stage Vector Quantization"; in autoencoders Zeghidour et al. 2021, "SoundStream",
    algorithm 1. With z the vectors as preprocessed by the first level (the other levels do not preprocess), e[q,k] code
    k of level q, and r[q] the residual that level q quantizes:

        r[0] = z; indices[q] = argmin_k |r[q] - e[q,k]|²; r[q+1] = r[q] - e[q,indices[q]]
        quantized = sum over q of e[q,indices[q]]

    Maps (..., D) to quantized vectors (..., D) and indices (..., Q). The gradient estimator is applied to the sum;
    losses are averaged over levels. The loss of a level has no gradient for the codes of previous levels.
    `gradient_estimator`, `unquantized_fraction` and `sample_entropy_weight` are those of the first level.

    Args:
        levels: one quantizer per level, all of the same width; repeat one quantizer to share its codebook.
        beam_size: beam width of the search over levels; 1: greedy, level by level.
        level_dropout: fraction, from 0 to 1, of the samples of a training batch for which `quantized` is the sum of
            the first q levels only, with q cycling through 1 to Q from sample to sample ("quantizer dropout",
            SoundStream 3.5). It trains the decoder for prefix decoding.
        init: how all levels are initialised, one after the other, from the same sample of latents; default: they keep
            the codes they were built with. The levels themselves must not have an `init`.

    Raises:
        ValueError: there is no level, or the widths differ.
    """

    has_levels = True
    supports_prefix_decoding = True

    def __init__(
        self,
        levels: Sequence[Quantizer],
        beam_size: int = 1,
        level_dropout: float = 0.0,
        init: CodebookInit | None = None,
    ) -> None:
        super().__init__()
        if len({level.dim for level in levels}) != 1:
            raise ValueError(
                f"expected at least one level, all of the same width, got {[level.dim for level in levels]}"
            )
        self._shared = len(levels) > 1 and all(level is levels[0] for level in levels)
        self._num_levels = len(levels)
        self.levels = nn.ModuleList(levels[:1] if self._shared else levels)
        self.dim = levels[0].dim
        self.codebook_sizes = tuple(size for level in levels for size in level.codebook_sizes)
        self.gradient_estimator = levels[0].gradient_estimator
        self.unquantized_fraction = levels[0].unquantized_fraction
        self.sample_entropy_weight = levels[0].sample_entropy_weight
        self.beam_size, self.level_dropout = beam_size, level_dropout
        self.initializer = init.build(levels[0].codebook_sizes[0], levels[0].dim) if init else None

    @property
    def codes(self) -> Tensor:
        return torch.stack([level.codes for level in self.level_quantizers])

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [codes for level in self.level_quantizers for codes in level.learned_codes]

    @property
    def needs_init(self) -> bool:
        return self.initializer is not None and self.initializer.needs_init

    def preprocess(self, vectors: Tensor) -> Tensor:
        return self.level_quantizers[0].preprocess(vectors)

    def nearest(self, preprocessed: Tensor) -> Tensor:
        if self.beam_size > 1:
            codebooks = [level.codes.to(preprocessed.dtype) for level in self.level_quantizers]
            indices = beam_search(preprocessed.reshape(-1, self.dim), codebooks, self.beam_size)
            return indices.reshape(*preprocessed.shape[:-1], self._num_levels)
        return self._assign_greedily(preprocessed, [level.nearest for level in self.level_quantizers])

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        if self.beam_size > 1:
            return self.nearest(preprocessed)
        return self._assign_greedily(
            preprocessed, [partial(level.assign, shard=shard) for level in self.level_quantizers]
        )

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        if self.training and self.initializer and self.needs_init:
            return self.initializer.pass_through(preprocessed, indices)
        residual, codes, outputs = preprocessed, [], []
        for q, level in enumerate(self.level_quantizers):
            outputs.append(level.quantize(residual, indices[..., q], shard))
            codes.append(level.decode(indices[..., q]).detach().to(residual.dtype))
            residual = residual - codes[-1]
        return QuantizerOutput(
            quantized=self.apply_gradient_estimator(preprocessed, self._sum_levels(codes, shard), shard),
            indices=indices,
            commitment_loss=torch.stack([output.commitment_loss for output in outputs]).mean(),
            entropy_loss=torch.stack([output.entropy_loss for output in outputs]).mean(),
        )

    def decode(self, indices: Tensor) -> Tensor:
        levels = self.level_quantizers[: indices.shape[-1]]
        return torch.stack([level.decode(indices[..., q]) for q, level in enumerate(levels)]).sum(dim=0)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        statistics, residual = [], preprocessed
        for q, level in enumerate(self.level_quantizers):
            statistics += level.level_statistics(residual, indices[..., q])
            residual = residual - level.decode(indices[..., q]).to(residual.dtype)
        return statistics

    @torch.no_grad()
    def init_codes(self, preprocessed: Tensor) -> None:
        residuals = [preprocessed]
        for level in self.level_quantizers:
            # A shared codebook is fitted again for each level, to the residuals of all levels so far.
            level.init_codes(torch.cat(residuals) if self._shared else residuals[-1])
            residual = residuals[-1]
            indices = assign_with_progress(level.nearest, residual, level.codebook_sizes[0])
            residuals.append(residual - level.decode(indices).to(residual.dtype))

    def run_init(self, only_if_complete: bool = False) -> None:
        if self.initializer:
            self.initializer.run(self, only_if_complete)

    def apply_update(self, step_is_finite: Tensor | None = None) -> None:
        for level in self._unique_levels:
            level.apply_update(step_is_finite)
        if self.initializer:
            self.initializer.apply_update()

    def discard(self) -> None:
        for level in self._unique_levels:
            level.discard()
        if self.initializer:
            self.initializer.discard()

    @property
    def _unique_levels(self) -> list[Quantizer]:
        """Each distinct quantizer: one if the codebook is shared, else Q."""
        return [level for level in self.levels if isinstance(level, Quantizer)]

    @property
    def level_quantizers(self) -> list[Quantizer]:
        """The quantizers of the Q levels; a shared one is repeated."""
        return self._unique_levels * self._num_levels if self._shared else self._unique_levels

    def _assign_greedily(self, preprocessed: Tensor, assign: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """Return indices (..., Q) int64: level q assigns the residual of the previous levels by `assign[q]`."""
        residual, indices = preprocessed.detach(), []
        for level, assign_level in zip(self.level_quantizers, assign, strict=True):
            indices.append(assign_level(residual))
            residual = residual - level.decode(indices[-1]).detach().to(residual.dtype)
        return torch.stack(indices, dim=-1)

    def _sum_levels(self, codes: list[Tensor], shard: BatchShard) -> Tensor:
        """Return the sum (B, ..., D) of the codes of Q levels; in training, with level dropout for the last samples."""
        dropped = round(self.level_dropout * shard.total) if self.training else 0
        if not dropped or codes[0].ndim < 2:
            return torch.stack(codes).sum(dim=0)
        # Batches are in random order, so no sampling is needed. The dropped samples are the last of the batch, because
        # the first may be unquantized.
        from_end = shard.total - 1 - shard.start - torch.arange(shard.samples, device=codes[0].device)
        num_levels = torch.where(from_end < dropped, from_end % self._num_levels + 1, self._num_levels)
        num_levels = num_levels.reshape(-1, *[1] * (codes[0].ndim - 1))
        return torch.stack([code * (num_levels > q) for q, code in enumerate(codes)]).sum(dim=0)


# The quantizers that can be a level.
LevelSettings = Annotated[
    VectorQuantizerSettings | FiniteScalarSettings | LookupFreeSettings | BinarySphericalSettings,
    Field(discriminator="kind"),
]


class ResidualQuantizerSettings(Settings):
    """Residual quantization: each level quantizes the residual of the previous levels; one index per level."""

    kind: Literal["residual"] = "residual"
    levels: int = Field(3, ge=1, le=256, description="Q, number of levels")
    quantizer: LevelSettings = Field(VectorQuantizerSettings(), description="quantizer of each level")
    shared: bool = Field(False, description="whether all levels share one codebook")
    beam_size: int = Field(
        1, ge=1, le=1024, description="beam width of the search over levels; 1: greedy, level by level"
    )
    level_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of training samples of which the decoder sees only the first 1 to Q levels",
    )

    @model_validator(mode="after")
    def _check_combination(self) -> "ResidualQuantizerSettings":
        inner = self.quantizer
        if not isinstance(inner, VectorQuantizerSettings):
            if self.beam_size > 1 or self.shared:
                key, default = ("shared", "false") if self.shared else ("beam_size", "1")
                raise ValueError(
                    f"{key}: needs quantizer.kind: vector, because {inner.kind} has no codebook; set {key} to {default}"
                )
        elif inner.metric == "cosine":
            raise ValueError("quantizer.metric: residuals do not have unit length; set it to euclidean")
        elif isinstance(inner.assignment, SinkhornAssignment) and self.beam_size > 1:
            raise ValueError(
                "quantizer.assignment: sinkhorn excludes beam_size > 1, both choose codes in training; set only one"
            )
        return self

    def dim(self, width: int) -> int:
        """Return D for latents of `width`, the encoder's output width."""
        return self.quantizer.dim(width)

    @property
    def follows_width(self) -> bool:
        """Whether D follows the encoder's output width."""
        return self.quantizer.follows_width

    def resolve(self, width: int) -> "ResidualQuantizerSettings":
        """Return settings without `auto`, for latents of `width`."""
        return self.model_copy(update={"quantizer": self.quantizer.resolve(width)})

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """The codebook update, by its dotted key in this block; empty without a learned codebook."""
        return {f"quantizer.{key}": update for key, update in self.quantizer.updates.items()}

    def build(self) -> ResidualQuantizer:
        """Return the quantizer; the settings must be resolved."""
        if self.shared:
            levels = [self.quantizer.build_level(0)] * self.levels
        else:
            levels = [self.quantizer.build_level(depth) for depth in range(self.levels)]
        return ResidualQuantizer(levels, self.beam_size, self.level_dropout, self.quantizer.init)
