"""Autoencoder: shapes, supported families, normalisation, and input and output of values and classes."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.encoders import assert_samples_are_independent
from vqtool.data import SampleSpec
from vqtool.errors import ConfigError
from vqtool.models.autoencoder import Autoencoder, CategoricalIO, ContinuousIO, ModelSettings, resolve_model
from vqtool.quantizers import ProjectedQuantizer

SPECS = {
    "C": SampleSpec("C", 3, (), None, "float32"),
    "CT": SampleSpec("CT", 3, (7,), None, "float32"),
    "TC": SampleSpec("TC", 3, (7,), None, "float32"),
    "CHW": SampleSpec("CHW", 3, (6, 5), None, "float32"),
    "HWC": SampleSpec("HWC", 3, (6, 5), None, "uint8"),
    "T": SampleSpec("T", 1, (7,), None, "float32"),
    "HW": SampleSpec("HW", 1, (6, 5), None, "float32"),
    "T of classes": SampleSpec("T", 1, (7,), 4, "int64"),
    "HW of classes": SampleSpec("HW", 1, (6, 5), 4, "uint8"),
}
FAMILIES: dict[str, dict[str, Any]] = {
    "identity": {},
    "mlp": {"width": 8, "layers": 1, "num_tokens": 2},
    "conv1d": {"width": 8, "downsamples": 1, "res_blocks": 1},
    "conv2d": {"width": 8, "downsamples": 1, "res_blocks": 1},
    "transformer": {"num_tokens": 5, "patch_size": 2, "width": 8, "depth": 1, "heads": 2},
}
# Tokens per sample, for each layout and the families that support it.
FITS = {
    ("C", "identity"): 1,
    ("CT", "identity"): 7,
    ("TC", "identity"): 7,
    ("CHW", "identity"): 30,
    ("HWC", "identity"): 30,
    ("T", "identity"): 7,
    ("HW", "identity"): 30,
    ("C", "mlp"): 2,
    ("CT", "conv1d"): 4,
    ("TC", "conv1d"): 4,
    ("T", "conv1d"): 4,
    ("T of classes", "conv1d"): 4,
    ("CHW", "conv2d"): 9,
    ("HWC", "conv2d"): 9,
    ("HW", "conv2d"): 9,
    ("HW of classes", "conv2d"): 9,
    **{(layout, "transformer"): 5 for layout in SPECS if layout != "C"},
}
DATA = {
    "C": "vectors (C,) (layout C, row shape (3,))",
    "CT": "sequences (C, T) (layout CT, row shape (3, 7))",
    "TC": "sequences (C, T) (layout TC, row shape (7, 3))",
    "CHW": "images (C, H, W) (layout CHW, row shape (3, 6, 5))",
    "HWC": "images (C, H, W) (layout HWC, row shape (6, 5, 3))",
    "T": "sequences (C, T) (layout T, row shape (7,))",
    "HW": "images (C, H, W) (layout HW, row shape (6, 5))",
    "T of classes": "classes (layout T, row shape (7,))",
    "HW of classes": "classes (layout HW, row shape (6, 5))",
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def settings(encoder: str, decoder: str | dict[str, Any] | None = None, dim: int | str = "auto") -> ModelSettings:
    blocks: dict[str, Any] = {
        "encoder": {"kind": encoder, **FAMILIES[encoder]},
        "quantizer": {"kind": "vector", "codebook_size": 16, "codebook_dim": dim},
    }
    if decoder:
        blocks["decoder"] = {"kind": decoder, **FAMILIES[decoder]} if isinstance(decoder, str) else decoder
    return ModelSettings.model_validate(blocks)


def build(spec: SampleSpec, model: ModelSettings, mean: float = 0.0, scale: float = 1.0) -> Autoencoder:
    return Autoencoder(resolve_model(model, spec), spec, (mean,) * spec.channels, (scale,) * spec.channels)


def batch_of(spec: SampleSpec, count: int = 2) -> torch.Tensor:
    if spec.classes:
        return torch.randint(spec.classes, (count, *spec.size))
    return torch.randn(count, spec.channels, *spec.size)


@pytest.mark.parametrize(("layout", "family"), FITS)
def test_shapes_and_dtypes_of_supported_families(layout: str, family: str) -> None:
    spec, tokens = SPECS[layout], FITS[layout, family]
    model, x = build(spec, settings(family)).eval(), batch_of(SPECS[layout])
    channels = spec.classes or spec.channels
    output = model(x)
    assert output.prediction.shape == (2, channels, *spec.size)
    assert output.target.shape == x.shape
    assert output.latents.shape == (2, tokens, model.quantizer.dim)
    assert output.quantizer.indices.shape == (2, tokens)
    indices = model.encode(x)
    assert torch.equal(indices, output.quantizer.indices)
    assert indices.dtype == torch.int64
    decoded = model.decode(indices, spec.size)
    assert (decoded.shape, decoded.dtype) == (x.shape, x.dtype)
    torch.testing.assert_close(decoded, model.data_io.postprocess(output.prediction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "family"), [(layout, family) for layout in SPECS for family in FAMILIES if (layout, family) not in FITS]
)
def test_unsupported_family_is_refused_with_the_fitting_ones(layout: str, family: str) -> None:
    takes = {
        "mlp": "vectors (C,)",
        "conv1d": "sequences (C, T)",
        "conv2d": "images (C, H, W)",
        "identity": "continuous values",
    }
    takes["transformer"] = "sequences (C, T) or images (C, H, W)"
    with pytest.raises(ConfigError) as error:
        build(SPECS[layout], settings(family))
    message = str(error.value)
    assert message.startswith(f"model.encoder.kind: {family} ")
    problem, _, advice = message.partition("; ")
    assert takes[family] in problem
    assert DATA[layout] in problem
    assert "data.layout" in advice
    assert set(re.findall(r"\w+", advice)) & set(FAMILIES) == {fits for name, fits in FITS if name == layout}


@pytest.mark.parametrize(("layout", "family"), FITS)
def test_samples_of_a_batch_are_independent(layout: str, family: str) -> None:
    spec = SPECS[layout]
    if spec.classes:
        model = build(spec, settings(family)).eval().double()
        x = batch_of(spec, 3)
        alone = torch.cat([model(x[i : i + 1]).prediction for i in range(3)])
        torch.testing.assert_close(model(x).prediction, alone, rtol=1e-9, atol=1e-11)
        return
    model = build(spec, settings(family), mean=0.5, scale=2.0).eval().double()
    assert_samples_are_independent(lambda x: model(x).prediction, batch_of(spec, 3).double())


@pytest.mark.parametrize("family", FAMILIES)
def test_omitted_decoder_mirrors_the_encoder(family: str) -> None:
    layout = next(layout for layout, fits in FITS if fits == family)
    resolved = resolve_model(settings(family), SPECS[layout])
    assert resolved.decoder == resolved.encoder
    assert resolved == resolve_model(settings(family, decoder=family), SPECS[layout])


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("conv2d", {"kind": "transformer", "num_tokens": 9, "patch_size": 2, "width": 8, "depth": 1, "heads": 1}),
        ("transformer", {"kind": "transformer", "num_tokens": 5, "patch_size": 3, "width": 12, "depth": 2, "heads": 3}),
        ("identity", {"kind": "conv2d", "width": 8, "downsamples": 0, "res_blocks": 1}),
    ],
)
def test_decoder_of_another_family_with_equal_tokens(encoder: str, decoder: dict[str, Any]) -> None:
    spec = SPECS["CHW"]
    model = build(spec, settings(encoder, decoder))
    assert model(batch_of(spec)).prediction.shape == (2, 3, 6, 5)
    assert model.any_size == (encoder == "identity")


@pytest.mark.parametrize(
    ("decoder", "tokens", "grid"),
    [
        ({"kind": "conv2d", "downsamples": 2}, 4, "(2, 2)"),
        ({"kind": "transformer", "num_tokens": 8}, 8, "(8,)"),
        ({"kind": "identity"}, 30, "(6, 5)"),
    ],
)
def test_decoder_with_another_number_of_tokens_is_refused(decoder: dict[str, Any], tokens: int, grid: str) -> None:
    expected = rf"^model\.decoder: .* {tokens} tokens .*\(grid {re.escape(grid)}\).* 9 \(grid \(3, 3\)\)"
    with pytest.raises(ConfigError, match=expected):
        resolve_model(settings("conv2d", decoder), SPECS["CHW"])


def test_unsupported_decoder_is_refused_under_its_own_key() -> None:
    expected = rf"^model\.decoder\.kind: mlp takes {re.escape('vectors (C,)')}, .*{re.escape(DATA['CHW'])}"
    with pytest.raises(ConfigError, match=expected):
        resolve_model(settings("conv2d", "mlp"), SPECS["CHW"])


@pytest.mark.parametrize(("family", "layout", "dim"), [("identity", "CHW", 3), ("conv2d", "CHW", 8), ("mlp", "C", 8)])
def test_auto_codebook_dim_follows_the_encoder(family: str, layout: str, dim: int) -> None:
    assert resolve_model(settings(family), SPECS[layout]).quantizer.codebook_dim == dim
    assert build(SPECS[layout], settings(family)).quantizer.codes.shape == (16, dim)


def test_codebook_dim_sets_the_latent_width() -> None:
    model = build(SPECS["CHW"], settings("conv2d", dim=5))
    assert model(batch_of(SPECS["CHW"])).latents.shape == (2, 9, 5)


MLP = {"kind": "mlp", "width": 8, "layers": 1, "num_tokens": 1}


@pytest.mark.parametrize(
    ("encoder", "decoder", "dim"),
    [
        ({"kind": "identity"}, None, 2),
        ({"kind": "identity"}, None, 5),
        ({"kind": "identity"}, MLP, 2),
        (MLP, {"kind": "identity"}, 2),
    ],
    ids=["narrower codes", "wider codes", "identity encoder", "identity decoder"],
)
def test_codes_of_another_width_than_fixed_latents_are_projected(
    encoder: dict[str, Any], decoder: dict[str, Any] | None, dim: int
) -> None:
    spec = SPECS["C"]
    quantizer = {"kind": "vector", "codebook_size": 16, "codebook_dim": dim, "init": {"kind": "random"}}
    blocks = {"encoder": encoder, "decoder": decoder, "quantizer": quantizer}
    model, x = build(spec, ModelSettings.model_validate(blocks)), batch_of(spec, 9)
    assert isinstance(model.quantizer, ProjectedQuantizer)
    assert (model.quantizer.dim, model.quantizer.inner.dim) == (3, dim)
    output = model(x)
    assert output.latents.shape == (9, 1, 3)
    torch.testing.assert_close(output.quantizer.quantized, model.quantizer.decode(output.quantizer.indices))
    assert torch.equal(model.encode(x), output.quantizer.indices)
    torch.testing.assert_close(model.decode(output.quantizer.indices, ()), output.prediction)
    output.prediction.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_codes_as_wide_as_the_latents_are_not_projected() -> None:
    assert not isinstance(build(SPECS["CHW"], settings("identity", dim=3)).quantizer, ProjectedQuantizer)
    assert not isinstance(build(SPECS["CHW"], settings("conv2d", dim=5)).quantizer, ProjectedQuantizer)


@pytest.mark.parametrize(("layout", "family"), [pair for pair in FITS if "classes" in pair[0]])
def test_classes_are_embedded_and_predicted_by_logits(layout: str, family: str) -> None:
    spec = SPECS[layout]
    model, x = build(spec, settings(family)), batch_of(spec, 4)
    x[x == 3] = 0
    output = model(x)
    assert torch.equal(output.target, x)
    F.cross_entropy(output.prediction, output.target).backward()
    gradient = model.get_parameter("data_io.embedding.weight").grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).bool().tolist() == [True, True, True, False]


def test_postprocess_returns_the_most_likely_class() -> None:
    model = build(SPECS["HW of classes"], settings("conv2d"))
    logits = torch.zeros(1, 4, 6, 5)
    logits[:, 2] = 1
    logits[0, 1, 3, 4] = 5
    restored = model.data_io.postprocess(logits)
    assert restored[0, 3, 4] == 1
    assert (restored == 2).sum() == 29


@pytest.mark.parametrize(("layout", "grid"), [("C", (1,)), ("TC", (7,)), ("CHW", (6, 5))])
def test_decode_denormalises(layout: str, grid: tuple[int, ...]) -> None:
    spec = SPECS[layout]
    mean, scale = (100.0, -3.0, 0.5), (7.0, 0.01, 2.0)
    model = Autoencoder(resolve_model(settings("identity"), spec), spec, mean, scale).eval()
    per_channel = (-1, *[1] * len(spec.size))
    x = torch.randn(2, 3, *spec.size) * torch.tensor(scale).reshape(per_channel) + torch.tensor(mean).reshape(
        per_channel
    )
    points = model.latents(x).reshape(-1, 3)
    model.quantizer.codebook.weight = points  # type: ignore[union-attr]
    indices = model.encode(x)
    assert model.grid(spec.size) == grid
    torch.testing.assert_close(model.decode(indices, spec.size), x, rtol=1e-6, atol=1e-6)
    assert indices.flatten().tolist() == list(range(len(points)))


def test_encoder_input_is_normalised() -> None:
    model = build(SPECS["CT"], settings("identity"), mean=10.0, scale=4.0)
    x = torch.tensor([[[10.0] * 7, [14.0] * 7, [2.0] * 7]])
    output = model(x)
    assert output.target[0].unique(dim=1).flatten().tolist() == [0, 1, -2]
    assert torch.equal(output.latents[0, 0], output.target[0, :, 0])


def test_normalisation_is_in_the_state_dict() -> None:
    spec = SPECS["CHW"]
    trained = build(spec, settings("conv2d"), mean=10.0, scale=4.0)
    loaded = build(spec, settings("conv2d"))
    loaded.load_state_dict(trained.state_dict())
    x = batch_of(spec)
    assert torch.equal(loaded(x).target, (x - 10) / 4)
    assert {"data_io.mean", "data_io.scale", "quantizer.codebook.weight"} <= set(trained.state_dict())


@pytest.mark.parametrize(("encoder", "expected"), [("identity", True), ("conv2d", True), ("transformer", False)])
def test_any_size_requires_both_networks_to_support_it(encoder: str, expected: bool) -> None:
    assert build(SPECS["CHW"], settings(encoder)).any_size == expected


def test_gradients_reach_the_encoder_through_the_quantizer() -> None:
    model = build(SPECS["CHW"], settings("conv2d"))
    model(batch_of(SPECS["CHW"])).prediction.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder.parameters() if p.ndim > 1)


# Input and output of values and classes

MEAN, SCALE = (1.0, -2.0, 0.5), (2.0, 0.25, 10.0)
SIZES = [(), (5,), (2, 4)]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
def test_values_are_normalised_channel_by_channel(size: tuple[int, ...]) -> None:
    x = normal(4, 3, *size)
    y = ContinuousIO(MEAN, SCALE)(x)
    assert y.shape == x.shape
    for channel in range(3):
        torch.testing.assert_close(y[:, channel], (x[:, channel] - MEAN[channel]) / SCALE[channel])


@pytest.mark.parametrize("size", SIZES)
def test_postprocess_inverts_normalisation(size: tuple[int, ...]) -> None:
    prediction, values = normal(4, 3, *size), ContinuousIO(MEAN, SCALE)
    denormalised = values.postprocess(prediction)
    for channel in range(3):
        torch.testing.assert_close(denormalised[:, channel], prediction[:, channel] * SCALE[channel] + MEAN[channel])
    torch.testing.assert_close(values(denormalised), prediction, rtol=1e-5, atol=1e-5)


def test_normalisation_uses_the_channel_axis_when_all_axes_have_equal_length() -> None:
    x = normal(3, 3, 3, 3)
    torch.testing.assert_close(ContinuousIO(MEAN, SCALE)(x)[:, 1], (x[:, 1] + 2) * 4)


def test_the_target_of_values_is_normalised() -> None:
    x = normal(4, 3, 5)
    values = ContinuousIO(MEAN, SCALE)
    assert torch.equal(values.target(x), values(x))


def test_mean_and_scale_are_buffers_in_the_state_dict() -> None:
    values = ContinuousIO(MEAN, SCALE)
    assert set(values.state_dict()) == {"mean", "scale"}
    assert list(values.parameters()) == []
    other = ContinuousIO((0.0,) * 3, (1.0,) * 3)
    other.load_state_dict(values.state_dict())
    x = normal(4, 3)
    assert torch.equal(other(x), values(x))
    assert (values.in_channels, values.out_channels) == (3, 3)


@pytest.mark.parametrize("size", SIZES)
def test_each_class_becomes_its_embedding(size: tuple[int, ...]) -> None:
    classes = CategoricalIO(6, 3)
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    y = classes(x)
    assert y.shape == (4, 3, *size)
    vectors = y.movedim(1, -1).reshape(-1, 3)
    for index, vector in zip(x.flatten(), vectors, strict=True):
        assert torch.equal(vector, classes.embedding.weight[index])


def test_gradient_reaches_the_embeddings_of_the_classes_in_the_batch() -> None:
    classes = CategoricalIO(6, 3)
    classes(torch.tensor([[1, 4, 4]])).sum().backward()
    gradient = classes.embedding.weight.grad
    assert gradient is not None
    assert gradient.tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3, [0] * 3]


def test_channels_and_target_of_classes() -> None:
    classes = CategoricalIO(6, 3)
    assert (classes.in_channels, classes.out_channels) == (3, 6)
    x = torch.tensor([[1, 4]])
    assert classes.target(x) is x


@pytest.mark.parametrize("size", SIZES)
def test_postprocess_of_classes_is_the_argmax(size: tuple[int, ...]) -> None:
    x = torch.randint(0, 6, (4, *size), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(x, 6).movedim(-1, 1) + 0.4 * normal(4, 6, *size).clamp(-1, 1)
    assert torch.equal(CategoricalIO(6, 3).postprocess(logits), x)
