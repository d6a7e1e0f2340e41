"""Codes as moving averages, against the loop written out in float64."""

import numpy as np
import pytest
import torch

from tests.quantizers import assert_same_state, state
from vqtool.quantizers.ema_codebook import EmaCodebook
from vqtool.runtime.distributed import BatchShard


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


def test_ema_codes_are_buffers():
    codebook = EmaCodebook(8, 3, decay=0.99)
    assert list(codebook.parameters()) == []
    assert set(codebook.state_dict()) == {"weight", "counts", "sums"}


def test_moving_averages_have_no_codebook_loss():
    codebook = EmaCodebook(8, 3, decay=0.99)
    vectors, indices = batch(0)
    assert codebook.codebook_loss(vectors, codebook.codes[indices], BatchShard.unsharded(len(vectors))) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99])
def test_ema_follows_the_loop_by_hand(decay, dtype):
    codebook = EmaCodebook(8, 3, decay=decay).to(dtype)
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


def test_a_memory_slows_the_decay_of_codes_with_few_hits():
    codebook = EmaCodebook(8, 3, decay=0.5, min_ema_hits=10.0).double()
    counts, sums = np.zeros(8), np.zeros((8, 3))
    for seed, n in enumerate((1, 20, 55, 56, 400)):
        vectors, indices = batch(seed, n, dtype=torch.float64)
        codebook.gather(vectors[: n // 2], indices[: n // 2])  # the vectors of a step count together
        step(codebook, vectors[n // 2 :], indices[n // 2 :])
        hits = np.bincount(indices.numpy(), minlength=8)
        decay = np.where(hits < 10 * np.log(2), np.exp(-hits / 10), 0.5)
        counts = decay * counts + (1 - decay) * hits
        won = np.eye(8)[indices.numpy()].T @ vectors.numpy()
        sums = decay[:, None] * sums + (1 - decay[:, None]) * won
        np.testing.assert_allclose(codebook.counts.numpy(), counts, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(codebook.sums.numpy(), sums, rtol=1e-12, atol=1e-14)
        hit = counts > 0
        np.testing.assert_allclose(codebook.codes.numpy()[hit], sums[hit] / counts[hit, None], rtol=1e-12)


def test_with_a_memory_steps_without_hits_of_a_code_leave_its_average_alone():
    codebook = EmaCodebook(3, 2, decay=0.5, min_ema_hits=10.0)
    step(codebook, torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]))
    before = state(codebook)
    for _ in range(10):
        step(codebook, torch.tensor([[7.0, 7.0]]), torch.tensor([1]))
    for name in ("weight", "counts", "sums"):
        assert torch.equal(state(codebook)[name][[0, 2]], before[name][[0, 2]])


def test_with_a_memory_codes_start_with_the_weight_of_their_sample():
    codebook = EmaCodebook(3, 2, decay=0.5, min_ema_hits=10.0).double()
    codebook.init_codes(torch.zeros(3, 2).double(), torch.tensor([5, 1, 0]))
    expected = (1 - np.exp(np.array([-0.5, -0.1, 0]))) * np.array([5, 1, 0])
    np.testing.assert_allclose(codebook.counts.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.99, 0.999999])
def test_the_first_update_puts_a_code_at_the_mean_of_its_vectors(decay):
    codebook = EmaCodebook(3, 2, decay=decay)
    before = codebook.weight.clone()
    step(codebook, torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]]), torch.tensor([2, 2, 0]))
    expected = torch.stack([torch.tensor([-5.0, 0.0]), before[1], torch.tensor([2.0, 3.0])])
    torch.testing.assert_close(codebook.weight, expected)


def test_a_code_that_is_hit_no_more_stays_where_it_is_and_can_come_back():
    codebook = EmaCodebook(2, 2, decay=0.5)
    step(codebook, torch.tensor([[0.3, -0.7]]), torch.tensor([0]))
    for _ in range(300):  # 0.5^300 is nothing in float32
        step(codebook, torch.tensor([[7.0, 7.0]]), torch.tensor([1]))
    torch.testing.assert_close(codebook.weight, torch.tensor([[0.3, -0.7], [7.0, 7.0]]))
    step(codebook, torch.tensor([[4.0, 3.0]]), torch.tensor([0]))
    torch.testing.assert_close(codebook.weight[0], torch.tensor([4.0, 3.0]))


