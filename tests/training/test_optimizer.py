"""Optimizer: weight decay, gradient clipping, learning rate of a step, and state."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import CODEBOOK_LOSS, ENTROPY, IDENTITY, assert_equal_states, tiny_settings
from vqtool.config import TrainingSettings
from vqtool.data import SampleSpec
from vqtool.models.autoencoder import Autoencoder, ModelSettings, resolve_model
from vqtool.training.optimizer import Optimizer
from vqtool.training.setup import set_up

FAMILIES: dict[str, tuple[SampleSpec, dict[str, Any]]] = {
    "mlp": (SampleSpec("C", 3, (), None, "float32"), {"width": 8}),
    "conv1d": (SampleSpec("CT", 3, (8,), None, "float32"), {"width": 8, "downsamples": 1}),
    "conv2d": (SampleSpec("HW", 1, (8, 8), 5, "int64"), {"width": 8, "downsamples": 1}),
    "transformer": (SampleSpec("HW", 1, (8, 8), 5, "int64"), {"width": 8, "depth": 1, "num_tokens": 3}),
}


def schedule(**changes: Any) -> TrainingSettings:
    return TrainingSettings.model_validate({"steps": 10, "warmup_steps": 3, "learning_rate": 0.8, **changes})


def model_of(family: str, update: dict[str, Any]) -> Autoencoder:
    spec, sizes = FAMILIES[family]
    quantizer = {"kind": "vector", "codebook_size": 8, "update": update}
    settings = ModelSettings.model_validate({"encoder": {"kind": family, **sizes}, "quantizer": quantizer})
    return Autoencoder(resolve_model(settings, spec), spec, (0.0,) * spec.channels, (1.0,) * spec.channels)


def applied_decay(optimizer: Optimizer, model: Autoencoder) -> dict[str, float]:
    """Return by how much a step without gradient reduces each parameter: learning rate times weight decay."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizer.backward(sum(parameter.sum() for parameter in model.parameters()) * 0.0)
    optimizer.step(3)
    return {name: 1 - float(parameter.detach().mean()) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("update", [CODEBOOK_LOSS, ENTROPY, {"kind": "ema"}], ids=lambda update: update["kind"])
def test_only_weight_matrices_decay(family: str, update: dict[str, Any]) -> None:
    model = model_of(family, update)
    decay = applied_decay(Optimizer(model, schedule(weight_decay=0.1)), model)
    not_decayed = {"data_io.embedding.weight", "quantizer.codebook.weight"}
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    learned = {
        name
        for name in decay
        if name.rpartition(".")[2] in ("pos_embed", "latent_pos_embed", "queries", "patch_queries")
    }
    assert all(decay[name] == 0 for name in (not_decayed | vectors) & set(decay))
    # Step 3 has the full learning rate, 0.8.
    weights = set(decay) - not_decayed - vectors - learned
    assert weights
    assert [decay[name] for name in weights] == pytest.approx([0.8 * 0.1] * len(weights), rel=1e-5)
    assert ("quantizer.codebook.weight" in decay) == (update["kind"] != "ema")


def test_positional_embeddings_and_queries_do_not_decay() -> None:
    model = model_of("transformer", CODEBOOK_LOSS)
    decay = applied_decay(Optimizer(model, schedule(weight_decay=0.1)), model)
    names = ("encoder.pos_embed", "encoder.queries", "decoder.patch_queries", "decoder.latent_pos_embed")
    assert {name: decay[name] for name in names} == dict.fromkeys(names, 0.0)


def first_step(tmp_path: Path, factor: float = 1.0, **training: Any) -> tuple[float, dict[str, torch.Tensor], Any]:
    """Return the gradient norm of a first step, the gradients after clipping, and the optimizer with its model."""
    setup = set_up(tiny_settings(tmp_path, update=CODEBOOK_LOSS, **training))
    optimizer = Optimizer(setup.model, setup.settings.training)
    output = setup.model(setup.dataset.training.read(0, 16))
    norm = optimizer.backward(factor * output.prediction.square().mean())
    gradients = {n: p.grad.clone() for n, p in setup.model.named_parameters() if p.grad is not None}
    return float(norm), gradients, (optimizer, setup.model)


def total_norm(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))


