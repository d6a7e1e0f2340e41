"""Residual quantization: values, gradients, updates and initialisation of the levels, against loops in float64."""

import itertools
import re

import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool.quantizers import ResidualQuantizer, VectorQuantizer, kmeans
from vqtool.quantizers.residual import ResidualQuantizerSettings

K, D, Q = 6, 4, 3
VECTOR = {"kind": "vector", "codebook_size": K, "codebook_dim": D, "init": {"kind": "random"}, "dead_code_reset": None}
UPDATES = ["entropy_only", "codebook_loss", "simvq", "ema"]
INNER = {
    **{name: {**VECTOR, "update": {"kind": name}} for name in UPDATES},
    "fsq": {"kind": "fsq", "levels": [3, 5, 4, 3]},
    "lfq": {"kind": "lfq", "bits": D},
    "bsq": {"kind": "bsq", "bits": D},
}


def build(inner, seed=0, **options):
    """Return a quantizer of Q levels whose codes have the magnitude of each level's residuals."""
    inner = INNER[inner] if isinstance(inner, str) else inner
    torch.manual_seed(seed)
    model = ResidualQuantizerSettings.model_validate({"levels": Q, "quantizer": inner, **options}).build()
    with torch.no_grad():
        for q, level in enumerate(model.levels):
            if isinstance(level, VectorQuantizer):
                codes = torch.randn(K, D) * 0.7**q
                level.codebook.replace(torch.ones(K, dtype=torch.bool), codes)
    return model


def vectors(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def greedy(z, codebooks):
    """Return indices (N, Q) and residuals (Q + 1, N, D) of z (N, D), from an explicit loop in float64."""
    indices, residuals = [], [z.double()]
    for codes in codebooks.detach().double():
        nearest = [int((vector - codes).square().sum(dim=1).argmin()) for vector in residuals[-1]]
        indices.append(nearest)
        residuals.append(residuals[-1] - codes[nearest])
    return torch.tensor(indices).T, torch.stack(residuals)


def entropy_from_formula(z, codes):
    weights = torch.exp(-(z[:, None] - codes).square().sum(dim=2))
    p = (weights / weights.sum(dim=1, keepdim=True)).mean(dim=0)
    return (p * torch.log(p + 1e-10)).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(30,), (6, 5), (2, 3, 5), ()])
def test_values_follow_an_explicit_loop(shape, dtype):
    model, z = build("entropy_only").to(dtype), vectors(*shape, D, dtype=dtype)
    output = model(z)
    indices, residuals = greedy(z.reshape(-1, D), model.codes)
    assert output.indices.shape == (*shape, Q)
    assert output.indices.dtype == torch.int64
    assert torch.equal(output.indices.reshape(-1, Q), indices)
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    expected = (residuals[0] - residuals[-1]).reshape(z.shape)
    torch.testing.assert_close(output.quantized.detach().double(), expected, **close)
    # Losses are averaged over levels.
    commitment = residuals[1:].square().mean()
    torch.testing.assert_close(output.commitment_loss.detach().double(), commitment, **close)
    codebooks = model.codes.detach().double()
    entropy = (
        sum(entropy_from_formula(residual, codes) for residual, codes in zip(residuals, codebooks, strict=False)) / Q
    )
    torch.testing.assert_close(output.entropy_loss.detach().double(), entropy, **close)


