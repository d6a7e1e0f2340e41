"""Distinct ids and the numbers that part equal ones, against sets and plain loops."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.metrics.collisions import IdCounter, IdCounts, duplicate_numbers

DTYPES = [np.uint8, np.uint16, np.uint32, np.int64]


@st.composite
def ids(draw):
    """(N, Q) ids of few codes, so that some are equal, at either end of what their type holds."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, levels = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = [0, 1, 255, int(np.iinfo(dtype).max) - 1, int(np.iinfo(dtype).max)][: draw(st.integers(1, 5))]
    return random.choice(np.array(codes, dtype=dtype), (rows, levels))


def numbered_by_hand(rows, published=()):
    """Rows go on from the largest number that their id has among the published ones."""
    following, numbers = defaultdict(int), []
    for position, row in enumerate(map(tuple, rows.tolist())):
        number = int(published[position]) if position < len(published) else following[row]
        numbers.append(number)
        following[row] = max(following[row], number + 1)
    return numbers


@settings(deadline=None, max_examples=100)
@given(ids(), st.integers(1, 40))
def test_distinct_ids_are_those_of_a_set_in_any_blocks(rows, block):
    counter = IdCounter()
    for start in range(0, len(rows), block):
        counter.add(rows[start : start + block])
        seen = rows[: start + block]
        assert counter.result() == IdCounts(len(seen), len(set(map(tuple, seen.tolist()))))


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 1, 3), (200, 2, 2)])
def test_an_id_is_all_that_a_row_holds(shape):
    rows = np.random.default_rng(0).integers(0, 3, shape)
    counter = IdCounter()
    counter.add(rows)
    assert counter.result() == IdCounts(200, len({row.tobytes() for row in rows}))


def test_rows_of_a_view_are_read_as_they_stand():
    rows = np.random.default_rng(0).integers(0, 3, (3, 100), dtype=np.uint16).T[::-1]
    counter = IdCounter()
    counter.add(rows)
    assert counter.result() == IdCounts(100, len(set(map(tuple, rows.tolist()))))
    assert duplicate_numbers(rows).tolist() == numbered_by_hand(rows)


def test_nothing_counted_is_no_result():
    assert IdCounter().result() is None


@pytest.mark.parametrize(("rows", "ids_", "rate"), [(8, 8, 0.0), (8, 6, 0.25), (8, 1, 0.875), (1, 1, 0.0)])
def test_the_collision_rate_is_the_share_of_rows_beyond_the_first_of_their_id(rows, ids_, rate):
    assert IdCounts(rows, ids_).collision_rate == rate


@settings(deadline=None, max_examples=100)
@given(ids())
def test_numbers_are_those_of_a_loop_and_make_rows_unique(rows):
    numbers = duplicate_numbers(rows)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == numbered_by_hand(rows)
    assert len(set(zip(map(tuple, rows.tolist()), numbers.tolist(), strict=True))) == len(rows)


@settings(deadline=None, max_examples=100)
@given(ids(), st.integers(0, 40))
def test_a_grown_catalogue_is_numbered_as_if_it_were_new(rows, old):
    published = duplicate_numbers(rows[: min(old, len(rows))]) if old else np.zeros(0, dtype=np.uint8)
    assert duplicate_numbers(rows, published).tolist() == duplicate_numbers(rows).tolist()


@settings(deadline=None, max_examples=100)
@given(ids(), st.data())
def test_published_numbers_stay_whatever_they_are(rows, data):
    """With gaps, in any order, with numbers no row would have got: they stay, and new rows are unlike all of them."""
    old = data.draw(st.integers(0, len(rows)))
    published = np.array(data.draw(st.permutations(range(0, 7 * old, 7))), dtype=np.uint16)
    numbers = duplicate_numbers(rows, published)
    assert numbers[:old].tolist() == published.tolist()
    assert numbers.tolist() == numbered_by_hand(rows, published)
    assert len(set(zip(map(tuple, rows.tolist()), numbers.tolist(), strict=True))) == len(rows)


def test_new_rows_go_on_from_the_largest_number_and_fill_no_gap():
    rows = np.array([[1], [1], [2], [1], [2], [3], [1]], dtype=np.uint8)
    assert duplicate_numbers(rows, np.array([5, 0, 3], dtype=np.uint8)).tolist() == [5, 0, 3, 6, 4, 0, 7]


def test_published_numbers_at_the_end_of_their_type_do_not_overflow():
    rows = np.zeros((3, 1), dtype=np.uint8)
    assert duplicate_numbers(rows, np.array([255], dtype=np.uint8)).tolist() == [255, 256, 257]


def test_many_rows_of_one_id_are_numbered_in_their_order():
    rows = np.repeat(np.array([[7, 7]], dtype=np.uint8), 70_000, axis=0)
    assert np.array_equal(duplicate_numbers(rows), np.arange(70_000))
