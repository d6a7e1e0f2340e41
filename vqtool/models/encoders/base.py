"""The interface of encoder and decoder families; the settings of a family build both.

Shapes: B batch, C channels, L tokens per sample, D code dimension; `size` is the shape after the channels: () for
vectors, (T,) for sequences, (H, W) for images.
"""

from typing import ClassVar

from torch import nn

from vqtool.runtime.settings import Settings

Size = tuple[int, ...]


class NetSettings(Settings):
    """Settings of one encoder and decoder family.

    The encoder maps (B, C, *size) to (B, L, D). The decoder maps (B, L, D) and a size to (B, C', *size). Neither mixes
    the samples of a batch.
    """

    kind: str
    ranks: ClassVar[tuple[int, ...]]
    """The supported lengths of `size`: 0 vectors, 1 sequences, 2 images."""
    any_size: ClassVar[bool]
    """Whether a trained network supports other sample sizes than the training size."""
    takes_classes: ClassVar[bool] = True
    """Whether the input may be embedded integer classes."""

    def dim(self, channels: int) -> int:
        """Return the D used for `codebook_dim: auto`."""
        raise NotImplementedError

    def latent_width(self, channels: int, dim: int) -> int:
        """Return the width of the latents for codes of `dim`: `dim`, unless the family has a fixed width."""
        return dim

    def grid(self, size: Size) -> Size:
        """Return the row-major grid shape of the L tokens of a sample of `size`."""
        raise NotImplementedError

    def encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return the encoder from `channels` to latents of width `dim`.

        Raises:
            ConfigError: the settings do not fit the data.
        """
        raise NotImplementedError

    def decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return the decoder from latents of width `dim` to `channels`."""
        raise NotImplementedError
