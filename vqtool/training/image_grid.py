"""Samples over their reconstructions, as one picture.

Shapes: n samples, C channels, H by W pixels.
"""

import torch
from matplotlib import colormaps
from torch import Tensor

from vqtool.data import SampleSpec


def is_picture(spec: SampleSpec) -> bool:
    """Whether samples can be looked at: images, and grids of classes."""
    return len(spec.size) == 2


def side_by_side(spec: SampleSpec, inputs: Tensor, outputs: Tensor) -> Tensor:
    """(3, 2H + 1, n(W + 1) - 1) in [0, 1]: inputs over outputs, each (n, C, H, W) values or (n, H, W) classes."""
    if spec.classes:
        colours = torch.tensor(colormaps["turbo"].resampled(spec.classes)(range(spec.classes)))[:, :3].float()
        rows = [colours[grids].permute(0, 3, 1, 2) for grids in (inputs, outputs)]
    else:
        low, high = inputs.min(), inputs.max()
        rows = [_colour((images - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) for images in (inputs, outputs)]
    return torch.nn.functional.pad(torch.cat([_strip(rows[0]), _strip(rows[1])], dim=1), (0, -1, 0, -1), value=1.0)


def _colour(images: Tensor) -> Tensor:
    """(n, C, H, W) to (n, 3, H, W): colours as they are, anything else by its first channel in grey."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def _strip(images: Tensor) -> Tensor:
    """(n, 3, H, W) to (3, H + 1, n(W + 1)), a white line right of and below each."""
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    return framed.permute(1, 2, 0, 3).flatten(2)
