"""Product quantization: each group equals a separate quantizer of the group's dimensions."""

import pytest
import torch
from pydantic import ValidationError

from tests.quantizers import assert_same_state, state
from vqtool.errors import ConfigError
from vqtool.quantizers import LookupFreeQuantizer, ProductQuantizer, ResidualQuantizer, VectorQuantizer
from vqtool.quantizers.product import ProductQuantizerSettings

G, W = 3, 4
VECTOR_OF_ANY_WIDTH = {"kind": "vector", "codebook_size": 5}
ANY_WIDTH = [VECTOR_OF_ANY_WIDTH, {"kind": "residual", "quantizer": VECTOR_OF_ANY_WIDTH}]
VECTOR = {"kind": "vector", "codebook_size": 6, "codebook_dim": W, "init": {"kind": "random"}}
INNER = {
    **{name: {**VECTOR, "update": {"kind": name}} for name in ("entropy_only", "codebook_loss", "simvq", "ema")},
    "cosine": {**VECTOR, "metric": "cosine"},
    "rotation": {**VECTOR, "gradient_estimator": "rotation"},
    "fsq": {"kind": "fsq", "levels": [3, 5, 4, 3]},
    "lfq": {"kind": "lfq", "bits": W},
    "bsq": {"kind": "bsq", "bits": W},
    "residual": {"kind": "residual", "levels": 2, "quantizer": VECTOR},
    "kmeans_init": {**VECTOR, "init": {"kind": "kmeans", "latents_per_code": 5}},
}


def build(inner, seed=0):
    torch.manual_seed(seed)
    return ProductQuantizerSettings.model_validate({"groups": G, "quantizer": INNER[inner]}).build().train()


def separate_quantizers(model, inner):
    """Return separate quantizers with the state of the model's groups."""
    groups = build(inner, seed=1).groups
    groups.load_state_dict(state(model.groups))
    return list(groups)


