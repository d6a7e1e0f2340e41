"""Input and output of a model: continuous values are normalised, classes are embedded.

Shapes: B batch, C channels; size is (), (T,) or (H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ContinuousIO(nn.Module):
    """Per-channel normalisation of values (B, C, *size) before the encoder, and its inverse after the decoder.

    Args:
        mean: C numbers.
        scale: C numbers, for example standard deviations.

    Attributes:
        in_channels: channels of the encoder input, C.
        out_channels: channels of the decoder output, C.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.in_channels = self.out_channels = len(mean)

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / scale, the encoder input (B, C, *size)."""
        return (x - _per_channel(self.mean, x)) / _per_channel(self.scale, x)

    def target(self, x: Tensor) -> Tensor:
        """Return the target of the reconstruction loss: the normalised samples (B, C, *size)."""
        return self(x)

    def postprocess(self, prediction: Tensor) -> Tensor:
        """Return prediction · scale + mean: the decoder output (B, C, *size) in the units of the data."""
        return prediction * _per_channel(self.scale, prediction) + _per_channel(self.mean, prediction)


class CategoricalIO(nn.Module):
    """Embedding of classes (B, *size) before the encoder, and argmax of the logits after the decoder.

    Args:
        classes: number of classes; valid inputs are 0 to classes - 1.
        width: width of the embedding.

    Attributes:
        in_channels: channels of the encoder input, `width`.
        out_channels: channels of the decoder output, `classes`.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.in_channels, self.out_channels = width, classes

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (B, width, *size) of classes (B, *size)."""
        return self.embedding(x).movedim(-1, 1)

    def target(self, x: Tensor) -> Tensor:
        """Return the target of the reconstruction loss: the classes (B, *size)."""
        return x

    def postprocess(self, prediction: Tensor) -> Tensor:
        """Return the most likely class (B, *size) of logits (B, classes, *size)."""
        return prediction.argmax(dim=1)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape (C,) so that it broadcasts over the channel axis of x (B, C, *size)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))
