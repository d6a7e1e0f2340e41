"""Residual quantization: each level quantizes what the levels before it left over.

Shapes: B samples, D dimensions, Q levels; (...) stands for any leading axes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqtool.distributed import Share
from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.beam import beam_search
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.learning import Learning
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.start import KMeansStart
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.settings import Settings


class ResidualQuantizer(Quantizer):
    """A vector as the sum of one code from each level (Juang & Gray 1982, "Multiple Stage Vector Quantization"; for
    autoencoders Zeghidour et al. 2021, "SoundStream", algorithm 1).

    Losses are averaged over levels.

    Args:
        levels: a quantizer each, of vectors of one width; the same one several times shares its codebook.
        beam: sums of codes kept from level to level in choosing; 1 is greedy, each level for itself.
        dropout: the share of the samples of a training batch of which the decoder sees only the first levels, 1 to Q of
            them in turn ("quantizer dropout", SoundStream 3.5); so that fewer levels decode well, too.
        starter: gathers the sample that all levels start from, one after the other.

    Raises:
        ValueError: there is no level, or their widths differ.
    """

    has_levels = True
    truncates = True

    def __init__(
        self,
        levels: Sequence[Quantizer],
        beam: int = 1,
        dropout: float = 0.0,
        starter: KMeansStart | None = None,
    ) -> None:
        super().__init__()
        if len({level.dim for level in levels}) != 1:
            raise ValueError(f"expected levels of one width, got {[level.dim for level in levels]}")
        self._shared = len(levels) > 1 and all(level is levels[0] for level in levels)
        self._depth = len(levels)
        self.levels = nn.ModuleList(levels[:1] if self._shared else levels)
        self.dim = levels[0].dim
        self.codebook_sizes = tuple(size for level in levels for size in level.codebook_sizes)
        self.gradient, self.bypass = levels[0].gradient, levels[0].bypass
        self.confidence = levels[0].confidence
        self.beam, self.dropout = beam, dropout
        self.starter = starter

    @property
    def codes(self) -> Tensor:
        return torch.stack([level.codes for level in self._all])

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [codes for level in self._all for codes in level.learned_codes]

    @property
    def waits(self) -> bool:
        return self.starter is not None and self.starter.pending

    def condition(self, vectors: Tensor) -> Tensor:
        return self._all[0].condition(vectors)

    def nearest(self, conditioned: Tensor) -> Tensor:
        if self.beam > 1:
            codebooks = [level.codes.to(conditioned.dtype) for level in self._all]
            flat = conditioned.reshape(-1, self.dim)
            return beam_search(flat, codebooks, self.beam).reshape(*conditioned.shape[:-1], self._depth)
        return self._greedy(conditioned, [level.nearest for level in self._all])

    def choose(self, conditioned: Tensor, share: Share) -> Tensor:
        if self.beam > 1:
            return self.nearest(conditioned)
        return self._greedy(conditioned, [partial(level.choose, share=share) for level in self._all])

    def quantize(self, conditioned: Tensor, indices: Tensor, share: Share) -> QuantizerOutput:
        if self.training and self.starter and self.waits:
            return self.starter.pass_on(conditioned, indices)
        remainder, codes, outputs = conditioned, [], []
        for number, level in enumerate(self._all):
            outputs.append(level.quantize(remainder, indices[..., number], share))
            codes.append(level.decode(indices[..., number]).detach().to(remainder.dtype))
            remainder = remainder - codes[-1]
        return QuantizerOutput(
            quantized=self.pass_gradient(conditioned, self._sum(codes, share), share),
            indices=indices,
            commitment_loss=torch.stack([output.commitment_loss for output in outputs]).mean(),
            entropy_loss=torch.stack([output.entropy_loss for output in outputs]).mean(),
        )

    def decode(self, indices: Tensor) -> Tensor:
        levels = self._all[: indices.shape[-1]]
        return torch.stack([level.decode(indices[..., number]) for number, level in enumerate(levels)]).sum(dim=0)

    def statistics(self, conditioned: Tensor, indices: Tensor) -> list[LevelStatistics]:
        found, remainder = [], conditioned
        for number, level in enumerate(self._all):
            found += level.statistics(remainder, indices[..., number])
            remainder = remainder - level.decode(indices[..., number]).to(remainder.dtype)
        return found

    @torch.no_grad()
    def initialise(self, conditioned: Tensor) -> None:
        remainders = [conditioned]
        for level in self._all:
            # A shared codebook starts from all that its levels will see, once it is known what that is.
            level.initialise(torch.cat(remainders) if self._shared else remainders[-1])
            rest = remainders[-1]
            remainders.append(rest - level.decode(level.nearest(rest)).to(rest.dtype))

    def start(self, full: bool = False) -> None:
        if self.starter:
            self.starter.start(self, full)

    def learn(self, good: Tensor | None = None) -> None:
        for level in self._own:
            level.learn(good)
        if self.starter:
            self.starter.learn()

    def discard(self) -> None:
        for level in self._own:
            level.discard()
        if self.starter:
            self.starter.discard()

    @property
    def _own(self) -> list[Quantizer]:
        """Each quantizer once."""
        return [level for level in self.levels if isinstance(level, Quantizer)]

    @property
    def _all(self) -> list[Quantizer]:
        """The quantizer of each level."""
        return self._own * self._depth if self._shared else self._own

    def _greedy(self, conditioned: Tensor, chooses: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        remainder, indices = conditioned.detach(), []
        for level, choose in zip(self._all, chooses, strict=True):
            indices.append(choose(remainder))
            remainder = remainder - level.decode(indices[-1]).detach().to(remainder.dtype)
        return torch.stack(indices, dim=-1)

    def _sum(self, codes: list[Tensor], share: Share) -> Tensor:
        """The codes added up; in training, of the samples that drop levels, only the first ones."""
        dropped = round(self.dropout * share.total) if self.training else 0
        if not dropped or codes[0].ndim < 2:
            return torch.stack(codes).sum(dim=0)
        # Batches are in random order already: nothing needs to be drawn. The first may bypass; these are the last.
        samples = share.total - 1 - share.start - torch.arange(share.samples, device=codes[0].device)
        kept = torch.where(samples < dropped, samples % self._depth + 1, self._depth)
        kept = kept.reshape(-1, *[1] * (codes[0].ndim - 1))
        return torch.stack([code * (kept > number) for number, code in enumerate(codes)]).sum(dim=0)


# The quantizers that can be a level.
LevelSettings = Annotated[
    VectorQuantizerSettings | FiniteScalarSettings | LookupFreeSettings | BinarySphericalSettings,
    Field(discriminator="kind"),
]


class ResidualQuantizerSettings(Settings):
    """Several levels, each of which quantizes what those before it left over."""

    kind: Literal["residual"] = "residual"
    levels: int = Field(3, ge=1, le=256, description="Q")
    quantizer: LevelSettings = Field(VectorQuantizerSettings(), description="of each level")
    shared: bool = Field(False, description="one codebook for all levels")
    beam: int = Field(1, ge=1, le=1024, description="sums of codes kept in choosing; 1: each level for itself")
    dropout: float = Field(0.0, ge=0, le=1, description="share of samples that train with the first levels alone")

    @model_validator(mode="after")
    def _goes_together(self) -> "ResidualQuantizerSettings":
        inner = self.quantizer
        if not isinstance(inner, VectorQuantizerSettings):
            if self.beam > 1 or self.shared:
                raise ValueError(f"beam and shared need levels with codebooks to search, and {inner.kind} has none")
        elif inner.metric == "cosine":
            raise ValueError("quantizer.metric: what a level leaves over is no unit vector; expected euclidean")
        elif inner.balance and self.beam > 1:
            raise ValueError("quantizer.balance and beam: both choose the codes in training; set one alone")
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
    def ways(self) -> dict[str, Learning]:
        """How codes learn, by key."""
        return {f"quantizer.{key}": way for key, way in self.quantizer.ways.items()}

    def build(self) -> ResidualQuantizer:
        """The quantizer."""
        if self.shared:
            levels = [self.quantizer.build_level(0)] * self.levels
        else:
            levels = [self.quantizer.build_level(depth) for depth in range(self.levels)]
        return ResidualQuantizer(levels, self.beam, self.dropout, self.quantizer.starter())