def test_gradients_are_clipped_by_their_global_norm_which_is_returned(tmp_path: Path) -> None:
    norm, unclipped, _ = first_step(tmp_path, gradient_clip=None)
    assert norm == pytest.approx(total_norm(unclipped), rel=1e-5)
    limit = norm / 2
    same_norm, clipped, _ = first_step(tmp_path, gradient_clip=limit)
    assert same_norm == norm
    assert total_norm(clipped) == pytest.approx(limit, rel=1e-4)
    for name, gradient in unclipped.items():
        torch.testing.assert_close(clipped[name], gradient / 2, rtol=1e-4, atol=1e-8)
    assert_equal_states(first_step(tmp_path, gradient_clip=2 * norm)[1], unclipped)


def test_gradients_do_not_accumulate_over_steps(tmp_path: Path) -> None:
    _, gradients, (optimizer, model) = first_step(tmp_path, gradient_clip=None)
    optimizer.backward(sum(p.sum() for p in model.parameters()) * 0.0)
    assert all(not p.grad.any() for p in model.parameters())
    assert any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("step", [0, 1, 5])
def test_step_uses_the_learning_rate_of_its_number(tmp_path: Path, step: int) -> None:
    # Adam's first update is the learning rate times the sign of the gradient.
    _, gradients, (optimizer, model) = first_step(tmp_path, factor=1e4, gradient_clip=None, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step(step)
    rate = {0: 0.01 / 3, 1: 0.02 / 3, 5: 0.005}[step]
    name = "encoder.net.0.weight"
    moved = before[name] - model.get_parameter(name).detach()
    torch.testing.assert_close(moved, rate * gradients[name].sign(), rtol=1e-3, atol=1e-6)


def test_model_without_parameters_is_unchanged(tmp_path: Path) -> None:
    setup = set_up(tiny_settings(tmp_path, encoder=IDENTITY))
    optimizer = Optimizer(setup.model, setup.settings.training)
    before = {name: tensor.clone() for name, tensor in setup.model.state_dict().items()}
    assert optimizer.backward(torch.tensor(2.0)) == 0
    optimizer.step(0)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_equal_states(dict(setup.model.state_dict()), before)


def test_state_dict_round_trip(tmp_path: Path) -> None:
    _, _, (first, model) = first_step(tmp_path)
    first.step(3)
    other = Optimizer(model, schedule())
    other.load_state_dict(first.state_dict())
    assert_equal_states(other.state_dict(), first.state_dict())
    assert first.state_dict()["state"][0]["exp_avg"].any()


def test_non_finite_step_changes_nothing(tmp_path: Path) -> None:
    _, _, (optimizer, model) = first_step(tmp_path)
    optimizer.step(0, torch.tensor(True))
    before = copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()))
    assert before[1]["state"][0]["step"] == 1
    for parameter in model.parameters():
        parameter.grad = None if parameter.grad is None else torch.full_like(parameter, math.nan)
    optimizer.step(1, torch.tensor(False))
    now = (dict(model.state_dict()), optimizer.state_dict())
    before[1]["param_groups"][0]["lr"] = now[1]["param_groups"][0]["lr"]  # set from the step number in any case
    before[1]["param_groups"][1]["lr"] = now[1]["param_groups"][1]["lr"]
    assert_equal_states(now, before)


def test_finite_step_equals_step_without_the_flag(tmp_path: Path) -> None:
    states = []
    for flag in (None, torch.tensor(True)):
        _, _, (optimizer, model) = first_step(tmp_path)
        optimizer.step(0, flag)
        states.append(dict(model.state_dict()))
    assert_equal_states(*states)
