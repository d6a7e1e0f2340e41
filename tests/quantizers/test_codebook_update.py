"""Codebooks and their updates: losses, gradients, moving averages and settings against values computed in float64."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import CodebookLossUpdate, EmaUpdate, EntropyOnlyUpdate, SimVQUpdate, nearest_codes
from vqtool.quantizers.codebook_update import (
    Codebook,
    CodebookUpdate,
    EmaCodebook,
    GradientCodebook,
    SimVQCodebook,
)
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.runtime.distributed import BatchShard

GRADIENT_CODEBOOKS = [lambda k, d: Codebook(k, d), lambda k, d: GradientCodebook(k, d, loss_weight=4.0)]


def random_batch(n=30, k=8, d=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return vectors, torch.randint(0, k, (n,), generator=generator)


@pytest.mark.parametrize("build", GRADIENT_CODEBOOKS, ids=["no codebook loss", "codebook loss"])
def test_gradient_codes_are_a_parameter_unchanged_by_update(build):
    codebook = build(8, 3)
    assert [name for name, _ in codebook.named_parameters()] == ["weight"]
    assert codebook.codes is codebook.weight
    before = state(codebook)
    codebook.accumulate(*random_batch())
    codebook.update()
    codebook.discard()
    assert_same_state(state(codebook), before)


def test_base_codebook_has_no_codebook_loss():
    codebook = Codebook(8, 3)
    vectors, indices = random_batch()
    assert codebook.codebook_loss(vectors, codebook.codes[indices], BatchShard.unsharded(len(vectors))) is None


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebook_loss_value_and_gradient(weight, dtype):
    codebook = GradientCodebook(8, 3, weight).to(dtype)
    vectors, indices = random_batch(dtype=dtype)
    vectors.requires_grad_()
    loss = codebook.codebook_loss(vectors, codebook.codes[indices], BatchShard.unsharded(len(vectors)))
    loss.backward()
    e, z = codebook.weight.detach().double().numpy(), vectors.detach().double().numpy()
    value, gradient = 0.0, np.zeros_like(e)
    for vector, index in zip(z, indices.tolist(), strict=True):
        value += weight * ((vector - e[index]) ** 2).sum() / z.size
        gradient[index] += weight * 2 * (e[index] - vector) / z.size
    assert float(loss.detach()) == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(codebook.weight.grad.double().numpy(), gradient, rtol=1e-5, atol=1e-8)
    assert vectors.grad is None


@pytest.mark.parametrize("build", GRADIENT_CODEBOOKS, ids=["no codebook loss", "codebook loss"])
def test_replace_sets_only_the_masked_codes(build):
    codebook, codes = build(4, 2), torch.arange(8.0).reshape(4, 2)
    before = codebook.codes.detach().clone()
    codebook.replace(torch.tensor([True, False, False, True]), codes.double())
    assert codebook.codes.dtype == torch.float32
    assert torch.equal(codebook.codes, torch.stack([codes[0], before[1], before[2], codes[3]]))
    assert codebook.codes.requires_grad


@pytest.mark.parametrize("build", GRADIENT_CODEBOOKS, ids=["no codebook loss", "codebook loss"])
def test_init_codes_sets_all_codes(build):
    codebook, codes = build(4, 2), torch.arange(8.0).reshape(4, 2)
    codebook.init_codes(codes, torch.tensor([3, 0, 0, 1]))
    assert torch.equal(codebook.codes, codes)
    assert codebook.codes is codebook.weight


# EMA


def reference_ema(weight, batches, decay):
    """Return codes, counts and sums after all batches: eqs. 6-8 of van den Oord et al. 2017, in float64."""
    codes = weight.double().numpy().copy()
    counts, sums = np.zeros(len(codes)), np.zeros_like(codes)
    for vectors, indices in batches:
        for k in range(len(codes)):
            assigned = [vector.double().numpy() for vector, index in zip(vectors, indices, strict=True) if index == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(assigned)
            sums[k] = decay * sums[k] + (1 - decay) * sum(assigned, np.zeros(codes.shape[1]))
            if counts[k] > 0:
                codes[k] = sums[k] / counts[k]
    return codes, counts, sums


def ema_batch(seed, n=30, k=8, d=3, dtype=torch.float32):
    """Vectors and indices; the last code is never hit, the one before it only by the batch of seed 0."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return vectors, torch.randint(0, k - 1 if seed == 0 else k - 2, (n,), generator=generator)


def ema_step(codebook, vectors, indices):
    codebook.accumulate(vectors, indices)
    codebook.update()


