"""Sinkhorn assignment against the textbook iteration in float64."""

import pytest
import torch
from pydantic import ValidationError

from vqtool import VectorQuantizer
from vqtool.quantizers import EmaUpdate, VectorQuantizerSettings, nearest_codes
from vqtool.quantizers.initialization import KMeansInitSettings
from vqtool.quantizers.sinkhorn import NearestAssignment, SinkhornAssignment, sinkhorn_codes


def random_inputs(n, k, d=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k)]


def centred_cost(vectors, codebook):
    """Return |z - e|² minus its row and column means: -2 (z - mean z)·(e - mean e)."""
    return -2 * (vectors - vectors.mean(dim=0)) @ (codebook - codebook.mean(dim=0)).T


def reference_plan(vectors, codebook, epsilon, iterations):
    """Sinkhorn (Cuturi 2013, algorithm 1): diag(u) M diag(v) with rows of sum 1 and columns of sum N / K."""
    vectors, codebook = vectors.double(), codebook.double()
    n, k = len(vectors), len(codebook)
    kernel = torch.exp(-centred_cost(vectors, codebook) / (epsilon * centred_cost(vectors, codebook).std(correction=0)))
    u = torch.ones(n, dtype=torch.float64)
    for _ in range(iterations):
        v = (n / k) / (kernel.T @ u)
        u = 1 / (kernel @ v)
    return u[:, None] * kernel * v[None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "k"), [(40, 8), (41, 8), (9, 7), (30, 1)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(1.0, 3), (0.1, 1), (0.1, 50), (0.05, 500)])
def test_sinkhorn_codes_match_the_reference_plan(dtype, n, k, epsilon, iterations):
    vectors, codebook = random_inputs(n, k, dtype=dtype)
    indices = sinkhorn_codes(vectors, codebook, epsilon, iterations)
    assert indices.dtype == torch.int64
    plan = reference_plan(vectors, codebook, epsilon, iterations)
    best = plan.topk(min(2, k), dim=1).values
    assert k == 1 or ((best[:, 0] - best[:, 1]) / best[:, 0]).min() > 1e-4  # no near-ties
    assert torch.equal(indices, plan.argmax(dim=1))


def test_reference_plan_has_the_required_row_and_column_sums():
    plan = reference_plan(*random_inputs(40, 8), 0.1, 500)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(40).double())
    torch.testing.assert_close(plan.sum(dim=0), torch.full((8,), 5.0).double())


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_used_evenly_if_all_vectors_have_one_nearest_code(seed):
    vectors, codebook = random_inputs(256, 16, seed=seed)
    codebook[1:] += 10
    nearest = torch.bincount(nearest_codes(vectors, codebook), minlength=16)
    assert nearest.tolist() == [256, *[0] * 15]
    # 16 vectors per code on average; with the default settings, every code gets between 1 and 32.
    counts = torch.bincount(SinkhornAssignment().assign(vectors, codebook), minlength=16)
    assert counts.sum() == 256
    assert counts.min() >= 1
    assert counts.max() <= 32
    # A smaller epsilon and more iterations give more even usage.
    counts = torch.bincount(sinkhorn_codes(vectors, codebook, 0.01, 3000), minlength=16)
    assert counts.min() >= 12
    assert counts.max() <= 20


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_vectors_than_codes_get_different_codes(n):
    assert len(sinkhorn_codes(*random_inputs(n, 12), 0.01, 1000).unique()) == n


def test_even_nearest_codes_are_kept():
    _, codebook = random_inputs(1, 8)
    vectors = codebook.repeat(5, 1) + 0.01 * random_inputs(40, 1, seed=1)[0]
    assert torch.equal(SinkhornAssignment().assign(vectors, codebook), torch.arange(8).repeat(5))


