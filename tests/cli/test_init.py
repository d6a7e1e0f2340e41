"""`vqtool init`."""

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
    assert written.read_bytes() == (CONFIGS / f"{recipe}.yaml").read_bytes()
    assert load_config(written).name == recipe


def test_out_names_the_file(vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    assert vqtool("init", "tiles", "--out", "sub/[my] maps.yaml").code == 0
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["[my] maps.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vector"], "no recipe 'vector'; did you mean vectors?"),
        (["zzz"], "no recipe 'zzz'; there are images, quickstart, semantic-ids, sequences, tiles, vectors"),
        (["tiles", "--out", "no/t.yaml"], "no/t.yaml: there is no folder no"),
        (["tiles", "--out", "mine.yaml"], "mine.yaml: is there already"),
        (["--out", "t.yaml"], "--out needs a RECIPE"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments: list[str], message: str, vqtool: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    done = vqtool("init", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
