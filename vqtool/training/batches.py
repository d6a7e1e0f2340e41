"""Batches, made ready while the steps before them are computed."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vqtool.data import BatchOrder, Samples
from vqtool.data.rows import RowIndices
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.threads import single_threaded_pool

# Bytes that are read at a time: small batches together, as waking a thread for one takes longer than reading it.
_BYTES = 1 << 20


class Batches:
    """This process' share of the batches (B, ...) of consecutive steps; each thread reads some ahead of their use.

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
        size = samples.read(0, 1).nbytes * BatchShard.for_rank(order.batch_size).samples
        self._together = max(1, _BYTES // max(1, size))
        # Batches from step `_next` on that were read, then those that will be, up to but not with step `_end`.
        self._ready: deque[Tensor] = deque()
        self._ahead: deque[Future[list[Tensor]]] = deque()
        self._next = self._end = 0
        self._reader: ThreadPoolExecutor | None = single_threaded_pool(threads) if threads else None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader:
            self._reader.shutdown(cancel_futures=True)

    def take(self, step: int) -> Tensor:
        """The batch of a step, counted from 0, on the device.

        Raises:
            DataError: it, or one of those that are read together with it, cannot be read.
        """
        batch = self._read_ahead(self._reader, step) if self._reader else self._read([step])[0]
        return batch.to(self._device, non_blocking=True)

    def _read_ahead(self, reader: ThreadPoolExecutor, step: int) -> Tensor:
        if step != self._next:
            self._ready.clear()
            self._ahead.clear()
            self._end = step
        wanted = self._threads if self._ready else 1 + self._threads
        while len(self._ahead) < wanted and self._end < self._steps:
            together = range(self._end, min(self._end + self._together, self._steps))
            self._ahead.append(reader.submit(self._read, together))
            self._end = together.stop
        if not self._ready:
            self._next = -1  # all is read again, should this fail
            self._ready.extend(self._ahead.popleft().result())
        self._next = step + 1
        return self._ready.popleft()

    def _read(self, steps: Iterable[int]) -> list[Tensor]:
        numbers = [self._own(step) for step in steps]
        batches = self._samples.take(np.concatenate(numbers)).split([len(each) for each in numbers])
        return [batch.pin_memory() if self._pinned else batch for batch in batches]

    def _own(self, step: int) -> RowIndices:
        """The samples of this process' share of a step's batch."""
        numbers = self._order.batch(step)
        shard = BatchShard.for_rank(len(numbers))
        return numbers[shard.start :][: shard.samples]
