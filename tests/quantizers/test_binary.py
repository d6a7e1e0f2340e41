"""Lookup-free and binary spherical quantization against explicit loops, and against vector-quantize-pytorch."""

import itertools
import warnings

import pytest
import torch
from pydantic import ValidationError

from vqtool.quantizers import BinarySphericalQuantizer, LookupFreeQuantizer
from vqtool.quantizers.binary import BinarySphericalSettings, LookupFreeSettings
from vqtool.quantizers.residual import ResidualQuantizerSettings


def vectors(*shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def quantize_explicitly(vector, magnitude):
    """Return the code of one vector and its index."""
    code = [magnitude if x > 0 else -magnitude for x in vector]
    return code, sum(2**d for d, x in enumerate(vector) if x > 0)


def reversed_bits(indices, bits):
    """Return indices with the first dimension as the most significant bit, as in vector-quantize-pytorch."""
    digits = torch.stack([indices // 2**d % 2 for d in range(bits)])
    return sum(digit * 2 ** (bits - 1 - d) for d, digit in enumerate(digits))


@pytest.fixture(scope="module")
def vq_pytorch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("bits", [1, 3, 10, 24])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spherical", [False, True])
def test_values_and_indices_follow_an_explicit_loop(spherical, bits, dtype):
    z = vectors(4, 20, bits, dtype=dtype)
    output = (BinarySphericalQuantizer if spherical else LookupFreeQuantizer)(bits)(z)
    magnitude = bits**-0.5 if spherical else 1.0
    expected = [quantize_explicitly(vector, magnitude) for vector in z.reshape(-1, bits).tolist()]
    assert output.indices.flatten().tolist() == [index for _, index in expected]
    codes = torch.tensor([code for code, _ in expected], dtype=dtype).reshape(z.shape)
    torch.testing.assert_close(output.quantized, codes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("spherical", [False, True])
def test_codes_indices_and_losses_agree_with_vector_quantize_pytorch(spherical, temperature, vq_pytorch):
    bits = 6
    oracle = vq_pytorch.LFQ(dim=bits, spherical=spherical, commitment_loss_weight=1.0).train()
    model = (BinarySphericalQuantizer if spherical else LookupFreeQuantizer)(bits, temperature)
    z = vectors(4, 30, bits, dtype=torch.float32)
    scale = bits if spherical else 1  # temperature is relative to the squared value of a dimension, 1 / D on the sphere
    with torch.no_grad():
        expected, parts = oracle(z, inv_temperature=scale / temperature, return_loss_breakdown=True)
    output = model(z)
    (level,) = model.statistics(z, output.indices)
    assert torch.equal(reversed_bits(output.indices, bits), expected.indices.long())
    torch.testing.assert_close(output.quantized, expected.quantized)
    torch.testing.assert_close(output.commitment_loss, parts.commitment)
    # vector-quantize-pytorch clamps the argument of the logarithm to 1e-5.
    assert float(level.sample_entropy) / 120 == pytest.approx(float(parts.per_sample_entropy), rel=2e-3)


@pytest.mark.parametrize("bits", [1, 4, 9])
@pytest.mark.parametrize("kind", [LookupFreeQuantizer, BinarySphericalQuantizer])
def test_encode_inverts_decode(kind, bits):
    model, indices = kind(bits), torch.arange(2**bits)
    assert torch.equal(model.encode(model.decode(indices)), indices)
    assert torch.equal(model.encode(7.3 * model.codes), indices)


def test_zero_is_quantized_to_minus_one():
    output = LookupFreeQuantizer(3)(torch.tensor([0.0, -0.0, 1e-30]))
    assert output.quantized.tolist() == [-1.0, -1.0, 1.0]
    assert int(output.indices) == 4


def test_lookup_free_gradients_follow_the_formulas():
    z = vectors(20, 5).requires_grad_()
    output = LookupFreeQuantizer(5)(z)
    output_grad = vectors(20, 5, seed=2)
    (straight,) = torch.autograd.grad(output.quantized, [z], output_grad, retain_graph=True)
    assert torch.equal(straight, output_grad)
    (commitment,) = torch.autograd.grad(output.commitment_loss, [z])
    signs = torch.where(z > 0, 1.0, -1.0).double()
    torch.testing.assert_close(output.commitment_loss.detach(), (z - signs).square().mean().detach())
    torch.testing.assert_close(commitment, 2 * (z - signs).detach() / z.numel())


def test_spherical_gradients_include_the_normalisation():
    z = vectors(20, 5).requires_grad_()
    output = BinarySphericalQuantizer(5)(z)
    output_grad = vectors(20, 5, seed=2)
    (gradient,) = torch.autograd.grad(output.quantized, [z], output_grad)
    fixed = z.detach()
    for n in range(20):
        norm = fixed[n].norm()
        unit = fixed[n] / norm
        torch.testing.assert_close(gradient[n], (output_grad[n] - unit * (unit @ output_grad[n])) / norm)


def test_spherical_codes_are_unit_vectors_and_norms_have_no_effect():
    model, z = BinarySphericalQuantizer(7), vectors(30, 7)
    torch.testing.assert_close(model.codes.norm(dim=1), torch.ones(128))
    first, longer = model(z), model(1e6 * z)
    assert torch.equal(first.indices, longer.indices)
    torch.testing.assert_close(first.commitment_loss, longer.commitment_loss)
    torch.testing.assert_close(first.entropy_loss, longer.entropy_loss)


def test_a_zero_vector_gives_finite_output_and_gradient():
    z = torch.zeros(2, 5, requires_grad=True)
    output = BinarySphericalQuantizer(5)(z)
    (output.quantized.sum() + output.commitment_loss + output.entropy_loss).backward()
    assert output.indices.tolist() == [0, 0]
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(("kind", "magnitude"), [(LookupFreeQuantizer, 1.0), (BinarySphericalQuantizer, 0.5)])
def test_each_level_has_half_the_magnitude_of_the_previous_level(kind, magnitude):
    for depth in range(4):
        codes = kind(4, depth=depth).codes
        assert set(codes.flatten().tolist()) == {-magnitude * 0.5**depth, magnitude * 0.5**depth}


def test_lookup_free_levels_halve_the_error_bound_within_minus_two_to_two():
    model = ResidualQuantizerSettings(levels=8, quantizer=LookupFreeSettings(bits=3)).build()
    z = 4 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 2
    indices = model.encode(z)
    for depth in range(1, 9):
        assert float((z - model.decode(indices[:, :depth])).abs().max()) <= 0.5 ** (depth - 1)


def test_the_spherical_error_decreases_with_every_level():
    model = ResidualQuantizerSettings(levels=6, quantizer=BinarySphericalSettings(bits=5)).build()
    z = vectors(500, 5)
    preprocessed, indices = model.preprocess(z), model.encode(z)
    torch.testing.assert_close(preprocessed.norm(dim=1), torch.ones(500).double())
    errors = [float((preprocessed - model.decode(indices[:, :depth])).square().mean()) for depth in range(1, 7)]
    for before, after in itertools.pairwise(errors):
        assert after < 0.6 * before


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(LookupFreeSettings, LookupFreeQuantizer), (BinarySphericalSettings, BinarySphericalQuantizer)],
)
def test_settings_build_the_quantizer(settings, kind):
    chosen = settings(bits=9, temperature=0.5, sample_entropy_weight=0.2)
    model = chosen.resolve(64).build()
    assert type(model) is kind
    assert (chosen.dim(64), model.dim, model.codebook_sizes, model.sample_entropy_weight) == (9, 9, (512,), 0.2)
    assert model.temperature == pytest.approx(0.5 if kind is LookupFreeQuantizer else 0.5 / 9)
    assert (chosen.updates, chosen.init) == ({}, None)
    for bits in (0, 25):
        with pytest.raises(ValidationError, match="bits"):
            settings(bits=bits)
