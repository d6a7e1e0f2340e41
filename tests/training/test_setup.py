from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training import (
    ENTROPY,
    IDENTITY,
    assert_equal_states,
    logged_metrics,
    tiny_settings,
    vectors,
    with_random_init,
)
from vqtool import load
from vqtool.errors import ConfigError, DataError
from vqtool.training import train
from vqtool.training.setup import deterministic, set_up


def test_all_settings_are_resolved(tmp_path: Path) -> None:
    settings = set_up(tiny_settings(tmp_path)).settings
    assert settings.data.layout == "C"
    assert (settings.data.channels, settings.data.size, settings.data.classes) == (4, [], None)
    assert settings.data.dtype == "float32"
    assert settings.model.quantizer.codebook_dim == 8
    assert settings.model.decoder == settings.model.encoder
    assert settings.loss.reconstruction == "mse"
    assert "auto" not in str(settings.model_dump())


def test_classes_are_reconstructed_by_cross_entropy(tmp_path: Path) -> None:
    grids = np.random.default_rng(0).integers(0, 5, (20, 4, 4))
    settings = set_up(tiny_settings(tmp_path, grids, encoder={"kind": "conv2d", "width": 8})).settings
    assert settings.loss.reconstruction == "cross_entropy"
    assert (settings.data.classes, settings.data.normalize) == (5, "none")


def test_resolved_settings_stay_the_same(tmp_path: Path) -> None:
    resolved = set_up(tiny_settings(tmp_path)).settings
    assert set_up(resolved).settings == resolved


@pytest.mark.parametrize("normalize", ["none", "global", "feature"])
def test_normalisation_is_fitted_on_the_training_split(tmp_path: Path, normalize: str) -> None:
    array = vectors() * [1, 2, 3, 4] + [0, 10, 20, 30]
    setup = set_up(tiny_settings(tmp_path, array.astype(np.float32), data={"normalize": normalize}))
    training = setup.dataset.training.read(0, 48).double().numpy()
    assert len(setup.dataset.training) == 48
    mean, scale = setup.model.data_io.mean.numpy(), setup.model.data_io.scale.numpy()
    axis = {"none": (), "global": None, "feature": 0}[normalize]
    if normalize == "none":
        assert (mean.tolist(), scale.tolist()) == ([0] * 4, [1] * 4)
        return
    np.testing.assert_allclose(mean, np.broadcast_to(training.mean(axis=axis), 4), rtol=1e-6)
    np.testing.assert_allclose(scale, np.broadcast_to(training.std(axis=axis), 4), rtol=1e-6)
    assert abs(array.mean(axis=axis) - training.mean(axis=axis)).max() > 1e-3


def test_weights_depend_only_on_the_seed(tmp_path: Path) -> None:
    first = set_up(tiny_settings(tmp_path, seed=3)).model.state_dict()
    torch.rand(7)
    assert_equal_states(dict(set_up(tiny_settings(tmp_path, seed=3)).model.state_dict()), dict(first))
    other = set_up(tiny_settings(tmp_path, seed=4)).model.state_dict()
    assert not torch.equal(other["encoder.net.0.weight"], first["encoder.net.0.weight"])


def test_global_random_state_does_not_change(tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    set_up(tiny_settings(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_model_is_on_the_configured_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.training.setup.resolve_device", lambda name: torch.device("meta"))
    setup = set_up(tiny_settings(tmp_path))
    assert {tensor.device.type for tensor in setup.model.state_dict().values()} == {"meta"}
    assert setup.device.type == "meta"


def test_errors_name_key_or_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind: conv1d"):
        set_up(tiny_settings(tmp_path, encoder={"kind": "conv1d"}))
    with pytest.raises(ConfigError, match=r"loss\.reconstruction: cross_entropy"):
        set_up(tiny_settings(tmp_path, loss={"reconstruction": "cross_entropy"}))
    settings = tiny_settings(tmp_path)
    (tmp_path / "data.npy").unlink()
    with pytest.raises(DataError, match=r"data\.npy: does not exist"):
        set_up(settings)


def test_codes_updated_by_a_loss_without_weight_are_an_error(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, ValidationError), match=r"loss\.entropy"):
        set_up(tiny_settings(tmp_path, encoder=IDENTITY, update=ENTROPY, loss={"entropy": 0.0}))


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_entropy_loss_without_weight_is_not_computed(tmp_path: Path, weight: float) -> None:
    settings = with_random_init(tiny_settings(tmp_path, loss={"entropy": weight}))
    setup = set_up(settings)
    output = setup.model(setup.dataset.training.read(0, 16))
    assert bool(output.quantizer.entropy_loss == 0) == (weight == 0)
    train(settings, tmp_path / "run")
    assert all(line["loss/entropy"] < 0 for line in logged_metrics(tmp_path / "run"))
    tokenizer = load(tmp_path / "run")
    assert tokenizer.model(setup.dataset.training.read(0, 16)).quantizer.entropy_loss == 0
    assert tokenizer.evaluate().evaluation.losses["entropy"] < 0


def raise_within_deterministic() -> None:
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        raise RuntimeError("out")


def test_deterministic_restores_the_flags() -> None:
    filled_memory = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="out"):
        raise_within_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == filled_memory  # type: ignore[attr-defined]


def test_all_errors_are_raised_together(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, encoder={"kind": "conv2d"}, loss={"reconstruction": "cross_entropy"})
    with pytest.raises(ConfigError) as error:
        set_up(settings)
    keys = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert keys == ["model.encoder.kind", "loss.reconstruction"]


def test_errors_that_need_no_data_are_raised_before_it_is_opened(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, update=ENTROPY, device="cuda:99")
    (tmp_path / "data.npy").unlink()
    with pytest.raises(ConfigError) as error:
        set_up(settings)
    keys = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert keys == ["training.device", "model.quantizer.update.kind"]
