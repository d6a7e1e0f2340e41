"""Convolutions over images: (B, C, H, W) to (B, H / stride · W / stride, D) and back."""

from typing import ClassVar, Literal

from torch import nn

from vqtool.models.encoders.convolution import ConvSettings


class Conv2dSettings(ConvSettings):
    """Convolutional encoder for images and grids: strided convolutions and residual blocks."""

    kind: Literal["conv2d"] = "conv2d"
    ranks: ClassVar = (2,)
    conv: ClassVar = nn.Conv2d
