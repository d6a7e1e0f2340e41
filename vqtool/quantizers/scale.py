"""The latents' own distance scale, so that a temperature means the same whatever the data's units.

Shapes: N vectors, D dimensions.
"""

import torch
from torch import Tensor, nn


class ErrorScale(nn.Module):
    """A moving average of the mean squared error of quantizing, of one dimension.

    A temperature of twice this much makes the soft assignment the posterior of a mixture of Gaussians about the codes
    that are as wide as the quantizing error is (Bishop 2006, "Pattern Recognition and Machine Learning", 9.3.2). It is
    state, and not the batch's own error, so that figures do not depend on how vectors are cut into batches.

    Attributes:
        error: () moving average of errors; 0 until the first update.
        weight: () of that average, which starts from nothing.
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
        """The scale (); 1 while nothing is known of it."""
        tiny = torch.finfo(self.error.dtype).tiny
        return torch.where(self.weight > 0, self.error / self.weight.clamp_min(tiny), 1.0).clamp_min(1e-12)

    @torch.no_grad()
    def start(self, error: Tensor) -> None:
        """Begin anew, with the mean squared error () of a first sample, which weighs as one batch would."""
        self.weight.fill_(1 - self.decay)
        self.error.copy_(self.weight * error)

    def gather(self, error: Tensor, elements: int) -> None:
        """Note the mean squared error () of a whole training batch of so many elements."""
        self._gathered.append((error.detach(), elements))

    @torch.no_grad()
    def update(self, good: Tensor | None = None) -> None:
        """Apply what was gathered since the last update; nothing where `good` () bool is false."""
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
        """Forget what was gathered since the last update."""
        self._gathered = []
