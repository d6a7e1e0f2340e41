"""The model: normalise - encoder - quantizer - decoder - denormalise, composed from its settings.

Shapes: B batch, C channels, L positions per sample, D code dimension, Q levels; size is (), (T,) or (H, W).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field
from torch import Tensor, nn

from vqtool.data import SampleSpec, sample_shape
from vqtool.errors import ConfigError, DataError
from vqtool.modality import Classes, Values
from vqtool.nets import EncoderSettings, NetSettings, Size
from vqtool.quantizers import ProjectedQuantizer, Quantizer, QuantizerOutput, QuantizerSettings
from vqtool.quantizers.hit_times import HitTimes
from vqtool.settings import Settings


class ModelSettings(Settings):
    """The model block of the config."""

    encoder: EncoderSettings = Field(description="the network that makes vectors of samples")
    quantizer: QuantizerSettings = Field(description="what makes indices of vectors")
    decoder: EncoderSettings | None = Field(None, description="left out, it mirrors the encoder")


class AutoencoderOutput(NamedTuple):
    """What one training forward gives."""

    prediction: Tensor
    """(B, C, *size) in normalised units, or logits (B, classes, *size)."""
    target: Tensor
    """(B, C, *size) in normalised units, or classes (B, *size)."""
    latents: Tensor
    """(B, L, D) the encoder's vectors."""
    quantizer: QuantizerOutput
    """Losses and indices."""


class Autoencoder(nn.Module):
    """A model for samples of one spec.

    Args:
        settings: resolved, as `resolve_model` leaves them.
        spec: of the samples.
        mean, scale: C numbers each, what normalising subtracts and divides by; a checkpoint overwrites them.
    """

    def __init__(
        self, settings: ModelSettings, spec: SampleSpec, mean: Sequence[float], scale: Sequence[float]
    ) -> None:
        super().__init__()
        assert settings.decoder is not None
        self.spec = spec
        self.settings = settings
        self.modality = Classes(spec.classes, settings.encoder.dim(1)) if spec.classes else Values(mean, scale)
        self.quantizer: Quantizer = settings.quantizer.build()
        # A net without a width of its own dictates it, and the quantizer projects.
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
        """The encoder's vectors (B, L, D)."""
        vectors: Tensor = self.encoder(self.modality(x))
        return vectors

    def encode(self, x: Tensor) -> Tensor:
        """Indices (B, L), or (B, L, Q)."""
        return self.quantizer.encode(self.latents(x))

    def predict(self, indices: Tensor, size: Size) -> Tensor:
        """What the decoder makes of indices, in normalised units or as logits."""
        prediction: Tensor = self.decoder(self.quantizer.decode(indices), size)
        return prediction

    def decode(self, indices: Tensor, size: Size) -> Tensor:
        """(B, C, *size) in the data's own units, or classes (B, *size)."""
        return self.modality.restore(self.predict(indices, size))

    def grid(self, size: Size) -> Size:
        """The row-major shape behind L for samples of `size`."""
        return self.settings.encoder.grid(size)

    def size_of(self, x: Tensor) -> Size:
        """The size of a batch of samples."""
        return tuple(x.shape[1:] if self.spec.classes else x.shape[2:])

    def bits(self, size: Size) -> float:
        """The bits that the indices of a sample of `size` take: L times the sum over levels of log2 K."""
        return math.prod(self.grid(size)) * sum(math.log2(codes) for codes in self.quantizer.codebook_sizes)

    @property
    def any_size(self) -> bool:
        """Whether samples of other sizes than the spec's can be taken."""
        assert self.settings.decoder is not None
        return self.settings.encoder.any_size and self.settings.decoder.any_size

    def check_rows(self, row_shape: Size, what: str) -> None:
        """Refuse rows that encoder and decoder cannot both take; `what` is what to call them.

        Raises:
            DataError: names both shapes.
        """
        encoder, decoder = self.settings.encoder, self.settings.decoder
        assert decoder is not None
        self.spec.check_row(row_shape, self.any_size, what)
        size = sample_shape(self.spec.layout, row_shape)[1]
        if math.prod(encoder.grid(size)) != math.prod(decoder.grid(size)):
            raise DataError(
                f"{what}: rows of shape {row_shape}, of which the encoder makes a grid {encoder.grid(size)} and the "
                f"decoder expects {decoder.grid(size)}; the model was trained on rows of shape {self.spec.row_shape}"
            )


_HINT = ". Choose another encoder, or set data.layout if that is not what the rows are"


def resolve_model(settings: ModelSettings, spec: SampleSpec) -> ModelSettings:
    """Settings with the width of the codes and the decoder filled in.

    Raises:
        ConfigError: an encoder, decoder or quantizer does not fit the data or the other.
    """
    decoder = settings.decoder or settings.encoder
    _check_net("model.encoder", settings.encoder, spec)
    _check_net("model.decoder", decoder, spec)
    encoded, decoded = settings.encoder.grid(spec.size), decoder.grid(spec.size)
    if math.prod(encoded) != math.prod(decoded):
        raise ConfigError(
            f"model.decoder: expects {math.prod(decoded)} positions a sample (grid {decoded}), but the encoder gives "
            f"{math.prod(encoded)} (grid {encoded})"
        )
    width = settings.encoder.dim(spec.channels)
    for net in (settings.encoder, decoder):
        width = net.latent_width(spec.channels, width)
    quantizer = settings.quantizer.resolve(width)
    return settings.model_copy(update={"quantizer": quantizer, "decoder": decoder})


def _check_net(where: str, net: NetSettings, spec: SampleSpec) -> None:
    kinds = {0: "vectors (C,)", 1: "sequences (C, T)", 2: "images (C, H, W)"}
    what = f"{'classes' if spec.classes else kinds[len(spec.size)]} of rows {spec.row_shape}, layout {spec.layout}"
    if len(spec.size) not in net.ranks:
        takes = " or ".join(kinds[rank] for rank in net.ranks)
        raise ConfigError(f"{where}.kind: {net.kind} takes {takes}; the data are {what}{_HINT}")
    if spec.classes and not net.takes_classes:
        raise ConfigError(f"{where}.kind: {net.kind} takes values; the data are {what}{_HINT}")
