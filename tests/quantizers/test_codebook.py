"""The ways codes learn, each against its formula."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool.quantizers import CodebookLossLearning, EmaLearning, EntropyLearning


def ema_by_hand(weight, batches, decay):
    """Eqs. 6-8 of van den Oord et al. 2017 in float64, averages from zero: (codes, counts, sums) after all batches."""
    codes = weight.double().numpy().copy()
    counts, sums = np.zeros(len(codes)), np.zeros_like(codes)
    for vectors, indices in batches:
        for k in range(len(codes)):
            won = [vector.double().numpy() for vector, index in zip(vectors, indices, strict=True) if index == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(won)
            sums[k] = decay * sums[k] + (1 - decay) * sum(won, np.zeros(codes.shape[1]))
            if counts[k] > 0:
                codes[k] = sums[k] / counts[k]
    return codes, counts, sums


def batch(seed, n=30, k=8, d=3, dtype=torch.float32):
    """Vectors and indices; the last code is never hit, and the one before it by the first batch alone."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return vectors, torch.randint(0, k - 1 if seed == 0 else k - 2, (n,), generator=generator)


def step(codebook, vectors, indices):
    codebook.gather(vectors, indices)
    codebook.update()


@pytest.mark.parametrize("learning", [EntropyLearning(), CodebookLossLearning(), EmaLearning()])
def test_codes_start_uniform_within_one_over_k(learning):
    torch.manual_seed(0)
    weight = learning.build(200, 100).weight
    assert weight.shape == (200, 100)
    scaled = weight.detach().double().flatten() * 200
    assert -1 <= scaled.min() < -0.99
    assert 0.99 < scaled.max() <= 1
    # Mean 0 and variance 1/3, each within five standard errors of 20,000 draws.
    assert abs(scaled.mean()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert abs(scaled.square().mean() - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5


@pytest.mark.parametrize("learning", [EntropyLearning(), CodebookLossLearning()])
def test_gradient_codes_are_a_parameter_that_no_update_moves(learning):
    codebook = learning.build(8, 3)
    assert [name for name, _ in codebook.named_parameters()] == ["weight"]
    before = state(codebook)
    step(codebook, *batch(0))
    assert_same_state(state(codebook), before)


def test_ema_codes_are_buffers():
    codebook = EmaLearning().build(8, 3)
    assert list(codebook.parameters()) == []
    assert set(codebook.state_dict()) == {"weight", "counts", "sums"}


def test_bare_codes_have_no_codebook_loss():
    vectors, indices = batch(0)
    for learning in (EntropyLearning(), EmaLearning()):
        codebook = learning.build(8, 3)
        assert codebook.codebook_loss(vectors, codebook.weight[indices]) is None


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebook_loss_and_its_gradient(weight, dtype):
    codebook = CodebookLossLearning(weight=weight).build(8, 3).to(dtype)
    vectors, indices = batch(0, dtype=dtype)
    vectors.requires_grad_()
    loss = codebook.codebook_loss(vectors, codebook.weight[indices])
    loss.backward()
    e, z = codebook.weight.detach().double().numpy(), vectors.detach().double().numpy()
    value, gradient = 0.0, np.zeros_like(e)
    for vector, index in zip(z, indices.tolist(), strict=True):
        value += weight * ((vector - e[index]) ** 2).sum() / z.size
        gradient[index] += weight * 2 * (e[index] - vector) / z.size
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(codebook.weight.grad.double().numpy(), gradient, rtol=1e-5, atol=1e-8)
    assert vectors.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99])
def test_ema_follows_the_loop_by_hand(decay, dtype):
    codebook = EmaLearning(decay=decay).build(8, 3).to(dtype)
    first = codebook.weight.clone()
    batches = [batch(seed, dtype=dtype) for seed in range(6)]
    for number, (vectors, indices) in enumerate(batches, start=1):
        step(codebook, vectors, indices)
        codes, counts, sums = ema_by_hand(first, batches[:number], decay)
        close = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(codebook.weight.numpy(), codes, **close)
        np.testing.assert_allclose(codebook.counts.numpy(), counts, **close)
        np.testing.assert_allclose(codebook.sums.numpy(), sums, **close)
    assert torch.equal(codebook.weight[7], first[7])


@pytest.mark.parametrize("decay", [0.0, 0.99, 0.999999])
def test_the_first_update_puts_a_code_at_the_mean_of_its_vectors(decay):
    codebook = EmaLearning(decay=decay).build(3, 2)
    before = codebook.weight.clone()
    step(codebook, torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]]), torch.tensor([2, 2, 0]))
    expected = torch.stack([torch.tensor([-5.0, 0.0]), before[1], torch.tensor([2.0, 3.0])])
    torch.testing.assert_close(codebook.weight, expected)


def test_a_code_that_is_hit_no_more_stays_where_it_is_and_can_come_back():
    codebook = EmaLearning(decay=0.5).build(2, 2)
    step(codebook, torch.tensor([[0.3, -0.7]]), torch.tensor([0]))
    for _ in range(300):  # 0.5^300 is nothing in float32
        step(codebook, torch.tensor([[7.0, 7.0]]), torch.tensor([1]))
    torch.testing.assert_close(codebook.weight, torch.tensor([[0.3, -0.7], [7.0, 7.0]]))
    step(codebook, torch.tensor([[4.0, 3.0]]), torch.tensor([0]))
    torch.testing.assert_close(codebook.weight[0], torch.tensor([4.0, 3.0]))


def test_a_code_that_is_hit_no_more_does_not_drift():
    codebook = EmaLearning(decay=0.99).build(16, 2)
    first = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    step(codebook, first, torch.arange(16))
    for _ in range(5000):
        step(codebook, torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    torch.testing.assert_close(codebook.weight, first, rtol=1e-4, atol=1e-5)


def test_gathering_twice_is_gathering_both_at_once():
    one, other = EmaLearning().build(8, 3), EmaLearning().build(8, 3)
    other.load_state_dict(one.state_dict())
    (vectors, indices), (more, others) = batch(0), batch(1)
    one.gather(vectors, indices)
    one.gather(more, others)
    one.update()
    step(other, torch.cat([vectors, more]), torch.cat([indices, others]))
    torch.testing.assert_close(state(one), state(other))


def test_gathering_alone_changes_no_state():
    codebook = EmaLearning().build(8, 3)
    before = state(codebook)
    codebook.gather(*batch(0))
    assert_same_state(state(codebook), before)


def test_discarded_batches_leave_no_trace():
    one, other = EmaLearning().build(8, 3), EmaLearning().build(8, 3)
    other.load_state_dict(one.state_dict())
    one.gather(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
    one.discard()
    for codebook in (one, other):
        step(codebook, *batch(0))
    assert_same_state(state(one), state(other))


def test_an_update_without_a_batch_changes_nothing():
    codebook = EmaLearning(decay=0.5).build(8, 3)
    step(codebook, *batch(0))
    before = state(codebook)
    codebook.update()
    assert_same_state(state(codebook), before)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_lies_below_one(decay):
    with pytest.raises(ValidationError, match="decay"):
        EmaLearning(decay=decay)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf")])
def test_the_weight_of_the_codebook_loss_is_positive(weight):
    with pytest.raises(ValidationError, match="weight"):
        CodebookLossLearning(weight=weight)
