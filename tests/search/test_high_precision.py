"""Unique rows, compared bit by bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.search.high_precision import unique_rows


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(0, 40),
    d=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    elements_per_block=st.sampled_from([1, 7, 1 << 18]),
)
def test_unique_rows_are_first_occurrences_and_the_inverse_maps_to_them(seed, n, d, dtype, elements_per_block):
    table = torch.randint(3, (n, d), generator=torch.Generator().manual_seed(seed)).to(dtype) / 7
    indices, inverse = unique_rows(table, elements_per_block)
    rows = table.tolist()
    assert indices[inverse].tolist() == [rows.index(row) for row in rows]
    assert indices.tolist() == sorted(set(indices.tolist()))


def test_rows_that_differ_in_one_bit_are_unique():
    row = torch.rand(1, 6)
    table = torch.cat([row, row.nextafter(torch.ones(()))])
    assert unique_rows(table)[0].tolist() == [0, 1]


def test_hash_collision_returns_all_rows_as_unique():
    # The bits of -0.0 are 2^63, and the factors of the hash are odd: two of them add up to 2^64, the hash of zeros.
    indices, inverse = unique_rows(torch.tensor([[0.0, 0.0], [-0.0, -0.0], [0.0, 0.0]], dtype=torch.float64))
    assert indices.tolist() == inverse.tolist() == [0, 1, 2]


def test_unique_rows_accepts_strided_views_and_does_not_use_the_global_generator():
    table = torch.tensor([[1.0, 5.0, 1.0], [2.0, 6.0, 2.0]]).T
    state = torch.get_rng_state()
    indices, inverse = unique_rows(table)
    assert (indices.tolist(), inverse.tolist()) == ([0, 1], [0, 1, 0])
    assert torch.equal(torch.get_rng_state(), state)
