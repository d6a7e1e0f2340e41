"""Moving average of the quantization error, the unit of `temperature_unit: quantization_error`.

Shapes: N vectors, D dimensions.
"""

import torch
from torch import Tensor, nn


class ErrorScale(nn.Module):
    """Moving average of the mean squared quantization error per dimension.

    At a temperature of twice this value, the soft assignment is the posterior of a mixture of Gaussians centred on the
    codes whose variance is the quantization error (Bishop 2006, "Pattern Recognition and Machine Learning", 9.3.2). It
    is state rather than the error of the batch, so that metrics do not depend on the batch size.

    Attributes:
        error: () moving average of errors; 0 until the first update.
        weight: () bias correction of the average, which is initialised with 0.
    """

    error: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("error", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self._gathered: list[tuple[Tensor, int]] = []

    def forward(self) -> Tensor:
        """Return the scale (); 1 before the first update."""
        tiny = torch.finfo(self.error.dtype).tiny
        return torch.where(self.weight > 0, self.error / self.weight.clamp_min(tiny), 1.0).clamp_min(1e-12)

    @torch.no_grad()
    def start(self, error: Tensor) -> None:
        """Restart the average from the mean squared error () of a sample, with the weight of one batch."""
        self.weight.fill_(1 - self.decay)
        self.error.copy_(self.weight * error)

    def gather(self, error: Tensor, elements: int) -> None:
        """Gather the mean squared error () of a training batch of `elements` numbers."""
        self._gathered.append((error.detach(), elements))

    @torch.no_grad()
    def update(self, good: Tensor | None = None) -> None:
        """Apply what was gathered since the last update; no effect if `good` () bool is false."""
        elements = sum(count for _, count in self._gathered)
        if elements:
            error = torch.stack([error * (count / elements) for error, count in self._gathered]).sum()
            error, weight = error.to(self.error.dtype), torch.ones_like(self.weight)
            if good is not None:  # what moves towards itself stays
                error, weight = torch.where(good, error, self.error), torch.where(good, weight, self.weight)
            self.error.lerp_(error, 1 - self.decay)
            self.weight.lerp_(weight, 1 - self.decay)
        self.discard()

    def discard(self) -> None:
        """Drop what was gathered since the last update."""
        self._gathered = []
