"""Gradient estimators: straight-through, and the rotation trick against explicit rotation matrices in float64."""

import math

import pytest
import torch

from vqtool import VectorQuantizer
from vqtool.quantizers import EmaUpdate, FiniteScalarQuantizer, ResidualQuantizer
from vqtool.quantizers.gradient_estimators import GRADIENT_ESTIMATORS, rotation, straight_through


def random_vectors(n, d, dtype=torch.float64, seed=0):
    """Return three tensors (n, d): vectors, codes and an output gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def rotation_matrix(z, e):
    """Return the rotation (D, D) in the plane of z and e that takes z/|z| to e/|e|, from its angle."""
    along = z / z.norm()
    across = e - (e @ along) * along
    across = across / across.norm()
    angle = math.atan2(float(e @ across), float(e @ along))
    plane = torch.outer(along, along) + torch.outer(across, across)
    turn = torch.outer(across, along) - torch.outer(along, across)
    return torch.eye(len(z), dtype=z.dtype) + (math.cos(angle) - 1) * plane + math.sin(angle) * turn


def run_estimator(estimator, vectors, codes, output_grad):
    """Return the output, and the gradients of vectors and codes for the output gradient `output_grad`."""
    vectors, codes = (tensor.clone().requires_grad_() for tensor in (vectors, codes))
    quantized = estimator(vectors, codes)
    gradients = torch.autograd.grad(quantized, [vectors, codes], output_grad, allow_unused=True)
    return quantized.detach(), *gradients


def test_rotation_matrix_rotates_z_to_e():
    for z, e, _ in zip(*random_vectors(20, 5), strict=True):
        matrix = rotation_matrix(z, e)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(5).double())
        assert float(torch.linalg.det(matrix)) == pytest.approx(1)
        torch.testing.assert_close(matrix @ z / z.norm(), e / e.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_through_copies_the_gradient(dtype):
    vectors, codes, output_grad = random_vectors(20, 5, dtype)
    quantized, vectors_grad, codes_grad = run_estimator(straight_through, vectors, codes, output_grad)
    torch.testing.assert_close(quantized, codes)
    assert torch.equal(vectors_grad, output_grad)
    assert codes_grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 5, 64])
def test_rotation_gradient_is_the_transposed_scaled_rotation(dtype, d):
    vectors, codes, output_grad = random_vectors(20, d, dtype)
    quantized, vectors_grad, codes_grad = run_estimator(rotation, vectors, codes, output_grad)
    torch.testing.assert_close(quantized, codes)
    assert quantized.dtype == vectors_grad.dtype == dtype
    assert codes_grad is None
    close = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    for actual, z, e, grad in zip(*(t.double() for t in (vectors_grad, vectors, codes, output_grad)), strict=True):
        torch.testing.assert_close(actual, e.norm() / z.norm() * rotation_matrix(z, e).T @ grad, **close)


def test_rotation_preserves_the_angle_between_gradient_and_vector():
    vectors, codes, output_grad = random_vectors(30, 6)
    _, gradients, _ = run_estimator(rotation, vectors, codes, output_grad)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(gradients, vectors), cosine(output_grad, codes))
    scale = codes.norm(dim=1) / vectors.norm(dim=1)
    torch.testing.assert_close(gradients.norm(dim=1), scale * output_grad.norm(dim=1))


def test_rotation_by_90_degrees():
    vectors, codes = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 6.0]])
    _, gradient, _ = run_estimator(rotation, vectors, codes, torch.tensor([[1.0, 10.0]]))
    # Rotation by 90 degrees and scaling by 3 maps (x, y) to (-3 y, 3 x); the gradient is multiplied by the transpose.
    torch.testing.assert_close(gradient, torch.tensor([[30.0, -3.0]]))


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
def test_rotation_of_a_parallel_code_only_scales_the_gradient(factor):
    vectors, _, output_grad = random_vectors(20, 5)
    quantized, gradients, _ = run_estimator(rotation, vectors, factor * vectors, output_grad)
    torch.testing.assert_close(quantized, factor * vectors)
    torch.testing.assert_close(gradients, factor * output_grad)


@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_to_an_opposite_code_reflects_the_gradient(dtype, d):
    vectors, _, output_grad = random_vectors(20, d, dtype)
    quantized, gradients, _ = run_estimator(rotation, vectors, -2 * vectors, output_grad)
    torch.testing.assert_close(quantized, -2 * vectors)
    # The plane of rotation is not unique: the estimator reflects along z and keeps the orthogonal components.
    along = torch.nn.functional.normalize(vectors.double(), dim=1)
    output_grad = output_grad.double()
    expected = 2 * (output_grad - 2 * (output_grad * along).sum(dim=1, keepdim=True) * along)
    torch.testing.assert_close(gradients.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotation_of_a_zero_vector_has_zero_gradient(dtype):
    vectors, codes, output_grad = random_vectors(3, 4, dtype)
    vectors[1] = 0
    quantized, gradients, _ = run_estimator(rotation, vectors, codes, output_grad)
    torch.testing.assert_close(quantized, codes)
    assert gradients[1].tolist() == [0] * 4
    assert gradients.isfinite().all()
    alone = [tensor[[0, 2]] for tensor in (vectors, codes, output_grad)]
    torch.testing.assert_close(gradients[[0, 2]], run_estimator(rotation, *alone)[1])


def test_rotation_to_a_zero_code_has_zero_gradient():
    vectors, codes, output_grad = random_vectors(3, 4)
    codes[1] = 0
    quantized, gradients, _ = run_estimator(rotation, vectors, codes, output_grad)
    torch.testing.assert_close(quantized, codes)
    assert gradients[1].tolist() == [0] * 4
    assert gradients.isfinite().all()


@pytest.mark.parametrize("estimator", GRADIENT_ESTIMATORS.values(), ids=GRADIENT_ESTIMATORS)
def test_estimators_do_not_depend_on_leading_axes(estimator):
    vectors, codes, output_grad = random_vectors(24, 5)
    flat = run_estimator(estimator, vectors, codes, output_grad)
    shaped = run_estimator(estimator, *(tensor.reshape(4, 6, 5) for tensor in (vectors, codes, output_grad)))
    for actual, expected in zip(shaped[:2], flat[:2], strict=True):
        torch.testing.assert_close(actual.reshape(24, 5), expected)


def test_rotation_agrees_with_vector_quantize_pytorch():
    oracle = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    vectors, codes, output_grad = random_vectors(50, 8)
    leaf = vectors.clone().requires_grad_()
    expected = oracle.rotate_to(leaf, codes)
    (expected_gradients,) = torch.autograd.grad(expected, leaf, output_grad)
    quantized, gradients, _ = run_estimator(rotation, vectors, codes, output_grad)
    torch.testing.assert_close(quantized, expected.detach())
    torch.testing.assert_close(gradients, expected_gradients)


@pytest.mark.parametrize("name", GRADIENT_ESTIMATORS)
def test_quantizer_uses_the_chosen_estimator(name):
    torch.manual_seed(0)
    model = VectorQuantizer(7, 4, update=EmaUpdate(), gradient_estimator=name).double()
    with torch.no_grad():
        model.codebook.weight.normal_()
    z, output_grad = (tensor.reshape(2, 5, 4) for tensor in random_vectors(10, 4)[:2])
    z.requires_grad_()
    output = model(z)
    (gradient,) = torch.autograd.grad(output.quantized, z, output_grad)
    expected = run_estimator(GRADIENT_ESTIMATORS[name], z.detach(), model.codes[output.indices], output_grad)
    torch.testing.assert_close(output.quantized, expected[0])
    torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize("kind", ["vector", "residual", "fsq"])
def test_unquantized_fraction_applies_in_training_only(kind):
    levels = {
        "vector": VectorQuantizer(8, 2, unquantized_fraction=0.5),
        "residual": ResidualQuantizer([VectorQuantizer(8, 2, unquantized_fraction=0.5) for _ in range(2)]),
        "fsq": FiniteScalarQuantizer([5, 5]),
    }
    quantizer = levels[kind].double()
    if kind == "fsq":
        quantizer.unquantized_fraction = 0.5
    z = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    plain = quantizer.eval()(z)
    output = quantizer.train()(z)
    quantizer.discard()
    preprocessed = quantizer.preprocess(z)
    assert torch.equal(output.quantized[:2], preprocessed[:2])
    assert torch.equal(output.quantized[2:], plain.quantized[2:])
    assert torch.equal(output.indices, plain.indices)
    assert output.commitment_loss == plain.commitment_loss
    (gradient,) = torch.autograd.grad(output.quantized.sum(), z)
    (through,) = torch.autograd.grad(preprocessed.sum(), z)
    torch.testing.assert_close(gradient, through)
