"""Finite scalar quantization against an explicit loop, and against vector-quantize-pytorch."""

import itertools
import math
import warnings

import pytest
import torch
from pydantic import ValidationError

from vqtool.quantizers import FiniteScalarQuantizer
from vqtool.quantizers.finite_scalar import FiniteScalarSettings
from vqtool.quantizers.residual import ResidualQuantizerSettings

LEVELS = [[3, 5, 4], [8, 5, 5, 5], [2, 2, 2, 2], [7], [16, 3]]


def vectors(*shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def bound(x, count):
    """Return the bounded value of x with `count` levels, in steps about 0 (appendix A.1 of the paper)."""
    half_range, shift = (count - 1) * 1.001 / 2, 0.5 if count % 2 == 0 else 0.0
    return math.tanh(x + math.atanh(shift / half_range)) * half_range - shift


def quantize_explicitly(vector, levels):
    """Return the code of one vector and its index."""
    code, index, place_value = [], 0, 1
    for x, count in zip(vector, levels, strict=True):
        step = round(bound(x, count))
        code.append(step / (count // 2))
        index += (step + count // 2) * place_value
        place_value *= count
    return code, index


@pytest.fixture(scope="module")
def vq_pytorch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("vector_quantize_pytorch")


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_indices_follow_an_explicit_loop(levels, dtype):
    z = 1.5 * vectors(4, 50, len(levels), dtype=dtype)
    output = FiniteScalarQuantizer(levels)(z)
    expected = [quantize_explicitly(vector, levels) for vector in z.reshape(-1, len(levels)).tolist()]
    assert output.indices.flatten().tolist() == [index for _, index in expected]
    codes = torch.tensor([code for code, _ in expected], dtype=dtype).reshape(z.shape)
    torch.testing.assert_close(output.quantized, codes, rtol=1e-6, atol=1e-6)
    assert output.quantized.dtype == dtype


@pytest.mark.parametrize("levels", [levels for levels in LEVELS if 2 not in levels])
def test_codes_indices_and_gradients_agree_with_vector_quantize_pytorch(levels, vq_pytorch):
    oracle, model = vq_pytorch.FSQ(levels), FiniteScalarQuantizer(levels)
    z, same = (2 * vectors(8, 100, len(levels), dtype=torch.float32).requires_grad_() for _ in range(2))
    z.retain_grad()
    same.retain_grad()
    codes, indices = oracle(z)
    output = model(same)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.quantized, codes)
    output_grad = vectors(8, 100, len(levels), dtype=torch.float32, seed=2)
    codes.backward(output_grad)
    output.quantized.backward(output_grad)
    torch.testing.assert_close(same.grad, z.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.codes, oracle.implicit_codebook.float())


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_is_that_of_the_tanh_bound(levels):
    z = vectors(30, len(levels)).requires_grad_()
    output_grad = vectors(30, len(levels), seed=2)
    FiniteScalarQuantizer(levels)(z).quantized.backward(output_grad)
    for n in range(30):
        for d, count in enumerate(levels):
            half_range, shift = (count - 1) * 1.001 / 2, 0.5 if count % 2 == 0 else 0.0
            tanh = math.tanh(float(z[n, d].detach()) + math.atanh(shift / half_range))
            expected = float(output_grad[n, d]) * half_range * (1 - tanh**2) / (count // 2)
            assert float(z.grad[n, d]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9])
def test_values_are_in_minus_one_to_one_and_contain_zero(count):
    half = count // 2
    expected = [(value - half) / half for value in range(count)]
    assert FiniteScalarQuantizer([count]).codes[:, 0].tolist() == pytest.approx(expected)
    assert 0 in expected
    assert expected[0] == -1


@pytest.mark.parametrize("levels", [[3, 5, 4], [2, 2], [8, 5], [9]])
def test_every_index_is_the_code_of_some_vector(levels):
    model = FiniteScalarQuantizer(levels)
    indices = torch.arange(model.codebook_sizes[0])
    # The inverse of the bound; the outermost values are just within its range.
    inverse = [
        [
            math.atanh((value * (count // 2) + (0.5 if count % 2 == 0 else 0.0)) / ((count - 1) * 1.001 / 2))
            - math.atanh((0.5 if count % 2 == 0 else 0.0) / ((count - 1) * 1.001 / 2))
            for value, count in zip(code, levels, strict=True)
        ]
        for code in model.decode(indices).tolist()
    ]
    assert torch.equal(model.encode(torch.tensor(inverse, dtype=torch.float64)), indices)


@pytest.mark.parametrize("count", [4096, 10001, 60001, 65535, 65536])
def test_nearest_inverts_decode_for_many_levels(count):
    model, indices = FiniteScalarQuantizer([count]), torch.arange(count)
    assert torch.equal(model.nearest(model.decode(indices)), indices)


@pytest.mark.parametrize("sign", [-1, 1])
def test_distant_vectors_get_the_outermost_value(sign):
    for levels in LEVELS:
        expected = [-1.0 if sign < 0 else (count - 1 - count // 2) / (count // 2) for count in levels]
        quantized = FiniteScalarQuantizer(levels)(torch.full((len(levels),), sign * 1e3)).quantized
        assert quantized.tolist() == pytest.approx(expected)


def test_the_commitment_loss_is_zero():
    assert float(FiniteScalarQuantizer([3, 4])(vectors(9, 2)).commitment_loss) == 0


def test_the_range_of_a_level_is_half_a_step_of_the_previous_level():
    for count in (3, 4, 5, 8):
        for depth in range(3):
            values = FiniteScalarQuantizer([count], depth=depth).codes[:, 0]
            below = FiniteScalarQuantizer([count], depth=depth + 1).codes[:, 0]
            assert float(below.abs().max()) <= float(values[1] - values[0]) / 2 * 1.00001
            assert float(below.abs().max()) >= float(values[1] - values[0]) / 4


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_each_level_of_a_residual_quantizer_reduces_the_largest_error(count):
    quantizer = FiniteScalarSettings(levels=[count, count])
    model = ResidualQuantizerSettings(levels=5, quantizer=quantizer).build()
    z = 2 * vectors(3000, 2)
    preprocessed, indices = model.preprocess(z), model.encode(z)
    errors = [float((preprocessed - model.decode(indices[:, :depth])).abs().max()) for depth in range(1, 6)]
    assert errors[0] <= 0.5 / (count // 2) * 1.01
    for before, after in itertools.pairwise(errors):
        assert after <= 0.6 * before


def test_settings_build_the_quantizer():
    settings = FiniteScalarSettings(levels=[8, 5, 3], temperature=0.2, sample_entropy_weight=0.4)
    model = settings.resolve(64).build()
    assert (settings.dim(64), model.dim, model.codebook_sizes) == (3, 3, (120,))
    assert (model.temperature, model.sample_entropy_weight) == (pytest.approx(0.2 * (0.5 / 4) ** 0), 0.4)
    assert settings.updates == {}
    assert settings.init is None


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], r"\nlevels\n.*\b1\b"),
        ([8, 1], r"\nlevels\.1\n.*\b2\b"),
        ([1 << 17], r"\nlevels\.0\n.*\b65536\b"),
        ([4096, 4097], "levels.*16,777,216.*16,781,312"),
    ],
)
def test_illegal_levels_are_refused(levels, message):
    with pytest.raises(ValidationError, match=message):
        FiniteScalarSettings(levels=levels)
