"""Sums of soft assignments and their gradients against the textbook in float64."""

import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.quantizers import Sizes, random_normal
from vqtool.quantizers import soft_assignment
from vqtool.quantizers.entropy import entropy_loss
from vqtool.quantizers.soft_assignment import soft_sums

FEW = settings(deadline=None, max_examples=60)
# Smaller than any sum here: where the threads and blocks differ is in the last bits.
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def textbook(vectors, codebook, temperature):
    """The (K,) sums over n of softmax over k of -|z_n - e_k|² / temperature, and the sum of the rows' entropies."""
    distances = (vectors[:, None, :] - codebook[None, :, :]).square().sum(dim=2)
    logarithms = torch.log_softmax(-distances / temperature, dim=1)
    soft = logarithms.exp()
    return soft.sum(dim=0), -(soft * logarithms).sum()


def mine(vectors, codebook, temperature):
    return soft_sums(vectors, codebook, temperature, entropy=True)


def both_and_gradients(sums, vectors, codebook, temperature, weights, dtype=None):
    """Both sums, and the gradients of the two weighted."""
    leaves = [tensor.detach().to(dtype or tensor.dtype).requires_grad_() for tensor in (vectors, codebook)]
    assignment, entropy = sums(*leaves, temperature)
    weights = weights.to(assignment.dtype)
    gradients = torch.autograd.grad((weights[1:] * assignment).sum() + weights[0] * entropy, leaves)
    return assignment.detach(), entropy.detach(), *gradients


def check(vectors, codebook, temperature, seed=0):
    """Within what the rounding of logits, which are as large as distances over the temperature, brings with it."""
    weights = random_normal(seed + 2, 1 + len(codebook), dtype=torch.float64)
    found = both_and_gradients(mine, vectors, codebook, temperature, weights)
    wanted = both_and_gradients(textbook, vectors, codebook, float(temperature), weights, torch.float64)
    furthest = float(torch.cdist(vectors.double(), codebook.double()).max())
    logits = furthest**2 / float(temperature)
    error = 8 * (vectors.shape[1] + 8) * torch.finfo(vectors.dtype).eps * (1 + logits)
    steepest = 2 * furthest / float(temperature) * float(weights.abs().max()) * (1 + logits)
    bounds = [error, error * (1 + logits) * len(vectors), *2 * [error * steepest * len(vectors)]]
    for each, expected, bound in zip(found, wanted, bounds, strict=True):
        assert each.dtype == vectors.dtype
        torch.testing.assert_close(each.double(), expected, rtol=error, atol=bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 40), k=st.integers(1, 40), d=st.integers(1, 20))
@example(seed=0, n=1, k=1, d=1)
@example(seed=0, n=1, k=37, d=5)
@example(seed=0, n=37, k=1, d=5)
def test_any_shape(dtype, seed, n, k, d):
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
def test_any_scale_and_temperature(dtype, seed, exponents, offset, zero_dim):
    temperature = 10 ** exponents[0]
    scale = temperature**0.5 * 10 ** exponents[1]
    vectors, codebook = ((random_normal(seed + i, 9 + i, 4) + offset).to(dtype) * scale for i in range(2))
    check(vectors, codebook, torch.tensor(temperature, dtype=dtype) if zero_dim else temperature, seed)


@pytest.mark.parametrize("scale", [1e-36, 1e-22, 1e-18, 1e18, 1e20])
def test_units_in_which_squares_are_hardly_numbers(scale):
    check(random_normal(0, 40, 8) * scale, random_normal(1, 23, 8) * scale, 8 * scale**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_unit_vectors_at_the_extremes_of_temperature(dtype, temperature):
    check(random_normal(0, 40, 8, dtype=dtype), random_normal(1, 23, 8, dtype=dtype), temperature)


@pytest.mark.parametrize(
    ("zero_dim", "scale"), [(torch.float32, 1.0), (torch.float32, 1e-20), (torch.float64, 1.0), (torch.float64, 1e-30)]
)
def test_a_temperature_in_a_tensor_is_as_good_as_a_number(zero_dim, scale):
    temperature = torch.tensor(0.5 * scale**2, dtype=zero_dim)
    inputs = random_normal(0, 9, 4) * scale, random_normal(1, 7, 4) * scale
    sums = mine(*inputs, temperature)
    assert sums.entropy > 0
    assert all(map(torch.equal, sums, mine(*inputs, float(temperature))))


@FEW
@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 30), d=st.integers(1, 5))
def test_duplicate_vectors_and_codes(seed, n, d):
    some = random_normal(seed, 6, d, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    vectors, codes = (some[torch.randint(6, (count,), generator=generator)] for count in (n, 20))
    check(vectors, codes, 0.7, seed)
    assignment = mine(vectors, codes, 0.7).assignment
    for code in some:
        shares = assignment[(codes == code).all(dim=1)]
        torch.testing.assert_close(shares, shares[:1].expand_as(shares), **TIGHT)


def test_far_from_the_origin_float32_keeps_its_digits():
    vectors, codebook = random_normal(0, 40, 8) + 1e4, random_normal(1, 23, 8) + 1e4
    weights = random_normal(2, 24)
    found = both_and_gradients(mine, vectors, codebook, 1.0, weights)
    wanted = both_and_gradients(textbook, vectors, codebook, 1.0, weights, torch.float64)
    for each, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(each.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7])
