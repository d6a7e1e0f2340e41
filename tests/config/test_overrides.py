"""Overrides `--set KEY=VALUE` of a config file."""

from pathlib import Path
from typing import Any

import pytest

from vqtool.config import RunSettings, load_config
from vqtool.config.overrides import apply_overrides
from vqtool.config.yaml_reader import read_yaml
from vqtool.errors import ConfigError

SYNTHETIC = """
data:
  kind: synthetic
  samples: 100
  source: {kind: textures, channels: 3, height: 32, width: 32}
  validation: 0.2
model:
  encoder: {kind: conv2d, width: 8, downsamples: 2, res_blocks: 1}
  quantizer: {kind: vector, codebook_size: 16, update: {kind: ema, decay: 0.9}}
training: {steps: 10}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(SYNTHETIC)
    return path


def values(*overrides: str, text: str = SYNTHETIC) -> Any:
    tree = read_yaml(text, "c.yaml")
    apply_overrides(tree, overrides, RunSettings)
    assert tree.errors == []
    return tree.values


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=20", 20),
        ("training.steps=2e1", 20.0),
        ("training.steps=no", "no"),
        ("training.steps='20'", "20"),
        ("training.steps=", None),
        ("training.steps=[1, two]", [1, "two"]),
        ("training.steps={a: 1}", {"a": 1}),
        ("training.steps=a=b", "a=b"),
        (" training.steps =3", 3),
    ],
)
def test_value_is_read_as_yaml(override: str, value: Any) -> None:
    actual = values(override)["training"]["steps"]
    assert (actual, type(actual)) == (value, type(value))


def test_other_keys_are_unchanged() -> None:
    before = read_yaml(SYNTHETIC, "c.yaml").values
    after = values("model.quantizer.codebook_size=32")
    assert after["model"]["quantizer"].pop("codebook_size") == 32
    del before["model"]["quantizer"]["codebook_size"]
    assert after == before


def test_missing_block_is_created() -> None:
    assert values("loss.entropy=0.1")["loss"] == {"entropy": 0.1}
    assert values("data.kind=tensors", text="data:\n")["data"] == {"kind": "tensors"}


def test_last_override_of_a_key_wins() -> None:
    assert values("training.steps=1", "training.steps=2")["training"] == {"steps": 2}
    assert values("training={steps: 1}", "training.batch_size=2")["training"] == {"steps": 1, "batch_size": 2}


@pytest.mark.parametrize(
    "overrides",
    [("data.kind=tensors", "data.path=x.npy"), ("data.path=x.npy", "data.kind=tensors")],
    ids=["kind first", "kind last"],
)
def test_new_kind_drops_keys_it_does_not_have(overrides: tuple[str, ...], config: Path) -> None:
    assert values(*overrides)["data"] == {"kind": "tensors", "path": "x.npy", "validation": 0.2}
    assert load_config(config, overrides).data.kind == "tensors"


@pytest.mark.parametrize("path", sorted(Path("configs").resolve().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_accepts_tensors(path: Path) -> None:
    data = load_config(path, ["data.kind=tensors", "data.path=x.npy"]).data
    assert (data.kind, data.path) == ("tensors", "x.npy")


@pytest.mark.parametrize("path", sorted(Path("configs").resolve().glob("*.yaml")), ids=lambda path: path.stem)
def test_data_path_implies_kind_tensors(path: Path) -> None:
    data = load_config(path, ["data.path=x.npy"]).data
    assert data == load_config(path, ["data.kind=tensors", "data.path=x.npy"]).data


def test_data_path_keeps_keys_that_tensors_have(config: Path) -> None:
    assert values("data.path=x.npy")["data"] == {"kind": "tensors", "path": "x.npy", "validation": 0.2}
    config.write_text(SYNTHETIC.replace("kind: synthetic", "kind: tensors\n  key: a\n  path: y.npy"))
    assert values("data.path=x.npy", text=config.read_text())["data"]["key"] == "a"


@pytest.mark.parametrize("overrides", [["data.key=a"], ["data.path.more=x"], ["path=x.npy"], ["data={path: x.npy}"]])
def test_other_keys_do_not_imply_kind_tensors(overrides: list[str]) -> None:
    assert values(*overrides)["data"].get("kind") != "tensors"


@pytest.mark.parametrize("kind", ["synthetic", "tensor"])
def test_explicit_kind_overrides_the_implied_one(kind: str, config: Path) -> None:
    assert values("data.path=x.npy", f"data.kind={kind}")["data"]["kind"] == kind
    with pytest.raises(ConfigError, match=r"--set data\.(path|kind): unknown"):
        load_config(config, ["data.path=x.npy", f"data.kind={kind}"])


def test_new_kind_of_an_inner_block_drops_keys_of_that_block_only() -> None:
    quantizer = values("model.quantizer.update.kind=codebook_loss")["model"]["quantizer"]
    assert quantizer == {"kind": "vector", "codebook_size": 16, "update": {"kind": "codebook_loss"}}
    assert values("model.encoder.kind=mlp")["model"]["encoder"] == {"kind": "mlp", "width": 8}


def test_same_kind_drops_nothing(config: Path) -> None:
    assert values("data.kind=synthetic") == read_yaml(SYNTHETIC, "c.yaml").values
    config.write_text(SYNTHETIC.replace("samples", "sample"))
    with pytest.raises(ConfigError, match=r"c\.yaml:4: data\.sample: .* samples\?"):
        load_config(config, ["data.kind=synthetic"])


def test_unknown_kind_drops_nothing() -> None:
    assert values("data.kind=tensor")["data"]["samples"] == 100


@pytest.mark.parametrize(
    ("overrides", "start", "part"),
    [
        (["training.stesp=5"], "training.stesp", " steps?"),
        (["data.kind=tensors", "data.path=x", "data.samples=5"], "data.samples", "unknown key"),
        (["data.samples=5", "data.kind=tensors", "data.path=x"], "data.samples", "unknown key"),
        (
            ["data.kind=tensors", "data.path=x", "data.source.kind=tiles"],
            "data.source.kind: data.source",
            "unknown key",
        ),
        (
            ["data.source.kind=tiles", "data.kind=tensors", "data.path=x"],
            "data.source.kind: data.source",
            "unknown key",
        ),
        (["kind=tensors"], "kind", "unknown key"),
        (["training.steps.more=1"], "training.steps.more", " training.steps "),
        (["seed=-1"], "seed", "got -1"),
        (["data.kind=tensor"], "data.kind", " tensors?"),
        (["data.size=[1, a]"], "data.size: data.size[1]", "integer"),
        (["training={steps: 1, steps: 2}"], "training: training.steps", "duplicate key"),
        (["name=!mine x"], "name", "!mine"),
        (["training.steps=[1"], "training.steps", "not YAML"),
        (["training.steps=" + "[" * 10_000], "training.steps", "nested too deeply"),
    ],
)
def test_errors_of_an_override_name_it(overrides: list[str], start: str, part: str, config: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config, overrides)
    assert any(
        line.startswith(f"--set {start}: ") and part in line.removeprefix(f"--set {start}: ")
        for line in str(error.value).splitlines()
    )


def test_errors_of_file_and_overrides_are_reported_together(config: Path) -> None:
    config.write_text(SYNTHETIC.replace("steps: 10", "stepz: 10"))
    with pytest.raises(ConfigError) as error:
        load_config(config, ["seed=x"])
    assert {line.split(": ")[0] for line in str(error.value).splitlines()} == {f"{config}:10", "--set seed"}


def test_override_replaces_an_invalid_value_of_the_file(config: Path) -> None:
    config.write_text(SYNTHETIC.replace("steps: 10", "steps: ten"))
    assert load_config(config, ["training.steps=10"]).training.steps == 10


@pytest.mark.parametrize("override", ["", "=", "=5", "training.steps", ".=1", "training.=1", ".steps=1", "a..b=1"])
def test_override_that_is_not_key_value_is_refused(override: str, config: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(config, [override])
    assert str(error.value).startswith(f"--set {override}: " if override else '--set "": ')
    assert "expected KEY=VALUE" in str(error.value)
    assert ("empty part" in str(error.value)) == (override in ("training.=1", ".steps=1", "a..b=1"))
