"""What the tests of the quantizers share."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def random_normal(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distances(vectors, codebook):
    """(N, K) sums over d of (z - e)² of NumPy arrays, in float64."""
    return np.square(vectors.astype(np.float64)[:, None] - codebook.astype(np.float64)).sum(axis=2)


def brute_force(vectors, codebook):
    """argmin over k of the distances; NumPy takes the first of equals."""
    z, e = (each.detach().double().contiguous().numpy() for each in (vectors, codebook))
    return torch.from_numpy(distances(z, e).argmin(axis=1))


class Sizes(TorchDispatchMode):
    """The numbers in each tensor that is made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        all_made = made if isinstance(made, list | tuple) else [made]
        self.made += [each.numel() for each in all_made if isinstance(each, torch.Tensor)]
        return made


def halved_least() -> float:
    """Half of the least normal float32: a denormal number, or 0 where these are flushed."""
    return float(torch.full((), torch.finfo(torch.float32).smallest_normal).div_(2))
