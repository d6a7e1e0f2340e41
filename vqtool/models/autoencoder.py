"""The autoencoder: normalise -> encoder -> quantizer -> decoder -> denormalise; classes are embedded and predicted.

Shapes: B batch, C channels, L tokens per sample, D width of the latents, Q levels; size is (), (T,) or (H, W). D is the
code dimension, unless the quantizer projects latents to another width (`ProjectedQuantizer`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from vqtool.data import SampleSpec, sample_shape
from vqtool.errors import ConfigError, DataError
from vqtool.models.encoders import EncoderSettings, NetSettings, Size
from vqtool.quantizers import ProjectedQuantizer, Quantizer, QuantizerOutput, QuantizerSettings
from vqtool.quantizers.dead_codes import HitSteps
from vqtool.runtime.settings import Settings
from vqtool.runtime.terminal import join_or


class ModelSettings(Settings):
    """The autoencoder: encoder, quantizer and decoder."""

    encoder: EncoderSettings = Field(description="network that maps samples to latents")
    quantizer: QuantizerSettings = Field(description="quantizer that maps latents to indices")
    decoder: EncoderSettings | None = Field(
        None, description="network that maps quantized latents to samples; null: mirrors the encoder"
    )


class AutoencoderOutput(NamedTuple):
    """Output of `Autoencoder.forward`."""

    prediction: Tensor
    """Decoder output: values (B, C, *size) in normalised units, or logits (B, classes, *size)."""
    target: Tensor
    """Target of the reconstruction loss: values (B, C, *size) in normalised units, or classes (B, *size)."""
    latents: Tensor
    """Encoder output (B, L, D)."""
    quantizer: QuantizerOutput
    """Quantized latents, indices and losses."""


class ContinuousIO(nn.Module):
    """Per-channel normalisation of values (B, C, *size) before the encoder, and its inverse after the decoder.

    Args:
        mean: C numbers.
        scale: C numbers that are not 0, for example standard deviations.

    Attributes:
        in_channels: channels of the encoder input, C.
        out_channels: channels of the decoder output, C.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.in_channels = self.out_channels = len(mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / scale, the encoder input (B, C, *size)."""
        return (x - _per_channel(self.mean, x)) / _per_channel(self.scale, x)

    def target(self, x: Tensor) -> Tensor:
        """Return the target of the reconstruction loss: the normalised samples (B, C, *size)."""
        return self(x)

    def postprocess(self, prediction: Tensor) -> Tensor:
        """Return prediction · scale + mean: the decoder output (B, C, *size) in the units of the data."""
        return prediction * _per_channel(self.scale, prediction) + _per_channel(self.mean, prediction)


class CategoricalIO(nn.Module):
    """Embedding of classes (B, *size) int64 before the encoder, and argmax of the logits after the decoder.

    Args:
        classes: number of classes; valid inputs are 0 to classes - 1.
        width: width of the embedding.

    Attributes:
        in_channels: channels of the encoder input, `width`.
        out_channels: channels of the decoder output, `classes`.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.in_channels, self.out_channels = width, classes

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (B, width, *size) of classes (B, *size)."""
        return self.embedding(x).movedim(-1, 1)

    def target(self, x: Tensor) -> Tensor:
        """Return the target of the reconstruction loss: the classes (B, *size)."""
        return x

    def postprocess(self, prediction: Tensor) -> Tensor:
        """Return the most likely class (B, *size) of logits (B, classes, *size)."""
        return prediction.argmax(dim=1)


class Autoencoder(nn.Module):
    """Autoencoder for samples of one layout and number of channels: float32 values, or int64 classes.

    Args:
        settings: settings that `resolve_model` returned.
        spec: shape, layout and dtype of the training samples.
        mean: C numbers that normalisation subtracts. Classes are not normalised and ignore `mean` and `scale`.
        scale: C numbers by which normalisation divides. A loaded state dict overwrites both.

    Attributes:
        data_io: normalisation or embedding before the encoder, and its inverse after the decoder.
        hit_steps: first and last training step in which each code was hit; the training loop records them.
        encoder: maps the output of `data_io` (B, channels, *size) to latents (B, L, D).
        decoder: maps quantized latents (B, L, D) and a size to predictions (B, channels, *size).
    """

    def __init__(
        self, settings: ModelSettings, spec: SampleSpec, mean: Sequence[float], scale: Sequence[float]
    ) -> None:
        super().__init__()
        assert settings.decoder is not None
        self.spec = spec
        self.settings = settings
        self.data_io = (
            CategoricalIO(spec.classes, settings.encoder.default_dim(1)) if spec.classes else ContinuousIO(mean, scale)
        )
        self.quantizer: Quantizer = settings.quantizer.build()
        # A network may fix the width of the latents (identity); codes of another width are then projected.
        width = self.quantizer.dim
        for net in (settings.encoder, settings.decoder):
            width = net.latent_dim(spec.channels, width)
        if width != self.quantizer.dim:
            self.quantizer = ProjectedQuantizer(self.quantizer, width)
        self.hit_steps = HitSteps(self.quantizer.codebook_sizes)
        self.encoder = settings.encoder.build_encoder(self.data_io.in_channels, spec.size, width)
        self.decoder = settings.decoder.build_decoder(self.data_io.out_channels, spec.size, width)

    def forward(self, x: Tensor) -> AutoencoderOutput:
        """Encode, quantize and decode values (B, C, *size) or classes (B, *size).

        In training mode the quantizer also accumulates the batch for its next `update`.
        """
        latents = self.latents(x)
        quantizer = self.quantizer(latents)
        prediction = self.decoder(quantizer.quantized, self.size_of(x))
        return AutoencoderOutput(prediction, self.data_io.target(x), latents, quantizer)

    def latents(self, x: Tensor) -> Tensor:
        """Return the encoder output (B, L, D) for values (B, C, *size) or classes (B, *size)."""
        latents: Tensor = self.encoder(self.data_io(x))
        return latents

    def encode(self, x: Tensor) -> Tensor:
        """Return the indices (B, L) int64 of values (B, C, *size) or classes (B, *size).

        The shape is (B, L, Q) for residual and product quantizers.
        """
        return self.quantizer.encode(self.latents(x))

    def predict(self, indices: Tensor, size: Size) -> Tensor:
        """Return the decoder output: normalised values (B, C, *size), or logits (B, classes, *size).

        Args:
            indices: (B, L), or (B, L, Q); the first levels suffice if the quantizer `supports_prefix_decoding`.
            size: size of the samples, for which `grid` has L positions.
        """
        prediction: Tensor = self.decoder(self.quantizer.decode(indices), size)
        return prediction

    def decode(self, indices: Tensor, size: Size) -> Tensor:
        """Return the reconstructed samples: values (B, C, *size) in the units of the data, or classes (B, *size).

        Arguments as in `predict`.
        """
        return self.data_io.postprocess(self.predict(indices, size))

    def grid(self, size: Size) -> Size:
        """Return the shape of the grid of L tokens, in row-major order, of a sample of `size`."""
        return self.settings.encoder.grid(size)

    def size_of(self, x: Tensor) -> Size:
        """Return the size, (), (T,) or (H, W), of the samples in a batch (B, C, *size), or (B, *size) for classes."""
        return tuple(x.shape[1:] if self.spec.classes else x.shape[2:])

    def bits_per_sample(self, size: Size) -> float:
        """Return the number of bits of the indices of one sample of `size`: L times the sum over levels of log2 K."""
        return math.prod(self.grid(size)) * sum(math.log2(k) for k in self.quantizer.codebook_sizes)

    @property
    def any_size(self) -> bool:
        """Whether encoder and decoder accept samples of another size than the training size."""
        assert self.settings.decoder is not None
        return self.settings.encoder.any_size and self.settings.decoder.any_size

    def check_rows(self, row_shape: Size, source: str) -> None:
        """Check that encoder and decoder accept rows of this shape; otherwise raise an error.

        Args:
            row_shape: shape of one row in the layout of the training data.
            source: origin of the rows, such as a file; the error message starts with it.

        Raises:
            DataError: the shape does not fit; the message names this shape and the shape of the training rows.
        """
        encoder, decoder = self.settings.encoder, self.settings.decoder
        assert decoder is not None
        self.spec.check_row_shape(row_shape, self.any_size, source)
        size = sample_shape(self.spec.layout, row_shape)[1]
        if math.prod(encoder.grid(size)) != math.prod(decoder.grid(size)):
            raise DataError(
                f"{source}: rows of shape {row_shape} give an encoder grid {encoder.grid(size)}, but the decoder "
                f"expects {decoder.grid(size)}; use rows of shape {self.spec.row_shape}, on which the model was trained"
            )


def resolve_model(settings: ModelSettings, spec: SampleSpec) -> ModelSettings:
    """Return the settings with `codebook_dim: auto` resolved; a decoder of null becomes the encoder's settings.

    Raises:
        ConfigError: encoder, decoder or quantizer do not fit the data or each other.
    """
    decoder = settings.decoder or settings.encoder
    _check_net("model.encoder", settings.encoder, spec)
    _check_net("model.decoder", decoder, spec)
    encoder_grid, decoder_grid = settings.encoder.grid(spec.size), decoder.grid(spec.size)
    if math.prod(encoder_grid) != math.prod(decoder_grid):
        raise ConfigError(
            f"model.decoder: expects {math.prod(decoder_grid)} tokens per sample (grid {decoder_grid}), but the "
            f"encoder produces {math.prod(encoder_grid)} (grid {encoder_grid}); make num_tokens or downsamples equal, "
            "or omit model.decoder"
        )
    width = settings.encoder.default_dim(spec.channels)
    for net in (settings.encoder, decoder):
        width = net.latent_dim(spec.channels, width)
    quantizer = settings.quantizer.resolve(width)
    return settings.model_copy(update={"quantizer": quantizer, "decoder": decoder})


def _check_net(key: str, net: NetSettings, spec: SampleSpec) -> None:
    """Raise a ConfigError that names the families that fit the data, unless `net` is one of them.

    Args:
        key: config key of `net`, named in the message.
    """
    kinds = {0: "vectors (C,)", 1: "sequences (C, T)", 2: "images (C, H, W)"}
    fitting = [
        str(family.model_fields["kind"].default)
        for family in get_args(get_args(EncoderSettings)[0])
        if len(spec.size) in family.spatial_ranks and (family.takes_classes or not spec.classes)
    ]
    if net.kind in fitting:
        return
    data = "classes" if spec.classes else kinds[len(spec.size)]
    if len(spec.size) in net.spatial_ranks:
        accepted = "continuous values"
    else:
        accepted = " or ".join(kinds[rank] for rank in net.spatial_ranks)
    raise ConfigError(
        f"{key}.kind: {net.kind} takes {accepted}, but the data are {data} (layout {spec.layout}, row shape "
        f"{spec.row_shape}); choose {join_or(fitting)}, or correct data.layout"
    )


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape (C,) so that it broadcasts over the channel axis of x (B, C, *size)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))