def test_ema_codes_are_buffers():
    codebook = EmaCodebook(8, 3, decay=0.99)
    assert list(codebook.parameters()) == []
    assert set(codebook.state_dict()) == {"weight", "counts", "sums"}


def test_ema_codebook_has_no_codebook_loss():
    codebook = EmaCodebook(8, 3, decay=0.99)
    vectors, indices = ema_batch(0)
    assert codebook.codebook_loss(vectors, codebook.codes[indices], BatchShard.unsharded(len(vectors))) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.99])
def test_ema_matches_the_reference_loop(decay, dtype):
    codebook = EmaCodebook(8, 3, decay=decay).to(dtype)
    first = codebook.weight.clone()
    batches = [ema_batch(seed, dtype=dtype) for seed in range(6)]
    for number, (vectors, indices) in enumerate(batches, start=1):
        ema_step(codebook, vectors, indices)
        codes, counts, sums = reference_ema(first, batches[:number], decay)
        close = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-6}
        np.testing.assert_allclose(codebook.weight.numpy(), codes, **close)
        np.testing.assert_allclose(codebook.counts.numpy(), counts, **close)
        np.testing.assert_allclose(codebook.sums.numpy(), sums, **close)
    assert torch.equal(codebook.weight[7], first[7])


def test_min_ema_hits_raises_the_decay_of_rarely_hit_codes():
    codebook = EmaCodebook(8, 3, decay=0.5, min_ema_hits=10.0).double()
    counts, sums = np.zeros(8), np.zeros((8, 3))
    for seed, n in enumerate((1, 20, 55, 56, 400)):
        vectors, indices = ema_batch(seed, n, dtype=torch.float64)
        codebook.accumulate(vectors[: n // 2], indices[: n // 2])  # two batches of one step
        ema_step(codebook, vectors[n // 2 :], indices[n // 2 :])
        hits = np.bincount(indices.numpy(), minlength=8)
        decay = np.where(hits < 10 * np.log(2), np.exp(-hits / 10), 0.5)
        counts = decay * counts + (1 - decay) * hits
        assigned = np.eye(8)[indices.numpy()].T @ vectors.numpy()
        sums = decay[:, None] * sums + (1 - decay[:, None]) * assigned
        np.testing.assert_allclose(codebook.counts.numpy(), counts, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(codebook.sums.numpy(), sums, rtol=1e-12, atol=1e-14)
        hit = counts > 0
        np.testing.assert_allclose(codebook.codes.numpy()[hit], sums[hit] / counts[hit, None], rtol=1e-12)


def test_min_ema_hits_keeps_the_averages_of_codes_without_hits():
    codebook = EmaCodebook(3, 2, decay=0.5, min_ema_hits=10.0)
    ema_step(codebook, torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([0, 1]))
    before = state(codebook)
    for _ in range(10):
        ema_step(codebook, torch.tensor([[7.0, 7.0]]), torch.tensor([1]))
    for name in ("weight", "counts", "sums"):
        assert torch.equal(state(codebook)[name][[0, 2]], before[name][[0, 2]])


def test_min_ema_hits_applies_to_the_initial_counts():
    codebook = EmaCodebook(3, 2, decay=0.5, min_ema_hits=10.0).double()
    codebook.init_codes(torch.zeros(3, 2).double(), torch.tensor([5, 1, 0]))
    expected = (1 - np.exp(np.array([-0.5, -0.1, 0]))) * np.array([5, 1, 0])
    np.testing.assert_allclose(codebook.counts.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.99, 0.999999])
def test_first_update_sets_a_code_to_the_mean_of_its_vectors(decay):
    codebook = EmaCodebook(3, 2, decay=decay)
    before = codebook.weight.clone()
    ema_step(codebook, torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 0.0]]), torch.tensor([2, 2, 0]))
    expected = torch.stack([torch.tensor([-5.0, 0.0]), before[1], torch.tensor([2.0, 3.0])])
    torch.testing.assert_close(codebook.weight, expected)


def test_code_without_hits_keeps_its_value_and_can_be_hit_again():
    codebook = EmaCodebook(2, 2, decay=0.5)
    ema_step(codebook, torch.tensor([[0.3, -0.7]]), torch.tensor([0]))
    for _ in range(300):  # 0.5^300 underflows in float32
        ema_step(codebook, torch.tensor([[7.0, 7.0]]), torch.tensor([1]))
    torch.testing.assert_close(codebook.weight, torch.tensor([[0.3, -0.7], [7.0, 7.0]]))
    ema_step(codebook, torch.tensor([[4.0, 3.0]]), torch.tensor([0]))
    torch.testing.assert_close(codebook.weight[0], torch.tensor([4.0, 3.0]))


def test_code_without_hits_does_not_drift():
    codebook = EmaCodebook(16, 2, decay=0.99)
    first = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    ema_step(codebook, first, torch.arange(16))
    for _ in range(5000):
        ema_step(codebook, torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
    torch.testing.assert_close(codebook.weight, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hits_are_counted_in_float32_for_half_precision_codes(dtype):
    codebook = EmaCodebook(2, 4, 0.99).to(dtype)
    codebook.accumulate(torch.full((3000, 4), 0.5, dtype=dtype), torch.zeros(3000, dtype=torch.int64))
    codebook.update()
    torch.testing.assert_close(codebook.weight[0].float(), torch.full((4,), 0.5), rtol=0.01, atol=0)


def test_two_accumulated_batches_equal_one_concatenated_batch():
    one, other = EmaCodebook(8, 3, decay=0.99), EmaCodebook(8, 3, decay=0.99)
    other.load_state_dict(one.state_dict())
    (vectors, indices), (more_vectors, more_indices) = ema_batch(0), ema_batch(1)
    one.accumulate(vectors, indices)
    one.accumulate(more_vectors, more_indices)
    one.update()
    ema_step(other, torch.cat([vectors, more_vectors]), torch.cat([indices, more_indices]))
    torch.testing.assert_close(state(one), state(other))


def test_accumulate_alone_changes_no_state():
    codebook = EmaCodebook(8, 3, decay=0.99)
    before = state(codebook)
    codebook.accumulate(*ema_batch(0))
    assert_same_state(state(codebook), before)


def test_discarded_batches_have_no_effect():
    one, other = EmaCodebook(8, 3, decay=0.99), EmaCodebook(8, 3, decay=0.99)
    other.load_state_dict(one.state_dict())
    one.accumulate(torch.full((2, 3), torch.nan), torch.tensor([0, 1]))
    one.discard()
    for codebook in (one, other):
        ema_step(codebook, *ema_batch(0))
    assert_same_state(state(one), state(other))


def test_update_without_a_batch_changes_nothing():
    codebook = EmaCodebook(8, 3, decay=0.5)
    ema_step(codebook, *ema_batch(0))
    before = state(codebook)
    codebook.update()
    assert_same_state(state(codebook), before)


def test_init_codes_weighs_the_sample_as_one_batch():
    codebook, decay = EmaCodebook(3, 2, decay=0.8).double(), 0.8
    codes = torch.tensor([[1.0, 2.0], [-3.0, 0.5], [4.0, 4.0]], dtype=torch.float64)
    codebook.init_codes(codes, torch.tensor([5, 1, 0]))
    assert torch.equal(codebook.codes, codes)
    torch.testing.assert_close(codebook.counts, torch.tensor([1.0, 0.2, 0.0]).double())
    torch.testing.assert_close(codebook.sums, codebook.counts[:, None] * codes)
    # The sample counts as the first batch.
    vectors = torch.tensor([[2.0, 2.0], [0.0, 0.0], [7.0, 8.0]], dtype=torch.float64)
    ema_step(codebook, vectors, torch.tensor([0, 0, 2]))
    first = (decay * 0.2 * 5 * codes[0] + 0.2 * vectors[:2].sum(dim=0)) / (decay * 0.2 * 5 + 0.2 * 2)
    torch.testing.assert_close(codebook.codes, torch.stack([first, codes[1], vectors[2]]))


def test_init_codes_overwrites_earlier_averages():
    codebook = EmaCodebook(8, 3, decay=0.5)
    ema_step(codebook, *ema_batch(0))
    codes = torch.randn(8, 3)
    codebook.init_codes(codes, torch.arange(8))
    torch.testing.assert_close(codebook.codes, codes)
    torch.testing.assert_close(codebook.counts, 0.5 * torch.arange(8))


def test_replaced_code_gets_the_mean_count():
    codebook = EmaCodebook(3, 2, decay=0.9)
    ema_step(codebook, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), torch.tensor([0, 1, 2]))
    before = state(codebook)
    codebook.replace(torch.tensor([False, True, False]), torch.full((3, 2), 9.0))
    assert codebook.codes.tolist() == [[1.0, 1.0], [9.0, 9.0], [3.0, 3.0]]
    torch.testing.assert_close(codebook.counts[1], before["counts"].mean())
    torch.testing.assert_close(codebook.sums[1], 9 * before["counts"].mean().expand(2))
    for row in (0, 2):
        assert torch.equal(codebook.counts[row], before["counts"][row])
        assert torch.equal(codebook.sums[row], before["sums"][row])
    # All three codes had one hit in one step, so N = 0.1 before and 0.9 · 0.1 + 0.1 after the next hit.
    ema_step(codebook, torch.tensor([[4.0, 5.0]]), torch.tensor([1]))
    torch.testing.assert_close(codebook.codes[1], torch.tensor([(0.9 * 9 + 4) / 1.9, (0.9 * 9 + 5) / 1.9]))


# SimVQ


K, D = 7, 3


def simvq_codebook(dtype=torch.float64):
    """A codebook whose transform is not the identity."""
    torch.manual_seed(0)
    simvq = SimVQCodebook(K, D, loss_weight=4.0).to(dtype)
    with torch.no_grad():
        simvq.transform += 0.5 * torch.randn(D, D)
    return simvq


def simvq_vectors(n, dtype=torch.float64):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_simvq_transform_is_the_only_parameter():
    simvq = SimVQCodebook(K, D, loss_weight=4.0)
    assert [name for name, _ in simvq.named_parameters()] == ["transform"]
    assert set(simvq.state_dict()) == {"basis", "transform"}
    assert simvq.basis.shape == (K, D)


def test_simvq_init_is_a_normal_basis_and_the_identity():
    torch.manual_seed(0)
    simvq = SimVQCodebook(400, 100, loss_weight=4.0)
    assert torch.equal(simvq.transform, torch.eye(100))
    assert torch.equal(simvq.codes, simvq.basis)
    scaled = simvq.basis.double() * 10  # sqrt(D)
    # Mean 0, variance 1 and fourth moment 3, each within five standard errors of 40,000 draws.
    assert abs(scaled.mean()) < 5 / 200
    assert abs(scaled.square().mean() - 1) < 5 * 2**0.5 / 200
    assert abs(scaled.pow(4).mean() - 3) < 5 * 96**0.5 / 200


def test_simvq_codes_are_basis_times_transform():
    simvq = simvq_codebook()
    basis, transform = simvq.basis.tolist(), simvq.transform.tolist()
    expected = [[sum(row[i] * transform[i][j] for i in range(D)) for j in range(D)] for row in basis]
    torch.testing.assert_close(simvq.codes.detach(), torch.tensor(expected, dtype=torch.float64))


def test_simvq_codebook_loss_gradient_reaches_the_transform():
    simvq, z = simvq_codebook(), simvq_vectors(20).requires_grad_()
    indices = nearest_codes(z.detach(), simvq.codes.detach())
    loss = simvq.codebook_loss(z, simvq.codes[indices], BatchShard.unsharded(len(z)))
    loss.backward()
    error = (simvq.codes[indices] - z).detach()
    assert float(loss.detach()) == pytest.approx(4 * float(error.square().mean()))
    # e = b W: dloss/de = 8 (e - z) / numel, dloss/dW = outer(b, dloss/de).
    expected = sum(8 / z.numel() * simvq.basis[k][:, None] * e[None] for k, e in zip(indices, error, strict=True))
    torch.testing.assert_close(simvq.transform.grad, expected)
    assert z.grad is None


def test_simvq_step_moves_every_code_with_or_without_hits():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate())
    assert [name for name, _ in model.named_parameters()] == ["codebook.transform"]
    before, z = model.codes.detach().clone(), simvq_vectors(4, torch.float32)
    basis = model.codebook.basis.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    errors = []
    for _ in range(20):
        output = model(z)
        errors.append(float(output.commitment_loss.detach()))
        optimizer.zero_grad()
        output.commitment_loss.backward()
        optimizer.step()
        model.update()
    assert len(output.indices.unique()) < K
    assert ((model.codes.detach() - before).norm(dim=1) > 1e-4).all()
    assert torch.equal(model.codebook.basis, basis)
    assert errors[-1] < 0.8 * errors[0]


def test_simvq_entropy_loss_gradient_reaches_the_transform():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate()).double()
    (gradient,) = torch.autograd.grad(model(simvq_vectors(20)).entropy_loss, [model.codebook.transform])
    codes = model.codebook.basis.clone().requires_grad_()  # the transform is still the identity
    soft = torch.softmax(-torch.cdist(simvq_vectors(20), codes).square(), dim=1).mean(dim=0)
    (grad_codes,) = torch.autograd.grad((soft * torch.log(soft + 1e-10)).sum(), [codes])
    torch.testing.assert_close(gradient, codes.detach().T @ grad_codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simvq_replace_sets_only_the_masked_codes(dtype):
    simvq, codes = simvq_codebook(dtype), simvq_vectors(K)
    before = state(simvq)
    old = simvq.codes.detach().clone()
    mask = torch.tensor([True, False, False, True, False, False, False])
    simvq.replace(mask, codes)
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(simvq.codes[mask].double(), codes[mask], **close)
    assert torch.equal(simvq.codes[~mask], old[~mask])
    assert torch.equal(simvq.transform, before["transform"])
    assert torch.equal(simvq.basis[~mask], before["basis"][~mask])
    assert simvq.codes.dtype == dtype


def test_simvq_replace_with_an_empty_mask_changes_nothing():
    simvq = simvq_codebook()
    before = state(simvq)
    simvq.replace(torch.zeros(K, dtype=torch.bool), simvq_vectors(K))
    assert_same_state(state(simvq), before)


def test_simvq_replace_with_a_singular_transform_is_least_squares():
    simvq, codes = simvq_codebook(), simvq_vectors(K)
    with torch.no_grad():
        simvq.transform.copy_(torch.diag(torch.tensor([2.0, 0.0, -1.0])))
    simvq.replace(torch.ones(K, dtype=torch.bool), codes)
    torch.testing.assert_close(simvq.codes, codes * torch.tensor([1.0, 0.0, 1.0]))
    assert simvq.basis.isfinite().all()


def test_simvq_init_codes_resets_the_transform():
    simvq, codes = simvq_codebook(), simvq_vectors(K)
    simvq.init_codes(codes, torch.arange(K))
    assert torch.equal(simvq.codes, codes)
    assert torch.equal(simvq.basis, codes)
    assert torch.equal(simvq.transform, torch.eye(D, dtype=torch.float64))
    assert simvq.transform.requires_grad


def test_simvq_dead_codes_are_reset_to_vectors():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate(), dead_code_reset=DeadCodeResetSettings(window_hits=1))
    with torch.no_grad():
        model.codebook.transform.copy_(simvq_codebook().transform)
    z = 50 + simvq_vectors(K, torch.float32)
    hit = model(z).indices.unique()
    dead = torch.tensor([k not in hit for k in range(K)])
    assert dead.any()
    model.update()
    torch.testing.assert_close(model.codes[dead], z[dead], rtol=1e-4, atol=1e-3)


