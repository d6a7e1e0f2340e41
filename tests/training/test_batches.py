"""BatchLoader: order, reading ahead, errors, threads and shards."""

from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
import torch

from vqtool.data import BatchOrder, Samples, SampleSpec
from vqtool.data.rows import NumpyRows, RowIndices
from vqtool.errors import DataError
from vqtool.runtime.threads import single_threaded_pool
from vqtool.training.batches import BatchLoader

CPU = torch.device("cpu")
SPEC = SampleSpec("C", 3, (), None, "float32")


class RecordedRows(NumpyRows):
    """Rows that record each read, and fail at one row."""

    def __init__(self, array: np.ndarray, fails_at: int | None = None) -> None:
        super().__init__(array)
        self.reads: list[list[int]] = []
        self._fails_at = fails_at

    def repair(self) -> None:
        self._fails_at = None

    def take(self, numbers: RowIndices) -> torch.Tensor:
        self.reads.append(numbers.tolist())
        if self._fails_at in self.reads[-1]:
            raise DataError("cannot be read")
        return super().take(numbers)


def rows(fails_at: int | None = None) -> RecordedRows:
    return RecordedRows(np.arange(30, dtype=np.float32).reshape(10, 3), fails_at)


# A batch of 4 samples has 48 bytes.
read_sizes = pytest.mark.parametrize("bytes_per_read", [1, 48, 100, 1000])


@pytest.fixture
def reads_ahead(monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    """List of all reads that loaders submit to their threads."""
    submitted: list[Future[Any]] = []

    def recording_pool(threads: int) -> ThreadPoolExecutor:
        pool = single_threaded_pool(threads)
        submit = pool.submit

        def record(*arguments: Any) -> Future[Any]:
            submitted.append(submit(*arguments))
            return submitted[-1]

        monkeypatch.setattr(pool, "submit", record)
        return pool

    monkeypatch.setattr("vqtool.training.batches.single_threaded_pool", recording_pool)
    return submitted


def test_batches_follow_the_batch_order() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with BatchLoader(Samples(source, SPEC), order, 6, CPU, bytes_per_read=1) as loader:
        for step in range(6):
            assert torch.equal(loader.load(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    assert source.reads == [order.batch(step).tolist() for step in range(6)]


def test_next_batch_is_read_ahead_but_none_beyond_the_last_step(reads_ahead: list[Future[Any]]) -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with BatchLoader(Samples(source, SPEC), order, 3, CPU, bytes_per_read=1) as loader:
        loader.load(1)
        wait(reads_ahead)
        assert source.reads == [order.batch(step).tolist() for step in (1, 2)]
        loader.load(2)
    assert len(source.reads) == 2


def test_small_batches_are_read_together() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with BatchLoader(Samples(source, SPEC), order, 7, CPU, bytes_per_read=100) as loader:
        for step in range(7):
            loader.load(step)
    numbers = [order.batch(step).tolist() for step in range(7)]
    assert source.reads == [numbers[0] + numbers[1], numbers[2] + numbers[3], numbers[4] + numbers[5], numbers[6]]


@read_sizes
def test_steps_can_be_loaded_in_any_order(bytes_per_read: int) -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with BatchLoader(Samples(source, SPEC), order, 9, CPU, bytes_per_read=bytes_per_read) as loader:
        for step in (5, 2, 3, 4, 8, 0, 1):
            assert torch.equal(loader.load(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])


def test_read_error_is_raised_when_its_step_is_loaded() -> None:
    order = BatchOrder(10, 4, seed=3)
    source = rows(fails_at=int(order.batch(1)[0]))
    assert order.batch(1)[0] not in order.batch(0)
    with BatchLoader(Samples(source, SPEC), order, 9, CPU, bytes_per_read=1) as loader:
        loader.load(0)
        with pytest.raises(DataError, match="cannot be read"):
            loader.load(1)


def test_read_error_is_raised_when_a_batch_of_the_same_read_is_loaded() -> None:
    order = BatchOrder(10, 4, seed=3)
    with (
        BatchLoader(Samples(rows(fails_at=int(order.batch(1)[0])), SPEC), order, 9, CPU) as loader,
        pytest.raises(DataError, match="cannot be read"),
    ):
        loader.load(0)


@read_sizes
def test_step_can_be_loaded_again_after_an_error(bytes_per_read: int) -> None:
    order = BatchOrder(10, 4, seed=3)
    source = rows(fails_at=int(order.batch(0)[0]))
    with BatchLoader(Samples(source, SPEC), order, 9, CPU, bytes_per_read=bytes_per_read) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match="cannot be read"):
                loader.load(0)
        source.repair()
        assert torch.equal(loader.load(0), source.read(0, 10)[torch.from_numpy(order.batch(0))])


def test_number_of_pytorch_threads_does_not_change() -> None:
    before = torch.get_num_threads()
    with BatchLoader(Samples(rows(), SPEC), BatchOrder(10, 4, seed=3), 2, CPU) as loader:
        loader.load(0)
    assert torch.get_num_threads() == before


@read_sizes
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_do_not_depend_on_number_of_threads(threads: int, bytes_per_read: int) -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with BatchLoader(Samples(source, SPEC), order, 6, CPU, threads, bytes_per_read=bytes_per_read) as loader:
        for step in range(6):
            assert torch.equal(loader.load(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    rows_read = [row for read in source.reads for row in read]
    assert sorted(rows_read) == sorted(number for step in range(6) for number in order.batch(step).tolist())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_thread_reads_one_batch_ahead(threads: int, reads_ahead: list[Future[Any]]) -> None:
    source = rows()
    with BatchLoader(Samples(source, SPEC), BatchOrder(10, 4, seed=3), 6, CPU, threads, bytes_per_read=1) as loader:
        loader.load(0)
        wait(reads_ahead)
        assert len(source.reads) == 1 + threads


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("bytes_per_read", [1, 1000])
def test_shards_of_all_processes_make_up_the_batch(
    size: int, bytes_per_read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
    order, source = BatchOrder(10, 5, seed=3), rows()
    loaded = []
    for rank in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda rank=rank: rank)
        with BatchLoader(Samples(source, SPEC), order, 4, CPU, bytes_per_read=bytes_per_read) as loader:
            loaded.append([loader.load(step) for step in range(4)])
    for step, shards in enumerate(zip(*loaded, strict=True)):
        assert torch.equal(torch.cat(shards), source.read(0, 10)[torch.from_numpy(order.batch(step))])


@pytest.mark.parametrize("size", [2, 3, 7])
def test_each_process_reads_only_the_rows_of_its_shard(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order = BatchOrder(10, 5, seed=3)
    reads = []
    for rank in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda rank=rank: rank)
        source = rows()
        with BatchLoader(Samples(source, SPEC), order, 4, CPU, threads=0) as loader:
            shards = [loader.load(step) for step in range(4)]
        assert [len(shard) for shard in shards] == [len(numbers) for numbers in source.reads]
        reads.append(source.reads)
    for step in range(4):
        assert [row for process in reads for row in process[step]] == order.batch(step).tolist()
