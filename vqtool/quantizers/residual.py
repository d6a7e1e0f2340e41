"""Residual quantization: each level quantizes the residual of the previous levels.

Shapes: B samples, D dimensions, Q levels; (...) any leading axes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.beam_search import beam_search
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.initialization import CodebookInit
from vqtool.quantizers.kmeans import assigned
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.sinkhorn import SinkhornAssignment
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings


class ResidualQuantizer(Quantizer):
    """Represent a vector as the sum of one code from each level.

    Juang & Gray 1982, "Multiple Stage Vector Quantization"; in autoencoders Zeghidour et al. 2021, "SoundStream",
    algorithm 1. Maps (..., D) to quantized vectors (..., D) and indices (..., Q). Losses are averaged over levels.

    Args:
        levels: one quantizer per level, all of the same width; repeat one quantizer to share its codebook.
        beam_size: beam width of the search over levels; 1: greedy, level by level.
        level_dropout: fraction of the samples of a training batch whose decoder input is the sum of the first q levels
            only, with q cycling through 1 to Q ("quantizer dropout", SoundStream 3.5). Makes decoding from the first
            levels usable.
        init: how all levels are initialised, one after the other, from the same sample of latents; None: they keep
            the codes they were built with.

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
        self._depth = len(levels)
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
        return torch.stack([level.codes for level in self._all])

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [codes for level in self._all for codes in level.learned_codes]

    @property
    def needs_init(self) -> bool:
        return self.initializer is not None and self.initializer.pending

    def preprocess(self, vectors: Tensor) -> Tensor:
        return self._all[0].preprocess(vectors)

    def nearest(self, preprocessed: Tensor) -> Tensor:
        if self.beam_size > 1:
            codebooks = [level.codes.to(preprocessed.dtype) for level in self._all]
            flat = preprocessed.reshape(-1, self.dim)
            return beam_search(flat, codebooks, self.beam_size).reshape(*preprocessed.shape[:-1], self._depth)
        return self._greedy(preprocessed, [level.nearest for level in self._all])

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        if self.beam_size > 1:
            return self.nearest(preprocessed)
        return self._greedy(preprocessed, [partial(level.assign, shard=shard) for level in self._all])

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        if self.training and self.initializer and self.needs_init:
            return self.initializer.pass_on(preprocessed, indices)
        remainder, codes, outputs = preprocessed, [], []
        for number, level in enumerate(self._all):
            outputs.append(level.quantize(remainder, indices[..., number], shard))
            codes.append(level.decode(indices[..., number]).detach().to(remainder.dtype))
            remainder = remainder - codes[-1]
        return QuantizerOutput(
            quantized=self.pass_gradient(preprocessed, self._sum(codes, shard), shard),
            indices=indices,
            commitment_loss=torch.stack([output.commitment_loss for output in outputs]).mean(),
            entropy_loss=torch.stack([output.entropy_loss for output in outputs]).mean(),
        )

    def decode(self, indices: Tensor) -> Tensor:
        levels = self._all[: indices.shape[-1]]
        return torch.stack([level.decode(indices[..., number]) for number, level in enumerate(levels)]).sum(dim=0)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        found, remainder = [], preprocessed
        for number, level in enumerate(self._all):
            found += level.level_statistics(remainder, indices[..., number])
            remainder = remainder - level.decode(indices[..., number]).to(remainder.dtype)
        return found

    @torch.no_grad()
    def init_codes(self, preprocessed: Tensor) -> None:
        remainders = [preprocessed]
        for level in self._all:
            # A shared codebook starts from all that its levels will see, once it is known what that is.
            level.init_codes(torch.cat(remainders) if self._shared else remainders[-1])
            rest = remainders[-1]
            indices = assigned(level.nearest, rest, level.codebook_sizes[0])
            remainders.append(rest - level.decode(indices).to(rest.dtype))

    def run_init(self, only_if_complete: bool = False) -> None:
        if self.initializer:
            self.initializer.start(self, only_if_complete)

    def apply_update(self, good: Tensor | None = None) -> None:
        for level in self._own:
            level.apply_update(good)
        if self.initializer:
            self.initializer.apply_update()

    def discard(self) -> None:
        for level in self._own:
            level.discard()
        if self.initializer:
            self.initializer.discard()

    @property
    def _own(self) -> list[Quantizer]:
        """Each quantizer once."""
        return [level for level in self.levels if isinstance(level, Quantizer)]

    @property
    def _all(self) -> list[Quantizer]:
        """The quantizer of each level."""
        return self._own * self._depth if self._shared else self._own

    def _greedy(self, preprocessed: Tensor, chooses: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        remainder, indices = preprocessed.detach(), []
        for level, choose in zip(self._all, chooses, strict=True):
            indices.append(choose(remainder))
            remainder = remainder - level.decode(indices[-1]).detach().to(remainder.dtype)
        return torch.stack(indices, dim=-1)

    def _sum(self, codes: list[Tensor], shard: BatchShard) -> Tensor:
        """The codes added up; in training, of the samples that drop levels, only the first ones."""
        dropped = round(self.level_dropout * shard.total) if self.training else 0
        if not dropped or codes[0].ndim < 2:
            return torch.stack(codes).sum(dim=0)
        # Batches are in random order already: nothing needs to be drawn. The first may bypass; these are the last.
        samples = shard.total - 1 - shard.start - torch.arange(shard.samples, device=codes[0].device)
        kept = torch.where(samples < dropped, samples % self._depth + 1, self._depth)
        kept = kept.reshape(-1, *[1] * (codes[0].ndim - 1))
        return torch.stack([code * (kept > number) for number, code in enumerate(codes)]).sum(dim=0)


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
    def _goes_together(self) -> "ResidualQuantizerSettings":
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
        """D, behind an encoder of `width`."""
        return self.quantizer.dim(width)

    @property
    def follows_width(self) -> bool:
        """Whether D is left to the encoder."""
        return self.quantizer.follows_width

    def resolve(self, width: int) -> "ResidualQuantizerSettings":
        """Settings with nothing left open, for an encoder of `width`."""
        return self.model_copy(update={"quantizer": self.quantizer.resolve(width)})

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """How codes learn, by key."""
        return {f"quantizer.{key}": way for key, way in self.quantizer.updates.items()}

    def build(self) -> ResidualQuantizer:
        """The quantizer."""
        if self.shared:
            levels = [self.quantizer.build_level(0)] * self.levels
        else:
            levels = [self.quantizer.build_level(depth) for depth in range(self.levels)]
        return ResidualQuantizer(levels, self.beam_size, self.level_dropout, self.quantizer.init)
