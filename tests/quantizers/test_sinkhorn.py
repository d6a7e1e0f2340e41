"""Balanced assignment against Sinkhorn's iteration as the textbook has it, in float64."""

import pytest
import torch
from pydantic import ValidationError

from vqtool import VectorQuantizer
from vqtool.quantizers import EmaUpdate, VectorQuantizerSettings, nearest_codes
from vqtool.quantizers.initialization import KMeansInitSettings
from vqtool.quantizers.sinkhorn import NearestAssignment, SinkhornAssignment, sinkhorn_codes


def some(n, k, d=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=generator, dtype=torch.float64).to(dtype) for rows in (n, k)]


def interaction(vectors, codebook):
    """Of |z - e|² what neither a vector nor a code has by itself: -2 (z - mean z)·(e - mean e)."""
    return -2 * (vectors - vectors.mean(dim=0)) @ (codebook - codebook.mean(dim=0)).T


def transport(vectors, codebook, epsilon, iterations):
    """Sinkhorn (Cuturi 2013, algorithm 1): diag(u) M diag(v) with rows of sum 1 and columns of sum N / K."""
    vectors, codebook = vectors.double(), codebook.double()
    n, k = len(vectors), len(codebook)
    kernel = torch.exp(-interaction(vectors, codebook) / (epsilon * interaction(vectors, codebook).std(correction=0)))
    u = torch.ones(n, dtype=torch.float64)
    for _ in range(iterations):
        v = (n / k) / (kernel.T @ u)
        u = 1 / (kernel @ v)
    return u[:, None] * kernel * v[None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "k"), [(40, 8), (41, 8), (9, 7), (30, 1)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(1.0, 3), (0.1, 1), (0.1, 50), (0.05, 500)])
def test_codes_follow_the_loop(dtype, n, k, epsilon, iterations):
    vectors, codebook = some(n, k, dtype=dtype)
    found = sinkhorn_codes(vectors, codebook, epsilon, iterations)
    assert found.dtype == torch.int64
    plan = transport(vectors, codebook, epsilon, iterations)
    best = plan.topk(min(2, k), dim=1).values
    assert k == 1 or ((best[:, 0] - best[:, 1]) / best[:, 0]).min() > 1e-4  # no row could go either way
    assert torch.equal(found, plan.argmax(dim=1))


def test_the_loop_of_these_tests_is_a_transport():
    plan = transport(*some(40, 8), 0.1, 500)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(40).double())
    torch.testing.assert_close(plan.sum(dim=0), torch.full((8,), 5.0).double())


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_used_evenly_where_the_nearest_would_be_few(seed):
    vectors, codebook = some(256, 16, seed=seed)
    codebook[1:] += 10
    nearest = torch.bincount(nearest_codes(vectors, codebook), minlength=16)
    assert nearest.tolist() == [256, *[0] * 15]
    # An even share is 16. By default no code is dead, or has more than twice its share.
    counts = torch.bincount(SinkhornAssignment().assign(vectors, codebook), minlength=16)
    assert counts.sum() == 256
    assert counts.min() >= 1
    assert counts.max() <= 32
    # The sharper the plan, and the longer the iteration, the more even.
    counts = torch.bincount(sinkhorn_codes(vectors, codebook, 0.01, 3000), minlength=16)
    assert counts.min() >= 12
    assert counts.max() <= 20


@pytest.mark.parametrize("n", [1, 5])
def test_fewer_vectors_than_codes_go_to_a_code_each(n):
    assert len(sinkhorn_codes(*some(n, 12), 0.01, 1000).unique()) == n


def test_where_the_nearest_are_even_they_stay():
    _, codebook = some(1, 8)
    vectors = codebook.repeat(5, 1) + 0.01 * some(40, 1, seed=1)[0]
    assert torch.equal(SinkhornAssignment().assign(vectors, codebook), torch.arange(8).repeat(5))


