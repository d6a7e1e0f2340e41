"""An image of samples above their reconstructions, for TensorBoard.

Shapes: n samples, C channels, H by W pixels.
"""

import torch
from matplotlib import colormaps
from torch import Tensor

from vqtool.data import SampleSpec


def is_image(spec: SampleSpec) -> bool:
    """Return whether samples, values or classes, can be shown as images: they have two spatial axes."""
    return len(spec.size) == 2


def reconstruction_grid(spec: SampleSpec, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return one RGB image with the inputs in the upper row and the outputs below, separated by white lines.

    Values are shown as (x - low) / (high - low), clamped to [0, 1], with the minimum `low` and maximum `high` of all
    inputs; C = 3 as RGB, otherwise the first channel in grey. Classes are shown in one colour each.

    Args:
        spec: layout of the samples, and number of classes.
        inputs, outputs: (n, C, H, W) values, or (n, H, W) classes, on the CPU.

    Returns:
        (3, 2H + 1, n(W + 1) - 1) in [0, 1].
    """
    if spec.classes:
        colours = torch.tensor(colormaps["turbo"].resampled(spec.classes)(range(spec.classes)))[:, :3].float()
        rows = [colours[grids].permute(0, 3, 1, 2) for grids in (inputs, outputs)]
    else:
        low, high = inputs.min(), inputs.max()
        rows = [_to_rgb((images - low) / (high - low).clamp_min(1e-12)).clamp(0, 1) for images in (inputs, outputs)]
    image = torch.cat([_row_with_lines(rows[0]), _row_with_lines(rows[1])], dim=1)
    return torch.nn.functional.pad(image, (0, -1, 0, -1), value=1.0)


def _to_rgb(images: Tensor) -> Tensor:
    """Convert (n, C, H, W) to (n, 3, H, W). Unless C = 3, the first channel is shown in grey."""
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


def _row_with_lines(images: Tensor) -> Tensor:
    """Join (n, 3, H, W) to (3, H + 1, n(W + 1)), with a white line to the right of and below each image."""
    framed = torch.nn.functional.pad(images, (0, 1, 0, 1), value=1.0)
    return framed.permute(1, 2, 0, 3).flatten(2)