def test_shifting_all_codes_or_all_vectors_changes_nothing():
    vectors, codebook = random_inputs(40, 8)
    expected = SinkhornAssignment().assign(vectors, codebook)
    assert torch.equal(SinkhornAssignment().assign(vectors, codebook + 30), expected)
    assert torch.equal(SinkhornAssignment().assign(vectors - 30, codebook), expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaling_vectors_and_codes_changes_nothing(scale):
    vectors, codebook = random_inputs(40, 8, dtype=torch.float32)
    settings = SinkhornAssignment(epsilon=0.05)
    assert torch.equal(settings.assign(scale * vectors, scale * codebook), settings.assign(vectors, codebook))


def test_small_epsilon_does_not_underflow_or_overflow():
    vectors, codebook = random_inputs(64, 8, dtype=torch.float32)
    cost = centred_cost(vectors, codebook).double()
    cost = cost - cost.min(dim=1, keepdim=True).values
    assert (torch.exp(-cost / (0.003 * cost.std())) == 0).any()  # the kernel underflows even in float64
    counts = torch.bincount(sinkhorn_codes(vectors, codebook, 0.003, 5000), minlength=8)
    assert counts.min() >= 7
    assert counts.max() <= 9


def test_equal_vectors_and_equal_codes_get_valid_indices():
    indices = sinkhorn_codes(torch.ones(6, 3), torch.ones(4, 3), 0.01, 50)
    assert indices.shape == (6,)
    assert ((indices >= 0) & (indices < 4)).all()


def test_no_gradient_is_recorded_and_inputs_are_unchanged():
    vectors, codebook = (tensor.requires_grad_() for tensor in random_inputs(40, 8))
    before = vectors.detach().clone()
    assert not sinkhorn_codes(vectors, codebook, 0.1, 5).requires_grad
    assert torch.equal(vectors, before)


def quantizer(**options):
    torch.manual_seed(0)
    model = VectorQuantizer(8, 3, update=EmaUpdate(decay=0.0), assignment=SinkhornAssignment(), **options)
    with torch.no_grad():
        model.codebook.weight.copy_(random_inputs(1, 8)[1])
    return model


def test_quantizer_uses_sinkhorn_in_training_and_nearest_codes_in_encoding():
    model, z = quantizer(), random_inputs(64, 1, dtype=torch.float32)[0].reshape(4, 16, 3) + 3
    nearest = nearest_codes(z.reshape(-1, 3), model.codes).reshape(4, 16)
    balanced = SinkhornAssignment().assign(z.reshape(-1, 3), model.codes).reshape(4, 16)
    assert not torch.equal(nearest, balanced)
    output = model.train()(z)
    assert torch.equal(output.indices, balanced)
    torch.testing.assert_close(output.quantized, model.codes[balanced])
    torch.testing.assert_close(output.commitment_loss, (z - model.codes[balanced]).square().mean())
    assert torch.equal(model.encode(z), nearest)
    model.update()
    means = [z.reshape(-1, 3)[(balanced == k).flatten()].mean(dim=0) for k in range(8)]
    torch.testing.assert_close(model.codes, torch.stack(means))
    model.eval()
    assert torch.equal(model(z).indices, model.encode(z))


def test_quantizer_uses_nearest_codes_before_initialisation():
    model, z = (
        quantizer(init=KMeansInitSettings(latents_per_code=20)).train(),
        random_inputs(64, 1, dtype=torch.float32)[0] + 3,
    )
    assert torch.equal(model(z).indices, model.encode(z))


def test_settings_reach_the_quantizer():
    assignment = {"kind": "sinkhorn", "epsilon": 0.2, "iterations": 7}
    settings = VectorQuantizerSettings.model_validate({"assignment": assignment, "init": {"kind": "random"}})
    assert settings.resolve(3).build().assignment == SinkhornAssignment(epsilon=0.2, iterations=7)
    assert VectorQuantizerSettings().assignment == NearestAssignment()
    for wrong in ({"epsilon": 0.0}, {"iterations": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            SinkhornAssignment(**wrong)