def vectors(*shape, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def joint_index(indices):
    """Return the concatenated indices (..., Q) of the groups."""
    return torch.cat([part if part.ndim == 3 else part[..., None] for part in indices], dim=-1)


@pytest.mark.parametrize("inner", INNER)
def test_training_steps_equal_those_of_separate_quantizers(inner):
    model = build(inner)
    groups = separate_quantizers(model, inner)
    for seed in range(4):  # several steps, so that updates are compared, too
        z = vectors(5, 8, G * W, seed=seed).requires_grad_()
        same = z.detach().requires_grad_()
        parts = same.split(W, dim=-1)
        output = model(z)
        outputs = [group(part) for group, part in zip(groups, parts, strict=True)]
        assert torch.equal(output.quantized, torch.cat([group_output.quantized for group_output in outputs], dim=-1))
        assert torch.equal(output.indices, joint_index([group_output.indices for group_output in outputs]))
        commitment = sum(group_output.commitment_loss for group_output in outputs) / G
        entropy = sum(group_output.entropy_loss for group_output in outputs) / G
        torch.testing.assert_close(output.commitment_loss, commitment)
        torch.testing.assert_close(output.entropy_loss, entropy)
        output_grad = vectors(5, 8, G * W, seed=9)
        loss = (output.quantized * output_grad).sum() + output.commitment_loss + 2 * output.entropy_loss
        quantized = torch.cat([group_output.quantized for group_output in outputs], dim=-1)
        ((quantized * output_grad).sum() + commitment + 2 * entropy).backward()
        loss.backward()
        torch.testing.assert_close(z.grad, same.grad)
        model.update()
        for group in groups:
            group.update()
        for actual, expected in zip(model.groups, groups, strict=True):
            assert_same_state(state(actual), state(expected))


@pytest.mark.parametrize("inner", INNER)
def test_encode_decode_and_statistics_equal_those_of_separate_quantizers(inner):
    model, z = build(inner), vectors(5, 8, G * W)
    groups, parts = separate_quantizers(model, inner), z.split(W, dim=-1)
    indices = model.encode(z)
    group_indices = [group.encode(part) for group, part in zip(groups, parts, strict=True)]
    assert torch.equal(indices, joint_index(group_indices))
    decoded = torch.cat([group.decode(part) for group, part in zip(groups, group_indices, strict=True)], dim=-1)
    assert torch.equal(model.decode(indices), decoded)
    assert torch.equal(model.decode(indices[2, 3]), decoded[2, 3])
    levels = model.statistics(z, indices)
    reference = [
        level for group, *part in zip(groups, parts, group_indices, strict=True) for level in group.statistics(*part)
    ]
    assert len(levels) == len(reference) == len(model.codebook_sizes) == indices.shape[-1]
    for level, reference_level in zip(levels, reference, strict=True):
        for actual, expected in zip(level, reference_level, strict=True):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("inner", INNER)
def test_a_group_depends_only_on_its_own_dimensions(inner):
    model = build(inner).eval()
    z = vectors(5, 8, G * W)
    other = z.clone()
    other[..., W : 2 * W] = vectors(5, 8, W, seed=5)
    first, second = model(z), model(other)
    levels = first.indices.shape[-1] // G
    for actual, expected, width in ((second.quantized, first.quantized, W), (second.indices, first.indices, levels)):
        changed = [
            not torch.equal(*pair) for pair in zip(actual.split(width, -1), expected.split(width, -1), strict=True)
        ]
        assert changed == [False, True, False]


@pytest.mark.parametrize("inner", INNER)
def test_forward_changes_no_state(inner):
    model = build(inner)
    before = state(model)
    model(vectors(5, 8, G * W))
    model.encode(vectors(5, 8, G * W))
    assert_same_state(state(model), before)


@pytest.mark.parametrize("inner", ["ema", "residual", "kmeans_init"])
def test_discard_drops_the_accumulated_batch(inner):
    one, other = build(inner), build(inner)
    one(vectors(5, 8, G * W, seed=7))
    one.discard()
    one.update()
    assert_same_state(state(one), state(other))


def test_each_group_is_initialised_from_its_own_dimensions():
    model, z = build("kmeans_init"), vectors(30, G * W)
    model(z[:15])
    model.update()
    model.run_init()
    groups = separate_quantizers(build("kmeans_init"), "kmeans_init")
    for group, part in zip(groups, z[:15].split(W, dim=-1), strict=True):
        group.init_codes(part)
    for actual, expected in zip(model.groups, groups, strict=True):
        assert bool(actual.initializer.done)
        assert torch.equal(actual.codes, expected.codes)


def test_indices_of_residual_groups_are_ordered_by_group_then_level():
    model, z = build("residual"), vectors(7, G * W)
    indices = model.encode(z)
    assert indices.shape == (7, 2 * G)
    for g, group in enumerate(model.groups):
        residual = z[:, g * W : (g + 1) * W].double()
        for level in range(2):
            codes = group.levels[level].codes.double()
            nearest = (residual[:, None] - codes).square().sum(dim=2).argmin(dim=1)
            assert torch.equal(indices[:, 2 * g + level], nearest)
            residual = residual - codes[nearest]
    assert model.codebook_sizes == (6,) * (2 * G)
    assert model.codes.shape == (2 * G, 6, W)
    assert torch.equal(model.codes[3], model.groups[1].levels[1].codes)


@pytest.mark.parametrize("inner", ["ema", "fsq", "lfq"])
def test_codes_are_those_of_each_group(inner):
    model = build(inner)
    assert model.codes.shape == (G, model.codebook_sizes[0], W)
    for g, group in enumerate(model.groups):
        assert torch.equal(model.codes[g], group.codes)


def test_groups_of_different_kinds_and_widths():
    torch.manual_seed(0)
    parts = [
        VectorQuantizer(5, 2),
        LookupFreeQuantizer(3),
        ResidualQuantizer([VectorQuantizer(4, 1) for _ in range(2)]),
    ]
    model, z = ProductQuantizer(parts), vectors(9, 6)
    assert (model.dim, model.codebook_sizes, model.has_levels, model.supports_prefix_decoding) == (
        6,
        (5, 8, 4, 4),
        True,
        False,
    )
    indices = model.encode(z)
    assert indices.shape == (9, 4)
    expected = [parts[0](z[:, :2]), parts[1](z[:, 2:5]), parts[2](z[:, 5:])]
    output = model(z)
    torch.testing.assert_close(output.quantized, torch.cat([part.quantized for part in expected], dim=-1))
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(model.decode(indices), output.quantized.detach())


def test_one_group_equals_the_inner_quantizer_with_an_axis_of_levels():
    torch.manual_seed(0)
    alone = VectorQuantizer(5, 4)
    model, z = ProductQuantizer([alone]), vectors(9, 4)
    output, expected = model(z), alone(z)
    assert torch.equal(output.indices, expected.indices[:, None])
    assert torch.equal(output.quantized, expected.quantized)
    assert torch.equal(output.commitment_loss, expected.commitment_loss)


def test_an_empty_list_of_groups_is_refused():
    with pytest.raises(ValueError, match=r"\bgroup\b"):
        ProductQuantizer([])


@pytest.mark.parametrize(
    ("width", "groups", "group_width"), [(12, 3, 4), (10, 2, 5), (7, 7, 1), (1, 1, 1), (64, 64, 1)]
)
@pytest.mark.parametrize("inner", ANY_WIDTH)
def test_settings_resolve_auto_codebook_dim_of_the_groups(inner, width, groups, group_width):
    settings = ProductQuantizerSettings.model_validate({"groups": groups, "quantizer": inner})
    assert settings.dim(width) == groups * group_width
    model = settings.resolve(width).build()
    assert [group.dim for group in model.groups] == [group_width] * groups
    assert model.dim == settings.dim(width) == settings.resolve(width).dim(width)


@pytest.mark.parametrize(("width", "groups"), [(10, 4), (7, 2), (3, 4)])
@pytest.mark.parametrize("inner", ANY_WIDTH)
def test_auto_codebook_dim_needs_a_width_divisible_by_groups(inner, width, groups):
    settings = ProductQuantizerSettings.model_validate({"groups": groups, "quantizer": inner})
    with pytest.raises(ConfigError, match=rf"^model\.quantizer\.groups: {groups} .* {width}; .*codebook_dim"):
        settings.resolve(width)


def test_groups_with_a_set_width_keep_it():
    for inner, width in (
        ({"kind": "vector", "codebook_dim": 5}, 5),
        ({"kind": "fsq", "levels": [4, 4]}, 2),
        ({"kind": "lfq", "bits": 9}, 9),
    ):
        settings = ProductQuantizerSettings.model_validate({"groups": 3, "quantizer": inner})
        assert settings.dim(64) == 3 * width
        assert settings.resolve(64).build().dim == 3 * width


def test_settings_list_the_updates_by_key():
    plain = ProductQuantizerSettings.model_validate({"quantizer": {"kind": "vector", "update": {"kind": "simvq"}}})
    assert {key: update.kind for key, update in plain.updates.items()} == {"quantizer.update": "simvq"}
    nested = ProductQuantizerSettings.model_validate({"quantizer": {"kind": "residual"}})
    assert list(nested.updates) == ["quantizer.quantizer.update"]
    assert ProductQuantizerSettings.model_validate({"quantizer": {"kind": "lfq", "bits": 3}}).updates == {}


@pytest.mark.parametrize("settings", [{"groups": 0}, {"groups": 1025}, {"quantizer": {"kind": "product"}}])
def test_illegal_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        ProductQuantizerSettings.model_validate(settings)
