"""No network: the data themselves are quantized, one token per vector, step or pixel."""

import math
from typing import ClassVar, Literal

from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size


class IdentityEncoder(nn.Module):
    """(B, C, *size) to (B, L, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], math.prod(x.shape[2:])).transpose(1, 2)


class IdentityDecoder(nn.Module):
    """(B, L, C) to (B, C, *size)."""

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        return latents.transpose(1, 2).reshape(len(latents), latents.shape[2], *size)


class IdentitySettings(NetSettings):
    """No network: the data themselves are quantized, one token per vector, step or pixel."""

    kind: Literal["identity"] = "identity"
    ranks: ClassVar = (0, 1, 2)
    any_size: ClassVar = True
    takes_classes: ClassVar = False

    def dim(self, channels: int) -> int:
        return channels

    def latent_width(self, channels: int, dim: int) -> int:
        return channels

    def grid(self, size: Size) -> Size:
        return size or (1,)

    def encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return IdentityEncoder()

    def decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return IdentityDecoder()
