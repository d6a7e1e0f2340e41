"""Rows that are equal, found by their bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.search import distinct
from vqtool.search.distinct import distinct_rows


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(0, 40),
    d=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block=st.sampled_from([1, 7, 1 << 18]),
)
def test_rows_are_equal_to_the_first_like_them(seed, n, d, dtype, block):
    table = torch.randint(3, (n, d), generator=torch.Generator().manual_seed(seed)).to(dtype) / 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distinct, "_BLOCK", block)
        first, which = distinct_rows(table)
    rows = table.tolist()
    assert first[which].tolist() == [rows.index(row) for row in rows]
    assert first.tolist() == sorted(set(first.tolist()))


def test_rows_that_differ_in_one_bit_differ():
    row = torch.rand(1, 6)
    table = torch.cat([row, row.nextafter(torch.ones(()))])
    assert distinct_rows(table)[0].tolist() == [0, 1]


def test_where_a_number_is_shared_all_rows_differ(monkeypatch):
    monkeypatch.setattr(distinct, "_factors", lambda count: torch.zeros(count, dtype=torch.int64))
    first, which = distinct_rows(torch.tensor([[1.0], [2.0], [1.0]]))
    assert first.tolist() == which.tolist() == [0, 1, 2]


def test_strides_do_not_matter_and_the_random_state_is_left_alone():
    table = torch.tensor([[1.0, 5.0, 1.0], [2.0, 6.0, 2.0]]).T
    state = torch.get_rng_state()
    first, which = distinct_rows(table)
    assert (first.tolist(), which.tolist()) == ([0, 1], [0, 1, 0])
    assert torch.equal(torch.get_rng_state(), state)