def test_loss_gradients_follow_the_formulas():
    inner = {**VECTOR, "update": {"kind": "codebook_loss", "weight": 4.0}}
    model, z = build(inner).double(), vectors(30, D, dtype=torch.float64).requires_grad_()
    output = model(z)
    weights = [level.codebook.weight for level in model.levels]
    gradients = torch.autograd.grad(output.commitment_loss + output.entropy_loss, [z, *weights])

    same = z.detach().requires_grad_()
    codebooks = [weight.detach().requires_grad_() for weight in weights]
    loss, residual = 0.0, same
    for codes, chosen in zip(codebooks, output.indices.T, strict=True):
        e = codes[chosen]
        loss = loss + (residual - e.detach()).square().mean() + 4 * (residual.detach() - e).square().mean()
        loss = loss + entropy_from_formula(residual, codes)
        residual = residual - e.detach()
    reference = torch.autograd.grad(loss / Q, [same, *codebooks])
    for actual, expected in zip(gradients, reference, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("inner", [*UPDATES, "lfq"])
@pytest.mark.parametrize("options", [{}, {"level_dropout": 1.0}])
def test_straight_through_copies_the_gradient(inner, options):
    model, z = build(inner, **options).train(), vectors(8, 5, D).requires_grad_()
    output_grad = vectors(8, 5, D, seed=2)
    (actual,) = torch.autograd.grad(model(z).quantized, [z], output_grad)
    assert torch.equal(actual, output_grad)


def test_rotation_estimator_is_applied_to_the_sum_of_levels():
    model = build({**INNER["ema"], "gradient_estimator": "rotation"}).double()
    z = vectors(20, D, dtype=torch.float64).requires_grad_()
    output, output_grad = model(z), vectors(20, D, dtype=torch.float64, seed=2)
    torch.testing.assert_close(output.quantized.detach(), model.decode(output.indices))
    (actual,) = torch.autograd.grad(output.quantized, [z], output_grad)
    for n in range(20):
        e, start = output.quantized[n].detach(), z[n].detach()
        middle = torch.nn.functional.normalize(start / start.norm() + e / e.norm(), dim=0)
        turn = (
            torch.eye(D).double()
            - 2 * torch.outer(middle, middle)
            + 2 * torch.outer(e, start) / e.norm() / start.norm()
        )
        torch.testing.assert_close(actual[n], e.norm() / start.norm() * turn.T @ output_grad[n])


@pytest.mark.parametrize("inner", INNER)
def test_forward_encode_decode_and_statistics_agree(inner):
    model, z = build(inner), vectors(6, 5, D)
    output = model.train()(z)
    indices = model.encode(z)
    assert indices.shape == (6, 5, Q)
    assert torch.equal(output.indices, indices)
    for evaluated, trained in zip(model.eval()(z), output, strict=True):
        torch.testing.assert_close(evaluated, trained)
    torch.testing.assert_close(output.quantized, model.decode(indices))
    for q, size in enumerate(model.codebook_sizes):
        assert 0 <= indices[..., q].min() <= indices[..., q].max() < size
    error = model.statistics(z, indices)[-1].squared_distance
    residual = (model.preprocess(z) - model.decode(indices)).square().sum()
    torch.testing.assert_close(error, residual.detach().double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("inner", INNER)
def test_statistics_are_those_of_each_level_over_its_residuals(inner):
    model, z = build(inner), vectors(6, 5, D)
    indices = model.encode(z)
    levels = model.statistics(z, indices)
    assert len(levels) == Q
    residual = model.preprocess(z).reshape(-1, D)
    for q, (level, statistics) in enumerate(zip(model.levels, levels, strict=True)):
        indices_q = indices[..., q].flatten()
        (reference,) = level.level_statistics(residual, indices_q)
        for actual, expected in zip(statistics, reference, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert statistics.counts.tolist() == [indices_q.tolist().count(k) for k in range(model.codebook_sizes[q])]
        residual = residual - level.codes[indices_q].detach()
        torch.testing.assert_close(statistics.squared_distance, residual.square().sum().double(), rtol=1e-4, atol=1e-6)
        assert int(statistics.elements) == z.numel()


@pytest.mark.parametrize("inner", INNER)
def test_statistics_of_batches_add_up(inner):
    model, z = build(inner), vectors(10, 5, D)
    joint = model.statistics(z, model.encode(z))
    parts = [model.statistics(part, model.encode(part)) for part in z.split([3, 7])]
    for q in range(Q):
        for name, expected in joint[q]._asdict().items():
            torch.testing.assert_close(sum(getattr(part[q], name) for part in parts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", INNER)
def test_evaluate_padded_excludes_the_padding(inner):
    model, z = build(inner).eval(), vectors(6, 5, D)
    output, levels = model.evaluate_padded(z, 4)
    for actual, expected in zip(output, model(z[:4]), strict=True):
        torch.testing.assert_close(actual, expected.detach())
    assert [int(level.counts.sum()) for level in levels] == [20] * Q


@pytest.mark.parametrize("inner", INNER)
def test_prefix_decoding_is_the_sum_of_the_first_codes(inner):
    model = build(inner)
    indices = model.encode(vectors(7, D))
    assert model.supports_prefix_decoding
    for levels in range(1, Q + 1):
        expected = sum(model.codes[q][indices[:, q]] for q in range(levels))
        torch.testing.assert_close(model.decode(indices[:, :levels]), expected)


def test_attributes_list_all_levels():
    model = build("ema")
    assert (model.codebook_sizes, model.dim, model.has_levels, model.codes.shape) == ((K,) * Q, D, True, (Q, K, D))


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("options", [{}, {"level_dropout": 0.5}])
def test_forward_changes_no_state(inner, options):
    model = build(
        {**INNER[inner], "dead_code_reset": {"window_hits": 1}} if inner in UPDATES else inner, **options
    ).train()
    before = state(model)
    output = model(vectors(30, D))
    model.encode(vectors(30, D))
    assert_same_state(state(model), before)
    parameters = list(model.parameters())
    if parameters:
        (output.quantized.sum() + output.commitment_loss + output.entropy_loss).backward()
        assert all(parameter.grad.isfinite().all() for parameter in parameters)
        assert all(parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert_same_state(state(model), before)


def test_update_moves_codes_to_the_means_of_their_residuals():
    model, z = build("ema").train(), vectors(60, D)
    before = model.codes.clone()
    indices, residuals = greedy(z, before)
    model(z[:20])
    model(z[20:])
    model.update()
    for q, k in itertools.product(range(Q), range(K)):
        assigned = residuals[q][indices[:, q] == k]
        expected = assigned.mean(dim=0) if len(assigned) else before[q, k].double()
        torch.testing.assert_close(model.codes[q, k].double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(model.codes, before)


def test_discard_drops_the_accumulated_batch():
    inner = {**INNER["ema"], "dead_code_reset": {"window_hits": 1}, "temperature_unit": "quantization_error"}
    one, other = build(inner).train(), build(inner).train()
    one(vectors(30, D, seed=7))
    one.discard()
    one.update()
    assert_same_state(state(one), state(other))
    for model in (one, other):
        model(vectors(30, D))
        model.update()
    assert_same_state(state(one), state(other))


def test_evaluation_does_not_accumulate():
    model = build({**INNER["ema"], "dead_code_reset": {"window_hits": 1}}).eval()
    before = state(model)
    model(vectors(30, D))
    model.update()
    assert_same_state(state(model), before)


def test_a_shared_codebook_is_updated_by_all_levels():
    model = build({**VECTOR, "update": {"kind": "ema", "decay": 0.99}}, shared=True).train()
    assert set(state(model)) == {"levels.0.codebook." + name for name in ("weight", "counts", "sums")}
    assert model.codebook_sizes == (K,) * Q
    z, codes = vectors(50, D), model.levels[0].codes.clone()
    assert torch.equal(model.codes, codes.expand(Q, K, D))
    indices, residuals = greedy(z, model.codes)
    output = model(z)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(model.decode(indices), codes[indices].sum(dim=1))
    model.update()
    for k in range(K):
        assigned = torch.cat([residuals[q][indices[:, q] == k] for q in range(Q)])
        expected = assigned.mean(dim=0) if len(assigned) else codes[k].double()
        torch.testing.assert_close(model.levels[0].codes[k].double(), expected, rtol=1e-5, atol=1e-5)
    assert model.levels[0].codebook.counts.sum() == pytest.approx(0.01 * 50 * Q, rel=1e-5)


def test_level_dropout_keeps_the_first_levels_of_some_samples():
    model, z = build("ema", level_dropout=0.5).train(), vectors(12, 5, D)
    indices = model.encode(z)
    output = model(z)
    assert torch.equal(output.indices, indices)
    num_levels = [Q] * 6 + [3, 2, 1, 3, 2, 1]  # the last half of the samples, from the last on
    for b, levels in enumerate(num_levels):
        torch.testing.assert_close(output.quantized[b], model.decode(indices[b, :, :levels]))
    assert torch.equal(model(z).quantized, output.quantized)
    # Losses and updates use all levels of all samples.
    plain = build("ema").train()
    torch.testing.assert_close(plain(z).commitment_loss, output.commitment_loss)
    model.discard()
    plain.discard()
    for quantizer in (model, plain):
        quantizer(z)
        quantizer.update()
    assert_same_state(state(model), state(plain))


@pytest.mark.parametrize(("dropout", "truncated"), [(0.0, 0), (0.25, 2), (1.0, 7)])
def test_level_dropout_is_the_fraction_of_samples(dropout, truncated):
    model, z = build("ema", level_dropout=dropout).train(), vectors(10, 5, D)
    all_levels = model.decode(model.encode(z))
    # Every third of these samples keeps all levels.
    assert int((~torch.isclose(model(z).quantized, all_levels, atol=1e-5).flatten(1).all(dim=1)).sum()) == truncated


def test_level_dropout_and_unquantized_fraction_use_different_samples():
    model, z = build({**INNER["ema"], "unquantized_fraction": 0.25}, level_dropout=0.75).train(), vectors(8, 5, D)
    indices, actual = model.encode(z), model(z).quantized
    assert torch.equal(actual[:2], z[:2])
    for b, levels in enumerate([3, 2, 1, 3, 2, 1], start=2):
        torch.testing.assert_close(actual[b], model.decode(indices[b, :, :levels]))


def test_level_dropout_applies_in_training_only():
    model, z = build("ema", level_dropout=1.0).eval(), vectors(12, 5, D)
    torch.testing.assert_close(model(z).quantized, model.decode(model.encode(z)))


def with_kmeans_init(vectors_per_code=10, **options):
    return build_for_training({**VECTOR, "init": {"kind": "kmeans", "latents_per_code": vectors_per_code}}, **options)


def build_for_training(inner, **options):
    torch.manual_seed(0)
    return ResidualQuantizerSettings.model_validate({"levels": Q, "quantizer": inner, **options}).build().train()


def test_levels_are_initialised_one_after_the_other():
    update = {"update": {"kind": "ema", "decay": 0.99}}
    model = build_for_training({**VECTOR, **update, "init": {"kind": "kmeans", "latents_per_code": 10}})
    batches = [vectors(25, D, seed=seed) for seed in range(3)]
    codes = model.codes.clone()
    for step, z in enumerate(batches):
        output = model(z)
        assert torch.equal(output.quantized, z)
        assert float(output.commitment_loss) == float(output.entropy_loss) == 0
        assert output.indices.shape == (25, Q)
        assert not bool(model.initializer.done)
        assert torch.equal(model.codes, codes)
        assert len(model.initializer.sample) == 25 * step
        model.update()
    assert bool(model.initializer.done)
    assert model.initializer.sample.shape == (0, D)
    residual = torch.cat(batches)[-10 * K :]
    for level in model.levels:
        expected = kmeans(residual, K, torch.Generator().manual_seed(0))
        assert torch.equal(level.codes, expected)
        indices_q = level.encode(residual)
        hits = torch.bincount(indices_q, minlength=K)
        torch.testing.assert_close(level.codebook.counts, 0.01 * hits)
        residual = residual - expected[indices_q]
    output = model(batches[0])
    assert torch.equal(output.indices, greedy(batches[0], model.codes)[0])
    assert float(output.commitment_loss) > 0


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"beam_size": 3}])
def test_after_init_the_error_decreases_with_every_level(options):
    model, z = with_kmeans_init(**options), vectors(80, D)
    model(z)
    model.update()
    indices = model.eval().encode(z)
    errors = [float((z - model.decode(indices[:, :levels])).square().mean()) for levels in range(1, Q + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("options", [{}, {"shared": True}])
def test_init_continues_after_loading_the_state_dict(update, options):
    inner = {**VECTOR, "init": {"kind": "kmeans", "latents_per_code": 10}, "update": {"kind": update}}
    inner["dead_code_reset"] = {"window_hits": 3}
    batches = [vectors(25, D, seed=seed) for seed in range(5)]
    for stop in range(1, 5):
        one, other = build_for_training(inner, **options), build_for_training(inner, **options)
        for step, z in enumerate(batches):
            if step == stop:
                other.load_state_dict(state(one))
            for model in [one, other] if step >= stop else [one]:
                model(z)
                model.update()
        assert_same_state(state(one), state(other))
        assert bool(one.initializer.done)


def test_loaded_initialised_codes_are_not_initialised_again():
    one, other = with_kmeans_init(), with_kmeans_init()
    one(vectors(70, D))
    one.update()
    other.load_state_dict(state(one))
    before = state(other)
    for model in (one, other):
        assert model(vectors(70, D, seed=2)).commitment_loss > 0
        model.discard()
        model.run_init()
    assert_same_state(state(other), before)


def test_run_init_uses_an_incomplete_sample():
    model, z = with_kmeans_init(vectors_per_code=1000), vectors(30, D)
    model.run_init()
    assert not bool(model.initializer.done)
    model(z)
    model.update()
    model.run_init()
    assert bool(model.initializer.done)
    assert torch.equal(model.levels[0].codes, kmeans(z, K, torch.Generator().manual_seed(0)))


def test_a_discarded_batch_is_not_in_the_sample():
    model = with_kmeans_init()
    model(torch.full((30, D), torch.nan))
    model.discard()
    model.update()
    assert model.initializer.sample.shape == (0, D)


def test_in_evaluation_codes_quantize_before_init():
    model, z = with_kmeans_init().eval(), vectors(20, D)
    output = model(z)
    torch.testing.assert_close(output.quantized, model.decode(output.indices))
    model.update()
    assert model.initializer.sample.shape == (0, D)


def test_one_level_equals_the_inner_quantizer():
    torch.manual_seed(0)
    alone = VectorQuantizer(K, D)
    model, z = ResidualQuantizer([alone]), vectors(9, D)
    expected, output = alone(z), model(z)
    assert torch.equal(output.indices, expected.indices[:, None])
    for name in ("quantized", "commitment_loss", "entropy_loss"):
        torch.testing.assert_close(getattr(output, name), getattr(expected, name))


@pytest.mark.parametrize("widths", [[], [3, 4]])
def test_levels_of_different_widths_are_refused(widths):
    with pytest.raises(ValueError, match=rf"level.* width, got {re.escape(str(widths))}$"):
        ResidualQuantizer([VectorQuantizer(4, width) for width in widths])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"quantizer": INNER[kind], "beam_size": 2}, "beam_size: .*quantizer.kind: vector")
            for kind in ("fsq", "lfq", "bsq")
        ),
        *(({"quantizer": INNER[kind], "shared": True}, f"{kind} has no codebook") for kind in ("fsq", "lfq", "bsq")),
        ({"quantizer": {**VECTOR, "metric": "cosine"}}, r"quantizer\.metric: .* euclidean"),
        (
            {"quantizer": {**VECTOR, "assignment": {"kind": "sinkhorn"}}, "beam_size": 2},
            r"quantizer\.assignment: sinkhorn .* beam_size",
        ),
        ({"quantizer": {"kind": "residual"}}, "quantizer"),
        ({"quantizer": {"kind": "product"}}, "quantizer"),
        ({"levels": 0}, "levels"),
        ({"beam_size": 0}, "beam"),
        ({"level_dropout": 1.5}, "dropout"),
        ({"level_dropout": -0.1}, "dropout"),
    ],
)
def test_illegal_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ResidualQuantizerSettings.model_validate(settings)


def test_sinkhorn_assignment_applies_in_training_only():
    model = build({**INNER["ema"], "assignment": {"kind": "sinkhorn"}})
    z = vectors(60, D) * 0.3 + 1  # near only a few codes of the first level
    nearest = model.encode(z)
    assert len(set(nearest[:, 0].tolist())) < K
    assert torch.equal(model.eval()(z).indices, nearest)
    output = model.train()(z)
    assert torch.bincount(output.indices[:, 0], minlength=K).min() >= 5
    torch.testing.assert_close(output.quantized, model.decode(output.indices))


def test_settings_resolve_auto_codebook_dim():
    settings = ResidualQuantizerSettings.model_validate(
        {"levels": 2, "quantizer": {"kind": "vector", "codebook_size": 5}}
    )
    assert settings.dim(7) == 7
    resolved = settings.resolve(7)
    assert resolved.quantizer.codebook_dim == 7
    assert resolved.build().codes.shape == (2, 5, 7)
    assert list(settings.updates) == ["quantizer.update"]
