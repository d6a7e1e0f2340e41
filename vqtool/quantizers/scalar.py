"""Quantizers without a learned codebook: each dimension is rounded to one of a few fixed values.

The index of a code is a mixed-radix number with one digit per dimension, the first dimension being the least
significant. There is no search: the cost of a step does not depend on the number of codes.

Shapes: N vectors, K codes, D dimensions, M the largest number of values of a dimension; (...) any leading axes.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.codebook_update import CodebookUpdate
from vqtool.quantizers.entropy import negative_entropy, sample_entropies
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings

# Pads the values of dimensions that have fewer: so far away that nothing is assigned to it.
_FAR = 1e18


class ScalarQuantizer(Quantizer):
    """Round each dimension to the nearest of its values, which are evenly spaced.

    The soft assignment is a product over dimensions, so its entropies are sums over dimensions. The sum is exact for
    each vector. For the batch mean it is the entropy of the product of the marginals (Zhao et al. 2024, "Image and
    Video Tokenization with Binary Spherical Quantization", eq. 10), an upper bound of the joint entropy.

    Args:
        values: values of each dimension, ascending and evenly spaced.
        temperature: temperature of the soft assignment, in squared units of the preprocessed vectors.
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment in the entropy loss.
    """

    values: Tensor
    _places: Tensor
    _sizes: Tensor

    def __init__(self, values: Sequence[Sequence[float]], temperature: float, sample_entropy_weight: float) -> None:
        super().__init__()
        self.dim = len(values)
        self.sizes = [len(each) for each in values]
        self.codebook_sizes = (math.prod(self.sizes),)
        self.temperature, self.sample_entropy_weight = temperature, sample_entropy_weight
        longest = max(self.sizes)
        padded = [[*each, *[_FAR] * (longest - len(each))] for each in values]
        places = [math.prod(self.sizes[:dimension]) for dimension in range(self.dim)]
        # Given by the settings: nothing to save.
        self.register_buffer("values", torch.tensor(padded), persistent=False)
        self.register_buffer("_places", torch.tensor(places), persistent=False)
        self.register_buffer("_sizes", torch.tensor(self.sizes), persistent=False)

    @property
    def codes(self) -> Tensor:
        return self.decode(torch.arange(self.codebook_sizes[0], device=self.values.device))

    def nearest(self, preprocessed: Tensor) -> Tensor:
        low, high = self.values[:, 0], self.values.gather(1, self._sizes[:, None] - 1)[:, 0]
        step = (high - low) / (self._sizes - 1)  # not between neighbours, whose difference has lost its digits
        digits = ((preprocessed - low) / step).round().clamp_min(0).minimum(self._sizes - 1).long()
        return (digits * self._places).sum(dim=-1)

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        chosen = self.decode(indices).to(preprocessed.dtype)
        return QuantizerOutput(
            quantized=self.pass_gradient(preprocessed, chosen, shard),
            indices=indices,
            commitment_loss=self.commitment(preprocessed, chosen, shard),
            entropy_loss=self._entropy_loss(preprocessed, shard),
        )

    def commitment(self, preprocessed: Tensor, chosen: Tensor, shard: BatchShard) -> Tensor:
        """Return the commitment loss (): the mean squared distance of vectors to their codes."""
        return shard.mean((preprocessed - chosen).square())

    def decode(self, indices: Tensor) -> Tensor:
        digits = indices[..., None] // self._places % self._sizes
        return self.values.gather(1, digits.reshape(-1, self.dim).T).T.reshape(digits.shape)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        flat, indices = preprocessed.reshape(-1, self.dim), indices.reshape(-1)
        soft = self._soft(flat)
        return [
            LevelStatistics(
                counts=torch.bincount(indices, minlength=self.codebook_sizes[0]).cpu(),
                soft_assignment=soft.sum(dim=0).cpu().double(),
                sample_entropy=_entropies(soft).sum().cpu().double(),
                squared_distance=(flat - self.decode(indices)).square().sum().cpu().double(),
                elements=torch.tensor(flat.numel()),
                total=flat.sum(dim=0, dtype=torch.float64).cpu(),
                squares=flat.double().square().sum().cpu(),
            )
        ]

    def _entropy_loss(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        if not self._entropy_wanted:
            return preprocessed.new_zeros(())
        soft = self._soft(preprocessed.reshape(-1, self.dim))
        vectors = max(1, shard.total * math.prod(preprocessed.shape[1:-1]))
        loss = negative_entropy(shard.sum(soft.sum(dim=0)) / vectors)
        return (
            loss + self.sample_entropy_weight * shard.sum(_entropies(soft).sum()) / vectors
            if self.sample_entropy_weight
            else loss
        )

    def _soft(self, flat: Tensor) -> Tensor:
        """softmax over each dimension's values of -(z - v)² / temperature: (N, D) to (N, D, M)."""
        return torch.softmax(-(flat[..., None] - self.values.to(flat.dtype)).square() / self.temperature, dim=-1)


def _entropies(soft: Tensor) -> Tensor:
    """The entropy (N,) of each vector's soft assignment (N, D, M), the sum of its dimensions'."""
    return sample_entropies(soft.flatten(1))


class ScalarSettings(Settings):
    """Base class of the settings of quantizers without a learned codebook."""

    init: ClassVar[None] = None
    """No codes to initialise."""

    def resolve(self, width: int) -> Self:
        """Settings with nothing left open: they never have."""
        return self

    @property
    def follows_width(self) -> bool:
        """Whether D is left to the encoder."""
        return False

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """How codes learn, by key: they do not."""
        return {}

    def build(self) -> ScalarQuantizer:
        """The quantizer."""
        return self.build_level(0)

    def build_level(self, depth: int) -> ScalarQuantizer:
        """The quantizer as level `depth` of a residual one."""
        raise NotImplementedError
