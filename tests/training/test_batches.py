"""Batches that are read a step ahead."""

import numpy as np
import pytest
import torch

from vqtool.data import BatchOrder, Samples, SampleSpec
from vqtool.data.rows import NumpyRows, RowIndices
from vqtool.errors import DataError
from vqtool.training.batches import Batches

CPU = torch.device("cpu")
SPEC = SampleSpec("C", 3, (), None, "float32")


class Watched(NumpyRows):
    """Rows that tell which were asked for, and fail at one."""

    def __init__(self, array: np.ndarray, fails_at: int | None = None) -> None:
        super().__init__(array)
        self.asked: list[list[int]] = []
        self._fails_at = fails_at

    def mend(self) -> None:
        self._fails_at = None

    def take(self, numbers: RowIndices) -> torch.Tensor:
        self.asked.append(numbers.tolist())
        if self._fails_at in self.asked[-1]:
            raise DataError("cannot be read")
        return super().take(numbers)


def rows(fails_at: int | None = None) -> Watched:
    return Watched(np.arange(30, dtype=np.float32).reshape(10, 3), fails_at)


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", 1)


# A batch of 4 samples has 48 bytes.
each_way = pytest.mark.parametrize("together", [1, 48, 100, 1000])


def settled(batches: Batches) -> None:
    """Wait until what is read ahead is there."""
    for future in batches._ahead:
        future.exception()


@pytest.mark.usefixtures("one_at_a_time")
def test_batches_are_those_of_the_order() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 6, CPU) as batches:
        for step in range(6):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    assert source.asked == [order.batch(step).tolist() for step in range(6)]


@pytest.mark.usefixtures("one_at_a_time")
def test_the_next_is_read_before_it_is_asked_for_but_none_beyond_the_last() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 3, CPU) as batches:
        batches.take(1)
        settled(batches)
        assert source.asked == [order.batch(step).tolist() for step in (1, 2)]
        batches.take(2)
    assert len(source.asked) == 2


def test_small_batches_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", 100)
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 7, CPU) as batches:
        for step in range(7):
            batches.take(step)
    numbers = [order.batch(step).tolist() for step in range(7)]
    assert source.asked == [numbers[0] + numbers[1], numbers[2] + numbers[3], numbers[4] + numbers[5], numbers[6]]


@each_way
def test_a_run_can_begin_anywhere_and_jump(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", together)
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 9, CPU) as batches:
        for step in (5, 2, 3, 4, 8, 0, 1):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])


@pytest.mark.usefixtures("one_at_a_time")
def test_what_cannot_be_read_is_told_when_its_step_comes() -> None:
    order = BatchOrder(10, 4, seed=3)
    source = rows(fails_at=int(order.batch(1)[0]))
    assert order.batch(1)[0] not in order.batch(0)
    with Batches(Samples(source, SPEC), order, 9, CPU) as batches:
        batches.take(0)
        with pytest.raises(DataError, match="cannot be read"):
            batches.take(1)


def test_what_cannot_be_read_is_told_when_one_that_is_read_together_with_it_comes() -> None:
    order = BatchOrder(10, 4, seed=3)
    with (
        Batches(Samples(rows(fails_at=int(order.batch(1)[0])), SPEC), order, 9, CPU) as batches,
        pytest.raises(DataError, match="cannot be read"),
    ):
        batches.take(0)


@each_way
def test_after_an_error_a_step_can_be_asked_for_again(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", together)
    order = BatchOrder(10, 4, seed=3)
    source = rows(fails_at=int(order.batch(0)[0]))
    with Batches(Samples(source, SPEC), order, 9, CPU) as batches:
        for _ in range(2):
            with pytest.raises(DataError, match="cannot be read"):
                batches.take(0)
        source.mend()
        assert torch.equal(batches.take(0), source.read(0, 10)[torch.from_numpy(order.batch(0))])


def test_the_threads_of_pytorch_stay_as_many() -> None:
    before = torch.get_num_threads()
    with Batches(Samples(rows(), SPEC), BatchOrder(10, 4, seed=3), 2, CPU) as batches:
        batches.take(0)
    assert torch.get_num_threads() == before


@each_way
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_threads_gives_the_same_batches(
    threads: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", together)
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 6, CPU, threads) as batches:
        for step in range(6):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    asked = [number for numbers in source.asked for number in numbers]
    assert sorted(asked) == sorted(number for step in range(6) for number in order.batch(step).tolist())


@pytest.mark.usefixtures("one_at_a_time")
@pytest.mark.parametrize("threads", [0, 1, 3])
def test_as_many_are_read_ahead_as_there_are_threads(threads: int) -> None:
    source = rows()
    with Batches(Samples(source, SPEC), BatchOrder(10, 4, seed=3), 6, CPU, threads) as batches:
        batches.take(0)
        settled(batches)
        assert len(source.asked) == 1 + threads


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("together", [1, 1000])
def test_processes_have_together_what_one_has(size: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.batches._BYTES", together)
    monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
    order, source = BatchOrder(10, 5, seed=3), rows()
    taken = []
    for rank in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda rank=rank: rank)
        with Batches(Samples(source, SPEC), order, 4, CPU) as batches:
            taken.append([batches.take(step) for step in range(4)])
    for step, parts in enumerate(zip(*taken, strict=True)):
        assert torch.equal(torch.cat(parts), source.read(0, 10)[torch.from_numpy(order.batch(step))])


@pytest.mark.parametrize("size", [2, 3, 7])
def test_each_process_reads_its_own_rows_and_no_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order = BatchOrder(10, 5, seed=3)
    asked = []
    for rank in range(size):
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.world_size", lambda: size)
        monkeypatch.setattr("vqtool.runtime.distributed.batch_shard.rank", lambda rank=rank: rank)
        source = rows()
        with Batches(Samples(source, SPEC), order, 4, CPU, threads=0) as batches:
            taken = [batches.take(step) for step in range(4)]
        assert [len(batch) for batch in taken] == [len(numbers) for numbers in source.asked]
        asked.append(source.asked)
    for step in range(4):
        assert [row for process in asked for row in process[step]] == order.batch(step).tolist()
