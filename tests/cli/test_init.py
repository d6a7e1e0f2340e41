"""`vqtool init`."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Result
from vqtool.config import load_config

Command = Callable[..., Result]

CONFIGS = Path("configs").resolve()
RECIPES = ["images", "quickstart", "semantic-ids", "sequences", "tiles", "vectors"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_recipe_it_lists_them(vqtool: Command, tmp_path: Path) -> None:
    done = vqtool("init")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines() if not line.startswith(" ")] == RECIPES
    assert "Tile maps (N, H, W) of integers" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_written_as_it_is_shipped(recipe: str, vqtool: Command, tmp_path: Path) -> None:
    done = vqtool("init", recipe)
    assert done.code == 0
    assert f"vqtool train --config {recipe}.yaml" in done.out
    written = tmp_path / f"{recipe}.yaml"
    modeline, _, shipped = (CONFIGS / f"{recipe}.yaml").read_text().partition("\n")
    assert modeline == "# yaml-language-server: $schema=schema.json"
    assert written.read_text() == shipped  # without the schema, the line that names it would lead nowhere
    assert load_config(written).name == recipe


def test_it_says_how_to_train_on_synthetic_and_on_ones_own_data(vqtool: Command) -> None:
    lines = vqtool("init", "images", "--out", "my images.yaml").out.splitlines()
    assert lines[0].startswith("my images.yaml")
    commands = [shlex.split(line, comments=True) for line in lines[1:]]
    train = ["vqtool", "train", "--config", "my images.yaml"]
    assert commands == [train, [*train, "--set", "data.path=YOUR.npy"]]


def test_the_schema_is_written_beside_a_recipe(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vqtool("init", "tiles", "--out", "sub/a.yaml", "--schema").code == 0
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {"a.yaml", "schema.json"}
    assert (tmp_path / "sub" / "a.yaml").read_bytes() == (CONFIGS / "tiles.yaml").read_bytes()
    assert (tmp_path / "sub" / "schema.json").read_bytes() == (CONFIGS / "schema.json").read_bytes()
    assert vqtool("init", "images", "--out", "sub/b.yaml", "--schema").code == 0  # an equal schema may be there


def test_another_schema_is_not_replaced(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    done = vqtool("init", "tiles", "--schema")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("vqtool: schema.json: already exists")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("schema.json", "{}")]


def test_out_names_the_file(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vqtool("init", "tiles", "--out", "sub/[my] maps.yaml").code == 0
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["[my] maps.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vector"], "vector: unknown recipe; did you mean vectors?"),
        (["zzz"], "zzz: unknown recipe; expected one of images, quickstart, semantic-ids, sequences, tiles, vectors"),
        (["tiles", "--out", "no/t.yaml"], "no/t.yaml: directory no does not exist"),
        (["tiles", "--out", "mine.yaml"], "mine.yaml: already exists"),
        (["--out", "t.yaml"], "need a RECIPE"),
        (["--schema"], "need a RECIPE"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments: list[str], message: str, vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    done = vqtool("init", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
