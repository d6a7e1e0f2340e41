"""Batches, made ready while the step before them is computed."""

from concurrent.futures import Future
from types import TracebackType

import torch
from torch import Tensor

from vqtool.data import BatchOrder, Samples
from vqtool.threads import lone_threads


class Batches:
    """The batches (B, ...) of consecutive steps, each read by a thread while the one before is in use.

    Args:
        order: which samples make up each step's batch.
        steps: how many there are.
        device: what they are for; they come on the CPU, where it is another pinned, so that the copy need not be waited
            for.
    """

    def __init__(self, samples: Samples, order: BatchOrder, steps: int, device: torch.device) -> None:
        self._samples, self._order, self._steps = samples, order, steps
        self._pinned = device.type == "cuda"
        self._device = device
        self._reader = lone_threads(1)
        self._next: tuple[int, Future[Tensor]] | None = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.shutdown(cancel_futures=True)

    def take(self, step: int) -> Tensor:
        """The batch of a step, counted from 0, on the device."""
        ahead = self._next if self._next and self._next[0] == step else (step, self._reader.submit(self._read, step))
        self._next = (step + 1, self._reader.submit(self._read, step + 1)) if step + 1 < self._steps else None
        return ahead[1].result().to(self._device, non_blocking=True)

    def _read(self, step: int) -> Tensor:
        batch = self._samples.take(self._order.batch(step))
        return batch.pin_memory() if self._pinned else batch
