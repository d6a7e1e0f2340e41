"""Every shipped recipe runs, as it stands and on an array of one's own."""

import numpy as np
import pytest

from vqtool.cli.recipes import recipes, write_recipe
from vqtool.config import load_config
from vqtool.errors import ConfigError

MAX_SMALL_DIM = ["training.steps=3", "training.batch_size=4", "training.warmup_steps=1", "training.device=cpu"]

# An array that a reader of each recipe might bring: other sizes, other types.
OWN = {
    "quickstart": np.random.default_rng(0).integers(0, 255, (30, 20, 24, 3)).astype(np.uint8),
    "images": np.random.default_rng(0).random((30, 1, 9, 8)),
    "semantic-ids": np.random.default_rng(0).standard_normal((30, 10)),
    "sequences": np.random.default_rng(0).standard_normal((30, 2, 100)).astype(np.float16),
    "tiles": np.random.default_rng(0).integers(0, 7, (30, 11, 13)),
    "vectors": np.random.default_rng(0).standard_normal((30, 10)).astype(np.float32),
}


def test_every_recipe_says_in_its_first_line_what_it_is_for():
    assert recipes().keys() == OWN.keys()
    assert all(len(summary) > 20 for summary in recipes().values())


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_runs_as_it_stands(vqtool, tmp_path, name):
    config = write_recipe(name, tmp_path / "config.yaml")
    sets = [argument for key in [*MAX_SMALL_DIM, "data.samples=40"] for argument in ("--set", key)]
    result = vqtool("train", "--config", config, "--run-dir", tmp_path / "run", *sets)
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_runs_on_an_array_of_ones_own(vqtool, tmp_path, name):
    np.save(tmp_path / "own.npy", OWN[name])
    config = write_recipe(name, tmp_path / "config.yaml")
    keys = [*MAX_SMALL_DIM, "data.kind=tensors", f"data.path={tmp_path / 'own.npy'}"]
    sets = [argument for key in keys for argument in ("--set", key)]
    for command in (
        ["train", "--config", config, "--run-dir", tmp_path / "run", *sets],
        ["encode", tmp_path / "run", "--out", tmp_path / "tokens.npy"],
        ["decode", tmp_path / "run", tmp_path / "tokens.npy", "--out", tmp_path / "back.npy"],
    ):
        result = vqtool(*command)
        assert result.code == 0, result.err
    back = np.load(tmp_path / "back.npy")
    assert (back.shape, back.dtype) == (OWN[name].shape, OWN[name].dtype)


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_takes_its_name_from_its_file(name, tmp_path):
    settings = load_config(write_recipe(name, tmp_path / f"{name}.yaml"))
    assert settings.name == name


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match=r"image: unknown recipe; did you mean images\?"):
        write_recipe("image")
