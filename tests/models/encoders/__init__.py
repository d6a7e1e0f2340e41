"""What tests of the networks share."""

from collections.abc import Callable

import torch
from torch import Tensor


def assert_no_sample_sees_another(function: Callable[[Tensor], Tensor], batch: Tensor) -> None:
    """What `function` makes of a sample depends on that sample, and on no other one of the batch."""
    whole = function(batch)
    alone = torch.cat([function(batch[i : i + 1]) for i in range(len(batch))])
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-11)
    inputs = batch.clone().requires_grad_()
    for i, output in enumerate(function(inputs)):
        (gradient,) = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)
        reached = gradient.flatten(1).abs().sum(dim=1).nonzero().flatten()
        assert reached.tolist() == [i]
