"""The entropy loss and its gradients against the formula written out in float64."""

import math

import pytest
import torch

from vqtool.quantizers.entropy import entropy_loss, negative_entropy, soft_assignment


def naive_assignment(vectors, codebook, temperature):
    """s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""
    distances = (vectors[:, None, :] - codebook[None, :, :]).square().sum(dim=2)
    weights = torch.exp(-(distances - distances.min(dim=1, keepdim=True).values.detach()) / temperature)
    return weights / weights.sum(dim=1, keepdim=True)


def naive_loss(vectors, codebook, temperature):
    """Sum over k of p[k] ln(p[k] + 1e-10), p the mean over n of s."""
    p = naive_assignment(vectors, codebook, temperature).mean(dim=0)
    return (p * torch.log(p + 1e-10)).sum()


def naive_loss_and_gradients(vectors, codebook, temperature):
    leaves = [tensor.detach().double().requires_grad_() for tensor in (vectors, codebook)]
    loss = naive_loss(*leaves, temperature)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def some(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k)]


def closeness(dtype):
    return {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
@pytest.mark.parametrize(("n", "k", "d"), [(40, 8, 3), (3, 20, 5), (1, 4, 1), (6, 1, 2)])
def test_value_and_both_gradients_follow_the_formula(dtype, temperature, n, k, d):
    vectors, codebook = (tensor.requires_grad_() for tensor in some(n, k, d, dtype))
    loss = entropy_loss(vectors, codebook, temperature)
    found = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    assert loss.dtype == dtype
    for mine, expected in zip(found, naive_loss_and_gradients(vectors, codebook, temperature), strict=True):
        torch.testing.assert_close(mine.double(), expected, **closeness(dtype))


def test_gradients_agree_with_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in some(7, 5, 3)]
    assert torch.autograd.gradcheck(lambda z, e: entropy_loss(z, e, 0.7), inputs)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_float32_data_far_from_the_origin_keep_their_digits(offset):
    vectors, codebook = ((tensor + offset).requires_grad_() for tensor in some(40, 8, 3, torch.float32))
    loss = entropy_loss(vectors, codebook, 1.0)
    found = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    for mine, expected in zip(found, naive_loss_and_gradients(vectors, codebook, 1.0), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-3, atol=1e-5)


def test_even_use_is_minus_ln_k():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes, codes, 0.01)) == pytest.approx(-math.log(6))
    assert float(entropy_loss(torch.zeros(1, 6, dtype=torch.float64), codes, 1.0)) == pytest.approx(-math.log(6))


def test_one_code_for_all_is_zero():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes[[2, 2, 2]], codes, 0.01)) == pytest.approx(0, abs=1e-9)


def test_the_mean_comes_before_the_entropy():
    # Every vector is sure of its code, yet the two codes are used evenly.
    codes = torch.tensor([[-10.0], [10.0]])
    assert float(entropy_loss(codes, codes, 1.0)) == pytest.approx(-math.log(2))


@pytest.mark.parametrize("temperature", [0.1, 4.0])
def test_soft_assignment_of_two_codes_by_hand(temperature):
    vectors, codes = torch.tensor([[0.25]], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    first, second = math.exp(-0.0625 / temperature), math.exp(-0.5625 / temperature)
    expected = [[first / (first + second), second / (first + second)]]
    torch.testing.assert_close(soft_assignment(vectors, codes, temperature), torch.tensor(expected).double())


def test_soft_assignment_follows_the_formula():
    vectors, codebook = some(40, 8, 3)
    torch.testing.assert_close(soft_assignment(vectors, codebook, 0.3), naive_assignment(vectors, codebook, 0.3))


def test_negative_entropy_adds_1e_10_within_the_logarithm():
    p = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    loss = negative_entropy(p)
    loss.backward()
    by_hand = 0.75 * math.log(0.75 + 1e-10) + 0.25 * math.log(0.25 + 1e-10)
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-14)
    assert p.grad[2] == pytest.approx(math.log(1e-10))
    assert p.grad[0] == pytest.approx(math.log(0.75 + 1e-10) + 0.75 / (0.75 + 1e-10))
