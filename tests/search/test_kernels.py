"""Compiled search loops against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import brute_force, distances, random_normal
from vqtool.search.kernels import (
    BFLOAT16_ROUNDING,
    MAX_CANDIDATES,
    exact_distance,
    exhaustive_search,
    rerank_bfloat16,
    rerank_scores,
)

FEW = settings(deadline=None, max_examples=60)


def padded_rerank_scores(scores, tolerance, vectors, codes, lanes=16):
    """Pad the scores with infinity and return the nearest codes by `rerank_scores`."""
    padding = -scores.shape[1] % (4 * lanes)
    padded = np.pad(scores, ((0, 0), (0, padding)), constant_values=np.inf)
    nearest = np.full(len(vectors), 7_000_000)
    rerank_scores(padded, lanes, tolerance.astype(scores.dtype), vectors, codes, nearest)
    return nearest


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    d=st.integers(1, 128),
    dtypes=st.tuples(*2 * [st.sampled_from([np.float32, np.float64])]),
    exponent=st.integers(-18, 18),
)
def test_exact_distance_equals_numpy_bit_by_bit(seed, d, dtypes, exponent):
    generator = np.random.default_rng(seed)
    vector, code = (generator.standard_normal(d).astype(dtype) * dtype(10.0**exponent) for dtype in dtypes)
    assert exact_distance(vector, code) == distances(vector[None], code[None])[0, 0]


@FEW
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 20),
    k=st.integers(1, 300),
    d=st.integers(1, 12),
    lanes=st.sampled_from([16, 64]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_scores_within_the_tolerance_give_the_exact_nearest_code(seed, n, k, d, lanes, dtype):
    generator = np.random.default_rng(seed)
    vectors, codes = generator.standard_normal((n, d)).astype(dtype), generator.standard_normal((k, d)).astype(dtype)
    exact = distances(vectors, codes)
    noise = generator.uniform(-1, 1, exact.shape)
    nearest = padded_rerank_scores((exact + 0.05 * noise).astype(dtype), np.full(n, 0.11), vectors, codes, lanes)
    scores = exact + 0.05 * noise
    num_candidates = (scores <= scores.min(axis=1, keepdims=True) + 0.11).sum(axis=1)
    too_many = num_candidates > MAX_CANDIDATES
    assert ((nearest == exact.argmin(axis=1)) | too_many).all()
    assert (nearest[too_many] == -1).all()


def test_equal_codes_of_any_lane_are_a_tie_for_the_lowest_index():
    codes = np.zeros((200, 3))
    scores = np.full((3, 200), 5.0)
    for row, tied in enumerate(([17, 33, 190], [64, 3], [199])):
        scores[row, tied] = 0.0
    assert padded_rerank_scores(scores, np.full(3, 0.5), np.ones((3, 3)), codes).tolist() == [17, 3, 199]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_row_with_more_than_max_candidates_is_unresolved(dtype):
    scores = np.zeros((2, 3 * MAX_CANDIDATES), dtype)
    scores[0, MAX_CANDIDATES + 1 :], scores[1, MAX_CANDIDATES:] = 1, 1
    vectors, codes = (
        np.ones((2, 4), dtype),
        np.random.default_rng(0).standard_normal((3 * MAX_CANDIDATES, 4)).astype(dtype),
    )
    expected = distances(vectors[1:], codes[:MAX_CANDIDATES]).argmin()
    assert padded_rerank_scores(scores, np.full(2, 0.5), vectors, codes).tolist() == [-1, expected]


def test_row_with_infinite_tolerance_or_limit_is_unresolved():
    scores = np.zeros((3, 10), np.float32)
    scores[1] = np.finfo(np.float32).max
    tolerance = np.array([np.inf, np.finfo(np.float32).max, 0.5])
    assert padded_rerank_scores(
        scores, tolerance, np.ones((3, 2), np.float32), np.eye(10, 2, dtype=np.float32)
    ).tolist() == [-1, -1, 0]


@FEW
@given(seed=st.integers(0, 1 << 30), k=st.integers(1, 200), scale=st.floats(1e-3, 1e3))
def test_bfloat16_scores_give_the_same_codes_as_equal_float32_scores(seed, k, scale):
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = random_normal(seed, 9, 4), random_normal(seed + 1, k, 4)
    scores = (scale * torch.rand(9, k, generator=generator)).bfloat16()
    tolerance = torch.full((9,), 0.01 * scale)
    nearest = torch.empty(9, dtype=torch.int64)
    padded = torch.nn.functional.pad(scores, (0, -k % 64), value=torch.inf).view(torch.int16)
    rerank_bfloat16(padded.numpy(), 16, tolerance.numpy(), vectors.numpy(), codes.numpy(), nearest.numpy())
    best = scores.float().amin(dim=1)
    float32_tolerance = (best * np.float32(BFLOAT16_ROUNDING) + tolerance - best).numpy()
    assert (
        nearest.tolist()
        == padded_rerank_scores(scores.float().numpy(), float32_tolerance, vectors.numpy(), codes.numpy()).tolist()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exhaustive_search_gives_the_exact_nearest_code(dtype):
    vectors, codes = random_normal(0, 30, 7, dtype=dtype).round(), random_normal(1, 90, 7, dtype=dtype).round()
    nearest = torch.empty(30, dtype=torch.int64)
    exhaustive_search(vectors.numpy(), codes.numpy(), nearest.numpy())
    assert torch.equal(nearest, brute_force(vectors, codes))


def test_exhaustive_search_returns_0_if_all_distances_are_infinite():
    vectors, codes, nearest = np.full((1, 2), 1e300), np.full((3, 2), -1e300), np.full(1, 9)
    exhaustive_search(vectors, codes, nearest)
    assert nearest.tolist() == [0]