# Settings


KINDS = {
    "entropy_only": (EntropyOnlyUpdate(), Codebook),
    "codebook_loss": (CodebookLossUpdate(), GradientCodebook),
    "simvq": (SimVQUpdate(), SimVQCodebook),
    "ema": (EmaUpdate(), EmaCodebook),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_selects_the_settings_and_the_codebook(kind):
    settings, codebook = KINDS[kind]
    assert TypeAdapter(CodebookUpdate).validate_python({"kind": kind}) == settings
    assert type(settings.build(8, 3)) is codebook
    assert settings.build(8, 3).codes.shape == (8, 3)


def test_settings_reach_the_codebook():
    assert EmaUpdate(decay=0.3).build(8, 3).decay == 0.3
    vectors, codes = torch.ones(2, 3), torch.zeros(2, 3)
    for update in (CodebookLossUpdate(weight=7.0), SimVQUpdate(weight=7.0)):
        assert float(update.build(8, 3).codebook_loss(vectors, codes, BatchShard.unsharded(len(vectors)))) == 7


@pytest.mark.parametrize("update", [EntropyOnlyUpdate(), CodebookLossUpdate(), EmaUpdate()])
def test_codes_are_initialised_uniformly_in_one_over_k(update):
    torch.manual_seed(0)
    codes = update.build(200, 100).codes
    assert codes.shape == (200, 100)
    scaled = codes.detach().double().flatten() * 200
    assert -1 <= scaled.min() < -0.99
    assert 0.99 < scaled.max() <= 1
    # Mean 0 and variance 1/3, each within five standard errors of 20,000 draws.
    assert abs(scaled.mean()) < 5 * (1 / 3 / 20_000) ** 0.5
    assert abs(scaled.square().mean() - 1 / 3) < 5 * (4 / 45 / 20_000) ** 0.5


def test_required_loss_of_each_update():
    assert [settings.required_loss for settings, _ in KINDS.values()] == ["entropy", "commitment", "commitment", None]


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decay_must_be_in_0_1(decay):
    with pytest.raises(ValidationError, match="decay"):
        EmaUpdate(decay=decay)


@pytest.mark.parametrize("update", [CodebookLossUpdate, SimVQUpdate])
@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf")])
def test_codebook_loss_weight_must_be_positive(update, weight):
    with pytest.raises(ValidationError, match="weight"):
        update(weight=weight)
