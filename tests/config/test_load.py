"""Configs are loaded from files, validated, and written back."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtool.config import BEST_METRICS, RunSettings, TrainingSettings, load_config, write_config
from vqtool.errors import ConfigError

RECIPES = {path.stem: path for path in sorted(Path("configs").resolve().glob("*.yaml"))}
MINIMAL = "data: {kind: tensors, path: x.npy}\nmodel: {encoder: {kind: mlp}, quantizer: {kind: vector}}\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., RunSettings]:
    def from_text(text: str | bytes, name: str = "c.yaml", *overrides: str) -> RunSettings:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides)

    return from_text


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "c.yaml"


def test_six_recipes_are_shipped() -> None:
    assert list(RECIPES) == ["images", "quickstart", "semantic-ids", "sequences", "tiles", "vectors"]


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_recipe_loads_with_the_values_of_its_file(path: Path) -> None:
    loaded = load_config(path).model_dump()
    written = yaml.safe_load(path.read_text())
    assert loaded["name"] == path.stem
    assert {key: loaded["training"][key] for key in written["training"]} == written["training"]
    assert loaded["data"]["source"].items() >= written["data"]["source"].items()


def test_missing_keys_have_their_defaults(load: Callable[..., RunSettings]) -> None:
    loaded = load(MINIMAL)
    assert loaded.training == TrainingSettings()
    assert (loaded.seed, loaded.model.decoder, loaded.data.layout, loaded.data.normalize) == (0, None, "auto", "global")


def test_name_defaults_to_the_file_stem(load: Callable[..., RunSettings]) -> None:
    assert load(MINIMAL, "my run.yaml").name == "my run"
    assert load(MINIMAL + "name: other\n", "my run.yaml").name == "other"
    assert load(MINIMAL + "name: other\n", "my run.yaml", "name=third").name == "third"


def test_file_name_that_is_not_utf_8_needs_an_explicit_name(load: Callable[..., RunSettings]) -> None:
    with pytest.raises(ConfigError, match=r"^\S*r\\udcff\.yaml: name: .*UTF-8"):
        load(MINIMAL, "r\udcff.yaml")
    assert load(MINIMAL + "name: other\n", "r\udcff.yaml").name == "other"


def test_integers_and_exponents_are_accepted_for_float_keys(load: Callable[..., RunSettings]) -> None:
    loaded = load(MINIMAL + "training: {learning_rate: 1e-4, gradient_clip: 1}\n").training
    assert (loaded.learning_rate, loaded.gradient_clip) == (1e-4, 1.0)
    assert type(loaded.gradient_clip) is float


def test_settings_are_frozen(load: Callable[..., RunSettings]) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(MINIMAL).training.steps = 3


def test_every_best_metric_is_accepted(load: Callable[..., RunSettings]) -> None:
    for metric in BEST_METRICS:
        assert load(MINIMAL, "c.yaml", f"training.best_metric={metric}").training.best_metric == metric


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected keys and values"),
        (b"# only a comment\n", "expected keys and values"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"word", "expected keys and values"),
        (b"5", "expected keys and values"),
        ("naïve: 1".encode("latin-1"), "not UTF-8"),
        (MINIMAL.encode("utf-16"), "not UTF-8"),
        (bytes(range(256)), "not UTF-8"),
        (b"\x00" * 64, "not YAML"),
        (b"\x93NUMPY\x01\x00", "not UTF-8"),
        (b"# " + b"x" * (1 << 20), "larger than 1,048,576 bytes"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["empty", "comment", "list", "word", "number", "latin", "utf-16", "bytes", "nulls", "npy", "huge", "deep"],
)
def test_file_that_is_not_a_config_is_refused_by_name(
    content: bytes, message: str, load: Callable[..., RunSettings], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(str(tmp_path / 'c.yaml'))}.*{message}"):
        load(content)


def test_missing_file_and_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: does not exist"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match=f"{re.escape(str(tmp_path))}: is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_written_recipe_reads_back_equal(path: Path, tmp_path: Path) -> None:
    settings = load_config(path)
    write_config(tmp_path / "config.yaml", settings)
    assert load_config(tmp_path / "config.yaml") == settings


def test_written_config_includes_defaults(tmp_path: Path) -> None:
    settings = load_config(RECIPES["quickstart"])
    write_config(tmp_path / "config.yaml", settings)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == settings.model_dump(mode="json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


TRICKY = [
    *("1e3", "1E-3", ".5", "5.", "no", "Yes", "on", "null", "~", "true", "0x10", "0o17", "010", "1_000", "12:30"),
    *("2020-01-01", "a: b", "a #b", "#a", "- a", "[a]", "{a}", "*a", "&a", "!a", "%a", "@a", "`a", "'a'", '"a"'),
    *("a, b", " a ", "a\n", "naïve", "名前", "🎲", "a\x7fb", "a\x85b", "a\u2028b", "\ufeffa", ".inf", ".nan"),
    *("<<", "=", "-", "?", "a\rb", "a\tb", "a" * 200 + " b" * 100),
]  # fmt: skip


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_strings_read_back_equal(text: str, tmp_path: Path) -> None:
    data = {"kind": "tensors", "path": text, "key": text, "validation": text}
    model = {"encoder": {"kind": "mlp"}, "quantizer": {"kind": "vector"}}
    settings = RunSettings.model_validate({"name": "n", "data": data, "model": model})
    write_config(tmp_path / "config.yaml", settings)
    assert load_config(tmp_path / "config.yaml") == settings


@given(
    name=st.text(min_size=1, max_size=200).filter(str.strip),
    rate=st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_any_settings_read_back_equal(name: str, rate: float, seed: int, scratch: Path) -> None:
    values = {
        "name": "n",
        "seed": seed,
        "data": {"kind": "tensors", "path": name},
        "model": {"encoder": {"kind": "mlp"}, "quantizer": {"kind": "vector"}},
        "training": {"learning_rate": rate},
    }
    written = RunSettings.model_validate(values)
    write_config(scratch, written)
    assert load_config(scratch) == written


VALUES = st.one_of(
    st.sampled_from(["", "no", "1e-3", "-1", "0", "2.5", ".nan", ".inf", "[]", "{}", "[1, a]", "{kind: mlp}", "auto"]),
    st.sampled_from(["null", "'5'", "true", "!!python/object:os.system x", "&a b", "*a", "? x", "- y", "|", "\t", "'"]),
    st.text(max_size=8),
)  # fmt: skip


def _mutate(lines: list[str], number: int, how: str, value: str) -> list[str]:
    line = lines[number]
    key, colon, _ = line.partition(":")
    changed = {
        "delete": [],
        "duplicate": [line, line],
        "rename": [f"{key}{value}{colon}{line[len(key) + 1 :]}"],
        "replace": [f"{key}: {value}"],
        "indent": ["  " + line],
        "dedent": [line.removeprefix("  ")],
    }[how]
    return [*lines[:number], *changed, *lines[number + 1 :]]


MUTATIONS = st.sampled_from(["delete", "duplicate", "rename", "replace", "indent", "dedent"])


@given(
    recipe=st.sampled_from(list(RECIPES)),
    mutations=st.lists(st.tuples(st.integers(0, 50), MUTATIONS, VALUES), min_size=1, max_size=3),
)
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
def test_mutated_recipe_loads_or_is_refused_with_its_file(
    recipe: str, mutations: list[tuple[int, str, str]], scratch: Path
) -> None:
    lines = [line for line in RECIPES[recipe].read_text().splitlines() if line.strip() and not line.startswith("#")]
    for number, how, value in mutations:
        lines = _mutate(lines, number % len(lines), how, value) or [""]
    scratch.write_text("\n".join(lines), encoding="utf-8")
    try:
        outcome: RunSettings | str = load_config(scratch)
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, RunSettings) or outcome.startswith(str(scratch))


def test_first_100_of_many_errors_are_shown(load: Callable[..., RunSettings]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(MINIMAL + "".join(f"key{i}: 1\n" for i in range(5000)))
    lines = str(caught.value).splitlines()
    assert len(lines) == 101
    assert re.search(r"c\.yaml:3: key0: unknown key", lines[0])
    assert "first 100" in lines[-1]


def test_endless_device_is_refused_after_1_mib() -> None:
    with pytest.raises(ConfigError, match=r"^/dev/zero: .*1,048,576 bytes"):
        load_config(Path("/dev/zero"))


@contextmanager
def pipe_of(content: bytes) -> Iterator[Path]:
    """Yield the path of a pipe that holds `content`, as a shell's `<(...)`."""
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    yield Path(f"/dev/fd/{reader}")
    os.close(reader)


@pytest.mark.parametrize(("line", "name"), [("", None), ("name: mine\n", "mine")])
def test_pipe_is_read_and_gives_no_default_name(line: str, name: str | None) -> None:
    with pipe_of((MINIMAL + line).encode()) as path:
        assert load_config(path).name == name


def test_endless_pipe_is_refused_after_1_mib(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    handle = os.open(path, os.O_RDWR)
    with subprocess.Popen(["yes"], stdout=handle) as endless:
        try:
            with pytest.raises(ConfigError, match=r"pipe: .*1,048,576 bytes"):
                load_config(path)
        finally:
            endless.kill()
    os.close(handle)
