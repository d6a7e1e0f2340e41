"""Convolutional encoder and decoder for sequences and images: residual blocks, downsampling, upsampling."""

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size
from vqtool.models.encoders.padding import crop, pad_to_multiple, strided

Conv = Callable[..., nn.Module]


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), normalised within each sample."""

    def __init__(self, conv: Conv, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _norm(width),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
            _norm(width),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class ConvEncoder(nn.Module):
    """Map (B, C, *size) to (B, L, D); each of the `downsamples` stages halves every axis."""

    def __init__(self, conv: Conv, channels: int, width: int, downsamples: int, res_blocks: int, dim: int) -> None:
        super().__init__()
        self.stride = 2**downsamples
        self.net = nn.Sequential(conv(channels, width, 3, padding=1))
        for _ in range(downsamples):
            self.net.append(conv(width, width, 4, stride=2, padding=1))
            self.net.extend(ResidualBlock(conv, width) for _ in range(res_blocks))
        self.net.extend([_norm(width), nn.SiLU(), conv(width, dim, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pad_to_multiple(x, self.stride)).flatten(2).transpose(1, 2)


class ConvDecoder(nn.Module):
    """Map (B, L, D) to (B, C, *size); each of the `doublings` stages doubles every axis."""

    def __init__(self, conv: Conv, channels: int, width: int, doublings: int, res_blocks: int, dim: int) -> None:
        super().__init__()
        self.stride = 2**doublings
        self.net = nn.Sequential(conv(dim, width, 1))
        for _ in range(doublings):
            self.net.extend(ResidualBlock(conv, width) for _ in range(res_blocks))
            # Nearest, then a convolution: a transposed one leaves a checkerboard (Odena et al. 2016).
            self.net.extend([nn.Upsample(scale_factor=2, mode="nearest"), conv(width, width, 3, padding=1)])
        self.net.extend([_norm(width), nn.SiLU(), conv(width, channels, 3, padding=1)])

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        grid = strided(size, self.stride)
        return crop(self.net(latents.transpose(1, 2).unflatten(2, grid)), size)


class ConvSettings(NetSettings):
    """Strided convolutions and residual blocks."""

    width: int = Field(64, ge=2, le=1 << 16, description="channels of the hidden layers")
    downsamples: int = Field(2, ge=0, le=10, description="stages that halve each axis; stride = 2^downsamples")
    res_blocks: int = Field(2, ge=0, le=1000, description="residual blocks per stage")
    any_size: ClassVar = True
    conv: ClassVar[Conv]

    def dim(self, channels: int) -> int:
        return self.width

    def grid(self, size: Size) -> Size:
        return strided(size, 2**self.downsamples)

    def encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return ConvEncoder(self.conv, channels, self.width, self.downsamples, self.res_blocks, dim)

    def decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return ConvDecoder(self.conv, channels, self.width, self.downsamples, self.res_blocks, dim)


def _norm(width: int) -> nn.GroupNorm:
    # Groups of at least eight channels: at one remaining position, a group of one channel would normalise to zero.
    groups = next((g for g in (8, 4, 2) if width % g == 0 and width // g >= 8), 1)
    return nn.GroupNorm(groups, width)
