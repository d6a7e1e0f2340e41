"""The search's loops beside NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import brute_force, distances, random_normal
from vqtool.search import kernels
from vqtool.search.kernels import MAX_CANDIDATES, exhaustive, settle_bfloat16, settle_full

FEW = settings(deadline=None, max_examples=60)


def settled(scores, slack, vectors, codes, classes=16):
    """By scores that are padded with infinite ones."""
    padding = -scores.shape[1] % (4 * classes)
    padded = np.pad(scores, ((0, 0), (0, padding)), constant_values=np.inf)
    nearest = np.full(len(vectors), 7_000_000)
    settle_full(padded, classes, slack.astype(scores.dtype), vectors, codes, nearest)
    return nearest


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    d=st.integers(1, 128),
    dtypes=st.tuples(*2 * [st.sampled_from([np.float32, np.float64])]),
    exponent=st.integers(-18, 18),
)
def test_exact_distances_are_numpys_bit_by_bit(seed, d, dtypes, exponent):
    generator = np.random.default_rng(seed)
    vector, code = (generator.standard_normal(d).astype(dtype) * dtype(10.0**exponent) for dtype in dtypes)
    assert kernels._exact_distance(vector, code) == distances(vector[None], code[None])[0, 0]


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 20),
    k=st.integers(1, 300),
    d=st.integers(1, 12),
    classes=st.sampled_from([16, 64]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_scores_off_by_less_than_the_slack_lead_to_the_exact_nearest(seed, n, k, d, classes, dtype):
    generator = np.random.default_rng(seed)
    vectors, codes = generator.standard_normal((n, d)).astype(dtype), generator.standard_normal((k, d)).astype(dtype)
    exact = distances(vectors, codes)
    noise = generator.uniform(-1, 1, exact.shape)
    found = settled((exact + 0.05 * noise).astype(dtype), np.full(n, 0.11), vectors, codes, classes)
    crowded = (exact + 0.05 * noise <= (exact + 0.05 * noise).min(axis=1, keepdims=True) + 0.11).sum(
        axis=1
    ) > MAX_CANDIDATES
    assert ((found == exact.argmin(axis=1)) | crowded).all()
    assert (found[crowded] == -1).all()


def test_of_equal_codes_the_lowest_wins_wherever_its_class_is():
    codes = np.zeros((200, 3))
    scores = np.full((3, 200), 5.0)
    for row, places in enumerate(([17, 33, 190], [64, 3], [199])):
        scores[row, places] = 0.0
    assert settled(scores, np.full(3, 0.5), np.ones((3, 3)), codes).tolist() == [17, 3, 199]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_crowd_is_left_and_one_less_is_not(dtype):
    scores = np.zeros((2, 3 * MAX_CANDIDATES), dtype)
    scores[0, MAX_CANDIDATES + 1 :], scores[1, MAX_CANDIDATES:] = 1, 1
    vectors, codes = (
        np.ones((2, 4), dtype),
        np.random.default_rng(0).standard_normal((3 * MAX_CANDIDATES, 4)).astype(dtype),
    )
    nearest = distances(vectors[1:], codes[:MAX_CANDIDATES]).argmin()
    assert settled(scores, np.full(2, 0.5), vectors, codes).tolist() == [-1, nearest]


def test_rows_whose_slack_or_limit_is_infinite_are_left():
    scores = np.zeros((3, 10), np.float32)
    scores[1] = np.finfo(np.float32).max
    slack = np.array([np.inf, np.finfo(np.float32).max, 0.5])
    assert settled(scores, slack, np.ones((3, 2), np.float32), np.eye(10, 2, dtype=np.float32)).tolist() == [-1, -1, 0]


@FEW
@given(seed=st.integers(0, 1 << 30), k=st.integers(1, 200), scale=st.floats(1e-3, 1e3))
def test_bfloat16_scores_lead_where_the_same_numbers_do_in_float32(seed, k, scale):
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = random_normal(seed, 9, 4), random_normal(seed + 1, k, 4)
    scores = (scale * torch.rand(9, k, generator=generator)).bfloat16()
    slack = torch.full((9,), 0.01 * scale)
    found = torch.empty(9, dtype=torch.int64)
    padded = torch.nn.functional.pad(scores, (0, -k % 64), value=torch.inf).view(torch.int16)
    settle_bfloat16(padded.numpy(), 16, slack.numpy(), vectors.numpy(), codes.numpy(), found.numpy())
    best = scores.float().amin(dim=1)
    wider = (best * np.float32(kernels._ROUNDED) + slack - best).numpy()
    assert found.tolist() == settled(scores.float().numpy(), wider, vectors.numpy(), codes.numpy()).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_distances_lead_to_the_nearest_too(dtype):
    vectors, codes = random_normal(0, 30, 7, dtype=dtype).round(), random_normal(1, 90, 7, dtype=dtype).round()
    found = torch.empty(30, dtype=torch.int64)
    exhaustive(vectors.numpy(), codes.numpy(), found.numpy())
    assert torch.equal(found, brute_force(vectors, codes))


def test_where_all_distances_are_infinite_the_first_code_is_as_near_as_any():
    vectors, codes, found = np.full((1, 2), 1e300), np.full((3, 2), -1e300), np.full(1, 9)
    exhaustive(vectors, codes, found)
    assert found.tolist() == [0]
