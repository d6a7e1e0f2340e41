"""What an encoder family promises. One family a file; its settings build both halves.

Shapes: B batch, C channels, L positions per sample, D code dimension; `size` is the shape behind the channels: () for
vectors, (T,) for sequences, (H, W) for images.
"""

from typing import ClassVar

from torch import nn

from vqtool.settings import Settings

Size = tuple[int, ...]


class NetSettings(Settings):
    """Settings of one family of encoder and decoder.

    The encoder module maps (B, C, *size) to (B, L, D); the decoder module takes (B, L, D) and a size, and gives
    (B, C', *size). Neither mixes the samples of a batch.
    """

    kind: str
    ranks: ClassVar[tuple[int, ...]]
    """The lengths of `size` that the family takes: 0 vectors, 1 sequences, 2 images."""
    any_size: ClassVar[bool]
    """Whether a trained network takes samples of another size than it was built for."""
    takes_classes: ClassVar[bool] = True
    """Whether integer classes, embedded, can go in."""

    def dim(self, channels: int) -> int:
        """The family's own D, where the quantizer leaves it open."""
        raise NotImplementedError

    def latent_width(self, channels: int, dim: int) -> int:
        """The width of the vectors it makes or takes where codes have `dim`: that, if a net can have any."""
        return dim

    def grid(self, size: Size) -> Size:
        """The row-major shape behind L for samples of `size`."""
        raise NotImplementedError

    def encoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """The encoder from `channels` to vectors of `dim`.

        Raises:
            ConfigError: these settings do not fit that data.
        """
        raise NotImplementedError

    def decoder(self, channels: int, size: Size, dim: int) -> nn.Module:
        """The decoder from vectors of `dim` to `channels`."""
        raise NotImplementedError
