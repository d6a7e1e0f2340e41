"""Vector quantization with one codebook (van den Oord et al. 2017, "Neural Discrete Representation Learning").

Shapes: N vectors, K codes, D dimensions; (...) any leading axes.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Generator, Tensor

from vqtool.quantizers.base import LevelStatistics, Quantizer, QuantizerOutput
from vqtool.quantizers.codebook_update import CodebookUpdate, EmaUpdate, EntropyOnlyUpdate
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.quantizers.gradient_estimators import GRADIENT_ESTIMATORS, GradientEstimator
from vqtool.quantizers.initialization import CodebookInit, KMeansInitSettings, RandomInitSettings
from vqtool.quantizers.kmeans import assign_with_progress, kmeans
from vqtool.quantizers.losses import ErrorScale, commitment_loss, entropy_loss
from vqtool.quantizers.sinkhorn import CodeAssignment, NearestAssignment
from vqtool.quantizers.soft_assignment import soft_sums
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings
from vqtool.search import nearest_codes

TemperatureUnit = Literal["absolute", "quantization_error"]


class VectorQuantizer(Quantizer):
    """Quantize each vector to its nearest code.

    Maps vectors z (..., D) to a `QuantizerOutput`: quantized (..., D), indices (...), commitment_loss () and
    entropy_loss (). With e the codes and the first three arguments only:

        d[n,k] = |z_n - e_k|²
        indices[n] = argmin_k d[n,k], ties go to the lowest index
        quantized = z + stop(e[indices] - z)
        commitment_loss = mean over all elements of (z - stop(e[indices]))²
        s[n,:] = softmax over k of -d[n,:] / temperature
        p[k] = mean over n of s[n,k]
        entropy_loss = sum over k of p[k]·ln(p[k] + 1e-10), in nats; minimal (-ln K) for even usage

    Codes are then updated by the gradient of the entropy loss only. In training, call `update()` after each optimizer
    step.

    Args:
        codebook_size: K.
        codebook_dim: D.
        temperature: temperature of the soft assignment in the entropy loss, positive, in `temperature_unit`.
        update: how codes are updated; default: by the gradient of the entropy loss only.
        dead_code_reset: when dead codes are reset; default: never.
        temperature_unit: `absolute`: squared units of the preprocessed vectors; `quantization_error`: multiples of the
            mean squared quantization error per dimension, a moving average (`ErrorScale`).
        sample_entropy_weight: weight of the mean entropy of each vector's soft assignment in the entropy loss.
        metric: `euclidean`, or `cosine`: codes and vectors are normalised to unit length (Yu et al. 2022,
            "Vector-quantized Image Modeling with Improved VQGAN", 3.2).
        gradient_estimator: how gradients pass the argmin: `straight_through` or `rotation`.
        unquantized_fraction: fraction, from 0 to 1, of the samples of a training batch that skip quantization.
        init: how codes are initialised; default: at random, see `RandomInitSettings`.
        assignment: how vectors are assigned to codes in training; default: to the nearest code.

    Raises:
        ValueError: an argument is out of range, or an input has the wrong width or dtype.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        temperature: float = 1.0,
        update: CodebookUpdate | None = None,
        dead_code_reset: DeadCodeResetSettings | None = None,
        *,
        temperature_unit: TemperatureUnit = "absolute",
        sample_entropy_weight: float = 0.0,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        gradient_estimator: GradientEstimator = "straight_through",
        unquantized_fraction: float = 0.0,
        init: CodebookInit | None = None,
        assignment: CodeAssignment | None = None,
    ) -> None:
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1 or not temperature > 0:
            raise ValueError(
                f"sizes and temperature must be positive, got codebook_size={codebook_size}, "
                f"codebook_dim={codebook_dim}, temperature={temperature}"
            )
        for name, value, choices in (
            ("metric", metric, ("euclidean", "cosine")),
            ("gradient_estimator", gradient_estimator, tuple(GRADIENT_ESTIMATORS)),
            ("temperature_unit", temperature_unit, ("absolute", "quantization_error")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value}")
        if not 0 <= unquantized_fraction <= 1:
            raise ValueError(f"unquantized_fraction: expected a number from 0 to 1, got {unquantized_fraction}")
        if not sample_entropy_weight >= 0:
            raise ValueError(f"sample_entropy_weight: expected a number of at least 0, got {sample_entropy_weight}")
        self.codebook_sizes = (codebook_size,)
        self.dim = codebook_dim
        self.temperature, self.sample_entropy_weight = temperature, sample_entropy_weight
        self.metric = metric
        self.gradient_estimator, self.unquantized_fraction = gradient_estimator, unquantized_fraction
        self.codebook = (update or EntropyOnlyUpdate()).build(codebook_size, codebook_dim)
        self.initializer = init.build(codebook_size, codebook_dim) if init else None
        self.dead_code_reset = dead_code_reset.build(codebook_size) if dead_code_reset else None
        self.error_scale = ErrorScale() if temperature_unit == "quantization_error" else None
        self.assignment = assignment or NearestAssignment()

    @property
    def codes(self) -> Tensor:
        codes = self.codebook.codes
        return F.normalize(codes, dim=-1) if self.metric == "cosine" else codes

    @property
    def learned_codes(self) -> list[Tensor | None]:
        return [self.codes]

    @property
    def needs_init(self) -> bool:
        return self.initializer is not None and self.initializer.needs_init

    def preprocess(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(torch.promote_types(vectors.dtype, self.codebook.codes.dtype))
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def nearest(self, preprocessed: Tensor) -> Tensor:
        flat, codes = self._flatten(preprocessed)
        return nearest_codes(flat, codes).reshape(preprocessed.shape[:-1])

    def assign(self, preprocessed: Tensor, shard: BatchShard) -> Tensor:
        if not self.training or self.needs_init:
            return self.nearest(preprocessed)
        flat, codes = self._flatten(preprocessed)
        indices = self.assignment.assign(flat, codes, shard.scaled(_tokens_per_sample(preprocessed)))
        return indices.reshape(preprocessed.shape[:-1])

    def quantize(self, preprocessed: Tensor, indices: Tensor, shard: BatchShard) -> QuantizerOutput:
        if self.training and self.initializer and self.needs_init:
            return self.initializer.pass_through(preprocessed, indices)
        flat, codes = self._flatten(preprocessed)
        flat_indices = indices.reshape(-1)
        assigned_codes, flat_shard = codes[flat_indices], shard.scaled(_tokens_per_sample(preprocessed))
        loss = commitment_loss(flat, codes, flat_indices, flat_shard)
        codebook_loss = self.codebook.codebook_loss(flat, assigned_codes, flat_shard)
        if self.training:
            self.codebook.accumulate(flat.detach(), flat_indices)
            if self.dead_code_reset:
                self.dead_code_reset.accumulate(flat.detach(), flat_indices, flat_shard)
            if self.error_scale:
                self.error_scale.accumulate(loss, flat_shard.total * self.dim)
        return QuantizerOutput(
            quantized=self.apply_gradient_estimator(preprocessed, assigned_codes.reshape(preprocessed.shape), shard),
            indices=indices,
            commitment_loss=loss if codebook_loss is None else loss + codebook_loss,
            entropy_loss=entropy_loss(flat, codes, self._temperature, self.sample_entropy_weight, flat_shard)
            if self._computes_entropy_loss
            else flat.new_zeros(()),
        )

    def decode(self, indices: Tensor) -> Tensor:
        return self.codes[indices]

    def level_statistics(self, preprocessed: Tensor, indices: Tensor) -> list[LevelStatistics]:
        flat, codes = self._flatten(preprocessed)
        indices = indices.reshape(-1)
        soft = soft_sums(flat, codes, self._temperature, entropy=True)
        squared = (flat - codes[indices]).square()
        distances = squared.sum(dim=1).cpu().double()
        return [
            LevelStatistics(
                counts=torch.bincount(indices, minlength=len(codes)).cpu(),
                soft_assignment=soft.assignment[None].cpu().double(),
                sample_entropy=soft.entropy.cpu().double(),
                squared_distance=squared.sum().cpu().double(),
                elements=torch.tensor(flat.numel()),
                vector_sum=flat.sum(dim=0, dtype=torch.float64).cpu(),
                squared_norm_sum=flat.double().square().sum().cpu(),
                squared_distance_per_code=torch.zeros(len(codes)).double().index_add(0, indices.cpu(), distances),
            )
        ]

    @torch.no_grad()
    def init_codes(self, preprocessed: Tensor) -> None:
        flat = preprocessed.reshape(-1, self.dim)
        # A fixed seed suffices: the vectors differ from run to run.
        codes = kmeans(flat, self.codebook_sizes[0], Generator().manual_seed(0))
        indices = assign_with_progress(lambda vectors: nearest_codes(vectors, codes), flat, len(codes))
        self.codebook.init_codes(codes, torch.bincount(indices, minlength=len(codes)))
        if self.error_scale:
            self.error_scale.reset((flat - codes[indices]).square().mean())

    def run_init(self, only_if_complete: bool = False) -> None:
        if self.initializer:
            self.initializer.run(self, only_if_complete)

    def apply_update(self, step_is_finite: Tensor | None = None) -> None:
        self.codebook.update(step_is_finite)
        if self.error_scale:
            self.error_scale.update(step_is_finite)
        if self.dead_code_reset:
            self.dead_code_reset.update(self.codebook, step_is_finite)
        if self.initializer:
            self.initializer.apply_update()

    def discard(self) -> None:
        for module in (self.codebook, self.error_scale, self.dead_code_reset, self.initializer):
            if module:
                module.discard()

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_sizes[0]}, codebook_dim={self.dim}, temperature={self.temperature}"

    @property
    def _temperature(self) -> float | Tensor:
        """Temperature in squared units of the preprocessed vectors; a tensor () for `quantization_error`."""
        return self.temperature * self.error_scale() if self.error_scale else self.temperature

    def _flatten(self, preprocessed: Tensor) -> tuple[Tensor, Tensor]:
        """Return preprocessed vectors (..., D) as (N, D), and the codes (K, D) in their dtype."""
        return preprocessed.reshape(-1, self.dim), self.codes.to(preprocessed.dtype)


def _tokens_per_sample(vectors: Tensor) -> int:
    """Return L for vectors (B, L, D): the product of all axes but the first and the last."""
    return math.prod(vectors.shape[1:-1])


class VectorQuantizerSettings(Settings):
    """Vector quantization with one codebook: each latent is replaced by its nearest code."""

    kind: Literal["vector"] = "vector"
    codebook_size: int = Field(512, ge=1, le=1 << 24, description="K, number of codes")
    codebook_dim: Annotated[int, Field(ge=1, le=1 << 16)] | Literal["auto"] = Field(
        "auto", description="D, dimension of a code; auto: the encoder's output width"
    )
    metric: Literal["euclidean", "cosine"] = Field(
        "euclidean", description="distance to codes; cosine: codes and latents are normalised to unit length"
    )
    update: CodebookUpdate = Field(EmaUpdate(), description="how codes are updated in training")
    init: CodebookInit = Field(KMeansInitSettings(), description="how codes are initialised")
    dead_code_reset: DeadCodeResetSettings | None = Field(
        DeadCodeResetSettings(), description="when dead codes are reset; null: never"
    )
    assignment: CodeAssignment = Field(
        NearestAssignment(),
        description="how latents are assigned to codes in training; encoding always uses the nearest code",
    )
    gradient_estimator: GradientEstimator = Field(
        "straight_through",
        description="how gradients pass the argmin; rotation: the rotation trick (Fifty et al. 2024)",
    )
    unquantized_fraction: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of the samples of a training batch whose latents reach the decoder unquantized",
    )
    temperature: float = Field(
        1.0,
        ge=1e-30,
        le=1e30,
        description="temperature of the soft assignment in the entropy loss, in temperature_unit",
    )
    temperature_unit: TemperatureUnit = Field(
        "absolute",
        description="unit of temperature; absolute: squared units of the latents; quantization_error: multiples of the "
        "mean squared quantization error per dimension",
    )
    sample_entropy_weight: float = Field(
        0.0, ge=0, description="weight of the mean entropy of each latent's soft assignment in the entropy loss"
    )

    def dim(self, width: int) -> int:
        """Return D for latents of `width`, the encoder's output width."""
        return width if self.codebook_dim == "auto" else self.codebook_dim

    def resolve(self, width: int) -> "VectorQuantizerSettings":
        """Return settings without `auto`, for latents of `width`."""
        return self.model_copy(update={"codebook_dim": self.dim(width)})

    @property
    def follows_width(self) -> bool:
        """Whether D follows the encoder's output width."""
        return self.codebook_dim == "auto"

    @property
    def updates(self) -> dict[str, CodebookUpdate]:
        """The codebook update, by its key in this block."""
        return {"update": self.update}

    def build_level(self, depth: int) -> VectorQuantizer:
        """Return a quantizer without `init` for a residual quantizer, which initialises its levels itself.

        All levels have the same settings: `depth` has no effect.
        """
        return self.model_copy(update={"init": RandomInitSettings()}).build()

    def build(self) -> VectorQuantizer:
        """Return the quantizer; the settings must be resolved."""
        assert isinstance(self.codebook_dim, int)
        return VectorQuantizer(
            self.codebook_size,
            self.codebook_dim,
            self.temperature,
            self.update,
            self.dead_code_reset,
            temperature_unit=self.temperature_unit,
            sample_entropy_weight=self.sample_entropy_weight,
            metric=self.metric,
            gradient_estimator=self.gradient_estimator,
            unquantized_fraction=self.unquantized_fraction,
            init=self.init,
            assignment=self.assignment,
        )
