"""Interface of the encoder and decoder families. The settings of a family build both networks.

Shapes: B batch, C channels, L tokens per sample, D width of the latents; `size` is the shape after the channel axis: ()
for vectors, (T,) for sequences, (H, W) for images.
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
    """Numbers of axes of `size` that the family supports: 0 vectors, 1 sequences, 2 images."""
    any_size: ClassVar[bool]
    """Whether a trained network accepts samples of another size than the training size."""
    takes_classes: ClassVar[bool] = True
    """Whether the data may be classes, which reach the encoder as embeddings."""

    def default_dim(self, channels: int) -> int:
        """Return the width of the latents for `codebook_dim: auto`; also the width of the embedding of classes.

        Args:
            channels: C of the data; 1 for classes.
        """
        raise NotImplementedError

    def latent_dim(self, channels: int, dim: int) -> int:
        """Return the width D of the latents: `dim`, the width of the quantizer, unless the family fixes D.

        Args:
            channels: C of the data; 1 for classes.
            dim: width of the quantizer.
        """
        return dim

    def grid(self, size: Size) -> Size:
        """Return the shape of the grid of L tokens, in row-major order, of a sample of `size`."""
        raise NotImplementedError

    def build_encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return an encoder of (B, channels, *size) to (B, L, dim), where `size` is that of the training samples."""
        raise NotImplementedError

    def build_decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """Return a decoder of (B, L, dim) to (B, channels, *size), where `size` is that of the training samples."""
        raise NotImplementedError
