"""Sums of soft assignments and their gradients against the formulas in float64."""

import math
import threading
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.quantizers import TensorSizes, half_smallest_normal, random_normal
from vqtool import VectorQuantizer
from vqtool.quantizers import soft_assignment
from vqtool.quantizers.losses import entropy_loss, negative_entropy
from vqtool.quantizers.soft_assignment import default_rows_per_block, soft_sums
from vqtool.runtime.threads import map_rows

FEW = settings(deadline=None, max_examples=60)
# Different blocks and threads round the last bits of a sum differently.
TIGHT = {"rtol": 1e-11, "atol": 1e-12}
BACKENDS = [torch.backends.mkldnn.matmul, torch.backends.cuda.matmul]
each_sample_entropy_weight = pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])


def reference_sums(vectors, codebook, temperature):
    """Return P (K,) = sum over n of softmax over k of -|z_n - e_k|² / temperature, and the sum of the entropies."""
    distances = (vectors[:, None, :] - codebook[None, :, :]).square().sum(dim=2)
    log_soft = torch.log_softmax(-distances / temperature, dim=1)
    soft = log_soft.exp()
    return soft.sum(dim=0), -(soft * log_soft).sum()


def actual_sums(vectors, codebook, temperature, rows_per_block=None):
    return soft_sums(vectors, codebook, temperature, entropy=True, rows_per_block=rows_per_block)


def sums_and_gradients(sums, vectors, codebook, temperature, weights, dtype=None):
    """Return both sums, and the gradients of their weighted sum."""
    leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in (vectors, codebook)]
    assignment, entropy = sums(*leaves, temperature)
    weights = weights.to(assignment.dtype)
    gradients = torch.autograd.grad((weights[1:] * assignment).sum() + weights[0] * entropy, leaves)
    return assignment.detach(), entropy.detach(), *gradients


def check(vectors, codebook, temperature, seed=0):
    """Compare with the reference within the rounding error of the logits, which are about d[n,k] / temperature."""
    weights = random_normal(seed + 2, 1 + len(codebook), dtype=torch.float64)
    results = sums_and_gradients(actual_sums, vectors, codebook, temperature, weights)
    reference = sums_and_gradients(reference_sums, vectors, codebook, float(temperature), weights, torch.float64)
    furthest = float(torch.cdist(vectors.double(), codebook.double()).max())
    logits = furthest**2 / float(temperature)
    error = 8 * (vectors.shape[1] + 8) * torch.finfo(vectors.dtype).eps * (1 + logits)
    steepest = 2 * furthest / float(temperature) * float(weights.abs().max()) * (1 + logits)
    bounds = [error, error * (1 + logits) * len(vectors), *2 * [error * steepest * len(vectors)]]
    for actual, expected, bound in zip(results, reference, bounds, strict=True):
        assert actual.dtype == vectors.dtype
        torch.testing.assert_close(actual.double(), expected, rtol=error, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 40), k=st.integers(1, 40), d=st.integers(1, 20))
