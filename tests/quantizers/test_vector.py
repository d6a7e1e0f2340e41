"""Vector quantizer: output values and gradients against the formulas in float64, updates, options and settings."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool import VectorQuantizer
from vqtool.quantizers import (
    CodebookLossUpdate,
    EmaUpdate,
    EntropyOnlyUpdate,
    QuantizerOutput,
    SimVQUpdate,
    VectorQuantizerSettings,
)
from vqtool.quantizers.dead_codes import DeadCodeResetSettings

K, D = 11, 4
UPDATES = [None, EntropyOnlyUpdate(), CodebookLossUpdate(), EmaUpdate()]
COEFFICIENTS = (0.7, 1.3)


def naive(z, e, temperature=1.0):
    """Return quantized, indices, commitment_loss and entropy_loss of z (N, D), directly from the formulas."""
    d = (z[:, None, :] - e[None, :, :]).square().sum(dim=2)
    indices = d.argmin(dim=1)
    quantized = z + (e[indices] - z).detach()
    commitment_loss = (z - e[indices].detach()).square().mean()
    weights = torch.exp(-d / temperature)
    p = (weights / weights.sum(dim=1, keepdim=True)).mean(dim=0)
    return quantized, indices, commitment_loss, (p * torch.log(p + 1e-10)).sum()


def objective(output, output_grad):
    """Return a scalar that depends on every differentiable field."""
    return (output[0] * output_grad).sum() + COEFFICIENTS[0] * output[2] + COEFFICIENTS[1] * output[3]


def quantizer(update=None, temperature=1.0, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    model = VectorQuantizer(K, D, temperature, update, **options).to(dtype)
    with torch.no_grad():
        model.codebook.weight.normal_()
    return model


def vectors(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tolerances(dtype):
    return {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


def test_output_is_a_named_tuple_of_four_fields():
    output = VectorQuantizer(512, 64, temperature=1.0)(vectors(2, 5, 64))
    assert isinstance(output, QuantizerOutput)
    assert output._fields == ("quantized", "indices", "commitment_loss", "entropy_loss")
    quantized, indices, commitment_loss, entropy_loss = output
    assert quantized is output.quantized
    assert indices is output.indices
    assert commitment_loss is output.commitment_loss
    assert entropy_loss is output.entropy_loss
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30, D), (6, 5, D), (2, 3, 5, D), (D,)])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_values_and_gradients_follow_the_formulas(dtype, shape, temperature):
    model, z = quantizer(temperature=temperature, dtype=dtype), vectors(*shape, dtype=dtype).requires_grad_()
    output_grad = vectors(*shape, dtype=dtype, seed=2)
    output = model(z)
    objective(output, output_grad).backward()

    flat = z.detach().double().reshape(-1, D).requires_grad_()
    codes = model.codebook.weight.detach().double().requires_grad_()
    expected = naive(flat, codes, temperature)
    objective(expected, output_grad.double().reshape(-1, D)).backward()

    assert torch.equal(output.indices, expected[1].reshape(shape[:-1]))
    for actual, reference in [
        (output.quantized, expected[0].reshape(shape)),
        (output.commitment_loss, expected[2]),
        (output.entropy_loss, expected[3]),
        (z.grad, flat.grad.reshape(shape)),
        (model.codebook.weight.grad, codes.grad),
    ]:
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.detach().double(), reference.detach(), **tolerances(dtype))


def test_straight_through_and_commitment_gradients():
    model, z = quantizer(dtype=torch.float64), vectors(30, D, dtype=torch.float64).requires_grad_()
    output = model(z)
    output_grad = vectors(30, D, dtype=torch.float64, seed=2)
    straight_through = torch.autograd.grad(output.quantized, [z, model.codebook.weight], output_grad, allow_unused=True)
    assert torch.equal(straight_through[0], output_grad)
    assert straight_through[1] is None
    commitment = torch.autograd.grad(output.commitment_loss, [z, model.codebook.weight], allow_unused=True)
    torch.testing.assert_close(commitment[0], 2 * (z - model.codebook.weight[output.indices]) / z.numel())
    assert commitment[1] is None


def test_losses_pass_gradcheck():
    model = quantizer(dtype=torch.float64)
    z = vectors(8, D, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x).commitment_loss, [z])
    assert torch.autograd.gradcheck(lambda x: model(x).entropy_loss, [z])

    def of_codes(codes):
        return torch.func.functional_call(model, {"codebook.weight": codes}, (z.detach(),)).entropy_loss

    assert torch.autograd.gradcheck(of_codes, [model.codebook.weight.detach().requires_grad_()])


@pytest.mark.parametrize("update", UPDATES)
def test_output_does_not_depend_on_leading_axes(update):
    model, z = quantizer(update), vectors(24, D)
    flat = model(z)
    for lead in [(4, 6), (2, 3, 4), (24, 1), (1, 1, 24)]:
        output = model(z.reshape(*lead, D))
        assert output.quantized.shape == (*lead, D)
        assert torch.equal(output.quantized.reshape(24, D), flat.quantized)
        assert output.indices.shape == lead
        assert torch.equal(output.indices.reshape(24), flat.indices)
        assert torch.equal(output.commitment_loss, flat.commitment_loss)
        assert torch.equal(output.entropy_loss, flat.entropy_loss)


def test_a_transposed_view_is_quantized_along_its_last_axis():
    model, z = quantizer(), vectors(3, D, 7).transpose(1, 2)
    assert torch.equal(model(z).indices, model(z.contiguous()).indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_computed_in_float32(dtype):
    model, z = quantizer(), vectors(6, 5, D, dtype=dtype).requires_grad_()
    same = z.detach().float().requires_grad_()
    output, expected = model(z), model(same)
    assert output.commitment_loss.dtype == output.entropy_loss.dtype == torch.float32
    assert output.quantized.dtype == dtype
    assert torch.equal(output.quantized, expected.quantized.to(dtype))
    for actual, reference in zip(output[1:], expected[1:], strict=True):
        assert torch.equal(actual, reference)
    (output.commitment_loss + output.entropy_loss).backward()
    (expected.commitment_loss + expected.entropy_loss).backward()
    assert torch.equal(z.grad, same.grad.to(dtype))


def test_float64_vectors_with_float32_codes_are_computed_in_float64():
    model, z = quantizer(), vectors(30, D, dtype=torch.float64)
    output, expected = model(z), naive(z, model.codebook.weight.detach().double())
    assert output.quantized.dtype == output.commitment_loss.dtype == output.entropy_loss.dtype == torch.float64
    for actual, reference in zip(output, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("update", UPDATES)
def test_autocast_does_not_change_the_output(update):
    model, z = quantizer(update), vectors(30, D)
    expected = model(z)
    with torch.autocast("cpu", torch.bfloat16):
        for actual, reference in zip(model(z), expected, strict=True):
            assert actual.dtype == reference.dtype
            assert torch.equal(actual, reference)


def test_without_options_the_state_is_only_the_codes():
    model = VectorQuantizer(K, D)
    assert set(model.state_dict()) == {"codebook.weight"}
    assert model.state_dict()["codebook.weight"].shape == (K, D)
    assert [name for name, _ in model.named_parameters()] == ["codebook.weight"]


def test_codes_are_initialised_uniformly_within_one_over_k():
    weight = VectorQuantizer(50, 40).codebook.weight.detach() * 50
    assert -1 <= weight.min() < -0.98
    assert 0.98 < weight.max() <= 1


@pytest.mark.parametrize("update", UPDATES)
def test_forward_changes_no_state(update):
    model = quantizer(update).train()
    before = state(model)
    model(vectors(30, D))
    assert_same_state(state(model), before)


def test_update_applies_the_accumulated_batch():
    model, z = quantizer(EmaUpdate(decay=0.9)), vectors(30, D)
    indices = model(z).indices
    before = model.codebook.weight.clone()
    model.update()
    expected = before.double()
    for k in range(K):
        assigned = z[indices == k].double()
        if len(assigned):
            expected[k] = assigned.mean(dim=0)
    torch.testing.assert_close(model.codebook.weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.codebook.weight, before)


def test_ema_over_several_steps_follows_an_explicit_loop():
    model, decay = quantizer(EmaUpdate(decay=0.8, min_ema_hits=0), dtype=torch.float64), 0.8
    codes = model.codebook.weight.clone()
    codes[K - 1] = model.codebook.weight[K - 1] = 100.0  # too far away to be hit
    counts, sums = torch.zeros(K, dtype=torch.float64), torch.zeros(K, D, dtype=torch.float64)
    for seed in range(5):
        z = vectors(20, D, dtype=torch.float64, seed=seed)
        indices = naive(z, codes)[1]
        assert torch.equal(model(z).indices, indices)
        model.update()
        for k in range(K):
            assigned = z[indices == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(assigned)
            sums[k] = decay * sums[k] + (1 - decay) * assigned.sum(dim=0)
            if counts[k] > 0:
                codes[k] = sums[k] / counts[k]
        torch.testing.assert_close(model.codebook.weight, codes)
    assert torch.equal(model.codebook.weight[K - 1], torch.full((D,), 100.0, dtype=torch.float64))


def test_two_batches_before_an_update_equal_one_joint_batch():
    one, other = (quantizer(EmaUpdate(decay=0.99), temperature_unit="quantization_error") for _ in range(2))
    first, second = vectors(10, D, seed=3), vectors(14, D, seed=4)
    one(first)
    one(second)
    one.update()
    other(torch.cat([first, second]))
    other.update()
    torch.testing.assert_close(state(one), state(other))
    assert one.codebook.counts.sum() == pytest.approx(0.01 * 24)


def test_discard_drops_the_accumulated_batch():
    one, other = quantizer(EmaUpdate()), quantizer(EmaUpdate())
    one(torch.full((3, D), torch.nan))
    one.discard()
    one.update()
    assert_same_state(state(one), state(other))
    for model in (one, other):
        model(vectors(10, D))
        model.update()
    assert_same_state(state(one), state(other))


def test_evaluation_does_not_accumulate():
    model = quantizer(EmaUpdate()).eval()
    before = state(model)
    model(vectors(30, D))
    model.encode(vectors(30, D))
    model.update()
    assert_same_state(state(model), before)


def test_under_ema_the_entropy_gradient_reaches_only_the_vectors():
    model, z = quantizer(EmaUpdate(), dtype=torch.float64), vectors(30, D, dtype=torch.float64).requires_grad_()
    assert list(model.parameters()) == []
    assert not model.codebook.weight.requires_grad
    output = model(z)
    same = z.detach().requires_grad_()
    expected = naive(same, model.codebook.weight)
    torch.testing.assert_close(output.commitment_loss, expected[2])
    (actual,) = torch.autograd.grad(output.entropy_loss, [z])
    (reference,) = torch.autograd.grad(expected[3], [same])
    torch.testing.assert_close(actual, reference)


def test_backward_after_update_uses_the_codes_of_forward():
    model, z = quantizer(EmaUpdate()), vectors(30, D).requires_grad_()
    output = model(z)
    before = z.detach() - model.codebook.weight[output.indices]
    model.update()
    output.commitment_loss.backward()
    torch.testing.assert_close(z.grad, 2 * before / z.numel())


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_codebook_loss_is_part_of_the_commitment_loss(weight):
    model = quantizer(CodebookLossUpdate(weight=weight), dtype=torch.float64)
    z = vectors(30, D, dtype=torch.float64).requires_grad_()
    output = model(z)
    error = z - model.codebook.weight[output.indices]
    raw = float(error.detach().square().sum()) / z.numel()
    assert float(output.commitment_loss.detach()) == pytest.approx((1 + weight) * raw)

    output.commitment_loss.backward()
    torch.testing.assert_close(z.grad, 2 * error.detach() / z.numel())
    expected = torch.zeros(K, D, dtype=torch.float64)
    for index, difference in zip(output.indices.tolist(), error.detach(), strict=True):
        expected[index] -= weight * 2 * difference / z.numel()
    torch.testing.assert_close(model.codebook.weight.grad, expected)


def test_encode_and_decode():
    model, z = quantizer(), vectors(2, 5, D)
    indices = model.encode(z)
    assert torch.equal(indices, model(z).indices)
    decoded = model.decode(indices)
    assert decoded.shape == (2, 5, D)
    for b in range(2):
        for position in range(5):
            assert torch.equal(decoded[b, position], model.codes[indices[b, position]])
    torch.testing.assert_close(model(z).quantized, decoded)


def test_statistics_are_raw_sums():
    model, z = quantizer(CodebookLossUpdate(), temperature=0.5), vectors(6, 5, D)
    indices = model.encode(z)
    (level,) = model.statistics(z, indices)
    flat, codes = z.double().reshape(-1, D), model.codes.detach().double()
    d = (flat[:, None] - codes).square().sum(dim=2)
    weights = torch.exp(-d / 0.5)
    assert level.counts.tolist() == [indices.flatten().tolist().count(k) for k in range(K)]
    assert level.counts.dtype == torch.int64
    soft = weights / weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(level.soft_assignment, soft.sum(dim=0)[None], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(level.sample_entropy, -(soft * soft.log()).sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(level.squared_distance, d.min(dim=1).values.sum(), rtol=1e-5, atol=1e-6)
    assert level.elements == 30 * D
    assert not level.soft_assignment.requires_grad


def test_evaluate_padded_excludes_the_padding():
    model, z = quantizer(CodebookLossUpdate()).eval(), vectors(8, 5, D)
    output, (level,) = model.evaluate_padded(z, 6)
    for actual, expected in zip(output, model(z[:6]), strict=True):
        torch.testing.assert_close(actual, expected)
    for actual, expected in zip(level, model.statistics(z[:6], output.indices)[0], strict=True):
        torch.testing.assert_close(actual, expected)


def test_attributes_are_those_of_one_codebook():
    model = VectorQuantizer(K, D)
    assert (model.codebook_sizes, model.dim, model.has_levels) == ((K,), D, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), r"codebook_size=0\b.*codebook_dim=4\b.*temperature=1\.0"),
        ((8, 0), r"codebook_size=8\b.*codebook_dim=0\b"),
        ((8, 4, 0.0), r"temperature=0\.0"),
        ((8, 4, -1.0), r"temperature=-1\.0"),
        ((8, 4, float("nan")), "temperature=nan"),
    ],
)
def test_illegal_sizes_and_temperatures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(*arguments)


@pytest.mark.parametrize("call", ["forward", "encode"])
def test_vectors_of_another_width_are_refused(call):
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\), got \(2, 3, 5\)"):
        getattr(VectorQuantizer(8, 4), call)(torch.zeros(2, 3, 5))


# Unit vectors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_follows_the_formulas_for_unit_vectors(dtype):
    model = quantizer(CodebookLossUpdate(weight=2.0), 0.5, dtype, metric="cosine")
    z, output_grad = vectors(6, 5, D, dtype=dtype).requires_grad_(), vectors(6, 5, D, dtype=dtype, seed=2)
    output = model(z)
    objective(output, output_grad).backward()

    leaf = z.detach().double().reshape(-1, D).requires_grad_()
    weight = model.codebook.weight.detach().double().requires_grad_()
    flat, codes = (tensor / tensor.norm(dim=1, keepdim=True) for tensor in (leaf, weight))
    quantized, indices, commitment, entropy = naive(flat, codes, 0.5)
    commitment = commitment + 2 * (flat.detach() - codes[indices]).square().mean()
    objective((quantized, indices, commitment, entropy), output_grad.double().reshape(-1, D)).backward()

    assert torch.equal(output.indices.flatten(), indices)
    assert torch.equal(indices, (flat @ codes.T).argmax(dim=1))
    for actual, reference in [
        (output.quantized.reshape(-1, D), quantized),
        (output.commitment_loss, commitment),
        (output.entropy_loss, entropy),
        (z.grad.reshape(-1, D), leaf.grad),
        (model.codebook.weight.grad, weight.grad),
    ]:
        torch.testing.assert_close(actual.detach().double(), reference.detach(), **tolerances(dtype))


@pytest.mark.parametrize("update", [CodebookLossUpdate(), EmaUpdate(), SimVQUpdate()])
def test_under_cosine_the_output_does_not_depend_on_norms(update):
    torch.manual_seed(0)
    model, z = VectorQuantizer(K, D, update=update, metric="cosine"), vectors(6, 5, D)
    torch.testing.assert_close(model.codes.norm(dim=1), torch.ones(K))
    output = model(z)
    torch.testing.assert_close(output.quantized.norm(dim=-1), torch.ones(6, 5))
    torch.testing.assert_close(model.decode(output.indices), output.quantized)
    longer = model(100 * z)
    for actual, expected in zip(longer, output, strict=True):
        torch.testing.assert_close(actual, expected)
    assert torch.equal(model.encode(z), output.indices)
    (level,) = model.statistics(z, output.indices)
    unit = F.normalize(z, dim=-1)
    expected = (unit - model.codes[output.indices]).double().square().sum()
    torch.testing.assert_close(level.squared_distance, expected.detach(), rtol=1e-5, atol=1e-6)


def test_under_cosine_ema_averages_unit_vectors():
    model, z = quantizer(EmaUpdate(decay=0.5), metric="cosine"), 5 * vectors(30, D)
    indices = model(z).indices
    model.update()
    for k in indices.unique():
        mean = F.normalize(z[indices == k], dim=1).mean(dim=0)
        torch.testing.assert_close(model.codebook.weight[k], mean)
        torch.testing.assert_close(model.codes[k], mean / mean.norm())


def test_under_cosine_a_zero_vector_gives_finite_output_and_gradient():
    model, z = quantizer(EmaUpdate(), metric="cosine"), torch.zeros(3, D, requires_grad=True)
    output = model(z)
    (output.quantized.sum() + output.commitment_loss + output.entropy_loss).backward()
    assert all(tensor.isfinite().all() for tensor in (*output, z.grad))


# Temperature and sample_entropy_weight


@pytest.mark.parametrize("sample_entropy_weight", [0.0, 0.5])
def test_temperature_in_units_of_the_quantization_error(sample_entropy_weight):
    model, z = (
        quantizer(EmaUpdate(), 0.7, temperature_unit="quantization_error", sample_entropy_weight=sample_entropy_weight),
        vectors(30, D),
    )
    same = quantizer(EmaUpdate(), 0.7, sample_entropy_weight=sample_entropy_weight)
    assert torch.equal(model(z).entropy_loss, same(z).entropy_loss)  # the scale is 1 before the first update
    error = float(model(z).commitment_loss)
    model.discard()
    model(z)
    model.update()
    assert float(model.error_scale()) == pytest.approx(error, rel=1e-5)
    absolute = quantizer(EmaUpdate(), 0.7 * error, sample_entropy_weight=sample_entropy_weight)
    absolute.codebook.load_state_dict(model.codebook.state_dict())
    torch.testing.assert_close(model(z).entropy_loss, absolute(z).entropy_loss)
    (actual,), (expected,) = (module.statistics(z, module.encode(z)) for module in (model, absolute))
    torch.testing.assert_close(actual.soft_assignment, expected.soft_assignment)
    torch.testing.assert_close(actual.sample_entropy, expected.sample_entropy)


@pytest.mark.parametrize("update", [CodebookLossUpdate(), EmaUpdate()])
def test_temperature_unit_quantization_error_is_scale_invariant(update):
    models = [
        quantizer(update, 2.0, temperature_unit="quantization_error", sample_entropy_weight=0.5) for _ in range(2)
    ]
    with torch.no_grad():
        models[1].codebook.weight *= 1000
    losses = []
    for model, scale in zip(models, (1, 1000), strict=True):
        for seed in range(3):
            model(scale * vectors(30, D, seed=seed))
            model.update()
        z = (scale * vectors(30, D, seed=9)).requires_grad_()
        loss = model(z).entropy_loss
        losses.append((loss.detach(), scale * torch.autograd.grad(loss, z)[0]))
    for actual, expected in zip(losses[1], losses[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    absolute = [quantizer(update, 2.0)(scale * vectors(30, D)).entropy_loss.detach() for scale in (1, 1000)]
    assert abs(absolute[1] - absolute[0]) > 0.1


def test_the_error_scale_changes_only_in_training_updates():
    model = quantizer(EmaUpdate(), temperature_unit="quantization_error")
    assert {"error_scale.error", "error_scale.weight"} <= set(model.state_dict())
    before = state(model)
    model(vectors(30, D))
    assert_same_state(state(model), before)
    model.discard()
    model.update()
    assert_same_state(state(model), before)
    model.eval()(vectors(30, D))
    model.update()
    assert_same_state(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_entropy_is_part_of_the_entropy_loss(dtype):
    model, z = (
        quantizer(temperature=0.6, dtype=dtype, sample_entropy_weight=0.4),
        vectors(30, D, dtype=dtype).requires_grad_(),
    )
    output = model(z)
    output.entropy_loss.backward()
    flat = z.detach().double().requires_grad_()
    codes = model.codebook.weight.detach().double().requires_grad_()
    soft = torch.softmax(-(flat[:, None] - codes).square().sum(dim=2) / 0.6, dim=1)
    loss = naive(flat, codes, 0.6)[3] - 0.4 * (soft * soft.log()).sum(dim=1).mean()
    loss.backward()
    for actual, expected in [
        (output.entropy_loss.detach(), loss.detach()),
        (z.grad, flat.grad),
        (model.codebook.weight.grad, codes.grad),
    ]:
        torch.testing.assert_close(actual.double(), expected, **tolerances(dtype))
    without = quantizer(temperature=0.6, dtype=dtype)(z)
    assert torch.equal(output.commitment_loss, without.commitment_loss)


@pytest.mark.parametrize("update", UPDATES)
def test_skip_entropy_loss_does_not_compute_it(update, monkeypatch):
    model, other = (quantizer(update, sample_entropy_weight=0.4) for _ in range(2))
    z = vectors(30, D)
    expected, levels = model(z), model.statistics(z, model.encode(z))
    other.skip_entropy_loss()
    with monkeypatch.context() as patch:
        patch.setattr("vqtool.quantizers.vector.entropy_loss", None)
        output = other(z)
    assert float(output.entropy_loss) == 0
    assert not output.entropy_loss.requires_grad
    for actual, reference in zip(output[:3], expected[:3], strict=True):
        assert torch.equal(actual, reference)
    for actual, reference in zip(other.statistics(z, other.encode(z))[0], levels[0], strict=True):
        assert torch.equal(actual, reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "metric: .*manhattan"),
        ({"gradient_estimator": "none"}, "gradient_estimator: .*none"),
        ({"unquantized_fraction": -0.1}, "unquantized_fraction: "),
        ({"unquantized_fraction": 1.1}, "unquantized_fraction: "),
        ({"sample_entropy_weight": -0.1}, "sample_entropy_weight: "),
        ({"sample_entropy_weight": float("nan")}, "sample_entropy_weight: "),
    ],
)
def test_illegal_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(K, D, **options)


# Settings


INIT_NAMES = {"initializer.done", "initializer.sample"}
RESET_NAMES = {"dead_code_reset.hits", "dead_code_reset.dead"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"update": EntropyOnlyUpdate()}, {"codebook.weight"}),
        ({"update": CodebookLossUpdate()}, {"codebook.weight"}),
        ({"update": SimVQUpdate()}, {"codebook.basis", "codebook.transform"}),
        ({"update": EmaUpdate()}, {"codebook.weight", "codebook.counts", "codebook.sums"}),
        (
            {"update": EntropyOnlyUpdate(), "dead_code_reset": DeadCodeResetSettings()},
            {"codebook.weight", *RESET_NAMES},
        ),
        (
            {"update": EntropyOnlyUpdate(), "temperature_unit": "quantization_error"},
            {"codebook.weight", "error_scale.error", "error_scale.weight"},
        ),
    ],
)
@pytest.mark.parametrize("init", ["random", "kmeans"])
def test_settings_determine_the_state_dict(options, names, init):
    options = {"dead_code_reset": None, "init": {"kind": init}, **options}
    settings = VectorQuantizerSettings(codebook_size=9, temperature=0.3, **options)
    model = settings.resolve(7).build()
    assert set(model.state_dict()) == names | (INIT_NAMES if init == "kmeans" else set())
    assert model.codes.shape == (9, 7)
    assert model.temperature == 0.3


def test_settings_reach_the_quantizer():
    options = {"metric": "cosine", "gradient_estimator": "rotation", "sample_entropy_weight": 0.25}
    model = VectorQuantizerSettings(**options).resolve(7).build()
    assert (model.metric, model.gradient_estimator, model.sample_entropy_weight) == ("cosine", "rotation", 0.25)


def test_auto_codebook_dim_resolves_to_the_encoder_width():
    assert VectorQuantizerSettings().resolve(7).codebook_dim == 7
    assert VectorQuantizerSettings(codebook_dim=5).resolve(7).codebook_dim == 5
    assert VectorQuantizerSettings(codebook_dim=5).dim(7) == 5
    assert VectorQuantizerSettings().dim(7) == 7


def test_a_level_of_a_residual_quantizer_has_no_initializer():
    assert VectorQuantizerSettings().resolve(7).build_level(1).initializer is None


def test_update_settings_are_selected_by_kind():
    settings = VectorQuantizerSettings.model_validate({"update": {"kind": "ema", "decay": 0.5}})
    assert settings.update == EmaUpdate(decay=0.5)
    with pytest.raises(ValidationError, match="decay"):
        VectorQuantizerSettings.model_validate({"update": {"kind": "codebook_loss", "decay": 0.5}})


@pytest.mark.parametrize("update", UPDATES[1:])
def test_an_update_with_a_non_finite_step_changes_no_state(update):
    model = quantizer(
        update,
        temperature_unit="quantization_error",
        dead_code_reset=DeadCodeResetSettings(window_hits=1, min_hits=1),
    )
    for step in range(3):
        model(vectors(2, 20, D, seed=step))
        model.update(torch.tensor(True))
    before = state(model)
    for bad in (vectors(2, 20, D), torch.full((2, 20, D), torch.nan), 1e30 * vectors(2, 20, D)):
        model(bad)
        model.update(torch.tensor(False))
        assert_same_state(state(model), before)


@pytest.mark.parametrize("update", UPDATES[1:])
def test_an_update_with_a_finite_step_equals_an_update_by_default(update):
    first, second = (
        quantizer(update, temperature_unit="quantization_error", dead_code_reset=DeadCodeResetSettings(window_hits=1))
        for _ in range(2)
    )
    for step in range(4):
        first(vectors(2, 20, D, seed=step))
        first.update()
        second(vectors(2, 20, D, seed=step))
        second.update(torch.tensor(True))
    assert_same_state(state(first), state(second))
