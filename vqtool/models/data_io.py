"""Input and output of a model: continuous values are normalised, classes are embedded.

Shapes: B batch, C channels; size is (), (T,) or (H, W).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ContinuousIO(nn.Module):
    """Samples (B, C, *size) of real numbers, normalised on the way in and back to their own units on the way out.

    Args:
        mean, scale: C numbers each.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.inputs = self.outputs = len(mean)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size), normalised."""
        return (x - self._like(self.mean, x)) / self._like(self.scale, x)

    def target(self, x: Tensor) -> Tensor:
        """What the decoder should give: the normalised samples."""
        return self(x)

    def restore(self, prediction: Tensor) -> Tensor:
        """(B, C, *size) in the data's own units."""
        return prediction * self._like(self.scale, prediction) + self._like(self.mean, prediction)

    @staticmethod
    def _like(channel: Tensor, x: Tensor) -> Tensor:
        return channel.reshape(-1, *[1] * (x.ndim - 2))


class CategoricalIO(nn.Module):
    """Grids (B, *size) of integers below `classes`, embedded on the way in and chosen by logits on the way out.

    Args:
        width: channels of the embedding.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.inputs, self.outputs = width, classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, *size)."""
        return self.embedding(x).movedim(-1, 1)

    def target(self, x: Tensor) -> Tensor:
        """What the decoder's logits should choose: the classes."""
        return x

    def restore(self, prediction: Tensor) -> Tensor:
        """(B, *size), the likeliest class of logits (B, classes, *size)."""
        return prediction.argmax(dim=1)
