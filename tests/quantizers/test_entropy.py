"""The entropy loss and its gradients against the formula written out in float64."""

import math

import pytest
import torch

from vqtool.quantizers.entropy import entropy_loss, negative_entropy, sample_entropies


def naive_assignment(vectors, codebook, temperature):
    """s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""
    distances = (vectors[:, None, :] - codebook[None, :, :]).square().sum(dim=2)
    weights = torch.exp(-(distances - distances.min(dim=1, keepdim=True).values.detach()) / temperature)
    return weights / weights.sum(dim=1, keepdim=True)


def naive_loss(vectors, codebook, temperature, sample_entropy_weight=0.0):
    """Sum over k of p[k] ln(p[k] + 1e-10), p the mean over n of s; plus the mean over n of -sum s ln s, weighted."""
    s = naive_assignment(vectors, codebook, temperature)
    p = s.mean(dim=0)
    return (p * torch.log(p + 1e-10)).sum() - sample_entropy_weight * (s * torch.log(s)).sum(dim=1).mean()


def naive_loss_and_gradients(vectors, codebook, temperature, sample_entropy_weight=0.0):
    leaves = [tensor.detach().double().requires_grad_() for tensor in (vectors, codebook)]
    loss = naive_loss(*leaves, temperature, sample_entropy_weight)
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


def test_negative_entropy_adds_1e_10_within_the_logarithm():
    p = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    loss = negative_entropy(p)
    loss.backward()
    by_hand = 0.75 * math.log(0.75 + 1e-10) + 0.25 * math.log(0.25 + 1e-10)
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-14)
    assert p.grad[2] == pytest.approx(math.log(1e-10))
    assert p.grad[0] == pytest.approx(math.log(0.75 + 1e-10) + 0.75 / (0.75 + 1e-10))


def test_negative_entropies_of_factors_add_up():
    p = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(negative_entropy(p), negative_entropy(p[0]) + negative_entropy(p[1]))


# Confidence


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sample_entropy_weight", [0.3, 2.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 30.0])
@pytest.mark.parametrize(("n", "k", "d"), [(40, 8, 3), (1, 4, 1), (6, 1, 2)])
def test_confidence_and_its_gradients_follow_the_formula(dtype, sample_entropy_weight, temperature, n, k, d):
    vectors, codebook = (tensor.requires_grad_() for tensor in some(n, k, d, dtype))
    loss = entropy_loss(vectors, codebook, temperature, sample_entropy_weight)
    found = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    assert loss.dtype == dtype
    expected = naive_loss_and_gradients(vectors, codebook, temperature, sample_entropy_weight)
    for mine, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), wanted, **closeness(dtype))


def test_gradients_of_confidence_agree_with_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in some(7, 5, 3)]
    assert torch.autograd.gradcheck(lambda z, e: entropy_loss(z, e, 0.7, sample_entropy_weight=1.5), inputs)


def test_a_temperature_can_be_a_tensor():
    vectors, codebook = some(40, 8, 3)
    found = entropy_loss(vectors, codebook, torch.tensor(0.7, dtype=torch.float64), 0.5)
    assert torch.equal(found, entropy_loss(vectors, codebook, 0.7, 0.5))


def test_each_sample_has_the_entropy_of_its_own_row():
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(2), 1.5 * math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(sample_entropies(soft), expected)


def test_confidence_and_even_use_together_have_their_best_at_minus_ln_k():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes, codes, 0.01, sample_entropy_weight=1.0)) == pytest.approx(-math.log(6))
    # Half way between all codes use is even as well, but nothing is sure: the two terms cancel.
    undecided = torch.zeros(1, 6, dtype=torch.float64)
    assert float(entropy_loss(undecided, codes, 1.0, sample_entropy_weight=1.0)) == pytest.approx(0, abs=1e-8)


def test_a_step_down_the_confidence_term_brings_a_vector_nearer_to_its_code():
    codes = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    vectors = torch.tensor([[0.3], [-0.3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy_loss(vectors, codes, 1.0, sample_entropy_weight=1.0), vectors)
    assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_probabilities_that_underflow_give_finite_gradients(dtype, temperature):
    vectors, codebook = (tensor.requires_grad_() for tensor in some(40, 8, 3, dtype))
    soft = naive_assignment(vectors, codebook, temperature)
    assert (soft == 0).any()
    loss = entropy_loss(vectors, codebook, temperature, sample_entropy_weight=1.0)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, [vectors, codebook]):
        assert gradient.isfinite().all()
    of_sure = torch.autograd.grad(sample_entropies(soft).sum(), vectors)[0]
    sure = (soft > 0).sum(dim=1) == 1
    assert sure.any()
    assert torch.equal(of_sure[sure], torch.zeros_like(of_sure[sure]))
    assert (sample_entropies(soft)[sure] == 0).all()
