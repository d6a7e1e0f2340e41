"""Commitment loss, entropy loss and error scale: values and gradients against the formulas in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.quantizers import assert_same_state, state
from vqtool.quantizers.losses import ErrorScale, commitment_loss, entropy_loss, negative_entropy, sample_entropies


def commitment_inputs(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = (torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k))
    return vectors.requires_grad_(), codes.requires_grad_(), torch.randint(k, (n,), generator=generator)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1 << 30),
    n=st.integers(1, 30),
    k=st.integers(1, 9),
    d=st.integers(1, 9),
    elements_per_block=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_commitment_loss_matches_the_formula_for_any_block_size(seed, n, k, d, elements_per_block, dtype):
    vectors, codes, indices = commitment_inputs(n, k, d, dtype, seed)
    loss = commitment_loss(vectors, codes, indices, elements_per_block=elements_per_block)
    (3 * loss).backward()
    difference = vectors.detach().double() - codes.detach().double()[indices]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(loss.detach().double(), difference.square().mean(), **tolerance)
    torch.testing.assert_close(vectors.grad.double(), 6 * difference / difference.numel(), **tolerance)
    assert loss.dtype == dtype
    assert codes.grad is None


def test_commitment_loss_gradient_matches_finite_differences():
    vectors, codes, indices = commitment_inputs(7, 4, 3)
    assert torch.autograd.gradcheck(lambda z: commitment_loss(z, codes, indices), [vectors])


def test_updating_codes_before_backward_does_not_change_the_gradient():
    vectors, codes, indices = commitment_inputs(7, 4, 3)
    expected = torch.autograd.grad(commitment_loss(vectors, codes, indices), vectors)
    loss = commitment_loss(vectors, codes, indices)
    with torch.no_grad():
        codes += 1
    assert torch.equal(torch.autograd.grad(loss, vectors)[0], expected[0])


# Entropy loss


def reference_assignment(vectors, codebook, temperature):
    """s[n,:] = softmax over k of -|z_n - e_k|² / temperature."""
    distances = (vectors[:, None, :] - codebook[None, :, :]).square().sum(dim=2)
    weights = torch.exp(-(distances - distances.min(dim=1, keepdim=True).values.detach()) / temperature)
    return weights / weights.sum(dim=1, keepdim=True)


def reference_loss(vectors, codebook, temperature, sample_entropy_weight=0.0):
    """Sum over k of p[k] ln(p[k] + 1e-10) + sample_entropy_weight · mean over n of -sum over k of s ln s."""
    s = reference_assignment(vectors, codebook, temperature)
    p = s.mean(dim=0)
    return (p * torch.log(p + 1e-10)).sum() - sample_entropy_weight * (s * torch.log(s)).sum(dim=1).mean()


def reference_loss_and_gradients(vectors, codebook, temperature, sample_entropy_weight=0.0):
    leaves = [tensor.detach().double().requires_grad_() for tensor in (vectors, codebook)]
    loss = reference_loss(*leaves, temperature, sample_entropy_weight)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


def entropy_inputs(n, k, d, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k)]


def tolerances(dtype):
    return {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
@pytest.mark.parametrize(("n", "k", "d"), [(40, 8, 3), (3, 20, 5), (1, 4, 1), (6, 1, 2)])
def test_entropy_loss_matches_the_formula(dtype, temperature, n, k, d):
    vectors, codebook = (tensor.requires_grad_() for tensor in entropy_inputs(n, k, d, dtype))
    loss = entropy_loss(vectors, codebook, temperature)
    results = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    assert loss.dtype == dtype
    for actual, expected in zip(results, reference_loss_and_gradients(vectors, codebook, temperature), strict=True):
        torch.testing.assert_close(actual.double(), expected, **tolerances(dtype))


def test_entropy_loss_gradients_match_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in entropy_inputs(7, 5, 3)]
    assert torch.autograd.gradcheck(lambda z, e: entropy_loss(z, e, 0.7), inputs)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_entropy_loss_is_accurate_in_float32_far_from_the_origin(offset):
    vectors, codebook = ((tensor + offset).requires_grad_() for tensor in entropy_inputs(40, 8, 3, torch.float32))
    loss = entropy_loss(vectors, codebook, 1.0)
    results = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    for actual, expected in zip(results, reference_loss_and_gradients(vectors, codebook, 1.0), strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-5)


def test_entropy_loss_of_even_usage_is_minus_ln_k():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes, codes, 0.01)) == pytest.approx(-math.log(6))
    assert float(entropy_loss(torch.zeros(1, 6, dtype=torch.float64), codes, 1.0)) == pytest.approx(-math.log(6))


def test_entropy_loss_of_one_used_code_is_zero():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes[[2, 2, 2]], codes, 0.01)) == pytest.approx(0, abs=1e-9)


def test_entropy_is_taken_of_the_mean_assignment():
    # Each assignment is hard, but the two codes are used evenly.
    codes = torch.tensor([[-10.0], [10.0]])
    assert float(entropy_loss(codes, codes, 1.0)) == pytest.approx(-math.log(2))


def test_negative_entropy_adds_1e_10_inside_the_logarithm():
    p = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64, requires_grad=True)
    loss = negative_entropy(p)
    loss.backward()
    by_hand = 0.75 * math.log(0.75 + 1e-10) + 0.25 * math.log(0.25 + 1e-10)
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-14)
    assert p.grad[2] == pytest.approx(math.log(1e-10))
    assert p.grad[0] == pytest.approx(math.log(0.75 + 1e-10) + 0.75 / (0.75 + 1e-10))


def test_negative_entropy_sums_over_factors():
    p = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(negative_entropy(p), negative_entropy(p[0]) + negative_entropy(p[1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sample_entropy_weight", [0.3, 2.0])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 30.0])
@pytest.mark.parametrize(("n", "k", "d"), [(40, 8, 3), (1, 4, 1), (6, 1, 2)])
def test_entropy_loss_with_sample_entropy_matches_the_formula(dtype, sample_entropy_weight, temperature, n, k, d):
    vectors, codebook = (tensor.requires_grad_() for tensor in entropy_inputs(n, k, d, dtype))
    loss = entropy_loss(vectors, codebook, temperature, sample_entropy_weight)
    results = loss.detach(), *torch.autograd.grad(loss, [vectors, codebook])
    assert loss.dtype == dtype
    reference = reference_loss_and_gradients(vectors, codebook, temperature, sample_entropy_weight)
    for actual, expected in zip(results, reference, strict=True):
        torch.testing.assert_close(actual.double(), expected, **tolerances(dtype))


def test_sample_entropy_gradients_match_finite_differences():
    inputs = [tensor.requires_grad_() for tensor in entropy_inputs(7, 5, 3)]
    assert torch.autograd.gradcheck(lambda z, e: entropy_loss(z, e, 0.7, sample_entropy_weight=1.5), inputs)


def test_temperature_can_be_a_tensor():
    vectors, codebook = entropy_inputs(40, 8, 3)
    loss = entropy_loss(vectors, codebook, torch.tensor(0.7, dtype=torch.float64), 0.5)
    assert torch.equal(loss, entropy_loss(vectors, codebook, 0.7, 0.5))


def test_sample_entropies_are_per_row():
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(2), 1.5 * math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(sample_entropies(soft), expected)


def test_minimum_with_sample_entropy_is_minus_ln_k():
    codes = torch.eye(6, dtype=torch.float64)
    assert float(entropy_loss(codes, codes, 0.01, sample_entropy_weight=1.0)) == pytest.approx(-math.log(6))
    # The same distance to all codes: mean entropy ln K and entropy per vector ln K cancel.
    equidistant = torch.zeros(1, 6, dtype=torch.float64)
    assert float(entropy_loss(equidistant, codes, 1.0, sample_entropy_weight=1.0)) == pytest.approx(0, abs=1e-8)


def test_sample_entropy_gradient_pulls_vectors_towards_their_code():
    codes = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    vectors = torch.tensor([[0.3], [-0.3]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(entropy_loss(vectors, codes, 1.0, sample_entropy_weight=1.0), vectors)
    assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_underflowing_probabilities_give_finite_gradients(dtype, temperature):
    vectors, codebook = (tensor.requires_grad_() for tensor in entropy_inputs(40, 8, 3, dtype))
    soft = reference_assignment(vectors, codebook, temperature)
    assert (soft == 0).any()
    loss = entropy_loss(vectors, codebook, temperature, sample_entropy_weight=1.0)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, [vectors, codebook]):
        assert gradient.isfinite().all()
    hard_gradient = torch.autograd.grad(sample_entropies(soft).sum(), vectors)[0]
    hard = (soft > 0).sum(dim=1) == 1
    assert hard.any()
    assert torch.equal(hard_gradient[hard], torch.zeros_like(hard_gradient[hard]))
    assert (sample_entropies(soft)[hard] == 0).all()


# Error scale


def update_scale(scale, *errors):
    for error in errors:
        scale.accumulate(torch.tensor(error), 6)
    scale.update()


def test_error_scale_is_1_before_the_first_update():
    scale = ErrorScale()
    assert scale() == 1
    assert scale().shape == ()
    scale.update()
    assert scale() == 1


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("error", [3e-9, 0.25, 4e7])
def test_error_scale_after_one_update_is_that_error(decay, error):
    scale = ErrorScale(decay)
    update_scale(scale, error)
    assert float(scale()) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.99])
def test_error_scale_is_the_bias_corrected_moving_average(decay):
    scale, errors = ErrorScale(decay).double(), [0.5, 4.0, 1.0, 0.25, 8.0]
    for number, error in enumerate(errors, start=1):
        update_scale(scale, error)
        weights = [decay ** (number - 1 - age) for age in range(number)]
        expected = sum(w * e for w, e in zip(weights, errors, strict=False)) / sum(weights)
        assert float(scale()) == pytest.approx(expected, rel=1e-12)


def test_error_scale_of_a_constant_error_is_that_error():
    scale = ErrorScale()
    for _ in range(3000):
        update_scale(scale, 0.7)
    assert float(scale()) == pytest.approx(0.7, rel=1e-4)


def test_error_scale_batches_before_one_update_count_as_one():
    split, joined = ErrorScale(0.9), ErrorScale(0.9)
    for scale in (split, joined):
        update_scale(scale, 8.0)
    split.accumulate(torch.tensor(1.0), 30)
    split.accumulate(torch.tensor(5.0), 10)
    split.update()
    update_scale(joined, 2.0)  # the mean error of one batch of 40
    torch.testing.assert_close(state(split), state(joined))
    assert float(split()) == pytest.approx((0.9 * 8 + 2) / 1.9, rel=1e-6)


def test_error_scale_is_at_least_1e_12():
    scale = ErrorScale()
    update_scale(scale, 0.0)
    assert float(scale()) == pytest.approx(1e-12)


def test_error_scale_accumulate_and_forward_change_no_state():
    scale = ErrorScale()
    update_scale(scale, 2.0)
    before = state(scale)
    scale.accumulate(torch.tensor(9.0), 6)
    scale()
    assert_same_state(state(scale), before)


def test_error_scale_discarded_batches_have_no_effect():
    one, other = ErrorScale(), ErrorScale()
    one.accumulate(torch.tensor(float("nan")), 6)
    one.discard()
    one.update()
    assert_same_state(state(one), state(other))
    for scale in (one, other):
        update_scale(scale, 2.0)
    assert_same_state(state(one), state(other))


def test_error_scale_has_no_gradient():
    scale, error = ErrorScale(), torch.tensor(2.0, requires_grad=True)
    scale.accumulate(error.square(), 6)
    scale.update()
    assert not scale().requires_grad
    assert list(scale.parameters()) == []


def test_error_scale_casts_float64_errors_to_its_dtype():
    scale = ErrorScale()
    scale.accumulate(torch.tensor(0.1, dtype=torch.float64), 6)
    scale.update()
    assert scale().dtype == torch.float32
    assert float(scale()) == pytest.approx(0.1, rel=1e-6)


def test_error_scale_is_restored_from_its_state_dict():
    one, other = ErrorScale(), ErrorScale()
    update_scale(one, 2.0)
    other.load_state_dict(state(one))
    for scale in (one, other):
        update_scale(scale, 5.0)
    assert torch.equal(one(), other())
    assert set(one.state_dict()) == {"error", "weight"}
