"""Load the batches of consecutive steps; threads read ahead of the training loop."""

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

# Batches smaller than this are read several at a time: waking a thread takes longer than reading one of them.
_BYTES_PER_READ = 1 << 20


class BatchLoader:
    """Loads this process's shard of each step's batch: values (B, C, *size) or classes (B, *size).

    A context manager; on exit it cancels reads in progress.

    Args:
        samples: training samples.
        order: the samples of each step's batch.
        steps: number of steps of the run; no batch beyond them is read.
        device: device of the batches. For CUDA, batches are read into pinned memory, so the copy is asynchronous.
        threads: number of threads that read ahead; 0: read each batch when it is loaded.
        bytes_per_read: consecutive batches are read together up to this size, and at least one at a time.
    """

    def __init__(
        self,
        samples: Samples,
        order: BatchOrder,
        steps: int,
        device: torch.device,
        threads: int = 1,
        bytes_per_read: int = _BYTES_PER_READ,
    ) -> None:
        self._samples, self._order, self._steps = samples, order, steps
        self._device = device
        self._pin_memory = device.type == "cuda"
        self._threads = threads
        batch_bytes = samples.read(0, 1).nbytes * BatchShard.for_rank(order.batch_size).samples
        self._steps_per_read = max(1, bytes_per_read // max(1, batch_bytes))
        # `_ready` holds the batches of steps `_next_step` and after; `_pending` reads on, up to step `_read_until` - 1.
        self._ready: deque[Tensor] = deque()
        self._pending: deque[Future[list[Tensor]]] = deque()
        self._next_step = self._read_until = 0
        self._pool: ThreadPoolExecutor | None = single_threaded_pool(threads) if threads else None

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def load(self, step: int) -> Tensor:
        """Return this process's shard of the batch of a step, on the device. Read ahead if steps are in order.

        Args:
            step: counted from 0, less than `steps`.

        Raises:
            DataError: this batch, or another one of the same read, cannot be read.
        """
        batch = self._next_batch(self._pool, step) if self._pool else self._read([step])[0]
        return batch.to(self._device, non_blocking=True)

    def _next_batch(self, pool: ThreadPoolExecutor, step: int) -> Tensor:
        """Return this process's shard of the batch of `step`, in CPU memory, and let the pool read the next ones."""
        if step != self._next_step:
            self._ready.clear()
            self._pending.clear()
            self._read_until = step
        max_pending = self._threads if self._ready else 1 + self._threads
        while len(self._pending) < max_pending and self._read_until < self._steps:
            steps = range(self._read_until, min(self._read_until + self._steps_per_read, self._steps))
            self._pending.append(pool.submit(self._read, steps))
            self._read_until = steps.stop
        if not self._ready:
            self._next_step = -1  # if this read fails, the next call starts again
            self._ready.extend(self._pending.popleft().result())
        self._next_step = step + 1
        return self._ready.popleft()

    def _read(self, steps: Iterable[int]) -> list[Tensor]:
        """Read this process's shard of the batch of each step, all in one read, into CPU memory."""
        shards: list[RowIndices] = []
        for step in steps:
            sample_indices = self._order.batch(step)
            shard = BatchShard.for_rank(len(sample_indices))
            shards.append(sample_indices[shard.start :][: shard.samples])
        batches = self._samples.take(np.concatenate(shards)).split([len(shard) for shard in shards])
        return [batch.pin_memory() if self._pin_memory else batch for batch in batches]