@pytest.mark.parametrize("k", [2, 8, 300])
def test_one_code_far_from_all_others_costs_no_digits(k, far):
    vectors, codebook = random_normal(0, 200, 16), random_normal(1, k, 16)
    codebook[-1, 0] = far
    weights = random_normal(2, 1 + k)
    found = both_and_gradients(mine, vectors, codebook, 1.0, weights)
    wanted = both_and_gradients(textbook, vectors, codebook, 1.0, weights, torch.float64)
    for each, expected in zip(found, wanted, strict=True):
        assert (each - expected).norm() <= 2e-6 * expected.norm()


def relative_errors(sums, vectors, codebook, temperature):
    """Of a number that `sums` makes of them, and of both its gradients: the norm of what they are off by."""
    found, wanted = [], []
    for each, dtype in ((found, torch.float32), (wanted, torch.float64)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in (vectors, codebook)]
        value = sums[dtype](*inputs, temperature)
        each += [value.detach(), *torch.autograd.grad(value, inputs)]
    return [float((mine - right).norm() / right.norm()) for mine, right in zip(found, wanted, strict=True)]


# As a codebook is at first, within 1/K about 0: all assignments are about even, and the gradient is of what is not.
def test_about_even_use_float32_keeps_the_digits_of_gradients():
    def right(*inputs):
        assignment, _ = textbook(*inputs)
        return torch.xlogy(assignment / 300, assignment / 300).sum()

    vectors, codebook = random_normal(0, 300, 32), (2 * torch.rand(4096, 32) - 1) / 4096
    value, of_vectors, of_codes = relative_errors(
        {torch.float32: entropy_loss, torch.float64: right}, vectors, codebook, 1.0
    )
    assert value < 1e-6
    assert of_vectors < 2e-3
    assert of_codes < 2e-2


@pytest.mark.parametrize("temperature", [1.0, 30.0, 500.0])
def test_of_flat_rows_float32_keeps_the_digits_of_the_entropy(temperature):
    entropies = {torch.float32: lambda *given: mine(*given).entropy, torch.float64: lambda *given: textbook(*given)[1]}
    vectors, codebook = random_normal(0, 20, 16), random_normal(1, 4097, 16)
    assert max(relative_errors(entropies, vectors, codebook, 16 * temperature)) < 5e-6


@pytest.mark.parametrize("scale", [1e-36, 1e-37, 2e-38])
def test_differences_that_are_denormal_keep_their_digits(scale):
    vectors, codebook = random_normal(0, 40, 8), random_normal(1, 23, 8)
    tiny = [(tensor * scale).float() for tensor in (vectors, codebook)]
    rounded = textbook(*(tensor.double() / scale for tensor in tiny), 8.0)
    for found, expected in zip(mine(*tiny, 8 * scale**2), rounded, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)


def test_many_blocks_are_summed_in_float64(monkeypatch):
    monkeypatch.setattr(soft_assignment, "_BLOCK", 1)
    monkeypatch.setattr(soft_assignment, "_ROWS", 1)
    vectors, codebook = random_normal(0, 5000, 2), random_normal(1, 3, 2)
    wanted = textbook(vectors.double(), codebook.double(), 1.0)
    for found, expected in zip(mine(vectors, codebook, 1.0), wanted, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-7, atol=0.0)


def test_gradients_near_the_largest_number_do_not_overflow():
    inputs = [random_normal(seed, rows, 8).requires_grad_() for seed, rows in enumerate((50, 20))]
    weights = 1e37 * (1 + random_normal(2, 20))
    found = torch.autograd.grad((mine(*inputs, 1.0).assignment * weights).sum(), inputs)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


