"""The left factor of the bfloat16 product: rounding, the columns added to it, and the tolerance."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import random_normal
from vqtool.search.bfloat16 import Bfloat16Search

FEW = settings(deadline=None, max_examples=60)


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 70), exponent=st.floats(-18, 17))
def test_rows_are_rounded_like_pytorch_followed_by_two_ones(seed, d, exponent):
    vectors, codes = random_normal(seed, 20, d) * 10**exponent, random_normal(seed + 1, 30, d) * 10**exponent
    rows, tolerance = Bfloat16Search(codes)._make_rows(vectors)
    assert torch.equal(rows[:, :d], (codes.mean(dim=0) - vectors).bfloat16())
    assert (rows[:, d : d + 2] == 1).all()
    assert tolerance.isfinite().all()


def test_ties_are_rounded_to_even():
    # Half way between two bfloat16 numbers: between 1 and 2 their spacing is 1/128.
    vectors = -torch.tensor([[1 + 1 / 256], [1 + 3 / 256], [1 + 5 / 256]])
    rows, _ = Bfloat16Search(torch.zeros(4, 1))._make_rows(vectors)
    assert rows[:, 0].tolist() == [1, 1 + 2 / 128, 1 + 2 / 128]


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 40), exponents=st.tuples(*2 * [st.floats(-12, 12)]))
def test_scores_are_not_negative_and_the_nearest_code_is_within_the_tolerance(seed, d, exponents):
    vectors, codes = (
        random_normal(seed, 20, d) * 10 ** exponents[0],
        random_normal(seed + 1, 70, d) * 10 ** exponents[1],
    )
    search = Bfloat16Search(codes)
    rows, tolerance = search._make_rows(vectors)
    scores = rows.double() @ search._columns.double()
    assert (scores >= 0).all()
    exact = torch.cdist(vectors.double(), codes.double()).square()
    nearest_scores = scores[torch.arange(20), exact.argmin(dim=1)]
    assert (nearest_scores <= scores.amin(dim=1) + tolerance).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, 2e19])
def test_row_with_possibly_non_finite_scores_is_all_zeros(value):
    vectors = random_normal(0, 5, 6)
    vectors[3, 2] = value
    rows, tolerance = Bfloat16Search(random_normal(1, 9, 6))._make_rows(vectors)
    assert tolerance.isinf().tolist() == [False, False, False, True, False]
    assert not rows[3].any()
    assert rows.isfinite().all()
