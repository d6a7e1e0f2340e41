"""Functions used by the tests of quantizers and search."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for name in actual:
        assert torch.equal(actual[name], expected[name]), name


def random_normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(vectors, codebook):
    """Return d[n,k] = sum over d of (z - e)² (N, K) of NumPy arrays, in float64."""
    return np.square(vectors.astype(np.float64)[:, None] - codebook.astype(np.float64)).sum(axis=2)


def brute_force(vectors, codebook):
    """Return argmin over k of d[n,k] (N,); ties go to the lowest index."""
    z, e = (tensor.detach().double().contiguous().numpy() for tensor in (vectors, codebook))
    return torch.from_numpy(distances(z, e).argmin(axis=1))


class TensorSizes(TorchDispatchMode):
    """Record the number of elements of each tensor that an operation returns, in `numels`."""

    def __init__(self):
        super().__init__()
        self.numels = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **kwargs or {})
        outputs = output if isinstance(output, list | tuple) else [output]
        self.numels += [tensor.numel() for tensor in outputs if isinstance(tensor, torch.Tensor)]
        return output


def half_smallest_normal() -> float:
    """Return half of the smallest normal float32: a denormal number, or 0 if denormals are flushed."""
    return float(torch.full((), torch.finfo(torch.float32).smallest_normal).div_(2))
