"""Rows in bfloat16 beside PyTorch's own rounding, and what is added to them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import random_normal
from vqtool.search.bfloat16 import BfloatScores

FEW = settings(deadline=None, max_examples=60)


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 70), exponent=st.floats(-18, 17))
def test_rows_are_rounded_as_pytorch_does_then_two_ones(seed, d, exponent):
    vectors, codes = random_normal(seed, 20, d) * 10**exponent, random_normal(seed + 1, 30, d) * 10**exponent
    rows, slack = BfloatScores(codes)._make_rows(vectors)
    assert torch.equal(rows[:, :d], (codes.mean(dim=0) - vectors).bfloat16())
    assert (rows[:, d : d + 2] == 1).all()
    assert slack.isfinite().all()


def test_a_tie_is_rounded_to_even():
    # Half way between numbers of bfloat16, which are 1/128 apart from 1 to 2.
    vectors = -torch.tensor([[1 + 1 / 256], [1 + 3 / 256], [1 + 5 / 256]])
    rows, _ = BfloatScores(torch.zeros(4, 1))._make_rows(vectors)
    assert rows[:, 0].tolist() == [1, 1 + 2 / 128, 1 + 2 / 128]


@FEW
@given(seed=st.integers(0, 1 << 30), d=st.integers(1, 40), exponents=st.tuples(*2 * [st.floats(-12, 12)]))
def test_no_score_is_negative_and_none_of_the_nearest_is_above_the_slack(seed, d, exponents):
    vectors, codes = (
        random_normal(seed, 20, d) * 10 ** exponents[0],
        random_normal(seed + 1, 70, d) * 10 ** exponents[1],
    )
    made = BfloatScores(codes)
    rows, slack = made._make_rows(vectors)
    scores = rows.double() @ made._columns.double()
    assert (scores >= 0).all()
    exact = torch.cdist(vectors.double(), codes.double()).square()
    of_nearest = scores[torch.arange(20), exact.argmin(dim=1)]
    assert (of_nearest <= scores.amin(dim=1) + slack).all()


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, 3e38, 2e19])
def test_a_row_that_may_not_be_finite_is_all_zeros(odd):
    vectors = random_normal(0, 5, 6)
    vectors[3, 2] = odd
    rows, slack = BfloatScores(random_normal(1, 9, 6))._make_rows(vectors)
    assert slack.isinf().tolist() == [False, False, False, True, False]
    assert not rows[3].any()
    assert rows.isfinite().all()