@example(seed=0, n=1, k=1, d=1)
@example(seed=0, n=1, k=37, d=5)
@example(seed=0, n=37, k=1, d=5)
def test_random_shapes(dtype, seed, n, k, d):
    check(random_normal(seed, n, d, dtype=dtype), random_normal(seed + 1, k, d, dtype=dtype), 1.0, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@FEW
@given(
    seed=st.integers(0, 1 << 30),
    exponents=st.tuples(st.floats(-3, 3), st.floats(-6, 2)),
    offset=st.sampled_from([0.0, 1.0, 30.0]),
    zero_dim=st.booleans(),
)
@example(seed=0, exponents=(-3.0, 0.0), offset=0.0, zero_dim=False)
@example(seed=0, exponents=(3.0, 0.0), offset=0.0, zero_dim=True)
def test_random_scales_and_temperatures(dtype, seed, exponents, offset, zero_dim):
    temperature = 10 ** exponents[0]
    scale = temperature**0.5 * 10 ** exponents[1]
    vectors, codebook = ((random_normal(seed + i, 9 + i, 4) + offset).to(dtype) * scale for i in range(2))
    check(vectors, codebook, torch.tensor(temperature, dtype=dtype) if zero_dim else temperature, seed)


@pytest.mark.parametrize("scale", [1e-36, 1e-22, 1e-18, 1e18, 1e20])
def test_squares_near_underflow_and_overflow(scale):
    check(random_normal(0, 40, 8) * scale, random_normal(1, 23, 8) * scale, 8 * scale**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_extreme_temperatures(dtype, temperature):
    check(random_normal(0, 40, 8, dtype=dtype), random_normal(1, 23, 8, dtype=dtype), temperature)


@pytest.mark.parametrize(
    ("zero_dim", "scale"), [(torch.float32, 1.0), (torch.float32, 1e-20), (torch.float64, 1.0), (torch.float64, 1e-30)]
)
def test_temperature_as_a_tensor_equals_temperature_as_a_float(zero_dim, scale):
    temperature = torch.tensor(0.5 * scale**2, dtype=zero_dim)
    inputs = random_normal(0, 9, 4) * scale, random_normal(1, 7, 4) * scale
    sums = actual_sums(*inputs, temperature)
    assert sums.entropy > 0
    assert all(map(torch.equal, sums, actual_sums(*inputs, float(temperature))))


@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 30), d=st.integers(1, 5))
def test_duplicate_vectors_and_codes(seed, n, d):
    distinct = random_normal(seed, 6, d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = (distinct[torch.randint(6, (count,), generator=generator)] for count in (n, 20))
    check(vectors, codes, 0.7, seed)
    assignment = actual_sums(vectors, codes, 0.7).assignment
    for code in distinct:
        of_duplicates = assignment[(codes == code).all(dim=1)]
        torch.testing.assert_close(of_duplicates, of_duplicates[:1].expand_as(of_duplicates), **TIGHT)


def test_float32_is_accurate_far_from_the_origin():
    vectors, codebook = random_normal(0, 40, 8) + 1e4, random_normal(1, 23, 8) + 1e4
    weights = random_normal(2, 24)
    results = sums_and_gradients(actual_sums, vectors, codebook, 1.0, weights)
    reference = sums_and_gradients(reference_sums, vectors, codebook, 1.0, weights, torch.float64)
    for actual, expected in zip(results, reference, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("k", [2, 8, 300])
def test_one_code_far_from_all_others_does_not_reduce_accuracy(k, far):
    vectors, codebook = random_normal(0, 200, 16), random_normal(1, k, 16)
    codebook[-1, 0] = far
    weights = random_normal(2, 1 + k)
    results = sums_and_gradients(actual_sums, vectors, codebook, 1.0, weights)
    reference = sums_and_gradients(reference_sums, vectors, codebook, 1.0, weights, torch.float64)
    for actual, expected in zip(results, reference, strict=True):
        assert (actual - expected).norm() <= 2e-6 * expected.norm()


def relative_errors(functions, vectors, codebook, temperature):
    """Return the relative errors, in norm, of the value of `functions[float32]` and of its two gradients."""
    results, reference = [], []
    for tensors, dtype in ((results, torch.float32), (reference, torch.float64)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (vectors, codebook)]
        value = functions[dtype](*inputs, temperature)
        tensors += [value.detach(), *torch.autograd.grad(value, inputs)]
    return [
        float((actual - expected).norm() / expected.norm()) for actual, expected in zip(results, reference, strict=True)
    ]


# Codes initialised in (-1/K, 1/K): soft assignments are almost uniform, and gradients are small differences.
def test_float32_gradients_are_accurate_for_almost_uniform_assignments():
    def reference_loss(*inputs):
        assignment, _ = reference_sums(*inputs)
        return torch.xlogy(assignment / 300, assignment / 300).sum()

    vectors, codebook = random_normal(0, 300, 32), (2 * torch.rand(4096, 32) - 1) / 4096
    value, grad_vectors, grad_codes = relative_errors(
        {torch.float32: entropy_loss, torch.float64: reference_loss}, vectors, codebook, 1.0
    )
    assert value < 1e-6
    assert grad_vectors < 2e-3
    assert grad_codes < 2e-2


@pytest.mark.parametrize("temperature", [1.0, 30.0, 500.0])
def test_float32_entropy_is_accurate_at_high_temperatures(temperature):
    entropies = {
        torch.float32: lambda *arguments: actual_sums(*arguments).entropy,
        torch.float64: lambda *arguments: reference_sums(*arguments)[1],
    }
    vectors, codebook = random_normal(0, 20, 16), random_normal(1, 4097, 16)
    assert max(relative_errors(entropies, vectors, codebook, 16 * temperature)) < 5e-6


@pytest.mark.parametrize("scale", [1e-36, 1e-37, 2e-38])
def test_denormal_differences_are_accurate(scale):
    vectors, codebook = random_normal(0, 40, 8), random_normal(1, 23, 8)
    tiny = [(tensor * scale).float() for tensor in (vectors, codebook)]
    rounded = reference_sums(*(tensor.double() / scale for tensor in tiny), 8.0)
    for actual, expected in zip(actual_sums(*tiny, 8 * scale**2), rounded, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0.0)


def test_blocks_are_summed_in_float64():
    vectors, codebook = random_normal(0, 5000, 2), random_normal(1, 3, 2)
    reference = reference_sums(vectors.double(), codebook.double(), 1.0)
    for actual, expected in zip(actual_sums(vectors, codebook, 1.0, rows_per_block=1), reference, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=2e-7, atol=0.0)


def test_large_gradients_do_not_overflow():
    inputs = [random_normal(seed, rows, 8).requires_grad_() for seed, rows in enumerate((50, 20))]
    weights = 1e37 * (1 + random_normal(2, 20))
    gradients = torch.autograd.grad((actual_sums(*inputs, 1.0).assignment * weights).sum(), inputs)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


def test_code_with_overflowing_distance_gets_no_assignment_and_no_gradient():
    vectors, codebook, weights = random_normal(0, 40, 8), random_normal(1, 23, 8), random_normal(2, 24)
    with_far, more_weights = torch.cat([codebook, torch.full((1, 8), 1e25)]), torch.cat([weights, torch.ones(1)])
    assignment, entropy, grad_vectors, grad_codes = sums_and_gradients(
        actual_sums, vectors, with_far, 1.0, more_weights
    )
    assert assignment[-1] == 0
    assert not grad_codes[-1].any()
    reference = sums_and_gradients(actual_sums, vectors, codebook, 1.0, weights)
    for actual, expected in zip((assignment[:-1], entropy, grad_vectors, grad_codes[:-1]), reference, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_half_precision_is_computed_in_float32(dtypes):
    vectors, codebook = random_normal(0, 30, 4, dtype=dtypes[0]), random_normal(1, 9, 4, dtype=dtypes[1])
    sums, reference = actual_sums(vectors, codebook, 1.0), actual_sums(vectors.float(), codebook.float(), 1.0)
    assert sums.assignment.dtype == torch.float32
    assert torch.equal(sums.assignment, reference.assignment)
    assert torch.equal(sums.entropy, reference.entropy)


def test_codes_without_gradient_need_no_product(monkeypatch):
    vectors, codebook = random_normal(0, 30, 4).requires_grad_(), random_normal(1, 9, 4).requires_grad_()
    products, multiply = [], Tensor.addmm_
    monkeypatch.setattr(
        Tensor, "addmm_", lambda *arguments: (products.append(arguments[0].shape), multiply(*arguments))[1]
    )
    (grad_of_both, _) = torch.autograd.grad(entropy_loss(vectors, codebook, 1.0), (vectors, codebook))
    assert products == [(5, 9)]
    (grad_of_vectors,) = torch.autograd.grad(entropy_loss(vectors, codebook.detach(), 1.0), vectors)
    assert products == [(5, 9)]
    assert torch.equal(grad_of_vectors, grad_of_both)


def test_gradients_match_finite_differences():
    inputs = [random_normal(seed, 7 - seed, 3, dtype=torch.float64).requires_grad_() for seed in range(2)]
    assert torch.autograd.gradcheck(lambda z, e: tuple(actual_sums(z, e, 0.7)), inputs)
    assert torch.autograd.gradcheck(lambda z, e: actual_sums(z, e, 0.7).assignment.square().sum(), inputs)
    assert torch.autograd.gradcheck(lambda z, e: actual_sums(z, e, 0.7).entropy, inputs)


def test_second_derivative_raises():
    inputs = [random_normal(seed, 7, 3).requires_grad_() for seed in range(2)]
    (gradient,) = torch.autograd.grad(entropy_loss(*inputs, 1.0, 0.5), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_vectors_give_zero_sums():
    codebook = random_normal(0, 7, 3).requires_grad_()
    assignment, entropy = actual_sums(torch.empty(0, 3), codebook, 1.0)
    assert torch.equal(assignment, torch.zeros(7))
    assert entropy == 0
    (gradient,) = torch.autograd.grad(assignment.sum() + entropy, codebook)
    assert torch.equal(gradient, torch.zeros(7, 3))


def test_strided_views_give_the_sums_of_contiguous_tensors():
    wide = random_normal(0, 4, 40, dtype=torch.float64)
    vectors, codebook, weights = wide.T, random_normal(1, 9, 8, dtype=torch.float64)[:, ::2], random_normal(2, 10)
    results = sums_and_gradients(actual_sums, vectors, codebook, 1.0, weights)
    reference = sums_and_gradients(actual_sums, vectors.contiguous(), codebook.contiguous(), 1.0, weights)
    for actual, expected in zip(results, reference, strict=True):
        torch.testing.assert_close(actual, expected, **TIGHT)


@each_sample_entropy_weight
@pytest.mark.parametrize("needs_grad", [(True, False), (False, True)])
def test_gradient_of_one_input_does_not_depend_on_the_other_needing_one(sample_entropy_weight, needs_grad):
    inputs = [random_normal(seed, 9, 4) for seed in range(2)]
    both = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(entropy_loss(*both, 1.0, sample_entropy_weight), both)
    one = [tensor.clone().requires_grad_(needed) for tensor, needed in zip(inputs, needs_grad, strict=True)]
    entropy_loss(*one, 1.0, sample_entropy_weight).backward()
    for tensor, needed, gradient in zip(one, needs_grad, expected, strict=True):
        assert torch.equal(tensor.grad, gradient) if needed else tensor.grad is None


def test_no_gradient_is_recorded_under_no_grad():
    inputs = [random_normal(seed, 9, 4).requires_grad_() for seed in range(2)]
    expected = actual_sums(*inputs, 1.0)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            actual = actual_sums(*inputs, 1.0)
        assert not any(tensor.requires_grad for tensor in actual)
        assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_assignment_does_not_depend_on_the_entropy_flag(dtype):
    inputs = [random_normal(seed, 50 - seed, 6, dtype=dtype).requires_grad_() for seed in range(2)]
    weights = random_normal(2, 49, dtype=dtype)
    with_entropy, without = (soft_sums(*inputs, 0.7, entropy=entropy) for entropy in (True, False))
    assert torch.equal(with_entropy.assignment, without.assignment)
    assert with_entropy.entropy > 0
    assert without.entropy == 0
    for gradient, expected in zip(
        *(torch.autograd.grad((sums.assignment * weights).sum(), inputs) for sums in (without, with_entropy)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected)


# Blocks and threads


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows_per_block", [1, 3, 1000])
@pytest.mark.parametrize(("n", "k"), [(1, 5), (50, 1), (101, 13)])
def test_blocks_and_threads_do_not_change_the_result(monkeypatch, two_threads, threads, rows_per_block, n, k):
    vectors, codebook = random_normal(0, n, 3, dtype=torch.float64), random_normal(1, k, 3, dtype=torch.float64)
    weights = random_normal(2, 1 + k, dtype=torch.float64)
    reference = sums_and_gradients(actual_sums, vectors, codebook, 0.7, weights)
    torch.set_num_threads(threads)
    monkeypatch.setattr(soft_assignment, "useful_threads", lambda num_scores, dim: 2)
    in_blocks = partial(actual_sums, rows_per_block=rows_per_block)
    results = sums_and_gradients(in_blocks, vectors, codebook, 0.7, weights)
    for actual, expected in zip(results, reference, strict=True):
        torch.testing.assert_close(actual, expected, **TIGHT)


def test_rows_are_split_over_threads_in_both_passes(monkeypatch, two_threads):
    passes = []

    def recording_map_rows(function, *arguments):
        calls = []
        passes.append(calls)

        def recording(rows):
            calls.append((rows, threading.get_ident()))
            return function(rows)

        return map_rows(recording, *arguments)

    monkeypatch.setattr(soft_assignment, "map_rows", recording_map_rows)
    # 2 x 2048 x 512 scores of 448 dimensions are as much work as 2 x 2^22 scores of 64 dimensions.
    vectors, codebook = random_normal(0, 2048, 448), random_normal(1, 512, 448)
    sums_and_gradients(actual_sums, vectors, codebook, 448.0, random_normal(2, 513))
    assert len(passes) == 2
    for calls in passes:
        assert sorted((rows.start, rows.stop) for rows, _ in calls) == [(0, 1024), (1024, 2048)]
        assert threading.get_ident() not in {thread for _, thread in calls}


def test_rows_per_block_of_few_codes_are_bounded_by_the_dimensions():
    rows_per_block = default_rows_per_block(2, 39, logits_per_block=400, min_rows=1)
    assert rows_per_block == 10
    inputs = random_normal(0, 300, 39), random_normal(1, 2, 39)
    with TensorSizes() as sizes:
        actual_sums(*inputs, 1.0, rows_per_block=rows_per_block)
    assert sizes.numels.count(400) >= 30  # blocks [x, 1] of 10 rows and 40 columns
    assert max(sizes.numels) <= 2 * 300  # the maximum and the normalizer of each row


@each_sample_entropy_weight
@pytest.mark.parametrize(
    ("logits_per_block", "min_rows", "max_logits", "rows_per_block"),
    [(4 * 300, 1, 1, 4), (300, 6, 10 * 300, 6), (300, 6, 2 * 300, 2), (1, 1, 1, 1)],
)
def test_no_matrix_of_vectors_by_codes_is_allocated(
    sample_entropy_weight, logits_per_block, min_rows, max_logits, rows_per_block
):
    n, k, d = 1000, 300, 2
    limits = {"logits_per_block": logits_per_block, "min_rows": min_rows, "max_logits": max_logits}
    assert default_rows_per_block(k, d, **limits) == rows_per_block
    block = rows_per_block * k
    assert torch.get_num_threads() == 1  # TensorSizes sees only the operations of its own thread
    vectors, codebook = random_normal(0, n, d).requires_grad_(), random_normal(1, k, d).requires_grad_()
    with TensorSizes() as forward:
        sums = soft_sums(vectors, codebook, 1.0, sample_entropy_weight > 0, rows_per_block)
        loss = negative_entropy(sums.assignment / n) + sample_entropy_weight * sums.entropy
    with TensorSizes() as backward:
        loss.backward()
    for sizes in (forward, backward):
        assert sizes.numels.count(block) >= n * k // block
        assert max(sizes.numels) <= max(2 * block, n * d)


# The rounding error of such logits is many powers of two, but each row of assignments still sums to 1.
@pytest.mark.parametrize("temperature", [1e-6, 1e-9])
def test_very_low_temperatures_give_finite_results(temperature):
    vectors, codebook = random_normal(0, 40, 64) * 30, random_normal(1, 300, 64) * 30
    assignment, entropy, *gradients = sums_and_gradients(
        actual_sums, vectors, codebook, temperature, random_normal(2, 301)
    )
    torch.testing.assert_close(assignment.sum(), torch.tensor(40.0))
    assert entropy < 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients)


# Precision settings, autocast, half precision and compilation


def leaves(n=300, k=200, d=32):
    return [random_normal(seed, rows, d).requires_grad_() for seed, rows in enumerate((n, k))]


def loss_and_gradients(inputs, sample_entropy_weight, loss=entropy_loss):
    value = loss(*inputs, 8.0, sample_entropy_weight)
    return value.detach(), *torch.autograd.grad(value, inputs)


def assert_same(actual_tensors, expected_tensors):
    for actual, expected in zip(actual_tensors, expected_tensors, strict=True):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


@each_sample_entropy_weight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_give_the_losses_of_the_same_vectors_in_float32(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    with torch.no_grad():
        model.codebook.weight.copy_(random_normal(1, 11, 6))
    half = random_normal(0, 40, 6, dtype=dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    actual, expected = model(half), model(full)
    assert actual.entropy_loss.dtype == actual.commitment_loss.dtype == torch.float32
    torch.testing.assert_close(actual.entropy_loss, expected.entropy_loss)
    torch.testing.assert_close(actual.commitment_loss, expected.commitment_loss)
    half_gradients = torch.autograd.grad(actual.entropy_loss, [half, model.codebook.weight])
    full_gradients = torch.autograd.grad(expected.entropy_loss, [full, model.codebook.weight])
    assert half_gradients[0].dtype == dtype
    torch.testing.assert_close(half_gradients[0], full_gradients[0].to(dtype))
    torch.testing.assert_close(half_gradients[1], full_gradients[1])


@each_sample_entropy_weight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_codes_are_computed_in_float32(sample_entropy_weight, dtype):
    model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight).to(dtype)
    float32_model = VectorQuantizer(11, 6, sample_entropy_weight=sample_entropy_weight)
    float32_model.load_state_dict(model.state_dict())
    vectors = random_normal(0, 40, 6, dtype=dtype)
    actual, expected = model(vectors).entropy_loss, float32_model(vectors).entropy_loss
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


@each_sample_entropy_weight
def test_autocast_does_not_change_loss_or_gradients(sample_entropy_weight):
    inputs = leaves()
    expected = loss_and_gradients(inputs, sample_entropy_weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(loss_and_gradients(inputs, sample_entropy_weight), expected)
        value = entropy_loss(*inputs, 8.0, sample_entropy_weight)
        assert torch.is_autocast_enabled("cpu")
    assert_same([value.detach(), *torch.autograd.grad(value, inputs)], expected)


@each_sample_entropy_weight
@pytest.mark.parametrize("precision", ["medium", "high"])
def test_lower_matmul_precision_does_not_apply_and_is_restored(
    monkeypatch, matmul_precision, sample_entropy_weight, precision
):
    inputs, during = leaves(), []
    expected = loss_and_gradients(inputs, sample_entropy_weight)

    def recording_map_rows(function, *arguments):
        during.extend(backend.fp32_precision for backend in BACKENDS)
        return map_rows(function, *arguments)

    monkeypatch.setattr(soft_assignment, "map_rows", recording_map_rows)
    matmul_precision(precision)
    value = entropy_loss(*inputs, 8.0, sample_entropy_weight)
    assert torch.get_float32_matmul_precision() == precision
    gradients = torch.autograd.grad(value, inputs)
    assert torch.get_float32_matmul_precision() == precision
    assert len(during) == 2 * len(BACKENDS)
    assert not {"bf16", "tf32"} & set(during)
    assert_same([value.detach(), *gradients], expected)


def test_matmul_precision_is_restored_after_an_error_in_backward(monkeypatch, matmul_precision):
    def fail(*arguments):
        raise MemoryError

    inputs = leaves(3, 3, 2)
    matmul_precision("medium")
    value = entropy_loss(*inputs, 1.0)
    monkeypatch.setattr(soft_assignment, "map_rows", fail)
    with pytest.raises(MemoryError):
        value.backward()
    assert torch.get_float32_matmul_precision() == "medium"


# Dynamo emits warnings about what it does not trace.
@pytest.mark.filterwarnings("ignore")
def test_compile_does_not_change_loss_or_gradients():
    inputs = leaves(50, 20, 8)
    expected = loss_and_gradients(inputs, 0.5)
    try:
        assert_same(loss_and_gradients(inputs, 0.5, torch.compile(entropy_loss, backend="eager")), expected)
    finally:
        torch.compiler.reset()


def test_denormal_assignments_are_flushed_to_zero():
    # The assignment to the second code would be 2^-140, a denormal number, which is slow on some processors.
    distance = (140 * math.log(2)) ** 0.5
    vectors = torch.zeros(3, 1, requires_grad=True)
    codes = torch.tensor([[0.0], [distance]], requires_grad=True)
    assignment = soft_sums(vectors, codes, 1.0, entropy=False).assignment
    assert assignment.tolist() == [3.0, 0.0]
    (grad_codes,) = torch.autograd.grad(assignment[1], codes)
    assert grad_codes.tolist() == [[0.0], [0.0]]
    assert half_smallest_normal() > 0  # the setting of the caller is restored
