"""Whether losses and gradients are finite, noted on the device: the host waits for it only when it looks."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Watch:
    """Remembers the first step that was not finite, and what in it was not.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, device=device)
        self._bad = torch.zeros((), dtype=torch.bool, device=device)
        self._names: list[str] = []

    def note(self, step: int, terms: Mapping[str, Tensor]) -> Tensor:
        """Note the terms () of a step; the same names at every step.

        Returns:
            () bool: whether this step and all before it were finite. Once one was not, no further step may be applied.
        """
        self._names = list(terms)
        bad = ~torch.stack([term.detach().isfinite() for term in terms.values()])
        first = bad.any() & (self._step < 0)
        self._step = torch.where(first, step, self._step)
        self._bad = torch.where(first, bad, self._bad)
        return self._step < 0

    def first(self) -> tuple[int, list[str]] | None:
        """The first step that was not finite, and the names of what was not; waits for the device."""
        step = int(self._step)
        if step < 0:
            return None
        return step, [name for name, bad in zip(self._names, self._bad.tolist(), strict=True) if bad]
