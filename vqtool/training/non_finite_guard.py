"""Whether losses and gradients are finite, noted on the device: the host waits for it only when it looks."""

from collections.abc import Mapping

import torch
from torch import Tensor


class NonFiniteGuard:
    """Remembers the first step that was not finite, and what in it was not.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._good = torch.ones((), dtype=torch.bool, device=device)
        # Of the last step, or of the first that was not finite.
        self._step = torch.full((), -1, device=device)
        self._terms = torch.zeros((), device=device)
        self._names: list[str] = []

    @torch.no_grad()
    def note(self, step: int, terms: Mapping[str, Tensor]) -> Tensor:
        """Note the terms () of a step; the same names at every step.

        Returns:
            () bool: whether this step and all before it were finite. Once one was not, no further step may be applied.
        """
        self._names = list(terms)
        now = torch.stack(list(terms.values()))
        self._step = torch.where(self._good, step, self._step)
        self._terms = torch.where(self._good, now, self._terms)
        self._good = self._good & now.isfinite().all()
        return self._good

    def first(self) -> tuple[int, list[str]]:
        """The first step that was not finite, and what was not; else the last one, and none. Waits for the device."""
        finite = self._terms.isfinite().tolist() if self._names else []
        return int(self._step), [name for name, fine in zip(self._names, finite, strict=True) if not fine]
