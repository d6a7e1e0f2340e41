"""A quantizer between projections: values and gradients against the formulas in float64, initialisation, updates."""

import pytest
import torch

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import (
    CodebookLossUpdate,
    EmaUpdate,
    FiniteScalarQuantizer,
    ProductQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
)
from vqtool.quantizers.initialization import KMeansInitSettings

K, LATENT_DIM, CODE_DIM = 9, 6, 3


def quantizer(update=None, inner=None, dtype=torch.float32, latent_dim=LATENT_DIM, **options):
    """Return a quantizer whose projections and codes differ from their initial values."""
    torch.manual_seed(0)
    inner = inner or VectorQuantizer(K, CODE_DIM, update=update or EmaUpdate(), **options)
    model = ProjectedQuantizer(inner, latent_dim).to(dtype)
    with torch.no_grad():
        for tensor in (*model.project_in.parameters(), *model.project_out.parameters()):
            tensor += 0.3 * torch.randn_like(tensor)
        if isinstance(inner, VectorQuantizer):
            inner.codebook.weight.normal_()
    return model


def vectors(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tolerances(dtype):
    return {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


# Initial projections


@pytest.mark.parametrize(("latent_dim", "code_dim"), [(6, 3), (6, 6), (64, 4)])
def test_the_input_projection_is_initialised_orthogonal(latent_dim, code_dim):
    torch.manual_seed(0)
    model = ProjectedQuantizer(VectorQuantizer(K, code_dim), latent_dim)
    weight = model.project_in.weight.detach()
    assert weight.shape == (code_dim, latent_dim)
    torch.testing.assert_close(weight @ weight.T, torch.eye(code_dim), rtol=0, atol=1e-5)
    assert torch.equal(model.project_out.weight, model.project_in.weight.T)
    assert not model.project_in.bias.any()
    assert model.project_out.bias is None


def test_initial_projections_to_wider_codes_are_inverse():
    torch.manual_seed(0)
    model, z = ProjectedQuantizer(VectorQuantizer(K, 8), 3), vectors(20, 3)
    torch.testing.assert_close(model.project_out(model.project_in(z)), z, rtol=1e-5, atol=1e-6)


def test_initial_projections_depend_only_on_the_seed():
    def weight(seed):
        torch.manual_seed(seed)
        return ProjectedQuantizer(VectorQuantizer(K, CODE_DIM), LATENT_DIM).project_in.weight

    assert torch.equal(weight(0), weight(0))
    assert not torch.equal(weight(0), weight(1))


def test_it_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        model = ProjectedQuantizer(VectorQuantizer(K, CODE_DIM), LATENT_DIM)
    assert model.project_out.weight.shape == (LATENT_DIM, CODE_DIM)
    assert model.project_out.weight.is_meta


# Values and gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, LATENT_DIM), (6, 5, LATENT_DIM), (LATENT_DIM,)])
def test_values_and_gradients_follow_the_formulas(dtype, shape):
    model = quantizer(CodebookLossUpdate(weight=2.0), dtype=dtype, temperature=0.8)
    z, output_grad = vectors(*shape, dtype=dtype).requires_grad_(), vectors(*shape, dtype=dtype, seed=2)
    output = model(z)
    ((output.quantized * output_grad).sum() + 0.7 * output.commitment_loss + 1.3 * output.entropy_loss).backward()

    parameters = dict(model.named_parameters())
    double = {name: parameter.detach().double().requires_grad_() for name, parameter in parameters.items()}
    flat = z.detach().double().reshape(-1, LATENT_DIM).requires_grad_()
    y = flat @ double["project_in.weight"].T + double["project_in.bias"]
    codes = double["inner.codebook.weight"]
    d = (y[:, None] - codes[None]).square().sum(dim=2)
    indices = d.argmin(dim=1)
    quantized = (y + (codes[indices] - y).detach()) @ double["project_out.weight"].T
    commitment = (y - codes[indices].detach()).square().mean() + 2 * (y.detach() - codes[indices]).square().mean()
    p = torch.softmax(-d / 0.8, dim=1).mean(dim=0)
    entropy = (p * torch.log(p + 1e-10)).sum()
    ((quantized * output_grad.double().reshape(-1, LATENT_DIM)).sum() + 0.7 * commitment + 1.3 * entropy).backward()

    assert torch.equal(output.indices, indices.reshape(shape[:-1]))
    assert output.quantized.dtype == output.commitment_loss.dtype == dtype
    for actual, expected in [
        (output.quantized, quantized.reshape(shape)),
        (output.commitment_loss, commitment),
        (output.entropy_loss, entropy),
        (z.grad, flat.grad.reshape(shape)),
        *((parameters[name].grad, double[name].grad) for name in parameters),
    ]:
        torch.testing.assert_close(actual.detach().double(), expected.detach(), **tolerances(dtype))


def test_the_gradient_is_multiplied_by_both_projections():
    model, z = quantizer(dtype=torch.float64), vectors(30, LATENT_DIM, dtype=torch.float64).requires_grad_()
    output_grad = vectors(30, LATENT_DIM, dtype=torch.float64, seed=2)
    (gradient,) = torch.autograd.grad(model(z).quantized, z, output_grad)
    torch.testing.assert_close(gradient, output_grad @ model.project_out.weight @ model.project_in.weight)


def test_half_precision_vectors_are_computed_in_float32():
    model, z = quantizer(), vectors(6, 5, LATENT_DIM, dtype=torch.bfloat16)
    output, expected = model(z), model(z.float())
    assert output.quantized.dtype == torch.bfloat16
    assert torch.equal(output.quantized, expected.quantized.bfloat16())
    assert output.commitment_loss.dtype == torch.float32
    assert torch.equal(output.commitment_loss, expected.commitment_loss)
    assert torch.equal(output.indices, expected.indices)


def test_float64_vectors_with_float32_projections_are_computed_in_float64():
    model, same = quantizer(), quantizer().double()
    z = vectors(30, LATENT_DIM, dtype=torch.float64)
    for actual, expected in zip(model(z), same(z), strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected)


def test_autocast_does_not_change_the_output():
    model, z = quantizer(), vectors(30, LATENT_DIM)
    expected = model(z)
    with torch.autocast("cpu", torch.bfloat16):
        for actual, reference in zip(model(z), expected, strict=True):
            assert actual.dtype == reference.dtype
            assert torch.equal(actual, reference)


@pytest.mark.parametrize("call", ["forward", "encode"])
def test_vectors_of_another_width_are_refused(call):
    with pytest.raises(ValueError, match=r"\(\.\.\., 6\), got \(2, 3\)"):
        getattr(quantizer(), call)(torch.zeros(2, CODE_DIM))


# Attributes, codes and statistics


def test_attributes_are_those_of_the_latents_and_the_inner_quantizer():
    model = quantizer()
    assert (model.codebook_sizes, model.dim, model.has_levels, model.supports_prefix_decoding) == (
        (K,),
        LATENT_DIM,
        False,
        False,
    )
    assert {name.split(".")[0] for name in model.state_dict()} == {"inner", "project_in", "project_out"}


def test_codes_have_the_code_width_and_decode_has_the_latent_width():
    model, z = quantizer(), vectors(2, 5, LATENT_DIM)
    assert torch.equal(model.codes, model.inner.codes)
    indices = model.encode(z)
    assert torch.equal(indices, model.inner.encode(model.project_in(z)))
    torch.testing.assert_close(model.decode(indices), model.codes[indices] @ model.project_out.weight.T)
    output = model(z)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.quantized, model.decode(indices))


def test_statistics_are_those_of_the_projected_vectors():
    model, z = quantizer(temperature=0.4), vectors(6, 5, LATENT_DIM)
    indices = model.encode(z)
    (level,), (inner_level,) = model.statistics(z, indices), model.inner.statistics(model.project_in(z), indices)
    for actual, expected in zip(level, inner_level, strict=True):
        torch.testing.assert_close(actual, expected)
    assert level.elements == 30 * CODE_DIM
    mean = level.squared_distance / level.elements
    torch.testing.assert_close(mean.float(), model(z).commitment_loss.detach())


def test_evaluate_padded_excludes_the_padding():
    model, z = quantizer().eval(), vectors(8, 5, LATENT_DIM)
    output, (level,) = model.evaluate_padded(z, 6)
    for actual, expected in zip(output, model(z[:6]), strict=True):
        torch.testing.assert_close(actual, expected)
    assert level.counts.sum() == 30


def test_projected_levels_are_separate_and_add_up():
    levels = [VectorQuantizer(K, CODE_DIM, update=EmaUpdate()) for _ in range(3)]
    with torch.no_grad():
        for level in levels:
            level.codebook.weight.normal_()
    model = quantizer(inner=ResidualQuantizer(levels))
    assert (model.codebook_sizes, model.has_levels, model.supports_prefix_decoding) == ((K, K, K), True, True)
    z = vectors(2, 5, LATENT_DIM)
    indices = model.encode(z)
    assert indices.shape == (2, 5, 3)
    assert model.codes.shape == (3, K, CODE_DIM)
    alone = [model.codes[level][indices[..., level]] @ model.project_out.weight.T for level in range(3)]
    for prefix in (1, 2, 3):
        torch.testing.assert_close(model.decode(indices[..., :prefix]), sum(alone[:prefix]))
    torch.testing.assert_close(model(z).quantized, sum(alone))
    assert len(model.statistics(z, indices)) == 3


def test_groups_share_the_output_projection():
    groups = [VectorQuantizer(K, 2, update=EmaUpdate()) for _ in range(2)]
    model = quantizer(inner=ProductQuantizer(groups))
    assert torch.equal(model.codes, torch.stack([group.codes for group in groups]))
    z = vectors(4, LATENT_DIM)
    indices = model.encode(z)
    joined = torch.cat([group.codes[indices[:, g]] for g, group in enumerate(groups)], dim=1)
    torch.testing.assert_close(model.decode(indices), joined @ model.project_out.weight.T)


def test_a_quantizer_without_a_codebook_can_be_projected():
    inner = FiniteScalarQuantizer([5, 4, 3])
    model, z = quantizer(inner=inner), vectors(2, 5, LATENT_DIM).requires_grad_()
    assert model.codebook_sizes == (60,)
    output = model(z)
    torch.testing.assert_close(output.quantized, inner.codes[output.indices] @ model.project_out.weight.T)
    output.quantized.sum().backward()
    assert z.grad.abs().sum() > 0


# State


def test_forward_changes_no_state():
    model = quantizer().train()
    before = state(model)
    model(vectors(30, LATENT_DIM))
    assert_same_state(state(model), before)


def test_update_moves_codes_to_the_means_of_projected_vectors():
    model, z = quantizer(EmaUpdate(decay=0.0)).train(), vectors(30, LATENT_DIM)
    indices = model(z).indices
    model.update()
    for k in indices.unique():
        mean = model.project_in(z[indices == k]).mean(dim=0)
        torch.testing.assert_close(model.inner.codes[k], mean.detach(), rtol=1e-4, atol=1e-5)


def test_discard_drops_the_accumulated_batch():
    model = quantizer().train()
    before = state(model)
    model(torch.full((3, LATENT_DIM), torch.nan))
    model.discard()
    model.update()
    assert_same_state(state(model), before)


def test_before_init_vectors_pass_both_projections_unquantized():
    inner = VectorQuantizer(K, CODE_DIM, update=EmaUpdate(), init=KMeansInitSettings(latents_per_code=4))
    model, z = quantizer(inner=inner).train(), vectors(20, LATENT_DIM)
    output = model(z)
    torch.testing.assert_close(output.quantized, model.project_out(model.project_in(z)))
    model.update()
    torch.testing.assert_close(inner.initializer.sample, model.project_in(z).detach())
    model.run_init()
    assert inner.initializer.done
    output = model(z)
    torch.testing.assert_close(output.quantized, model.decode(output.indices))


def test_init_codes_takes_preprocessed_vectors():
    model, z = quantizer(), vectors(200, LATENT_DIM)
    before = float(model.eval()(z).commitment_loss.detach())
    model.init_codes(model.preprocess(z))
    assert float(model(z).commitment_loss.detach()) < 0.5 * before
