"""Batches that are read a step ahead."""

import numpy as np
import pytest
import torch

from vqtool.data import BatchOrder, Samples, SampleSpec
from vqtool.data.rows import NumpyRows, RowNumbers
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

    def take(self, numbers: RowNumbers) -> torch.Tensor:
        self.asked.append(numbers.tolist())
        if self._fails_at in self.asked[-1]:
            raise DataError("cannot be read")
        return super().take(numbers)


def rows(fails_at: int | None = None) -> Watched:
    return Watched(np.arange(30, dtype=np.float32).reshape(10, 3), fails_at)


def settled(batches: Batches) -> None:
    """Wait until what is read ahead is there."""
    for _, future in batches._ahead:
        future.exception()


def test_batches_are_those_of_the_order() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 6, CPU) as batches:
        for step in range(6):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    assert source.asked == [order.batch(step).tolist() for step in range(6)]


def test_the_next_is_read_before_it_is_asked_for_but_none_beyond_the_last() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 3, CPU) as batches:
        batches.take(1)
        settled(batches)
        assert source.asked == [order.batch(step).tolist() for step in (1, 2)]
        batches.take(2)
    assert len(source.asked) == 2


def test_a_run_can_begin_anywhere_and_jump() -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 9, CPU) as batches:
        for step in (5, 2, 3):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])


def test_what_cannot_be_read_is_told_when_its_step_comes() -> None:
    order = BatchOrder(10, 4, seed=3)
    source = rows(fails_at=int(order.batch(1)[0]))
    assert order.batch(1)[0] not in order.batch(0)
    with Batches(Samples(source, SPEC), order, 9, CPU) as batches:
        batches.take(0)
        with pytest.raises(DataError, match="cannot be read"):
            batches.take(1)


def test_the_threads_of_pytorch_stay_as_many() -> None:
    before = torch.get_num_threads()
    with Batches(Samples(rows(), SPEC), BatchOrder(10, 4, seed=3), 2, CPU) as batches:
        batches.take(0)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_any_number_of_threads_gives_the_same_batches(threads: int) -> None:
    order, source = BatchOrder(10, 4, seed=3), rows()
    with Batches(Samples(source, SPEC), order, 6, CPU, threads) as batches:
        for step in range(6):
            assert torch.equal(batches.take(step), source.read(0, 10)[torch.from_numpy(order.batch(step))])
    assert sorted(source.asked) == sorted(order.batch(step).tolist() for step in range(6))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_as_many_are_read_ahead_as_there_are_threads(threads: int) -> None:
    source = rows()
    with Batches(Samples(source, SPEC), BatchOrder(10, 4, seed=3), 6, CPU, threads) as batches:
        batches.take(0)
        settled(batches)
        assert len(source.asked) == 1 + threads


@pytest.mark.parametrize("size", [2, 3, 7])
def test_each_process_reads_its_own_rows_and_no_others(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order = BatchOrder(10, 5, seed=3)
    asked = []
    for rank in range(size):
        monkeypatch.setattr("vqtool.distributed.share.world_size", lambda: size)
        monkeypatch.setattr("vqtool.distributed.share.rank", lambda rank=rank: rank)
        source = rows()
        with Batches(Samples(source, SPEC), order, 4, CPU, threads=0) as batches:
            taken = [batches.take(step) for step in range(4)]
        assert [len(batch) for batch in taken] == [len(numbers) for numbers in source.asked]
        asked.append(source.asked)
    for step in range(4):
        assert [row for process in asked for row in process[step]] == order.batch(step).tolist()
