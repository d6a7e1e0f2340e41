"""Assertions for tests of encoders and decoders."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_samples_are_independent(function: Callable[[Tensor], Tensor], batch: Tensor) -> None:
    """Assert that each output of `function` and its gradient depend on the sample with the same index only."""
    alone = torch.cat([function(batch[i : i + 1]) for i in range(len(batch))])
    torch.testing.assert_close(function(batch), alone, rtol=1e-9, atol=1e-11)
    inputs = batch.clone().requires_grad_()
    for i, output in enumerate(function(inputs)):
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)
        samples_with_gradient = gradient.flatten(1).abs().sum(dim=1).nonzero().flatten()
        assert samples_with_gradient.tolist() == [i]
