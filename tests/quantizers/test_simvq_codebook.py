"""Codes under one linear map, of which the map alone learns."""

import pytest
import torch

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import SimVQUpdate, nearest_codes
from vqtool.quantizers.dead_codes import DeadCodeResetSettings
from vqtool.quantizers.simvq_codebook import SimVQCodebook
from vqtool.runtime.distributed import BatchShard

K, D = 7, 3


def codebook(dtype=torch.float64):
    """With a map that is not the identity."""
    torch.manual_seed(0)
    linear = SimVQCodebook(K, D, weight=4.0).to(dtype)
    with torch.no_grad():
        linear.transform += 0.5 * torch.randn(D, D)
    return linear


def vectors(n, dtype=torch.float64):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_the_map_is_all_there_is_to_learn():
    linear = SimVQCodebook(K, D, weight=4.0)
    assert [name for name, _ in linear.named_parameters()] == ["transform"]
    assert set(linear.state_dict()) == {"basis", "transform"}
    assert linear.basis.shape == (K, D)


def test_it_starts_as_the_identity_over_a_normal_basis():
    torch.manual_seed(0)
    linear = SimVQCodebook(400, 100, weight=4.0)
    assert torch.equal(linear.transform, torch.eye(100))
    assert torch.equal(linear.codes, linear.basis)
    scaled = linear.basis.double() * 10  # sqrt(D)
    # Mean 0, variance 1 and fourth moment 3, each within five standard errors of 40,000 draws.
    assert abs(scaled.mean()) < 5 / 200
    assert abs(scaled.square().mean() - 1) < 5 * 2**0.5 / 200
    assert abs(scaled.pow(4).mean() - 3) < 5 * 96**0.5 / 200


def test_codes_are_the_basis_under_the_map():
    linear = codebook()
    basis, transform = linear.basis.tolist(), linear.transform.tolist()
    by_hand = [[sum(row[i] * transform[i][j] for i in range(D)) for j in range(D)] for row in basis]
    torch.testing.assert_close(linear.codes.detach(), torch.tensor(by_hand, dtype=torch.float64))


def test_the_codebook_loss_moves_the_map():
    linear, z = codebook(), vectors(20).requires_grad_()
    indices = nearest_codes(z.detach(), linear.codes.detach())
    loss = linear.codebook_loss(z, linear.codes[indices], BatchShard.unsharded(len(z)))
    loss.backward()
    error = (linear.codes[indices] - z).detach()
    assert float(loss.detach()) == pytest.approx(4 * float(error.square().mean()))
    # Of a code e = b W the gradient is 8 (e - z) / numel, and that of W is b of it.
    expected = sum(8 / z.numel() * linear.basis[k][:, None] * e[None] for k, e in zip(indices, error, strict=True))
    torch.testing.assert_close(linear.transform.grad, expected)
    assert z.grad is None


def test_every_code_moves_with_a_step_hit_or_not():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate())
    assert [name for name, _ in model.named_parameters()] == ["codebook.transform"]
    before, z = model.codes.detach().clone(), vectors(4, torch.float32)
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


def test_the_entropy_loss_moves_the_map_too():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate()).double()
    (gradient,) = torch.autograd.grad(model(vectors(20)).entropy_loss, [model.codebook.transform])
    codes = model.codebook.basis.clone().requires_grad_()  # the map is the identity still
    soft = torch.softmax(-torch.cdist(vectors(20), codes).square(), dim=1).mean(dim=0)
    (of_codes,) = torch.autograd.grad((soft * torch.log(soft + 1e-10)).sum(), [codes])
    torch.testing.assert_close(gradient, codes.detach().T @ of_codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_that_are_replaced_stand_where_they_are_told(dtype):
    linear, codes = codebook(dtype), vectors(K)
    before = state(linear)
    old = linear.codes.detach().clone()
    which = torch.tensor([True, False, False, True, False, False, False])
    linear.replace(which, codes)
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(linear.codes[which].double(), codes[which], **close)
    assert torch.equal(linear.codes[~which], old[~which])
    assert torch.equal(linear.transform, before["transform"])
    assert torch.equal(linear.basis[~which], before["basis"][~which])
    assert linear.codes.dtype == dtype


def test_replacing_none_changes_nothing():
    linear = codebook()
    before = state(linear)
    linear.replace(torch.zeros(K, dtype=torch.bool), vectors(K))
    assert_same_state(state(linear), before)


def test_under_a_map_that_loses_a_dimension_codes_come_as_near_as_it_reaches():
    linear, codes = codebook(), vectors(K)
    with torch.no_grad():
        linear.transform.copy_(torch.diag(torch.tensor([2.0, 0.0, -1.0])))
    linear.replace(torch.ones(K, dtype=torch.bool), codes)
    torch.testing.assert_close(linear.codes, codes * torch.tensor([1.0, 0.0, 1.0]))
    assert linear.basis.isfinite().all()


def test_codes_start_where_they_are_told():
    linear, codes = codebook(), vectors(K)
    linear.init_codes(codes, torch.arange(K))
    assert torch.equal(linear.codes, codes)
    assert torch.equal(linear.basis, codes)
    assert torch.equal(linear.transform, torch.eye(D, dtype=torch.float64))
    assert linear.transform.requires_grad


def test_dead_codes_are_set_down_where_the_vectors_are():
    torch.manual_seed(0)
    model = VectorQuantizer(K, D, update=SimVQUpdate(), dead_code_reset=DeadCodeResetSettings(window_hits=1))
    with torch.no_grad():
        model.codebook.transform.copy_(codebook().transform)
    z = 50 + vectors(K, torch.float32)
    hit = model(z).indices.unique()
    dead = torch.tensor([k not in hit for k in range(K)])
    assert dead.any()
    model.update()
    torch.testing.assert_close(model.codes[dead], z[dead], rtol=1e-4, atol=1e-3)
