"""Reconstruction metrics over chunks, compared with scikit-learn on all rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, r2_score

from vqtool.metrics.reconstruction_metrics import CategoricalMetrics, ContinuousMetrics, ReconstructionMetrics


def metrics_of(rows, decoded, sizes, kind=ContinuousMetrics):
    """Return the result after chunks of these sizes, whose sum is the number of rows."""
    metrics = kind()
    chunks = zip(torch.as_tensor(rows).split(sizes), torch.as_tensor(decoded).split(sizes), strict=True)
    for chunk, decoded_chunk in chunks:
        metrics.add(chunk, decoded_chunk)
    return metrics.result()


def by_sklearn(rows, decoded):
    true, decoded = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (rows, decoded))
    return mean_squared_error(true, decoded), 1 - r2_score(true, decoded, multioutput="variance_weighted")


def random_rows(*shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=shape) * rng.uniform(0.1, 10, size=shape[1:]) + rng.normal(size=shape[1:])
    return rows.astype(dtype), (rows + rng.normal(size=shape)).astype(dtype)


@pytest.mark.parametrize("shape", [(29, 1), (29, 6), (29, 2, 5), (29, 3, 4, 4)])
@pytest.mark.parametrize("sizes", [[29], [1] * 29, [7, 1, 13, 8], [16, 13]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_metrics_do_not_depend_on_chunk_sizes(shape, sizes, dtype):
    rows, decoded = random_rows(*shape, dtype=dtype)
    mse, nmse = by_sklearn(rows, decoded)
    result = metrics_of(rows, decoded, sizes)
    assert result.mse == pytest.approx(mse, rel=1e-12)
    assert result.nmse == pytest.approx(nmse, rel=1e-10)
    assert result.accuracy is None


@settings(deadline=None, max_examples=40)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=6), offset=st.sampled_from([0.0, -1e3, 1e6]))
def test_random_chunk_sizes_and_offsets(sizes, offset):
    rows, decoded = (x + offset for x in random_rows(sum(sizes), 4, dtype=np.float64))
    mse, nmse = by_sklearn(rows, decoded)
    result = metrics_of(rows, decoded, sizes)
    assert result.mse == pytest.approx(mse, rel=1e-9)
    assert result.nmse == pytest.approx(nmse, rel=1e-7)


def test_small_example():
    # Errors 0, 1, 2, 1 of four values; squared deviations from the feature means 2 and 4: 1 + 1 and 4 + 4.
    result = metrics_of([[1.0, 2.0], [3.0, 6.0]], [[1.0, 3.0], [5.0, 5.0]], [1, 1])
    assert result == ReconstructionMetrics(mse=6 / 4, nmse=6 / 10, accuracy=None)


def test_nmse_of_perfect_and_mean_reconstructions():
    rows, _ = random_rows(20, 3, dtype=np.float64)
    assert metrics_of(rows, rows, [11, 9]) == ReconstructionMetrics(mse=0.0, nmse=0.0, accuracy=None)
    means = np.broadcast_to(rows.mean(axis=0), rows.shape).copy()
    assert metrics_of(rows, means, [11, 9]).nmse == pytest.approx(1)


def test_uint8_and_bool_do_not_overflow():
    rng = np.random.default_rng(0)
    for rows, decoded in [
        (rng.integers(0, 256, (9, 4), dtype=np.uint8), rng.integers(0, 256, (9, 4), dtype=np.uint8)),
        (rng.random((9, 4)) < 0.5, rng.random((9, 4)) < 0.5),
    ]:
        mse, nmse = by_sklearn(rows, decoded)
        result = metrics_of(rows, decoded, [4, 5])
        assert (result.mse, result.nmse) == (pytest.approx(mse), pytest.approx(nmse))


# The mean of equal numbers such as 0.1 is rounded, so their computed variance is not zero.
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8 + 0.1])
@pytest.mark.parametrize("sizes", [[10], [3, 3, 3, 1]])
def test_constant_data_have_no_nmse(value, sizes):
    rows = np.tile(np.array([value, value / 3, -value]), (10, 1))
    result = metrics_of(rows, rows + 0.5, sizes)
    assert result.mse == pytest.approx(0.25, rel=1e-6)
    assert result.nmse is None


def test_one_row_has_no_nmse():
    assert metrics_of([[1.0, 2.0]], [[1.0, 4.0]], [1]) == ReconstructionMetrics(mse=2.0, nmse=None, accuracy=None)


def test_errors_in_constant_features_count():
    # scikit-learn ignores constant features; mse / variance does not.
    rows, decoded = random_rows(12, 3, dtype=np.float64)
    rows[:, 1] = 5
    expected = ((decoded - rows) ** 2).sum() / ((rows - rows.mean(axis=0)) ** 2).sum()
    assert metrics_of(rows, decoded, [5, 7]).nmse == pytest.approx(expected)
    decoded[:, 1] = 5
    assert metrics_of(rows, decoded, [5, 7]).nmse == pytest.approx(by_sklearn(rows, decoded)[1])


@pytest.mark.parametrize("row", [3, 4, 9])
def test_one_differing_row_makes_data_not_constant(row):
    rows = np.full((10, 2), 0.1)
    rows[row, 1] = 0.2
    result = metrics_of(rows, rows + 0.01, [4, 4, 2])
    assert result.nmse == pytest.approx(by_sklearn(rows, rows + 0.01)[1], rel=1e-9)


def test_variance_that_underflows_has_no_nmse():
    rows = np.array([[1e-200], [3e-200]])
    assert metrics_of(rows, rows, [1, 1]) == ReconstructionMetrics(mse=0.0, nmse=None, accuracy=None)


def test_accuracy_is_over_cells_not_chunks():
    rows = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 0, 0]], dtype=torch.uint8)
    decoded = torch.tensor([[0, 1, 2], [3, 4, 0], [0, 7, 0], [0, 0, 1]])
    assert metrics_of(rows, decoded, [1, 3], CategoricalMetrics) == ReconstructionMetrics(
        None, None, accuracy=8 / 12, baseline_accuracy=4 / 12
    )
