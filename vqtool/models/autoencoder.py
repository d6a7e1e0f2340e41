"""The model: normalise -> encoder -> quantizer -> decoder -> denormalise, built from its settings.

Shapes: B batch, C channels, L tokens per sample, D code dimension, Q levels; size is (), (T,) or (H, W).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

from pydantic import Field
from torch import Tensor, nn

from vqtool.data import SampleSpec, sample_shape
from vqtool.errors import ConfigError, DataError
from vqtool.models.data_io import CategoricalIO, ContinuousIO
from vqtool.models.encoders import EncoderSettings, NetSettings, Size
from vqtool.quantizers import ProjectedQuantizer, Quantizer, QuantizerOutput, QuantizerSettings
from vqtool.quantizers.hit_times import HitTimes
from vqtool.runtime.settings import Settings
from vqtool.runtime.terminal import listed


class ModelSettings(Settings):
    """The autoencoder: encoder, quantizer and decoder."""

    encoder: EncoderSettings = Field(description="network that maps samples to latents")
    quantizer: QuantizerSettings = Field(description="quantizer that maps latents to indices")
    decoder: EncoderSettings | None = Field(
        None, description="network that maps quantized latents to samples; null: mirrors the encoder"
    )


class AutoencoderOutput(NamedTuple):
    """Output of one training forward pass."""

    prediction: Tensor
    """(B, C, *size) in normalised units, or logits (B, classes, *size)."""
    target: Tensor
    """(B, C, *size) in normalised units, or classes (B, *size)."""
    latents: Tensor
    """(B, L, D) encoder output."""
    quantizer: QuantizerOutput
    """Quantized latents, indices and losses."""


class Autoencoder(nn.Module):
    """Autoencoder for samples of one shape and dtype.

    Args:
        settings: settings resolved by `resolve_model`.
        spec: shape, layout and dtype of the samples.
        mean, scale: C numbers each, subtracted and divided by in normalisation; a checkpoint overwrites them.
    """

    def __init__(
        self, settings: ModelSettings, spec: SampleSpec, mean: Sequence[float], scale: Sequence[float]
    ) -> None:
        super().__init__()
        assert settings.decoder is not None
        self.spec = spec
        self.settings = settings
        self.modality = (
            CategoricalIO(spec.classes, settings.encoder.dim(1)) if spec.classes else ContinuousIO(mean, scale)
        )
        self.quantizer: Quantizer = settings.quantizer.build()
        # A net may have a fixed latent width (identity); the quantizer is then projected to it.
        width = self.quantizer.dim
        for net in (settings.encoder, settings.decoder):
            width = net.latent_width(spec.channels, width)
        if width != self.quantizer.dim:
            self.quantizer = ProjectedQuantizer(self.quantizer, width)
        self.hit_times = HitTimes(self.quantizer.codebook_sizes)
        self.encoder = settings.encoder.encoder(self.modality.inputs, spec.size, width)
        self.decoder = settings.decoder.decoder(self.modality.outputs, spec.size, width)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Reconstruct (B, C, *size) values or (B, *size) classes."""
        latents = self.latents(x)
        quantizer = self.quantizer(latents)
        prediction = self.decoder(quantizer.quantized, self.size_of(x))
        return AutoencoderOutput(prediction, self.modality.target(x), latents, quantizer)

    def latents(self, x: Tensor) -> Tensor:
        """Return the encoder output (B, L, D)."""
        vectors: Tensor = self.encoder(self.modality(x))
        return vectors

    def encode(self, x: Tensor) -> Tensor:
        """Return indices (B, L), or (B, L, Q) with levels."""
        return self.quantizer.encode(self.latents(x))

    def predict(self, indices: Tensor, size: Size) -> Tensor:
        """Return the decoder output for indices, in normalised units or as logits."""
        prediction: Tensor = self.decoder(self.quantizer.decode(indices), size)
        return prediction

    def decode(self, indices: Tensor, size: Size) -> Tensor:
        """Return samples (B, C, *size) in the units of the data, or classes (B, *size)."""
        return self.modality.restore(self.predict(indices, size))

    def grid(self, size: Size) -> Size:
        """Return the row-major grid shape of the L tokens of a sample of `size`."""
        return self.settings.encoder.grid(size)

    def size_of(self, x: Tensor) -> Size:
        """Return the size of the samples of a batch."""
        return tuple(x.shape[1:] if self.spec.classes else x.shape[2:])

    def bits(self, size: Size) -> float:
        """Return the bits per sample of `size`: L times the sum over levels of log2 K."""
        return math.prod(self.grid(size)) * sum(math.log2(codes) for codes in self.quantizer.codebook_sizes)

    @property
    def any_size(self) -> bool:
        """Whether samples of other sizes than the training size are supported."""
        assert self.settings.decoder is not None
        return self.settings.encoder.any_size and self.settings.decoder.any_size

    def check_rows(self, row_shape: Size, what: str) -> None:
        """Check that encoder and decoder support rows of this shape; `what` names them in the message.

        Raises:
            DataError: the shape does not fit; the message names both shapes.
        """
        encoder, decoder = self.settings.encoder, self.settings.decoder
        assert decoder is not None
        self.spec.check_row(row_shape, self.any_size, what)
        size = sample_shape(self.spec.layout, row_shape)[1]
        if math.prod(encoder.grid(size)) != math.prod(decoder.grid(size)):
            raise DataError(
                f"{what}: rows of shape {row_shape} give an encoder grid {encoder.grid(size)}, but the decoder expects "
                f"{decoder.grid(size)}; use rows of shape {self.spec.row_shape}, on which the model was trained"
            )


def resolve_model(settings: ModelSettings, spec: SampleSpec) -> ModelSettings:
    """Return settings with the code dimension and the decoder filled in.

    Raises:
        ConfigError: encoder, decoder or quantizer do not fit the data or each other.
    """
    decoder = settings.decoder or settings.encoder
    _check_net("model.encoder", settings.encoder, spec)
    _check_net("model.decoder", decoder, spec)
    encoded, decoded = settings.encoder.grid(spec.size), decoder.grid(spec.size)
    if math.prod(encoded) != math.prod(decoded):
        raise ConfigError(
            f"model.decoder: expects {math.prod(decoded)} tokens per sample (grid {decoded}), but the encoder produces "
            f"{math.prod(encoded)} (grid {encoded}); make num_tokens or downsamples equal, or omit model.decoder"
        )
    width = settings.encoder.dim(spec.channels)
    for net in (settings.encoder, decoder):
        width = net.latent_width(spec.channels, width)
    quantizer = settings.quantizer.resolve(width)
    return settings.model_copy(update={"quantizer": quantizer, "decoder": decoder})


def _check_net(where: str, net: NetSettings, spec: SampleSpec) -> None:
    kinds = {0: "vectors (C,)", 1: "sequences (C, T)", 2: "images (C, H, W)"}
    what = f"{'classes' if spec.classes else kinds[len(spec.size)]} (layout {spec.layout}, row shape {spec.row_shape})"
    fit = [
        str(other.model_fields["kind"].default)
        for other in get_args(get_args(EncoderSettings)[0])
        if len(spec.size) in other.ranks and (other.takes_classes or not spec.classes)
    ]
    if net.kind not in fit:
        fits_size = len(spec.size) in net.ranks
        takes = "continuous values" if fits_size else " or ".join(kinds[rank] for rank in net.ranks)
        raise ConfigError(
            f"{where}.kind: {net.kind} takes {takes}, but the data are {what}; choose {listed(fit)}, or correct "
            "data.layout"
        )
