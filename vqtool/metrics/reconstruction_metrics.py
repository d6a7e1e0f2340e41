"""Reconstruction quality of decoded rows, in the units of the data.

Shapes: n rows of shape `row`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Error of decoded rows; a feature is one position of a row, a cell one position of a row of classes.

    Attributes:
        mse: mean squared error over all values, in squared units of the data; None for classes.
        nmse: mse divided by the variance about the per-feature mean over rows (1 - r2, variance-weighted). 0 is
            perfect; 1 is as good as predicting the mean row. None for classes and if all rows are equal.
        accuracy: fraction of cells whose class is correct, 0 to 1; None for continuous values.
        baseline_accuracy: accuracy of predicting the most common class of the data everywhere; None for continuous
            values.
    """

    mse: float | None
    nmse: float | None
    accuracy: float | None
    baseline_accuracy: float | None = None


class ContinuousMetrics:
    """Squared error and variance of continuous values in float64, accumulated over chunks (Chan et al. 1979)."""

    def __init__(self) -> None:
        self._rows = 0
        self._squared_error = 0.0
        self._mean = torch.zeros(())
        self._squared_deviation = 0.0
        self._first_row: Tensor | None = None
        self._is_constant = True

    def add(self, rows: Tensor, decoded: Tensor) -> None:
        """Add rows (n, *row) of the data, n >= 1, any real dtype, and their reconstructions (n, *row)."""
        true, n = rows.double(), len(rows)
        # Exact comparison, because the computed variance of constant data may be a rounding error above zero.
        self._first_row = true[0] if self._first_row is None else self._first_row
        self._is_constant = self._is_constant and bool((true == self._first_row).all())
        self._squared_error += float((decoded.double() - true).square().sum())
        mean = true.mean(dim=0)
        total = self._rows + n
        shift = mean - self._mean
        self._squared_deviation += float((true - mean).square().sum() + shift.square().sum() * self._rows * n / total)
        self._mean = self._mean + shift * n / total
        self._rows = total

    def result(self) -> ReconstructionMetrics:
        """Return the metrics over all added rows; at least one row must have been added."""
        mse = self._squared_error / (self._rows * self._mean.numel())
        has_variance = not self._is_constant and self._squared_deviation
        return ReconstructionMetrics(mse, self._squared_error / self._squared_deviation if has_variance else None, None)


class CategoricalMetrics:
    """Accuracy of classes, accumulated over chunks."""

    def __init__(self) -> None:
        self._class_counts = torch.zeros(0, dtype=torch.int64)
        self._correct = 0

    def add(self, rows: Tensor, decoded: Tensor) -> None:
        """Add rows (n, *row) of classes, integers >= 0 or booleans, and their reconstructions (n, *row)."""
        counts = rows.long().flatten().bincount(minlength=len(self._class_counts))
        counts[: len(self._class_counts)] += self._class_counts
        self._class_counts = counts
        self._correct += int((rows.long() == decoded.long()).sum())

    def result(self) -> ReconstructionMetrics:
        """Return the metrics over all added rows; at least one row must have been added."""
        cells = int(self._class_counts.sum())
        return ReconstructionMetrics(None, None, self._correct / cells, int(self._class_counts.max()) / cells)
