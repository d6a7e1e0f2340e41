"""Product quantization: groups of dimensions, each with its own quantizer.

Shapes: D dimensions, G groups, Q levels in total; (...) any leading axes.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.errors import ConfigError
from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.residual import ResidualQuantizerSettings
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings


class ProductQuantizer(Quantizer):
    """Split vectors into groups of dimensions and quantize each group independently.

    Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", 2.1. The indices (..., Q) of the groups are
    concatenated; losses are averaged over groups.

    Args:
        groups: one quantizer per group; D is the sum of their widths.

    Raises:
        ValueError: there is no group.
    """

    has_levels = True

    def __init__(self, groups: Sequence[Quantizer]) -> None:
        super().__init__()
        if not groups:
            raise ValueError("expected at least one group")
        self.groups = nn.ModuleList(groups)
        self.dim = sum(group.dim for group in groups)
        self.sample_entropy_weight = groups[0].sample_entropy_weight
        self.codebook_sizes = tuple(size for group in groups for size in group.codebook_sizes)

    @property
    def codes(self) -> Tensor:
        """The codes of each group, (G, K, D / G); (Q, K, D / G) for groups of several levels."""
        codes = [group.codes for group in self.all_groups]
        return torch.cat(codes) if codes[0].ndim == 3 else torch.stack(codes)

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [codes for group in self.all_groups for codes in group.learned_codes]

    @property
    def needs_init(self) -> bool:
        return any(group.needs_init for group in self.all_groups)

    def preprocess(self, vectors: Tensor) -> Tensor:
        return torch.cat([group.preprocess(part) for group, part in self._parts(vectors)], dim=-1)

    def nearest(self, preprocessed: Tensor) -> Tensor:
        return self._join([group.nearest(part) for group, part in self._parts(preprocessed)])

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        return self._join([group.assign(part, shard) for group, part in self._parts(preprocessed)])

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        outputs = [
            group.quantize(part, own, shard)
            for (group, part), own in zip(self._parts(preprocessed), self._split(indices), strict=True)
        ]
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1),
            indices=indices,
            commitment_loss=torch.stack([output.commitment_loss for output in outputs]).mean(),
            entropy_loss=torch.stack([output.entropy_loss for output in outputs]).mean(),
        )

    def decode(self, indices: Tensor) -> Tensor:
        parts = [group.decode(own) for group, own in zip(self.all_groups, self._split(indices), strict=True)]
        return torch.cat(parts, dim=-1)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        return [
            level
            for (group, part), own in zip(self._parts(preprocessed), self._split(indices), strict=True)
            for level in group.level_statistics(part, own)
        ]

    def init_codes(self, preprocessed: Tensor) -> None:
        for group, part in self._parts(preprocessed):
            group.init_codes(part)

    def run_init(self, only_if_complete: bool = False) -> None:
        for group in self.all_groups:
            group.run_init(only_if_complete)

    def apply_update(self, good: Tensor | None = None) -> None:
        for group in self.all_groups:
            group.apply_update(good)

    def discard(self) -> None:
        for group in self.all_groups:
            group.discard()

    @property
    def all_groups(self) -> list[Quantizer]:
        """The quantizer of each group."""
        return [group for group in self.groups if isinstance(group, Quantizer)]

    def _parts(self, vectors: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """Each group and its dimensions."""
        parts = vectors.split([group.dim for group in self.all_groups], dim=-1)
        return list(zip(self.all_groups, parts, strict=True))

    def _split(self, indices: Tensor) -> list[Tensor]:
        """The indices (..., Q) as each group knows them."""
        own = indices.split([len(group.codebook_sizes) for group in self.all_groups], dim=-1)
        return [part if group.has_levels else part[..., 0] for group, part in zip(self.all_groups, own, strict=True)]

    def _join(self, indices: list[Tensor]) -> Tensor:
        parts = zip(self.all_groups, indices, strict=True)
        return torch.cat([part if group.has_levels else part[..., None] for group, part in parts], dim=-1)


# The quantizers that can be a group.
GroupSettings = Annotated[
    VectorQuantizerSettings
    | FiniteScalarSettings
    | LookupFreeSettings
    | BinarySphericalSettings
    | ResidualQuantizerSettings,
    Field(discriminator="kind"),
]


class ProductQuantizerSettings(Settings):
    """Product quantization: groups of dimensions, each with its own quantizer; one index per group."""

    kind: Literal["product"] = "product"
    groups: int = Field(4, ge=1, le=1024, description="G, number of groups of equal width")
    quantizer: GroupSettings = Field(VectorQuantizerSettings(), description="quantizer of each group")

    def dim(self, width: int) -> int:
        """D, behind an encoder of `width`."""
        return self.groups * self.quantizer.dim(self._group_width(width))

    @property
    def follows_width(self) -> bool:
        """Whether D is left to the encoder."""
        return self.quantizer.follows_width

    def resolve(self, width: int) -> "ProductQuantizerSettings":
        """Settings with nothing left open, for an encoder of `width`.

        Raises:
            ConfigError: the width is not a multiple of the groups, and a group's own is left open.
        """
        if self.follows_width and width % self.groups:
            raise ConfigError(
                f"model.quantizer.groups: {self.groups} groups do not divide the encoder width of {width}; set groups "
                f"to a divisor of {width}, or set model.quantizer.quantizer.codebook_dim"
            )
        return self.model_copy(update={"quantizer": self.quantizer.resolve(self._group_width(width))})

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """How codes learn, by key."""
        return {f"quantizer.{key}": way for key, way in self.quantizer.updates.items()}

    def build(self) -> ProductQuantizer:
        """The quantizer."""
        return ProductQuantizer([self.quantizer.build() for _ in range(self.groups)])

    def _group_width(self, width: int) -> int:
        return max(1, width // self.groups)
