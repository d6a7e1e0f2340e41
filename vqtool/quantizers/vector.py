"""Vector quantization with one codebook (van den Oord et al. 2017, "Neural Discrete Representation Learning").

Shapes: N vectors, K codes, D dimensions; (...) stands for any leading axes.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from vqtool.distributed import Share
from vqtool.quantizers.balance import SinkhornSettings
from vqtool.quantizers.base import Quantizer
from vqtool.quantizers.commitment import commitment_loss
from vqtool.quantizers.entropy import entropy_loss
from vqtool.quantizers.gradient import GRADIENTS, GradientName
from vqtool.quantizers.kmeans import kmeans
from vqtool.quantizers.learning import EmaLearning, EntropyLearning, Learning
from vqtool.quantizers.output import LevelStatistics, QuantizerOutput
from vqtool.quantizers.revival import RevivalSettings
from vqtool.quantizers.scale import ErrorScale
from vqtool.quantizers.search import nearest_codes
from vqtool.quantizers.soft_assignment import soft_sums
from vqtool.quantizers.start import KMeansStart, KMeansStartSettings, Start
from vqtool.settings import Settings


class VectorQuantizer(Quantizer):
    """Each vector goes to its nearest code.

    With the first three arguments alone it is the bare form: codes learn from the entropy loss and nothing else.

    Args:
        codebook_size: K.
        codebook_dim: D.
        temperature: of the soft assignment behind the entropy loss, in squared units of the vectors.
        learning: how codes learn; left out, by the entropy loss alone.
        revival: when dead codes are set down anew; left out, never.
        relative: the temperature is in units of the mean squared quantizing error instead.
        confidence: weight of the confidence term in the entropy loss.
        metric: cosine makes codes and vectors unit vectors (Yu et al. 2022, "Vector-quantized Image Modeling with
            Improved VQGAN", 3.2).
        gradient: how the gradient passes the choice of a code.
        bypass: share of the samples of a training batch that pass unquantized.
        starter: gathers the sample that codes start from; left out, they start uniform in (-1/K, 1/K).
        balance: how codes are chosen in training; left out, the nearest.

    Raises:
        ValueError: an argument is out of range, or vectors of another width come in.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        temperature: float = 1.0,
        learning: Learning | None = None,
        revival: RevivalSettings | None = None,
        *,
        relative: bool = False,
        confidence: float = 0.0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        gradient: GradientName = "straight_through",
        bypass: float = 0.0,
        starter: KMeansStart | None = None,
        balance: SinkhornSettings | None = None,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1 or not temperature > 0:
            raise ValueError(
                f"sizes and temperature must be positive, got codebook_size={codebook_size}, "
                f"codebook_dim={codebook_dim}, temperature={temperature}"
            )
        if metric not in ("euclidean", "cosine") or gradient not in GRADIENTS:
            raise ValueError(f"no such metric or gradient: {metric}, {gradient}")
        if not 0 <= bypass <= 1 or not confidence >= 0:
            raise ValueError(f"expected a bypass from 0 to 1 and a confidence from 0, got {bypass} and {confidence}")
        self.codebook_sizes = (codebook_size,)
        self.dim = codebook_dim
        self.temperature, self.confidence = temperature, confidence
        self.metric, self.gradient, self.bypass = metric, gradient, bypass
        self.codebook = (learning or EntropyLearning()).build(codebook_size, codebook_dim)
        self.starter = starter
        self.revival = revival.build(codebook_size) if revival else None
        self.scale = ErrorScale() if relative else None
        self.balance = balance

    @property
    def codes(self) -> Tensor:
        codes = self.codebook.codes
        return F.normalize(codes, dim=-1) if self.metric == "cosine" else codes

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [self.codes]

    @property
    def waits(self) -> bool:
        return self.starter is not None and self.starter.pending

    def condition(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(torch.promote_types(vectors.dtype, self.codebook.codes.dtype))
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def nearest(self, conditioned: Tensor) -> Tensor:
        flat, codes = self._flat(conditioned)
        return nearest_codes(flat, codes).reshape(conditioned.shape[:-1])

    def choose(self, conditioned: Tensor, share: Share) -> Tensor:
        if self.balance and self.training and not self.waits:
            chosen = self.balance.assign(*self._flat(conditioned), share.times(_positions(conditioned)))
            return chosen.reshape(conditioned.shape[:-1])
        return self.nearest(conditioned)

    def quantize(self, conditioned: Tensor, indices: Tensor, share: Share) -> QuantizerOutput:
        if self.training and self.starter and self.waits:
            return self.starter.pass_on(conditioned, indices)
        flat, codes = self._flat(conditioned)
        flat_indices = indices.reshape(-1)
        chosen, vectors = codes[flat_indices], share.times(_positions(conditioned))
        loss = commitment_loss(flat, codes, flat_indices, vectors)
        codebook_loss = self.codebook.codebook_loss(flat, chosen, vectors)
        if self.training:
            self._gather(flat.detach(), flat_indices, loss, vectors)
        return QuantizerOutput(
            quantized=self.pass_gradient(conditioned, chosen.reshape(conditioned.shape), share),
            indices=indices,
            commitment_loss=loss if codebook_loss is None else loss + codebook_loss,
            entropy_loss=self._entropy_loss(flat, codes, vectors),
        )

    def decode(self, indices: Tensor) -> Tensor:
        return self.codes[indices]

    def statistics(self, conditioned: Tensor, indices: Tensor) -> list[LevelStatistics]:
        flat, codes = self._flat(conditioned)
        indices = indices.reshape(-1)
        soft = soft_sums(flat, codes, self._temperature, entropy=True)
        squared = (flat - codes[indices]).square()
        return [
            LevelStatistics(
                counts=torch.bincount(indices, minlength=len(codes)).cpu(),
                soft_assignment=soft.assignment[None].cpu().double(),
                sample_entropy=soft.entropy.cpu().double(),
                squared_distance=squared.sum().cpu().double(),
                elements=torch.tensor(flat.numel()),
                total=flat.sum(dim=0, dtype=torch.float64).cpu(),
                squares=flat.double().square().sum().cpu(),
                errors=torch.zeros(len(codes)).double().index_add(0, indices.cpu(), squared.sum(dim=1).cpu().double()),
            )
        ]

    @torch.no_grad()
    def initialise(self, conditioned: Tensor) -> None:
        flat = conditioned.reshape(-1, self.dim)
        # A fixed seed: the vectors themselves differ from run to run.
        codes = kmeans(flat, self.codebook_sizes[0], Generator().manual_seed(0))
        indices = nearest_codes(flat, codes)
        self.codebook.initialise(codes, torch.bincount(indices, minlength=len(codes)))
        if self.scale:
            self.scale.start((flat - codes[indices]).square().mean())

    def start(self, full: bool = False) -> None:
        if self.starter:
            self.starter.start(self, full)

    def learn(self, good: Tensor | None = None) -> None:
        self.codebook.update(good)
        if self.scale:
            self.scale.update(good)
        if self.revival:
            self.revival.update(self.codebook, good)
        if self.starter:
            self.starter.learn()

    def discard(self) -> None:
        for part in (self.codebook, self.scale, self.revival, self.starter):
            if part:
                part.discard()

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_sizes[0]}, codebook_dim={self.dim}, temperature={self.temperature}"

    @property
    def _temperature(self) -> float | Tensor:
        return self.temperature * self.scale() if self.scale else self.temperature

    def _entropy_loss(self, vectors: Tensor, codes: Tensor, share: Share) -> Tensor:
        if not self._entropy_wanted:
            return vectors.new_zeros(())
        return entropy_loss(vectors, codes, self._temperature, self.confidence, share)

    def _gather(self, vectors: Tensor, indices: Tensor, error: Tensor, share: Share) -> None:
        self.codebook.gather(vectors, indices)
        if self.revival:
            self.revival.gather(vectors, indices, share)
        if self.scale:
            self.scale.gather(error, share.total * self.dim)

    def _flat(self, conditioned: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (N, D) and codes (K, D) in one type."""
        return conditioned.reshape(-1, self.dim), self.codes.to(conditioned.dtype)


def _positions(vectors: Tensor) -> int:
    """How many vectors (..., D) there are of each sample."""
    return math.prod(vectors.shape[1:-1])


class VectorQuantizerSettings(Settings):
    """One codebook, nearest code."""

    kind: Literal["vector"] = "vector"
    codebook_size: int = Field(512, ge=1, le=1 << 24, description="K, the number of codes")
    codebook_dim: Annotated[int, Field(ge=1, le=1 << 16)] | Literal["auto"] = Field(
        "auto", description="D, the width of a code; auto: the encoder's own width"
    )
    metric: Literal["euclidean", "cosine"] = Field("euclidean", description="cosine: codes and latents of unit norm")
    learning: Learning = Field(EmaLearning(), description="how codes learn")
    start: Start = Field(KMeansStartSettings(), description="how codes start")
    revival: RevivalSettings | None = Field(RevivalSettings(), description="of dead codes; null: never")
    balance: SinkhornSettings | None = Field(None, description="of codes over a training batch; null: nearest code")
    gradient: GradientName = Field("straight_through", description="how the gradient passes the choice of a code")
    bypass: float = Field(0.0, ge=0, le=1, description="share of training samples that pass unquantized")
    temperature: float = Field(1.0, ge=1e-30, le=1e30, description="of the soft assignment behind the entropy loss")
    temperature_unit: Literal["squared", "error"] = Field(
        "squared", description="squared: the latents' units, squared; error: the mean squared quantizing error"
    )
    confidence: float = Field(0.0, ge=0, description="weight of the samples' own entropy in the entropy loss")

    def dim(self, width: int) -> int:
        """D, behind an encoder of `width`."""
        return width if self.codebook_dim == "auto" else self.codebook_dim

    def resolve(self, width: int) -> "VectorQuantizerSettings":
        """Settings with nothing left open, for an encoder of `width`."""
        return self.model_copy(update={"codebook_dim": self.dim(width)})

    @property
    def follows_width(self) -> bool:
        """Whether D is left to the encoder."""
        return self.codebook_dim == "auto"

    @property
    def ways(self) -> dict[str, Learning]:
        """How codes learn, by key."""
        return {"learning": self.learning}

    def starter(self) -> KMeansStart | None:
        """What gathers the sample that codes start from, if they do."""
        assert isinstance(self.codebook_dim, int)
        return self.start.build(self.codebook_size, self.codebook_dim)

    def build(self) -> VectorQuantizer:
        """The quantizer."""
        return self._build(self.starter())

    def build_level(self, depth: int) -> VectorQuantizer:
        """The quantizer as level `depth` of a residual one, which starts its levels itself."""
        return self._build(None)

    def _build(self, starter: KMeansStart | None) -> VectorQuantizer:
        assert isinstance(self.codebook_dim, int)
        return VectorQuantizer(
            self.codebook_size,
            self.codebook_dim,
            self.temperature,
            relative=self.temperature_unit == "error",
            confidence=self.confidence,
            metric=self.metric,
            gradient=self.gradient,
            bypass=self.bypass,
            learning=self.learning,
            starter=starter,
            revival=self.revival,
            balance=self.balance,
        )
