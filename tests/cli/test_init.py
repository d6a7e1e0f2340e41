"""`vqtool init`."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import mentions
from tests.conftest import Result
from vqtool.config import load_config

Command = Callable[..., Result]

CONFIGS = Path("configs").resolve()
RECIPES = ["images", "quickstart", "semantic-ids", "sequences", "tiles", "vectors"]


@pytest.fixture(autouse=True)
def _workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_a_recipe_all_recipes_are_listed(vqtool: Command, tmp_path: Path) -> None:
    result = vqtool("init")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[0] for line in result.out.splitlines() if not line.startswith(" ")] == RECIPES
    assert "Tile maps (N, H, W) of integers" in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_written_unchanged_except_for_the_schema_line(recipe: str, vqtool: Command, tmp_path: Path) -> None:
    result = vqtool("init", recipe)
    assert result.code == 0
    assert f"vqtool train --config {recipe}.yaml" in result.out
    written = tmp_path / f"{recipe}.yaml"
    modeline, _, shipped = (CONFIGS / f"{recipe}.yaml").read_text().partition("\n")
    assert modeline == "# yaml-language-server: $schema=schema.json"
    assert written.read_text() == shipped
    assert load_config(written).name == recipe


def test_output_has_commands_for_synthetic_data_and_a_users_array(vqtool: Command) -> None:
    lines = vqtool("init", "images", "--out", "my images.yaml").out.splitlines()
    assert lines[0].startswith("my images.yaml")
    commands = [shlex.split(line, comments=True) for line in lines[1:]]
    train = ["vqtool", "train", "--config", "my images.yaml"]
    assert commands == [train, [*train, "--set", "data.path=YOUR.npy"]]


def test_schema_option_writes_schema_json_beside_the_recipe(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vqtool("init", "tiles", "--out", "sub/a.yaml", "--schema").code == 0
    assert {path.name for path in (tmp_path / "sub").iterdir()} == {"a.yaml", "schema.json"}
    assert (tmp_path / "sub" / "a.yaml").read_bytes() == (CONFIGS / "tiles.yaml").read_bytes()
    assert (tmp_path / "sub" / "schema.json").read_bytes() == (CONFIGS / "schema.json").read_bytes()
    assert vqtool("init", "images", "--out", "sub/b.yaml", "--schema").code == 0  # an equal schema.json may exist


def test_existing_schema_with_other_contents_is_not_replaced(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    result = vqtool("init", "tiles", "--schema")
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "vqtool: schema.json ... exists")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("schema.json", "{}")]


def test_out_option_names_the_file(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vqtool("init", "tiles", "--out", "sub/[my] maps.yaml").code == 0
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["[my] maps.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vector"], "vector: unknown ... vectors"),
        (["zzz"], "zzz: unknown ... images, quickstart, semantic-ids, sequences, tiles, vectors"),
        (["tiles", "--out", "no/t.yaml"], "no/t.yaml ... directory no "),
        (["tiles", "--out", "existing.yaml"], "existing.yaml ... exists"),
        (["--out", "t.yaml"], "need a RECIPE"),
        (["--schema"], "need a RECIPE"),
    ],
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    arguments: list[str], message: str, vqtool: Command, tmp_path: Path
) -> None:
    (tmp_path / "existing.yaml").write_text("notes")
    result = vqtool("init", *arguments)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["notes"]
