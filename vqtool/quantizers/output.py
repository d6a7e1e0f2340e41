"""The output of every quantizer, and the statistics of one level."""

from typing import NamedTuple

import torch
from torch import Tensor


class QuantizerOutput(NamedTuple):
    """Output of every quantizer; (...) are the leading axes of its input."""

    quantized: Tensor
    """(..., D) chosen codes; the gradient reaches the input through the gradient estimator."""
    indices: Tensor
    """(...) int64 indices of the chosen codes; (..., Q) for a residual or product quantizer."""
    commitment_loss: Tensor
    """() mean over all elements of (z - stop(e))², plus the codebook loss if the update has one; mean over levels."""
    entropy_loss: Tensor
    """() negative entropy of the batch-mean soft assignment, in nats (minimal for even usage), plus
    `sample_entropy_weight` times the mean entropy of each vector's soft assignment; mean over levels."""


class LevelStatistics(NamedTuple):
    """Statistics of one level over N vectors, as sums on the CPU; the sums of several batches can be added."""

    counts: Tensor
    """(K,) int64, number of hits of each code."""
    soft_assignment: Tensor
    """(F, M) float64, soft assignments summed over the vectors. A vector quantizer has F = 1 and M = K; a scalar
    quantizer has one row per dimension, padded with zeros to the largest number of values."""
    sample_entropy: Tensor
    """() float64, entropy of each vector's soft assignment in nats, summed over the vectors."""
    squared_distance: Tensor
    """() float64, squared distances to the chosen codes summed over vectors and dimensions."""
    elements: Tensor
    """() int64, number of terms in `squared_distance`: vectors times dimensions."""
    total: Tensor
    """(D,) float64, sum of the vectors."""
    squares: Tensor
    """() float64, sum of the squared norms of the vectors."""
    errors: Tensor = torch.zeros(())
    """(K,) float64, squared distances summed per code; () for a quantizer without a learned codebook."""
