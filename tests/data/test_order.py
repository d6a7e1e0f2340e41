"""The order of samples: permutations by seed and epoch, cut into batches, whatever was asked before."""

import numpy as np
import pytest

from vqtool.data.order import BatchOrder, split


def _sequence(samples: int, batch_size: int, seed: int, length: int) -> list[int]:
    """The first sample numbers of all batches in a row."""
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


def test_epochs_differ_from_one_another() -> None:
    epochs = np.array(_sequence(50, 10, 0, 200)).reshape(4, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed() -> None:
    assert _sequence(50, 10, 1, 100) == _sequence(50, 10, 1, 100)
    assert _sequence(50, 10, 1, 100) != _sequence(50, 10, 2, 100)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 64])
def test_the_order_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert _sequence(20, batch_size, 5, 60) == _sequence(20, 20, 5, 60)


def test_a_batch_does_not_depend_on_what_was_asked_before() -> None:
    asked = BatchOrder(10, 4, 3)
    for step in (9, 0, 2, 9, 7, 2, 1, 100, 2):
        assert asked.batch(step).tolist() == BatchOrder(10, 4, 3).batch(step).tolist()


def test_changing_a_batch_does_not_change_the_order() -> None:
    order = BatchOrder(10, 5, 0)
    before = order.batch(0).copy()
    order.batch(0)[:] = -1
    assert order.batch(0).tolist() == before.tolist()


@pytest.mark.parametrize(("rows", "fraction"), [(100, 0.1), (100, 0.25), (7, 0.5), (1000, 0.333)])
def test_a_split_is_disjoint_complete_and_ascending(rows: int, fraction: float) -> None:
    training, validation = split(rows, fraction, 0)
    assert len(validation) == pytest.approx(rows * fraction, abs=0.51)
    assert sorted([*training, *validation]) == list(range(rows))
    assert (np.diff(training) > 0).all()
    assert (np.diff(validation) > 0).all()


@pytest.mark.parametrize(("rows", "fraction"), [(2, 0.01), (2, 0.99), (10, 0.001), (10, 0.999)])
def test_no_part_is_empty(rows: int, fraction: float) -> None:
    training, validation = split(rows, fraction, 0)
    assert len(training) >= 1
    assert len(validation) >= 1
    assert len(training) + len(validation) == rows


def test_a_split_is_drawn_by_the_seed() -> None:
    assert split(100, 0.2, 4)[1].tolist() == split(100, 0.2, 4)[1].tolist()
    assert split(100, 0.2, 4)[1].tolist() != split(100, 0.2, 5)[1].tolist()
    assert split(100, 0.2, 4)[1].tolist() != list(range(20))
