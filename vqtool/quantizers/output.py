"""What every quantizer returns, and what it can be asked to measure."""

from typing import NamedTuple

import torch
from torch import Tensor


class QuantizerOutput(NamedTuple):
    """The four fields that any quantizer, with any option, returns."""

    quantized: Tensor
    """(..., D) the chosen codes, with the gradient of the quantizer's estimator."""
    indices: Tensor
    """(...) int64; (..., Q) for a quantizer of Q levels."""
    commitment_loss: Tensor
    """() mean squared distance of vectors to their codes, and the codebook loss where there is one."""
    entropy_loss: Tensor
    """() negative entropy of the batch-mean soft assignment, in nats (minimised, codes are used evenly), and the
    confidence term where there is one."""


class LevelStatistics(NamedTuple):
    """The raw terms of one level over N vectors, on the CPU: sums, so that passes over many batches add up."""

    counts: Tensor
    """(K,) int64, hits of each code."""
    soft_assignment: Tensor
    """(F, M) float64, soft assignments summed over the vectors. A codebook that is searched has one factor of M = K
    codes; one that is a product of F scales has a factor each, padded with zeros to the longest."""
    sample_entropy: Tensor
    """() float64, the entropy of each vector's own soft assignment, in nats, summed over the vectors."""
    squared_distance: Tensor
    """() float64, squared distances to the chosen codes summed over vectors and dimensions."""
    elements: Tensor
    """() int64, vectors times dimensions: how many numbers the squared distance is a sum over."""
    total: Tensor
    """(D,) float64, the sum of the vectors."""
    squares: Tensor
    """() float64, the sum of their squared norms."""
    errors: Tensor = torch.zeros(())
    """(K,) float64, the squared distance by code; () where codes are given, and not learned."""