def test_a_code_whose_square_overflows_has_no_share_and_spoils_nothing():
    vectors, codebook, weights = random_normal(0, 40, 8), random_normal(1, 23, 8), random_normal(2, 24)
    far, heavier = torch.cat([codebook, torch.full((1, 8), 1e25)]), torch.cat([weights, torch.ones(1)])
    assignment, entropy, of_vectors, of_codes = both_and_gradients(mine, vectors, far, 1.0, heavier)
    assert assignment[-1] == 0
    assert not of_codes[-1].any()
    wanted = both_and_gradients(mine, vectors, codebook, 1.0, weights)
    for each, expected in zip((assignment[:-1], entropy, of_vectors, of_codes[:-1]), wanted, strict=True):
        torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_less_than_float32_is_computed_in_float32(dtypes):
    vectors, codebook = random_normal(0, 30, 4, dtype=dtypes[0]), random_normal(1, 9, 4, dtype=dtypes[1])
    sums, wanted = mine(vectors, codebook, 1.0), mine(vectors.float(), codebook.float(), 1.0)
    assert sums.assignment.dtype == torch.float32
    assert torch.equal(sums.assignment, wanted.assignment)
    assert torch.equal(sums.entropy, wanted.entropy)


def test_codes_that_are_not_learned_cost_no_product(monkeypatch):
    vectors, codebook = random_normal(0, 30, 4).requires_grad_(), random_normal(1, 9, 4).requires_grad_()
    products, multiply = [], Tensor.addmm_
    monkeypatch.setattr(Tensor, "addmm_", lambda *given: (products.append(given[0].shape), multiply(*given))[1])
    (both, _) = torch.autograd.grad(entropy_loss(vectors, codebook, 1.0), (vectors, codebook))
    assert products == [(5, 9)]
    (alone,) = torch.autograd.grad(entropy_loss(vectors, codebook.detach(), 1.0), vectors)
    assert products == [(5, 9)]
    assert torch.equal(alone, both)


def test_gradients_of_both_sums_together_agree_with_finite_differences():
    inputs = [random_normal(seed, 7 - seed, 3, dtype=torch.float64).requires_grad_() for seed in range(2)]
    assert torch.autograd.gradcheck(lambda z, e: tuple(mine(z, e, 0.7)), inputs)
    assert torch.autograd.gradcheck(lambda z, e: mine(z, e, 0.7).assignment.square().sum(), inputs)
    assert torch.autograd.gradcheck(lambda z, e: mine(z, e, 0.7).entropy, inputs)


def test_a_second_derivative_is_refused():
    inputs = [random_normal(seed, 7, 3).requires_grad_() for seed in range(2)]
    (gradient,) = torch.autograd.grad(entropy_loss(*inputs, 1.0, 0.5), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_no_vectors_add_up_to_nothing():
    codebook = random_normal(0, 7, 3).requires_grad_()
    assignment, entropy = mine(torch.empty(0, 3), codebook, 1.0)
    assert torch.equal(assignment, torch.zeros(7))
    assert entropy == 0
    (gradient,) = torch.autograd.grad(assignment.sum() + entropy, codebook)
    assert torch.equal(gradient, torch.zeros(7, 3))


def test_strided_views_have_the_sums_of_what_they_show():
    wide = random_normal(0, 4, 40, dtype=torch.float64)
    vectors, codebook, weights = wide.T, random_normal(1, 9, 8, dtype=torch.float64)[:, ::2], random_normal(2, 10)
    found = both_and_gradients(mine, vectors, codebook, 1.0, weights)
    wanted = both_and_gradients(mine, vectors.contiguous(), codebook.contiguous(), 1.0, weights)
    for each, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, expected, **TIGHT)


@pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_either_side_alone_has_the_gradient_it_has_beside_the_other(sample_entropy_weight, wanted):
    inputs = [random_normal(seed, 9, 4) for seed in range(2)]
    both = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = torch.autograd.grad(entropy_loss(*both, 1.0, sample_entropy_weight), both)
    one = [tensor.clone().requires_grad_(needed) for tensor, needed in zip(inputs, wanted, strict=True)]
    entropy_loss(*one, 1.0, sample_entropy_weight).backward()
    for tensor, needed, gradient in zip(one, wanted, expected, strict=True):
        assert torch.equal(tensor.grad, gradient) if needed else tensor.grad is None