def test_a_code_that_is_hit_no_more_does_not_drift():
    codebook = EmaCodebook(16, 2, decay=0.99)
    first = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    step(codebook, first, torch.arange(16))
    for _ in range(5000):
        step(codebook, torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    torch.testing.assert_close(codebook.weight, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hits_are_counted_in_more_than_half_precision(dtype):
    codebook = EmaCodebook(2, 4, 0.99).to(dtype)
    codebook.gather(torch.full((3000, 4), 0.5, dtype=dtype), torch.zeros(3000, dtype=torch.int64))
    codebook.update()
    torch.testing.assert_close(codebook.weight[0].float(), torch.full((4,), 0.5), rtol=0.01, atol=0)


def test_gathering_twice_is_gathering_both_at_once():
    one, other = EmaCodebook(8, 3, decay=0.99), EmaCodebook(8, 3, decay=0.99)
    other.load_state_dict(one.state_dict())
    (vectors, indices), (more, others) = batch(0), batch(1)
    one.gather(vectors, indices)
    one.gather(more, others)
    one.update()
    step(other, torch.cat([vectors, more]), torch.cat([indices, others]))
    torch.testing.assert_close(state(one), state(other))


def test_gathering_alone_changes_no_state():
    codebook = EmaCodebook(8, 3, decay=0.99)
    before = state(codebook)
    codebook.gather(*batch(0))
    assert_same_state(state(codebook), before)


def test_discarded_batches_leave_no_trace():
    one, other = EmaCodebook(8, 3, decay=0.99), EmaCodebook(8, 3, decay=0.99)
    other.load_state_dict(one.state_dict())
    one.gather(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
    one.discard()
    for codebook in (one, other):
        step(codebook, *batch(0))
    assert_same_state(state(one), state(other))


def test_an_update_without_a_batch_changes_nothing():
    codebook = EmaCodebook(8, 3, decay=0.5)
    step(codebook, *batch(0))
    before = state(codebook)
    codebook.update()
    assert_same_state(state(codebook), before)


def test_codes_start_with_the_weight_of_one_batch():
    codebook, decay = EmaCodebook(3, 2, decay=0.8).double(), 0.8
    codes = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [4.0, 4.0]], dtype=torch.float64)
    codebook.init_codes(codes, torch.tensor([5, 1, 0]))
    assert torch.equal(codebook.codes, codes)
    torch.testing.assert_close(codebook.counts, torch.tensor([1.0, 0.2, 0.0]).double())
    torch.testing.assert_close(codebook.sums, codebook.counts[:, None] * codes)
    # As if the sample had been the first batch, for the codes that have any of it.
    vectors = torch.tensor([[2.0, 2.0], [0.0, 0.0], [7.0, 8.0]], dtype=torch.float64)
    step(codebook, vectors, torch.tensor([0, 0, 2]))
    first = (decay * 0.2 * 5 * codes[0] + 0.2 * vectors[:2].sum(dim=0)) / (decay * 0.2 * 5 + 0.2 * 2)
    torch.testing.assert_close(codebook.codes, torch.stack([first, codes[1], vectors[2]]))


def test_starting_forgets_the_averages_before():
    codebook = EmaCodebook(8, 3, decay=0.5)
    step(codebook, *batch(0))
    codes = torch.randn(8, 3)
    codebook.init_codes(codes, torch.arange(8))
    torch.testing.assert_close(codebook.codes, codes)
    torch.testing.assert_close(codebook.counts, 0.5 * torch.arange(8))


def test_a_code_that_is_replaced_weighs_as_the_average_code_does():
    codebook = EmaCodebook(3, 2, decay=0.9)
    step(codebook, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, 2]))
    before = state(codebook)
    codebook.replace(torch.tensor([False, True, False]), torch.full((3, 2), 9.0))
    assert codebook.codes.tolist() == [[1.0, 1.0], [9.0, 9.0], [3.0, 3.0]]
    torch.testing.assert_close(codebook.counts[1], before["counts"].mean())
    torch.testing.assert_close(codebook.sums[1], 9 * before["counts"].mean().expand(2))
    for row in (0, 2):
        assert torch.equal(codebook.counts[row], before["counts"][row])
        assert torch.equal(codebook.sums[row], before["sums"][row])
    # All three had one hit in one step: the next one takes a tenth of 0.9 and 1.
    step(codebook, torch.tensor([[4.0, 5.0]]), torch.tensor([1]))
    torch.testing.assert_close(codebook.codes[1], torch.tensor([(0.9 * 9 + 4) / 1.9, (0.9 * 9 + 5) / 1.9]))
