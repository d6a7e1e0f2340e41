"""Batch order: one permutation per seed and epoch, cut into batches."""

import numpy as np
import pytest

from vqtool.data.batch_order import BatchOrder


def _sequence(samples: int, batch_size: int, seed: int, length: int) -> list[int]:
    """Return the first `length` sample indices of the concatenated batches."""
    order = BatchOrder(samples, batch_size, seed)
    steps = -(-length // batch_size)
    return np.concatenate([order.batch(step) for step in range(steps)])[:length].tolist()


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (10, 5), (10, 10), (7, 16), (3, 100), (1, 4), (100, 1)])
def test_every_epoch_is_a_permutation(samples: int, batch_size: int) -> None:
    epochs = np.array(_sequence(samples, batch_size, 0, 4 * samples)).reshape(4, samples)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(samples), (4, 1)))


@pytest.mark.parametrize(("samples", "batch_size"), [(10, 4), (7, 16), (3, 100)])
def test_every_batch_is_full(samples: int, batch_size: int) -> None:
    order = BatchOrder(samples, batch_size, 0)
    assert {len(order.batch(step)) for step in range(20)} == {batch_size}


def test_epochs_have_different_permutations() -> None:
    epochs = np.array(_sequence(50, 10, 0, 200)).reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed() -> None:
    assert _sequence(50, 10, 1, 100) == _sequence(50, 10, 1, 100)
    assert _sequence(50, 10, 1, 100) != _sequence(50, 10, 2, 100)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 64])
def test_order_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert _sequence(20, batch_size, 5, 60) == _sequence(20, 20, 5, 60)


def test_batch_does_not_depend_on_earlier_calls() -> None:
    reused = BatchOrder(10, 4, 3)
    for step in (9, 0, 2, 9, 7, 2, 1, 100, 2):
        assert reused.batch(step).tolist() == BatchOrder(10, 4, 3).batch(step).tolist()


def test_writing_to_a_batch_does_not_change_the_order() -> None:
    order = BatchOrder(10, 5, 0)
    before = order.batch(0).copy()
    order.batch(0)[:] = -1
    assert order.batch(0).tolist() == before.tolist()
