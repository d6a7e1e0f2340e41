"""Convolutional encoder and decoder for sequences and images: residual blocks, downsampling, upsampling.

Shapes: B batch, C channels, L tokens per sample, D width of the latents; size is (T,) or (H, W).
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size

Conv = Callable[..., nn.Module]


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))) on (B, width, *size); GroupNorm normalises within a sample."""

    def __init__(self, conv: Conv, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            _group_norm(width),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
            _group_norm(width),
            nn.SiLU(),
            conv(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class ConvEncoder(nn.Module):
    """Map (B, C, *size) to (B, L, D); each of the `downsamples` stages halves every axis.

    The input is first padded to a multiple of the stride, 2^downsamples. The L tokens are in row-major order.
    """

    def __init__(self, conv: Conv, channels: int, width: int, downsamples: int, res_blocks: int, dim: int) -> None:
        super().__init__()
        self.stride = 2**downsamples
        self.net = nn.Sequential(conv(channels, width, 3, padding=1))
        for _ in range(downsamples):
            self.net.append(conv(width, width, 4, stride=2, padding=1))
            self.net.extend(ResidualBlock(conv, width) for _ in range(res_blocks))
        self.net.extend([_group_norm(width), nn.SiLU(), conv(width, dim, 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(pad_to_multiple(x, self.stride)).flatten(2).transpose(1, 2)


class ConvDecoder(nn.Module):
    """Map (B, L, D) to (B, C, *size); each of the `upsamples` stages doubles every axis.

    L must be that of the grid of `size` (`strided_grid`). The output is cropped to `size`.
    """

    def __init__(self, conv: Conv, channels: int, width: int, upsamples: int, res_blocks: int, dim: int) -> None:
        super().__init__()
        self.stride = 2**upsamples
        self.net = nn.Sequential(conv(dim, width, 1))
        for _ in range(upsamples):
            self.net.extend(ResidualBlock(conv, width) for _ in range(res_blocks))
            # A transposed convolution would leave checkerboard artifacts (Odena et al. 2016).
            self.net.extend([nn.Upsample(scale_factor=2, mode="nearest"), conv(width, width, 3, padding=1)])
        self.net.extend([_group_norm(width), nn.SiLU(), conv(width, channels, 3, padding=1)])

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        grid = strided_grid(size, self.stride)
        return crop(self.net(latents.transpose(1, 2).unflatten(2, grid)), size)


class ConvSettings(NetSettings):
    """Settings that `conv1d` and `conv2d` have in common."""

    width: int = Field(64, ge=2, le=1 << 16, description="channels of the hidden layers")
    downsamples: int = Field(2, ge=0, le=10, description="stages that halve each axis; stride = 2^downsamples")
    res_blocks: int = Field(2, ge=0, le=1000, description="residual blocks per stage")
    any_size: ClassVar = True
    conv: ClassVar[Conv]

    def default_dim(self, channels: int) -> int:
        return self.width

    def grid(self, size: Size) -> Size:
        return strided_grid(size, 2**self.downsamples)

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return ConvEncoder(self.conv, channels, self.width, self.downsamples, self.res_blocks, dim)

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return ConvDecoder(self.conv, channels, self.width, self.downsamples, self.res_blocks, dim)


class Conv1dSettings(ConvSettings):
    """Convolutional encoder for sequences: strided convolutions and residual blocks."""

    kind: Literal["conv1d"] = "conv1d"
    spatial_ranks: ClassVar = (1,)
    conv: ClassVar = nn.Conv1d


class Conv2dSettings(ConvSettings):
    """Convolutional encoder for images and grids: strided convolutions and residual blocks."""

    kind: Literal["conv2d"] = "conv2d"
    spatial_ranks: ClassVar = (2,)
    conv: ClassVar = nn.Conv2d


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Pad each axis of (B, C, *size) at its end, with its last values, to a multiple of `stride`."""
    missing = [-length % stride for length in x.shape[2:]]
    if not any(missing):
        return x
    # F.pad expects (before, after) pairs, last axis first.
    return F.pad(x, [n for axis in reversed(missing) for n in (0, axis)], mode="replicate")


def crop(x: Tensor, size: Size) -> Tensor:
    """Crop (B, C, *padded) to (B, C, *size); the removed values are at the end of each axis."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def strided_grid(size: Size, stride: int) -> Size:
    """Return the grid shape of a network with this stride for samples of `size`: ceil(length / stride) of each axis."""
    return tuple(-(-length // stride) for length in size)


def _group_norm(width: int) -> nn.GroupNorm:
    # At least eight channels per group, otherwise a single group: on a grid of one position, a group of one channel
    # would be normalised to zero.
    groups = next((g for g in (8, 4, 2) if width % g == 0 and width // g >= 8), 1)
    return nn.GroupNorm(groups, width)
