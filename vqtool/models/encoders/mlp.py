"""Multi-layer perceptrons for vectors: (B, C) to L latents of D dimensions and back.

Shapes: B batch, C channels, L tokens per sample, D width of the latents.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size


class MlpEncoder(nn.Module):
    """Map (B, C) to (B, L, D): an MLP with L · D outputs."""

    def __init__(self, channels: int, width: int, layers: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.net = _mlp(channels, width, layers, num_tokens * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).unflatten(1, (self.num_tokens, -1))


class MlpDecoder(nn.Module):
    """Map (B, L, D) to (B, C): an MLP on the concatenated latents."""

    def __init__(self, channels: int, width: int, layers: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.net = _mlp(num_tokens * dim, width, layers, channels)

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        return self.net(latents.flatten(1))


class MlpSettings(NetSettings):
    """Multi-layer perceptron for vectors."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(256, ge=1, le=1 << 16, description="width of the hidden layers")
    layers: int = Field(2, ge=0, le=1000, description="number of hidden layers")
    num_tokens: int = Field(1, ge=1, le=1 << 16, description="L, tokens per sample")
    spatial_ranks: ClassVar = (0,)
    any_size: ClassVar = False

    def default_dim(self, channels: int) -> int:
        return self.width

    def grid(self, size: Size) -> Size:
        return (self.num_tokens,)

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return MlpEncoder(channels, self.width, self.layers, self.num_tokens, dim)

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return MlpDecoder(channels, self.width, self.layers, self.num_tokens, dim)


def _mlp(in_features: int, width: int, layers: int, out_features: int) -> nn.Sequential:
    net = nn.Sequential()
    for _ in range(layers):
        net.extend([nn.Linear(in_features, width), nn.LayerNorm(width), nn.SiLU()])
        in_features = width
    return net.append(nn.Linear(in_features, out_features))
