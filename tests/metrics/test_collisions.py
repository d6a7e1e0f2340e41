"""Counts of distinct ids, compared with Python sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.metrics.collisions import IdCounter, IdCounts

DTYPES = [np.uint8, np.uint16, np.uint32, np.int64]


@st.composite
def ids(draw):
    """Return ids (N, Q) of few codes, so that some are equal, with the smallest and largest codes of their dtype."""
    dtype = draw(st.sampled_from(DTYPES))
    rows, levels = draw(st.integers(1, 40)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = [0, 1, 255, int(np.iinfo(dtype).max) - 1, int(np.iinfo(dtype).max)][: draw(st.integers(1, 5))]
    return random.choice(np.array(codes, dtype=dtype), (rows, levels))


@settings(deadline=None, max_examples=100)
@given(ids(), st.integers(1, 40))
def test_distinct_ids_equal_a_set_for_any_batch_size(rows, batch_size):
    counter = IdCounter()
    for start in range(0, len(rows), batch_size):
        counter.add(rows[start : start + batch_size])
        added = rows[: start + batch_size]
        assert counter.result() == IdCounts(len(added), len(set(map(tuple, added.tolist()))))


@pytest.mark.parametrize("shape", [(200,), (200, 1), (200, 1, 3), (200, 2, 2)])
def test_an_id_is_all_codes_of_a_row(shape):
    rows = np.random.default_rng(0).integers(0, 3, shape)
    counter = IdCounter()
    counter.add(rows)
    assert counter.result() == IdCounts(200, len({row.tobytes() for row in rows}))


def test_rows_of_a_strided_view_are_counted():
    rows = np.random.default_rng(0).integers(0, 3, (3, 100), dtype=np.uint16).T[::-1]
    counter = IdCounter()
    counter.add(rows)
    assert counter.result() == IdCounts(100, len(set(map(tuple, rows.tolist()))))


def test_result_is_none_before_the_first_row():
    assert IdCounter().result() is None


@pytest.mark.parametrize(("rows", "distinct", "rate"), [(8, 8, 0.0), (8, 6, 0.25), (8, 1, 0.875), (1, 1, 0.0)])
def test_collision_rate_is_one_minus_ids_over_rows(rows, distinct, rate):
    assert IdCounts(rows, distinct).collision_rate == rate
