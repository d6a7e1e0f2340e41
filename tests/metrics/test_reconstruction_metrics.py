"""Fidelity over chunks against scikit-learn over the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, r2_score

from vqtool.metrics.reconstruction_metrics import CategoricalMetrics, ContinuousMetrics, ReconstructionMetrics


def fidelity_of(rows, restored, sizes, kind=ContinuousMetrics):
    """The result after chunks of these sizes, which add up to the rows."""
    fidelity = kind()
    for mine, other in zip(torch.as_tensor(rows).split(sizes), torch.as_tensor(restored).split(sizes), strict=True):
        fidelity.add(mine, other)
    return fidelity.result()


def by_sklearn(rows, restored):
    true, found = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (rows, restored))
    return mean_squared_error(true, found), 1 - r2_score(true, found, multioutput="variance_weighted")


def some(*shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=shape) * rng.uniform(0.1, 10, size=shape[1:]) + rng.normal(size=shape[1:])
    return rows.astype(dtype), (rows + rng.normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("shape", [(29, 1), (29, 6), (29, 2, 5), (29, 3, 4, 4)])
@pytest.mark.parametrize("sizes", [[29], [1] * 29, [7, 1, 13, 8], [16, 13]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_chunks_of_odd_sizes_add_up_to_the_whole(shape, sizes, dtype):
    rows, restored = some(*shape, dtype=dtype)
    mse, nmse = by_sklearn(rows, restored)
    result = fidelity_of(rows, restored, sizes)
    assert result.mse == pytest.approx(mse, rel=1e-12)
    assert result.nmse == pytest.approx(nmse, rel=1e-10)
    assert result.accuracy is None


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), offset=st.sampled_from([0.0, -1e3, 1e6]))
def test_any_chunks_and_any_offset(sizes, offset):
    rows, restored = (x + offset for x in some(sum(sizes), 4, dtype=np.float64))
    mse, nmse = by_sklearn(rows, restored)
    result = fidelity_of(rows, restored, sizes)
    assert result.mse == pytest.approx(mse, rel=1e-9)
    assert result.nmse == pytest.approx(nmse, rel=1e-7)


def test_by_hand():
    # Errors 0, 1, 2, 1 over four numbers; the features vary by 1 + 1 and by 4 + 4 about their means 2 and 4.
    result = fidelity_of([[1.0, 2.0], [3.0, 6.0]], [[1.0, 3.0], [5.0, 5.0]], [1, 1])
    assert result == ReconstructionMetrics(mse=6 / 4, nmse=6 / 10, accuracy=None)


def test_a_perfect_reconstruction_and_the_mean():
    rows, _ = some(20, 3, dtype=np.float64)
    assert fidelity_of(rows, rows, [11, 9]) == ReconstructionMetrics(mse=0.0, nmse=0.0, accuracy=None)
    means = np.broadcast_to(rows.mean(axis=0), rows.shape).copy()
    assert fidelity_of(rows, means, [11, 9]).nmse == pytest.approx(1)


def test_bytes_and_booleans_do_not_wrap_around():
    rng = np.random.default_rng(0)
    for rows, restored in [
        (rng.integers(0, 256, (9, 4), dtype=np.uint8), rng.integers(0, 256, (9, 4), dtype=np.uint8)),
        (rng.random((9, 4)) < 0.5, rng.random((9, 4)) < 0.5),
    ]:
        mse, nmse = by_sklearn(rows, restored)
        result = fidelity_of(rows, restored, [4, 5])
        assert (result.mse, result.nmse) == (pytest.approx(mse), pytest.approx(nmse))


# A mean of numbers like 0.1 rounds, so that their computed variance is not zero.
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])
@pytest.mark.parametrize("sizes", [[10], [3, 3, 3, 1]])
def test_constant_data_have_no_nmse(value, sizes):
    rows = np.tile(np.array([value, value / 3, -value]), (10, 1))
    result = fidelity_of(rows, rows + 0.5, sizes)
    assert result.mse == pytest.approx(0.25, rel=1e-6)
    assert result.nmse is None


def test_one_row_is_constant():
    assert fidelity_of([[1.0, 2.0]], [[1.0, 4.0]], [1]) == ReconstructionMetrics(mse=2.0, nmse=None, accuracy=None)


def test_an_error_in_a_constant_feature_counts():
    # scikit-learn leaves such a feature out; mse over variance does not.
    rows, restored = some(12, 3, dtype=np.float64)
    rows[:, 1] = 5
    expected = ((restored - rows) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
    assert fidelity_of(rows, restored, [5, 7]).nmse == pytest.approx(expected)
    restored[:, 1] = 5
    assert fidelity_of(rows, restored, [5, 7]).nmse == pytest.approx(by_sklearn(rows, restored)[1])


@pytest.mark.parametrize("row", [3, 4, 9])
def test_a_single_row_that_differs_is_enough(row):
    rows = np.full((10, 2), 0.1)
    rows[row, 1] = 0.2
    result = fidelity_of(rows, rows + 0.01, [4, 4, 2])
    assert result.nmse == pytest.approx(by_sklearn(rows, rows + 0.01)[1], rel=1e-9)


def test_data_that_vary_too_little_to_square_have_no_nmse():
    rows = np.array([[1e-200], [3e-200]])
    assert fidelity_of(rows, rows, [1, 1]) == ReconstructionMetrics(mse=0.0, nmse=None, accuracy=None)


def test_accuracy_counts_cells_not_chunks():
    rows = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 0, 0]], dtype=torch.uint8)
    restored = torch.tensor([[0, 1, 2], [3, 4, 0], [0, 7, 0], [0, 0, 1]])
    assert fidelity_of(rows, restored, [1, 3], CategoricalMetrics) == ReconstructionMetrics(
        None, None, accuracy=8 / 12, baseline_accuracy=4 / 12
    )
