"""Identity encoder and decoder: the data themselves are quantized.

Shapes: B batch, C channels; L is 1 for vectors, T for sequences, H · W for images.
"""

import math
from typing import ClassVar, Literal

from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size


class IdentityEncoder(nn.Module):
    """Flatten and transpose (B, C, *size) to (B, L, C); positions are in row-major order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], math.prod(x.shape[2:])).transpose(1, 2)


class IdentityDecoder(nn.Module):
    """Invert `IdentityEncoder`: (B, L, C) to (B, C, *size), L the product of `size`."""

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        return latents.transpose(1, 2).reshape(len(latents), latents.shape[2], *size)


class IdentitySettings(NetSettings):
    """No network: the data themselves are quantized, one token per vector, step or pixel."""

    kind: Literal["identity"] = "identity"
    spatial_ranks: ClassVar = (0, 1, 2)
    any_size: ClassVar = True
    takes_classes: ClassVar = False

    def default_dim(self, channels: int) -> int:
        return channels

    def latent_dim(self, channels: int, dim: int) -> int:
        return channels

    def grid(self, size: Size) -> Size:
        return size or (1,)

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return IdentityEncoder()

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return IdentityDecoder()
