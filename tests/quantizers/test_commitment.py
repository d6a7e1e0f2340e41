"""The commitment loss and its gradient against the formula in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.quantizers import commitment
from vqtool.quantizers.commitment import commitment_loss


def some(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = (torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k))
    return vectors.requires_grad_(), codes.requires_grad_(), torch.randint(k, (n,), generator=generator)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 30),
    k=st.integers(1, 9),
    d=st.integers(1, 9),
    block=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_value_and_gradient_follow_the_formula_whatever_the_block(seed, n, k, d, block, dtype):
    vectors, codes, indices = some(n, k, d, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitment, "_BLOCK", block)
        loss = commitment_loss(vectors, codes, indices)
        (3 * loss).backward()
    difference = vectors.detach().double() - codes.detach().double()[indices]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(loss.detach().double(), difference.square().mean(), **tolerance)
    torch.testing.assert_close(vectors.grad.double(), 6 * difference / difference.numel(), **tolerance)
    assert loss.dtype == dtype
    assert codes.grad is None


def test_gradients_agree_with_finite_differences():
    vectors, codes, indices = some(7, 4, 3)
    assert torch.autograd.gradcheck(lambda z: commitment_loss(z, codes, indices), [vectors])


def test_codes_that_move_before_the_backward_pass_change_no_gradient():
    vectors, codes, indices = some(7, 4, 3)
    expected = torch.autograd.grad(commitment_loss(vectors, codes, indices), vectors)
    loss = commitment_loss(vectors, codes, indices)
    with torch.no_grad():
        codes += 1
    assert torch.equal(torch.autograd.grad(loss, vectors)[0], expected[0])
