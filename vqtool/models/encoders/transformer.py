"""Transformer encoder and decoder with learned queries, for sequences, images and grids.

As in TiTok (Yu et al. 2024, "An Image is Worth 32 Tokens"), L learned queries attend to the patches of a sample and
become its L latents, so L does not depend on the sample size.

Shapes: B batch, C channels, P patches, L tokens per sample, D width of the latents; size is (T,) or (H, W).
"""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from vqtool.models.encoders.base import NetSettings, Size
from vqtool.models.encoders.conv import crop, pad_to_multiple, strided_grid


class TransformerBlock(nn.Module):
    """Pre-norm transformer block on (B, L + P, width): self-attention and an MLP, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class TransformerEncoder(nn.Module):
    """Map (B, C, *size) to (B, L, D): self-attention over L learned queries and P patches; the queries become latents.

    The input is padded to a multiple of the patch size. Only samples of the training size are accepted, because the
    position embedding has P rows.
    """

    def __init__(self, channels: int, size: Size, dim: int, settings: "TransformerSettings") -> None:
        super().__init__()
        self.patch_size = settings.patch_size
        width = settings.width
        self.patch_embed = nn.Linear(channels * settings.patch_size ** len(size), width)
        self.pos_embed = _learned_embedding(math.prod(strided_grid(size, settings.patch_size)), width)
        self.queries = _learned_embedding(settings.num_tokens, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, settings.heads) for _ in range(settings.depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))

    def forward(self, x: Tensor) -> Tensor:
        patches = to_patches(pad_to_multiple(x, self.patch_size), self.patch_size)
        patches = self.patch_embed(patches) + self.pos_embed
        queries = self.queries.expand(len(x), -1, -1)
        return self.head(self.blocks(torch.cat([queries, patches], dim=1))[:, : len(self.queries)])


class TransformerDecoder(nn.Module):
    """Map (B, L, D) to (B, C, *size): self-attention over L latents and P learned queries; the queries become patches.

    The output is cropped to `size`, which must be the training size.
    """

    def __init__(self, channels: int, size: Size, dim: int, settings: "TransformerSettings") -> None:
        super().__init__()
        self.patch_size = settings.patch_size
        width = settings.width
        self.grid = strided_grid(size, settings.patch_size)
        self.latent_embed = nn.Linear(dim, width)
        self.latent_pos_embed = _learned_embedding(settings.num_tokens, width)
        self.patch_queries = _learned_embedding(math.prod(self.grid), width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, settings.heads) for _ in range(settings.depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels * settings.patch_size ** len(size)))

    def forward(self, latents: Tensor, size: Size) -> Tensor:
        queries = self.patch_queries.expand(len(latents), -1, -1)
        hidden = self.latent_embed(latents) + self.latent_pos_embed
        hidden = self.blocks(torch.cat([hidden, queries], dim=1))
        patches = self.head(hidden[:, latents.shape[1] :])
        return crop(from_patches(patches, self.grid, self.patch_size), size)


class TransformerSettings(NetSettings):
    """Transformer for sequences, images and grids: L learned queries attend to the patches and become the latents."""

    kind: Literal["transformer"] = "transformer"
    num_tokens: int = Field(16, ge=1, le=1 << 16, description="L, tokens per sample")
    patch_size: int = Field(4, ge=1, le=1 << 16, description="side of a patch, in steps (sequences) or pixels (images)")
    width: int = Field(128, ge=1, le=1 << 16, description="width of the hidden layers")
    depth: int = Field(4, ge=1, le=1000, description="number of transformer blocks")
    heads: int = Field(
        4, ge=1, validate_default=True, description="number of attention heads; width must be a multiple of it"
    )
    spatial_ranks: ClassVar = (1, 2)
    any_size: ClassVar = False

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int, info: ValidationInfo) -> int:
        width: Any = info.data.get("width")
        if width is not None and width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads; change width or heads")
        return heads

    def default_dim(self, channels: int) -> int:
        return self.width

    def grid(self, size: Size) -> Size:
        return (self.num_tokens,)

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return TransformerEncoder(channels, size, dim, self)

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        return TransformerDecoder(channels, size, dim, self)


def to_patches(x: Tensor, patch_size: int) -> Tensor:
    """Cut (B, C, *size) into non-overlapping patches (B, P, C · patch_size^rank), rank = len(size).

    The patches, and the values of each channel of a patch, are in row-major order. Each length of `size` must be a
    multiple of the patch size.
    """
    rank = x.ndim - 2
    for axis in range(rank):
        x = x.unflatten(2 + 2 * axis, (-1, patch_size))
    # x is (B, C, rows, patch_size, columns, patch_size) for images.
    grid_axes, patch_axes = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    return x.permute(0, *grid_axes, 1, *patch_axes).flatten(1, rank).flatten(2)


def from_patches(patches: Tensor, grid: Size, patch_size: int) -> Tensor:
    """Invert `to_patches`: join patches (B, P, C · patch_size^rank), rank = len(grid), to (B, C, *size).

    P is the product of `grid`, and each length of size is that of `grid` times the patch size.
    """
    rank = len(grid)
    x = patches.unflatten(2, (-1, *[patch_size] * rank)).unflatten(1, grid)
    # From (B, *grid, C, *patch) to (B, C, rows, patch_size, columns, patch_size) for images.
    pairs = [axis for i in range(rank) for axis in (1 + i, 2 + rank + i)]
    x = x.permute(0, 1 + rank, *pairs)
    for axis in range(rank):
        x = x.flatten(2 + axis, 3 + axis)
    return x


def _learned_embedding(rows: int, width: int) -> nn.Parameter:
    """Return a parameter (rows, width), initialised with N(0, 0.02²)."""
    return nn.Parameter(torch.randn(rows, width) * 0.02)
