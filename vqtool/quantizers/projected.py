"""A quantizer between two linear projections, for codes of another width than the latents.

Shapes: D dimensions of the latents, d dimensions of the codes; (...) any leading axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.runtime.distributed import BatchShard


class ProjectedQuantizer(Quantizer):
    """Project vectors (..., D) to the width of the codes, quantize, and project back.

    quantized = W_out · inner(W_in · z + b). Factorized codes (Yu et al. 2022, "Vector-quantized Image Modeling with
    Improved VQGAN", 3.2). W_in is initialised orthogonal, W_out with its transpose, b with 0. Losses, statistics and
    codes are those of the inner quantizer, in d dimensions.

    Args:
        inner: quantizer of width d.
        dim: D, width of the input and output.
    """

    def __init__(self, inner: Quantizer, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim
        self.codebook_sizes = inner.codebook_sizes
        self.has_levels, self.supports_prefix_decoding = inner.has_levels, inner.supports_prefix_decoding
        self.sample_entropy_weight = inner.sample_entropy_weight
        self.project_in = nn.Linear(dim, inner.dim)
        # No bias, so that the projection of a sum of levels is the sum of their projections.
        self.project_out = nn.Linear(inner.dim, dim, bias=False)
        if self.project_in.weight.device.type != "meta":
            nn.init.orthogonal_(self.project_in.weight)
        nn.init.zeros_(self.project_in.bias)
        with torch.no_grad():
            self.project_out.weight.copy_(self.project_in.weight.T)

    @property
    def codes(self) -> Tensor:
        return self.inner.codes

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return self.inner.learned_codes

    @property
    def needs_init(self) -> bool:
        return self.inner.needs_init

    def preprocess(self, vectors: Tensor) -> Tensor:
        weight, bias = self.project_in.weight, self.project_in.bias
        dtype = torch.promote_types(vectors.dtype, weight.dtype)
        return self.inner.preprocess(F.linear(vectors.to(dtype), weight.to(dtype), bias.to(dtype)))

    def nearest(self, preprocessed: Tensor) -> Tensor:
        return self.inner.nearest(preprocessed)

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        return self.inner.assign(preprocessed, shard)

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        output = self.inner.quantize(preprocessed, indices, shard)
        return output._replace(quantized=self._project_out(output.quantized))

    def decode(self, indices: Tensor) -> Tensor:
        return self._project_out(self.inner.decode(indices))

    def embed(self, indices: Tensor) -> Tensor:
        return self.inner.embed(indices)

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        return self.inner.level_statistics(preprocessed, indices)

    def init_codes(self, preprocessed: Tensor) -> None:
        self.inner.init_codes(preprocessed)

    def run_init(self, only_if_complete: bool = False) -> None:
        self.inner.run_init(only_if_complete)

    def apply_update(self, step_is_finite: Tensor | None = None) -> None:
        self.inner.apply_update(step_is_finite)

    def discard(self) -> None:
        self.inner.discard()

    def _project_out(self, codes: Tensor) -> Tensor:
        """Return W_out · codes (..., D), in the dtype of the codes (..., d)."""
        return F.linear(codes, self.project_out.weight.to(codes.dtype))