def test_where_the_codes_lie_as_a_whole_does_not_matter():
    vectors, codebook = some(40, 8)
    expected = SinkhornAssignment().assign(vectors, codebook)
    assert torch.equal(SinkhornAssignment().assign(vectors, codebook + 30), expected)
    assert torch.equal(SinkhornAssignment().assign(vectors - 30, codebook), expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_units_of_the_data_do_not_matter(scale):
    vectors, codebook = some(40, 8, dtype=torch.float32)
    settings = SinkhornAssignment(epsilon=0.05)
    assert torch.equal(settings.assign(scale * vectors, scale * codebook), settings.assign(vectors, codebook))


def test_a_sharp_plan_neither_under_nor_overflows():
    vectors, codebook = some(64, 8, dtype=torch.float32)
    cost = interaction(vectors, codebook).double()
    cost = cost - cost.min(dim=1, keepdim=True).values
    assert (torch.exp(-cost / (0.003 * cost.std())) == 0).any()  # of the kernel, much is lost even in float64
    counts = torch.bincount(sinkhorn_codes(vectors, codebook, 0.003, 5000), minlength=8)
    assert counts.min() >= 7
    assert counts.max() <= 9


def test_equal_vectors_on_equal_codes_are_no_error():
    found = sinkhorn_codes(torch.ones(6, 3), torch.ones(4, 3), 0.01, 50)
    assert found.shape == (6,)
    assert ((found >= 0) & (found < 4)).all()


def test_there_is_no_gradient_and_inputs_are_left_alone():
    vectors, codebook = (tensor.requires_grad_() for tensor in some(40, 8))
    before = vectors.detach().clone()
    assert not sinkhorn_codes(vectors, codebook, 0.1, 5).requires_grad
    assert torch.equal(vectors, before)


def quantizer(**options):
    torch.manual_seed(0)
    model = VectorQuantizer(8, 3, update=EmaUpdate(decay=0.0), assignment=SinkhornAssignment(), **options)
    with torch.no_grad():
        model.codebook.weight.copy_(some(1, 8)[1])
    return model


def test_a_quantizer_balances_in_training_alone():
    model, z = quantizer(), some(64, 1, dtype=torch.float32)[0].reshape(4, 16, 3) + 3
    nearest = nearest_codes(z.reshape(-1, 3), model.codes).reshape(4, 16)
    balanced = SinkhornAssignment().assign(z.reshape(-1, 3), model.codes).reshape(4, 16)
    assert not torch.equal(nearest, balanced)
    output = model.train()(z)
    assert torch.equal(output.indices, balanced)
    torch.testing.assert_close(output.quantized, model.codes[balanced])
    torch.testing.assert_close(output.commitment_loss, (z - model.codes[balanced]).square().mean())
    assert torch.equal(model.encode(z), nearest)
    model.update()
    won = [z.reshape(-1, 3)[(balanced == k).flatten()].mean(dim=0) for k in range(8)]
    torch.testing.assert_close(model.codes, torch.stack(won))
    model.eval()
    assert torch.equal(model(z).indices, model.encode(z))


def test_while_codes_wait_there_is_nothing_to_balance():
    model, z = quantizer(init=KMeansInitSettings(latents_per_code=20)).train(), some(64, 1, dtype=torch.float32)[0] + 3
    assert torch.equal(model(z).indices, model.encode(z))


def test_settings_reach_the_quantizer():
    balance = {"kind": "sinkhorn", "epsilon": 0.2, "iterations": 7}
    settings = VectorQuantizerSettings.model_validate({"assignment": balance, "init": {"kind": "random"}})
    assert settings.resolve(3).build().assignment == SinkhornAssignment(epsilon=0.2, iterations=7)
    assert VectorQuantizerSettings().assignment == NearestAssignment()
    for wrong in ({"epsilon": 0.0}, {"iterations": 0}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            SinkhornAssignment(**wrong)
