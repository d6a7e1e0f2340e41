"""Interface of the encoder and decoder families. The settings of a family build both networks.

Shapes: B batch, C channels, L tokens per sample, D code dimension; `size` is the shape after the channel axis: () for
vectors, (T,) for sequences, (H, W) for images.
"""

from typing import ClassVar

from torch import nn

from vqtool.runtime.settings import Settings

Size = tuple[int, ...]


class NetSettings(Settings):
    """Settings of one family of encoders and decoders, and the methods that build them.

    The encoder maps (B, C, *size) to latents (B, L, D). The decoder maps latents (B, L, D) and the `size` of its output
    to (B, C', *size). C' equals C for values; for classes, C is the width of their embedding and C' their number. Both
    networks process each sample of a batch independently.
    """

    kind: str
    spatial_ranks: ClassVar[tuple[int, ...]]
    """Supported lengths of `size`: 0 vectors, 1 sequences, 2 images."""
    any_size: ClassVar[bool]
    """Whether a trained network accepts samples of another size than the training size."""
    takes_classes: ClassVar[bool] = True
    """Whether the data may be classes, which reach the encoder as embeddings."""

    def default_dim(self, channels: int) -> int:
        """Return the code dimension D for `codebook_dim: auto`."""
        raise NotImplementedError

    def latent_dim(self, channels: int, dim: int) -> int:
        """Return the width of the latents for a quantizer of width `dim`: `dim`, unless the family fixes the width."""
        return dim

    def grid(self, size: Size) -> Size:
        """Return the grid shape of the tokens of a sample of `size`; L is its product, in row-major order."""
        raise NotImplementedError

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return an encoder from `channels` channels to latents of width `dim`, for training samples of `size`."""
        raise NotImplementedError

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return a decoder from latents of width `dim` to `channels` channels, for training samples of `size`."""
        raise NotImplementedError
