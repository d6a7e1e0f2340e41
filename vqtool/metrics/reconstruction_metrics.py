"""Reconstruction quality of decoded rows, in the units of the data.

Shapes: n rows of shape `row`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Error of decoded rows.

    Attributes:
        mse: mean squared error over all numbers; None for classes.
        nmse: mse divided by the variance about the per-feature mean (1 - r2, variance-weighted); None for classes and
            for constant data.
        accuracy: fraction of cells whose class is correct; None for values.
        baseline_accuracy: accuracy of predicting the most common class everywhere; None for values.
    """

    mse: float | None
    nmse: float | None
    accuracy: float | None
    baseline_accuracy: float | None = None


class ContinuousMetrics:
    """Squared error and variance of values, in float64, merged chunk by chunk (Chan et al. 1979)."""

    def __init__(self) -> None:
        self._rows = 0
        self._error = 0.0
        self._mean = torch.zeros(())
        self._squares = 0.0
        self._first: Tensor | None = None
        self._constant = True

    def add(self, rows: Tensor, restored: Tensor) -> None:
        """Add true rows (n, *row) and their reconstructions."""
        true, n = rows.double(), len(rows)
        # Compared exactly: the variance of constant data need not round to zero.
        self._first = true[0] if self._first is None else self._first
        self._constant = self._constant and bool((true == self._first).all())
        self._error += float((restored.double() - true).square().sum())
        mean = true.mean(dim=0)
        total = self._rows + n
        step = mean - self._mean
        self._squares += float((true - mean).square().sum() + step.square().sum() * self._rows * n / total)
        self._mean = self._mean + step * n / total
        self._rows = total

    def result(self) -> ReconstructionMetrics:
        """The error over all added rows, at least one."""
        mse = self._error / (self._rows * self._mean.numel())
        return ReconstructionMetrics(
            mse, None if self._constant or not self._squares else self._error / self._squares, None
        )


class CategoricalMetrics:
    """Fraction of cells whose class is correct."""

    def __init__(self) -> None:
        self._cells = torch.zeros(0, dtype=torch.int64)
        self._right = 0

    def add(self, rows: Tensor, restored: Tensor) -> None:
        """Add true classes (n, *row) and their reconstructions."""
        cells = rows.long().flatten().bincount(minlength=len(self._cells))
        cells[: len(self._cells)] += self._cells
        self._cells = cells
        self._right += int((rows.long() == restored.long()).sum())

    def result(self) -> ReconstructionMetrics:
        """The error over all added rows, at least one."""
        cells = int(self._cells.sum())
        return ReconstructionMetrics(None, None, self._right / cells, int(self._cells.max()) / cells)
