"""Padding and cropping for sizes that are not a multiple of the stride."""

import torch.nn.functional as F
from torch import Tensor

from vqtool.models.encoders.base import Size


def pad_to_multiple(x: Tensor, stride: int) -> Tensor:
    """Repeat the last values of each axis of (B, C, *size) until `stride` divides it."""
    missing = [-length % stride for length in x.shape[2:]]
    if not any(missing):
        return x
    # F.pad counts axes from the last.
    return F.pad(x, [n for axis in reversed(missing) for n in (0, axis)], mode="replicate")


def crop(x: Tensor, size: Size) -> Tensor:
    """The first `size` of the trailing axes of (B, C, *padded)."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def strided(size: Size, stride: int) -> Size:
    """Return the grid shape of a network with this stride for `size`, after padding."""
    return tuple(-(-length // stride) for length in size)
