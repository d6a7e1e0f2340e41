"""Convolutions over sequences: (B, C, T) to (B, T / stride, D) and back."""

from typing import ClassVar, Literal

from torch import nn

from vqtool.models.encoders.convolution import ConvSettings


class Conv1dSettings(ConvSettings):
    """Convolutional encoder for sequences: strided convolutions and residual blocks."""

    kind: Literal["conv1d"] = "conv1d"
    ranks: ClassVar = (1,)
    conv: ClassVar = nn.Conv1d
