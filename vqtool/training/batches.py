"""Batches, made ready while the steps before them are computed."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

from vqtool.data import BatchOrder, Samples
from vqtool.distributed import Share
from vqtool.threads import lone_threads


class Batches:
    """This process' share of the batches (B, ...) of consecutive steps; each thread reads one ahead of its use.

    Args:
        order: which samples make up each step's batch.
        steps: how many there are.
        device: what they are for; they come on the CPU, where it is another pinned, so that the copy need not be waited
            for.
        threads: with none, a batch is read when it is asked for.
    """

    def __init__(self, samples: Samples, order: BatchOrder, steps: int, device: torch.device, threads: int = 1) -> None:
        self._samples, self._order, self._steps = samples, order, steps
        self._pinned = device.type == "cuda"
        self._device = device
        self._threads = threads
        self._reader: ThreadPoolExecutor | None = lone_threads(threads) if threads else None
        self._ahead: deque[tuple[int, Future[Tensor]]] = deque()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader:
            self._reader.shutdown(cancel_futures=True)

    def take(self, step: int) -> Tensor:
        """The batch of a step, counted from 0, on the device."""
        return self._next(step).to(self._device, non_blocking=True)

    def _next(self, step: int) -> Tensor:
        if not self._reader:
            return self._read(step)
        if self._ahead and self._ahead[0][0] != step:
            self._ahead.clear()
        first = self._ahead[-1][0] + 1 if self._ahead else step
        for later in range(first, min(step + self._threads + 1, self._steps)):
            self._ahead.append((later, self._reader.submit(self._read, later)))
        return self._ahead.popleft()[1].result()

    def _read(self, step: int) -> Tensor:
        numbers = self._order.batch(step)
        share = Share.own(len(numbers))
        batch = self._samples.take(numbers[share.start :][: share.samples])
        return batch.pin_memory() if self._pinned else batch