def test_without_gradients_none_is_recorded():
    inputs = [random_normal(seed, 9, 4).requires_grad_() for seed in range(2)]
    expected = mine(*inputs, 1.0)
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            found = mine(*inputs, 1.0)
        assert not any(each.requires_grad for each in found)
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_assignment_is_the_same_where_no_entropy_is_asked_for(dtype):
    inputs = [random_normal(seed, 50 - seed, 6, dtype=dtype).requires_grad_() for seed in range(2)]
    weights = random_normal(2, 49, dtype=dtype)
    with_entropy, without = (soft_sums(*inputs, 0.7, entropy=asked) for asked in (True, False))
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
@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize(("n", "k"), [(1, 5), (50, 1), (101, 13)])
def test_blocks_and_threads_change_nothing(monkeypatch, two_threads, threads, block, n, k):
    vectors, codebook = random_normal(0, n, 3, dtype=torch.float64), random_normal(1, k, 3, dtype=torch.float64)
    weights = random_normal(2, 1 + k, dtype=torch.float64)
    wanted = both_and_gradients(mine, vectors, codebook, 0.7, weights)
    torch.set_num_threads(threads)
    monkeypatch.setattr(soft_assignment, "_BLOCK", block)
    monkeypatch.setattr(soft_assignment, "_ROWS", 1)
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1)
    found = both_and_gradients(mine, vectors, codebook, 0.7, weights)
    for each, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(each, expected, **TIGHT)


def test_rows_are_shared_out_both_ways(monkeypatch, two_threads):
    seen = {"_sums": [], "_gradients": []}

    def spied(name, work):
        def spy(factors, rows, *others):
            seen[name].append((rows, threading.get_ident()))
            return work(factors, rows, *others)

        return spy

    for name in seen:
        monkeypatch.setattr(soft_assignment, name, spied(name, getattr(soft_assignment, name)))
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1)
    both_and_gradients(mine, random_normal(0, 50, 3), random_normal(1, 9, 3), 1.0, random_normal(2, 10))
    for slices in seen.values():
        assert sorted(rows.start for rows, _ in slices) == [0, 25]
        assert threading.get_ident() not in {thread for _, thread in slices}


def test_blocks_of_few_codes_are_bounded_by_the_dimensions(monkeypatch):
    monkeypatch.setattr(soft_assignment, "_BLOCK", 400)
    monkeypatch.setattr(soft_assignment, "_ROWS", 1)
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1 << 60)
    inputs = random_normal(0, 300, 39), random_normal(1, 2, 39)
    with Sizes() as sizes:
        mine(*inputs, 1.0)
    assert sizes.made.count(400) >= 30  # 10 rows of 39 dimensions and one more
    assert max(sizes.made) <= 2 * 300  # two numbers a row


@pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])
@pytest.mark.parametrize(
    ("block", "rows", "most", "expected"),
    [(4 * 300, 1, 1, 4), (300, 6, 10 * 300, 6), (300, 6, 2 * 300, 2), (1, 1, 1, 1)],
)
def test_no_matrix_of_vectors_by_codes_is_made(monkeypatch, sample_entropy_weight, block, rows, most, expected):
    n, k, d = 1000, 300, 2
    for name, number in (("_BLOCK", block), ("_ROWS", rows), ("_MOST", most)):
        monkeypatch.setattr(soft_assignment, name, number)
    block = expected * k
    monkeypatch.setattr("vqtool.runtime.threads._THREAD", 1 << 60)  # a dispatch mode sees its own thread alone
    vectors, codebook = random_normal(0, n, d).requires_grad_(), random_normal(1, k, d).requires_grad_()
    with Sizes() as forth:
        loss = entropy_loss(vectors, codebook, 1.0, sample_entropy_weight)
    with Sizes() as back:
        loss.backward()
    for sizes in (forth, back):
        assert sizes.made.count(block) >= n * k // block
        assert max(sizes.made) <= max(2 * block, n * d)


# Rounded by their own size, such logits are off by many powers of two; and yet each row is shared out whole.
@pytest.mark.parametrize("temperature", [1e-6, 1e-9])
def test_a_temperature_far_too_low_gives_nothing_that_is_not_finite(temperature):
    vectors, codebook = random_normal(0, 40, 64) * 30, random_normal(1, 300, 64) * 30
    assignment, entropy, *gradients = both_and_gradients(mine, vectors, codebook, temperature, random_normal(2, 301))
    torch.testing.assert_close(assignment.sum(), torch.tensor(40.0))
    assert entropy < 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients)
