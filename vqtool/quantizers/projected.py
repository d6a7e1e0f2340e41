"""A quantizer between linear projections, for codes of another width than the latents.

Shapes: D dimensions of the latents, d of the codes; (...) any leading axes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.runtime.distributed import Share


class ProjectedQuantizer(Quantizer):
    """Project latents to the width of the codes, quantize, and project back.

    Factorized codes (Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN", 3.2). The initial output
    projection is the transpose of the input projection, which is orthogonal. Losses and statistics are those of the
    projected vectors.

    Args:
        inner: quantizer of width d.
        dim: D.
    """

    def __init__(self, inner: Quantizer, dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.dim = dim
        self.codebook_sizes = inner.codebook_sizes
        self.has_levels, self.truncates = inner.has_levels, inner.truncates
        self.sample_entropy_weight = inner.sample_entropy_weight
        # Without a bias, what levels add up to is what their projections add up to.
        self.project_in = nn.Linear(dim, inner.dim)
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
    def waits(self) -> bool:
        return self.inner.waits

    def condition(self, vectors: Tensor) -> Tensor:
        weight, bias = self.project_in.weight, self.project_in.bias
        dtype = torch.promote_types(vectors.dtype, weight.dtype)
        return self.inner.condition(F.linear(vectors.to(dtype), weight.to(dtype), bias.to(dtype)))

    def nearest(self, conditioned: Tensor) -> Tensor:
        return self.inner.nearest(conditioned)

    def choose(self, conditioned: Tensor, share: Share) -> Tensor:
        return self.inner.choose(conditioned, share)

    def quantize(self, conditioned: Tensor, indices: Tensor, share: Share) -> QuantizerOutput:
        output = self.inner.quantize(conditioned, indices, share)
        return output._replace(quantized=self._out(output.quantized))

    def decode(self, indices: Tensor) -> Tensor:
        return self._out(self.inner.decode(indices))

    def embed(self, indices: Tensor) -> Tensor:
        return self.inner.embed(indices)

    def statistics(self, conditioned: Tensor, indices: Tensor) -> list[LevelStatistics]:
        return self.inner.statistics(conditioned, indices)

    def initialise(self, conditioned: Tensor) -> None:
        self.inner.initialise(conditioned)

    def start(self, full: bool = False) -> None:
        self.inner.start(full)

    def learn(self, good: Tensor | None = None) -> None:
        self.inner.learn(good)

    def discard(self) -> None:
        self.inner.discard()

    def _out(self, codes: Tensor) -> Tensor:
        return F.linear(codes, self.project_out.weight.to(codes.dtype))
