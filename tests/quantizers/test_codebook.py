"""Codes that are a parameter: what moves them, and what does not."""

import numpy as np
import pytest
import torch

from tests.quantizers import assert_same_state, state
from vqtool.quantizers.codebook import Codebook, GradientCodebook
from vqtool.runtime.distributed import BatchShard

BUILDS = [lambda k, d: Codebook(k, d), lambda k, d: GradientCodebook(k, d, weight=4.0)]


def batch(n=30, k=8, d=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return vectors, torch.randint(0, k, (n,), generator=generator)


@pytest.mark.parametrize("build", BUILDS, ids=["bare", "codebook loss"])
def test_codes_are_a_parameter_that_no_update_moves(build):
    codebook = build(8, 3)
    assert [name for name, _ in codebook.named_parameters()] == ["weight"]
    assert codebook.codes is codebook.weight
    before = state(codebook)
    codebook.gather(*batch())
    codebook.update()
    codebook.discard()
    assert_same_state(state(codebook), before)


def test_bare_codes_have_no_codebook_loss():
    codebook = Codebook(8, 3)
    vectors, indices = batch()
    assert codebook.codebook_loss(vectors, codebook.codes[indices], BatchShard.unsharded(len(vectors))) is None


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codebook_loss_and_its_gradient(weight, dtype):
    codebook = GradientCodebook(8, 3, weight).to(dtype)
    vectors, indices = batch(dtype=dtype)
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


@pytest.mark.parametrize("build", BUILDS, ids=["bare", "codebook loss"])
def test_only_the_codes_that_are_named_are_replaced(build):
    codebook, codes = build(4, 2), torch.arange(8.0).reshape(4, 2)
    before = codebook.codes.detach().clone()
    codebook.replace(torch.tensor([True, False, False, True]), codes.double())
    assert codebook.codes.dtype == torch.float32
    assert torch.equal(codebook.codes, torch.stack([codes[0], before[1], before[2], codes[3]]))
    assert codebook.codes.requires_grad


@pytest.mark.parametrize("build", BUILDS, ids=["bare", "codebook loss"])
def test_all_codes_start_where_they_are_told(build):
    codebook, codes = build(4, 2), torch.arange(8.0).reshape(4, 2)
    codebook.init_codes(codes, torch.tensor([3, 0, 0, 1]))
    assert torch.equal(codebook.codes, codes)
    assert codebook.codes is codebook.weight
