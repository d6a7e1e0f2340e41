"""Product quantization: groups of dimensions, each with its own quantizer.

Shapes: D dimensions, G groups, Q levels in total; (...) any leading axes.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.errors import ConfigError
from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.residual import ResidualQuantizerSettings
from vqtool.quantizers.vector import VectorQuantizerSettings
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings


class ProductQuantizer(Quantizer):
    """Split vectors into groups of dimensions and quantize each group independently.

    Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", 2.1. The quantized vectors and the indices
    (..., Q) are those of the groups, concatenated; losses are averaged over groups. Groups may have several levels.

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
        """The codes (G, K, D / G) of groups of equal width and size; (Q, K, D / G) for groups with levels."""
        codes = [group.codes for group in self.group_quantizers]
        return torch.cat(codes) if codes[0].ndim == 3 else torch.stack(codes)

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [codes for group in self.group_quantizers for codes in group.learned_codes]

    @property
    def needs_init(self) -> bool:
        return any(group.needs_init for group in self.group_quantizers)

    def preprocess(self, vectors: Tensor) -> Tensor:
        return torch.cat([group.preprocess(z) for group, z in self._split_vectors(vectors)], dim=-1)

    def nearest(self, preprocessed: Tensor) -> Tensor:
        return self._join_indices([group.nearest(z) for group, z in self._split_vectors(preprocessed)])

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        return self._join_indices([group.assign(z, shard) for group, z in self._split_vectors(preprocessed)])

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        split = zip(self._split_vectors(preprocessed), self._split_indices(indices), strict=True)
        outputs = [group.quantize(z, group_indices, shard) for (group, z), group_indices in split]
        return QuantizerOutput(
            quantized=torch.cat([output.quantized for output in outputs], dim=-1),
            indices=indices,
            commitment_loss=torch.stack([output.commitment_loss for output in outputs]).mean(),
            entropy_loss=torch.stack([output.entropy_loss for output in outputs]).mean(),
        )

    def decode(self, indices: Tensor) -> Tensor:
        split = zip(self.group_quantizers, self._split_indices(indices), strict=True)
        return torch.cat([group.decode(group_indices) for group, group_indices in split], dim=-1)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        statistics: list[LevelStatistics] = []
        split = zip(self._split_vectors(preprocessed), self._split_indices(indices), strict=True)
        for (group, z), group_indices in split:
            statistics += group.level_statistics(z, group_indices)
        return statistics

    def init_codes(self, preprocessed: Tensor) -> None:
        for group, z in self._split_vectors(preprocessed):
            group.init_codes(z)

    def run_init(self, only_if_complete: bool = False) -> None:
        for group in self.group_quantizers:
            group.run_init(only_if_complete)

    def apply_update(self, step_is_finite: Tensor | None = None) -> None:
        for group in self.group_quantizers:
            group.apply_update(step_is_finite)

    def discard(self) -> None:
        for group in self.group_quantizers:
            group.discard()

    @property
    def group_quantizers(self) -> list[Quantizer]:
        """The quantizer of each group."""
        return [group for group in self.groups if isinstance(group, Quantizer)]

    def _split_vectors(self, vectors: Tensor) -> list[tuple[Quantizer, Tensor]]:
        """Return the quantizer of each group and its dimensions of the vectors (..., D)."""
        groups = self.group_quantizers
        return list(zip(groups, vectors.split([group.dim for group in groups], dim=-1), strict=True))

    def _split_indices(self, indices: Tensor) -> list[Tensor]:
        """Return the indices of each group: (...), or (..., levels of the group) for a group with levels."""
        groups = self.group_quantizers
        split = indices.split([len(group.codebook_sizes) for group in groups], dim=-1)
        return [i if group.has_levels else i[..., 0] for group, i in zip(groups, split, strict=True)]

    def _join_indices(self, indices: list[Tensor]) -> Tensor:
        """Concatenate the indices of the groups to (..., Q); the inverse of `_split_indices`."""
        split = zip(self.group_quantizers, indices, strict=True)
        return torch.cat([i if group.has_levels else i[..., None] for group, i in split], dim=-1)


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
    """Product quantization: groups of dimensions, each with its own quantizer; one index per level of each group."""

    kind: Literal["product"] = "product"
    groups: int = Field(4, ge=1, le=1024, description="G, number of groups of equal width")
    quantizer: GroupSettings = Field(VectorQuantizerSettings(), description="quantizer of each group")

    def dim(self, width: int) -> int:
        """Return D for latents of `width`, the encoder's output width."""
        return self.groups * self.quantizer.dim(self._group_width(width))

    @property
    def follows_width(self) -> bool:
        """Whether D follows the encoder's output width."""
        return self.quantizer.follows_width

    def resolve(self, width: int) -> "ProductQuantizerSettings":
        """Return settings without `auto`, for latents of `width`.

        Raises:
            ConfigError: `follows_width`, and `width` is not a multiple of `groups`.
        """
        if self.follows_width and width % self.groups:
            raise ConfigError(
                f"model.quantizer.groups: {self.groups} groups do not divide the encoder width of {width}; set groups "
                f"to a divisor of {width}, or set model.quantizer.quantizer.codebook_dim"
            )
        return self.model_copy(update={"quantizer": self.quantizer.resolve(self._group_width(width))})

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """The codebook update, by its dotted key in this block; empty without a learned codebook."""
        return {f"quantizer.{key}": update for key, update in self.quantizer.updates.items()}

    def build(self) -> ProductQuantizer:
        """Return the quantizer; the settings must be resolved."""
        return ProductQuantizer([self.quantizer.build() for _ in range(self.groups)])

    def _group_width(self, width: int) -> int:
        """Return the width of one group, at least 1; `resolve` reports a width that cannot be divided."""
        return max(1, width // self.groups)
