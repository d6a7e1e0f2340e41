"""Every shipped recipe runs, on its synthetic data and on a user's array."""

import numpy as np
import pytest

from vqtool.cli.recipes import recipes, write_recipe
from vqtool.config import load_config
from vqtool.errors import ConfigError

SHORT_RUN = ["training.steps=3", "training.batch_size=4", "training.warmup_steps=1", "training.device=cpu"]

# An array for each recipe, of another size and dtype than its synthetic data.
USER_ARRAYS = {
    "quickstart": np.random.default_rng(0).integers(0, 255, (30, 20, 24, 3)).astype(np.uint8),
    "images": np.random.default_rng(0).random((30, 1, 9, 8)),
    "semantic-ids": np.random.default_rng(0).standard_normal((30, 10)),
    "sequences": np.random.default_rng(0).standard_normal((30, 2, 100)).astype(np.float16),
    "tiles": np.random.default_rng(0).integers(0, 7, (30, 11, 13)),
    "vectors": np.random.default_rng(0).standard_normal((30, 10)).astype(np.float32),
}


def test_every_recipe_has_a_summary():
    assert recipes().keys() == USER_ARRAYS.keys()
    assert all(len(summary) > 20 for summary in recipes().values())


@pytest.mark.parametrize("name", USER_ARRAYS)
def test_recipe_trains_on_its_synthetic_data(vqtool, tmp_path, name):
    config = write_recipe(name, tmp_path / "config.yaml")
    sets = [argument for key in [*SHORT_RUN, "data.samples=40"] for argument in ("--set", key)]
    result = vqtool("train", "--config", config, "--run-dir", tmp_path / "run", *sets)
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", USER_ARRAYS)
def test_recipe_trains_encodes_and_decodes_on_a_users_array(vqtool, tmp_path, name):
    np.save(tmp_path / "user.npy", USER_ARRAYS[name])
    config = write_recipe(name, tmp_path / "config.yaml")
    keys = [*SHORT_RUN, "data.kind=tensors", f"data.path={tmp_path / 'user.npy'}"]
    sets = [argument for key in keys for argument in ("--set", key)]
    for command in (
        ["train", "--config", config, "--run-dir", tmp_path / "run", *sets],
        ["encode", tmp_path / "run", "--out", tmp_path / "tokens.npy"],
        ["decode", tmp_path / "run", tmp_path / "tokens.npy", "--out", tmp_path / "back.npy"],
    ):
        result = vqtool(*command)
        assert result.code == 0, result.err
    back = np.load(tmp_path / "back.npy")
    assert (back.shape, back.dtype) == (USER_ARRAYS[name].shape, USER_ARRAYS[name].dtype)


@pytest.mark.parametrize("name", USER_ARRAYS)
def test_recipe_is_named_like_its_file(name, tmp_path):
    settings = load_config(write_recipe(name, tmp_path / f"{name}.yaml"))
    assert settings.name == name


def test_unknown_recipe_names_the_closest_one():
    with pytest.raises(ConfigError, match=r"image: unknown .*images"):
        write_recipe("image")
