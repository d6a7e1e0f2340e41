"""Messages about invalid configs: location, key, what is wrong, and the nearest valid name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vqtool.config import load_config
from vqtool.errors import ConfigError

GOOD = """\
seed: 0
data:
  kind: synthetic
  source: {kind: textures}
  validation: 0.1
  size: auto
model:
  encoder: {kind: conv2d}
  quantizer:
    kind: vector
    codebook_size: 16
    update: {kind: ema}
loss:
  entropy: 0.0
training:
  steps: 10
  learning_rate: 0.001
  schedule: cosine
"""


def error_lines(folder: Path, text: str) -> list[str]:
    path = folder / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return str(error.value).replace(f"{folder}/", "").splitlines()


def test_unchanged_config_of_these_tests_is_valid(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert load_config(tmp_path / "c.yaml").training.steps == 10


def check_message(message: str, start: str, parts: list[str]) -> None:
    """Check line and key at the start of a message, and that its rest contains all parts."""
    assert message.startswith(f"c.yaml:{start}: ")
    rest = message.removeprefix(f"c.yaml:{start}: ")
    assert all(part in rest for part in parts), rest


# Replaced text, new text; line and key of the error; parts of its message.
UNKNOWN = [
    ("seed: 0", "sed: 0", "1: sed", ["unknown key", " seed?"]),
    ("  steps: 10", "  step: 10", "16: training.step", ["unknown key", " steps?"]),
    ("{kind: textures}", "{kind: textures, hieght: 8}", "4: data.source.hieght", ["unknown key", " height?"]),
    ("{kind: conv2d}", "{kind: conv2d, zzz: 2}", "8: model.encoder.zzz", ["unknown key", "expected one of", " width,"]),
    ("{kind: conv2d}", "{kind: conv2d, heads: 2}", "8: model.encoder.heads", [" model.encoder.kind: transformer"]),
    ("  kind: synthetic", "  kind: synthetic\n  path: x.npy", "4: data.path", ["unknown key", " data.kind: tensors"]),
    ("{kind: ema}", "{kind: ema, decai: 1}", "12: model.quantizer.update.decai", ["unknown key", " decay?"]),
    ("{kind: textures}", "{kind: texture}", "4: data.source.kind", ["unknown kind", '"texture"', " textures?"]),
    ("{kind: conv2d}", "{kind: cnov2d}", "8: model.encoder.kind", ["unknown kind", '"cnov2d"', " conv2d?"]),
    ("kind: synthetic", "kind: xyz", "3: data.kind", ["unknown kind", '"xyz"', "one of tensors, synthetic"]),
    (": cosine", ": cosin", "18: training.schedule", ["cosine or constant", '"cosin"', "mean cosine?"]),
]


@pytest.mark.parametrize(("old", "new", "start", "parts"), UNKNOWN)
def test_unknown_name_is_reported_with_the_nearest_name(
    old: str, new: str, start: str, parts: list[str], tmp_path: Path
) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace(old, new))
    check_message(message, start, parts)


MISSING = [
    ("data:\n  kind: synthetic", "data:", "2: data", ["missing kind", "tensors, synthetic"]),
    ("{kind: conv2d}", "{width: 8}", "8: model.encoder", ["missing kind", "identity, mlp, conv1d"]),
    ("{kind: conv2d}", "{}", "8: model.encoder", ["missing kind", "identity, mlp, conv1d"]),
    ("  encoder: {kind: conv2d}\n", "", "7: model.encoder", ["missing"]),
    ("  source: {kind: textures}\n", "", "2: data.source", ["missing"]),
    ("kind: synthetic\n  source: {kind: textures}", "kind: tensors", "2: data.path", ["missing"]),
]


@pytest.mark.parametrize(("old", "new", "start", "parts"), MISSING)
def test_missing_key_is_reported_at_its_block(old: str, new: str, start: str, parts: list[str], tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace(old, new))
    check_message(message, start, parts)


STEPS, RATE = "16: training.steps", "17: training.learning_rate"
STRICT = [
    ("steps: 10", "steps: '10'", STEPS, ["integer", 'the string "10"', "quotes"]),
    ("steps: 10", "steps: true", STEPS, ["integer", "got true"]),
    ("steps: 10", "steps: 10.0", STEPS, ["integer", "got 10.0"]),
    ("steps: 10", "steps: 1e1", STEPS, ["integer", "got 10.0"]),
    ("steps: 10", "steps:", STEPS, ["integer", "got null"]),
    ("steps: 10", "steps: [10]", STEPS, ["integer", "got [10]"]),
    ("steps: 10", "steps: {a: 1}", STEPS, ["integer"]),
    ("rate: 0.001", "rate: fast", RATE, ["a number", 'got "fast"']),
    ("rate: 0.001", "rate: '1e-3'", RATE, ["a number", 'the string "1e-3"', "quotes"]),
    ("rate: 0.001", "rate: false", RATE, ["a number", "got false"]),
    ("rate: 0.001", "rate: .nan", RATE, ["a finite number", "got NaN"]),
    ("rate: 0.001", "rate: .inf", RATE, ["a finite number", "got Infinity"]),
    ("rate: 0.001", "rate: 1e999", RATE, ["a finite number", "got Infinity"]),
    ("rate: 0.001", "rate: 0", RATE, ["greater than 0 ", "got 0"]),
    ("steps: 10", "steps: 0", STEPS, ["at least 1 ", "got 0"]),
    ("entropy: 0.0", "entropy: -0.1", "14: loss.entropy", ["at least 0 ", "got -0.1"]),
    ("size: 16", "size: 0", "11: model.quantizer.codebook_size", ["at least 1 ", "got 0"]),
    ("seed: 0", "seed: 4294967296", "1: seed", ["less than 4,294,967,296 ", "got 4294967296"]),
    ("seed: 0", "name: 5", "1: name", ["a string", "got 5"]),
    ("validation: 0.1", "validation: 1.0", "5: data.validation", ["a number less than 1 or a string", "got 1.0"]),
    ("size: auto", "size: [8, 8.0]", "6: data.size[1]", ["integer", "got 8.0"]),
    ("size: auto", "layout: chw", "6: data.layout", ["expected auto, C, CT, TC, CHW, HWC, T or HW", '"chw"']),
]


@pytest.mark.parametrize(("old", "new", "start", "parts"), STRICT)
def test_invalid_value_is_reported_with_the_expected_type(
    old: str, new: str, start: str, parts: list[str], tmp_path: Path
) -> None:
    check_message(error_lines(tmp_path, GOOD.replace(old, new))[0], start, parts)


@pytest.mark.parametrize("name", ["a/b", "..", "/", "''", '"a\\tb"', '"a\\nb"', "a\\b", "x" * 256, "ä" * 128])
def test_name_that_cannot_be_a_directory_is_refused(name: str, tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("seed: 0", f"name: {name}"))
    assert message.startswith("c.yaml:1: name: ")


@pytest.mark.parametrize("dim", [0, -1])
def test_codebook_dim_below_1_is_refused(dim: int, tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("codebook_size: 16", f"codebook_dim: {dim}"))
    assert message.startswith("c.yaml:11: model.quantizer.codebook_dim: ")


@pytest.mark.parametrize("dtype", ["float33", "nn", "complex64"])
def test_unknown_dtype_is_refused(dtype: str, tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("size: auto", f"dtype: {dtype}"))
    assert message.startswith("c.yaml:6: data.dtype: ")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("{kind: conv2d}", "{kind: transformer, width: 10, heads: 3}"))
    check_message(message, "8: model.encoder.heads", ["10", "3"])


@pytest.mark.parametrize(
    ("key", "start"), [("data", 2), ("model", 7), ("training", 15), ("loss", 13)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("value", ["", "c.yaml:5", "[a]", "word"])
def test_value_instead_of_a_block_is_refused(key: str, start: int, value: str, tmp_path: Path) -> None:
    lines = [line for line in GOOD.splitlines() if line != f"{key}:"]
    top = [line for line in lines if not line.startswith(" ")]
    text = f"{key}: {value}\n" + "\n".join(top).replace("seed: 0", "")
    (message,) = [line for line in error_lines(tmp_path, text) if f" {key}: " in line]
    check_message(message, f"1: {key}", ["a block of keys"])
    assert ("is empty" in message) == (value == "")


def test_all_errors_are_reported_at_once_with_line_and_key(tmp_path: Path) -> None:
    text = (
        GOOD.replace("seed: 0", "seed: a")
        .replace("kind: textures", "kind: textures, chanels: 1")
        .replace("kind: conv2d", "kind: conv2d, width: 1.5")
        .replace("  steps: 10", "  steps: 10\n  steps: 11")
        .replace("schedule: cosine", "sched: cosine")
    )
    locations = {tuple(line.split(": ")[:2]) for line in error_lines(tmp_path, text)}
    assert locations == {
        ("c.yaml:1", "seed"),
        ("c.yaml:4", "data.source.chanels"),
        ("c.yaml:8", "model.encoder.width"),
        ("c.yaml:17", "training.steps"),
        ("c.yaml:19", "training.sched"),
    }


def test_errors_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("  steps: 10", "  stepz: 10").replace("kind: conv2d", "kind: conv2d, width: x")
    text = text.replace("seed: 0", "sed: 0")
    line_numbers = [int(line.split(":")[1]) for line in error_lines(tmp_path, text)]
    assert line_numbers == [1, 8, 16]


def test_value_that_fits_no_branch_of_a_union_is_one_error(tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("validation: 0.1", "validation: []"))
    check_message(message, "5: data.validation", ["a number or a string", "got []"])


LONG = "y" * 100_000


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed: 0", f"? {LONG}\n: 1"), ("{kind: conv2d}", f"{{kind: {LONG}}}"), ("seed: 0", f"seed: !{LONG} 1")],
    ids=["key", "kind", "tag"],
)
def test_long_words_are_truncated(old: str, new: str, tmp_path: Path) -> None:
    assert max(map(len, error_lines(tmp_path, GOOD.replace(old, new)))) < 300


@pytest.mark.parametrize("key", ["path", "key", "validation"])
def test_path_of_more_than_4096_characters_is_refused(key: str, tmp_path: Path) -> None:
    tensors = GOOD.replace("kind: synthetic\n  source: {kind: textures}", f"kind: tensors\n  path: x\n  {key}: {LONG}")
    lines = error_lines(
        tmp_path,
        tensors.replace("  path: x\n", "" if key == "path" else "  path: x\n").replace(
            "  validation: 0.1\n", "" if key == "validation" else "  validation: 0.1\n"
        ),
    )
    assert [line for line in lines if f"data.{key}: " in line and "at most 4,096 characters" in line]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{kind: residual, beam_size: 2, quantizer: {kind: fsq, levels: [3]}}", "beam_size: needs quantizer.kind"),
        ("{kind: residual, quantizer: {kind: vector, metric: cosine}}", "quantizer.metric: "),
    ],
)
def test_error_of_a_block_names_the_key_inside(value: str, line: str, tmp_path: Path) -> None:
    start = GOOD.index("  quantizer:")
    text = GOOD[:start] + f"  quantizer: {value}\n" + GOOD[GOOD.index("loss:") :]
    (message,) = error_lines(tmp_path, text)
    assert message.startswith(f"c.yaml:9: model.quantizer.{line}")


def test_key_of_another_block_is_reported_with_that_block(tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("  entropy: 0.0", "  steps: 3"))
    check_message(message, "14: loss.steps", ["unknown key", " training.steps?"])


@pytest.mark.parametrize(("value", "shown"), [("", "null"), ("{}", "{}"), ("false", "false"), ("5", "5")])
def test_kind_that_is_not_a_string_is_shown_as_written(value: str, shown: str, tmp_path: Path) -> None:
    (message,) = error_lines(tmp_path, GOOD.replace("{kind: conv2d}", f"{{kind: {value}}}"))
    check_message(message, "8: model.encoder.kind", [f"unknown kind {shown};"])


def test_misspelt_key_of_another_kind_is_reported_with_key_and_kind(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: {kind: synthetic, paht: x}\nmodel: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    line = next(line for line in str(caught.value).splitlines() if "data.paht" in line)
    assert "path" in line
    assert "data.kind: tensors" in line


def test_value_instead_of_a_block_lists_the_kinds(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: {quantizer: {kind: vector, assignment: null, init: kmeans}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    lines = str(caught.value).splitlines()
    assert any("assignment" in line and "nearest or sinkhorn" in line for line in lines)
    assert any("init" in line and "random or kmeans" in line for line in lines)


VECTOR = {
    "kind": "vector",
    "init": {"kind": "kmeans"},
    "update": {"kind": "ema"},
    "dead_code_reset": {},
    "temperature_unit": "absolute",
}
QUANTIZER, ENCODER = "model.quantizer", "model.encoder"

# Encoder or quantizer block; key of the block that had the old key; old key, a value of it, new key.
RENAMED_KEYS: list[tuple[dict[str, Any], str, str, Any, str]] = [
    (VECTOR, QUANTIZER, "start", {"kind": "kmeans", "vectors": 64}, "init"),
    (VECTOR, f"{QUANTIZER}.init", "vectors", 64, "latents_per_code"),
    (VECTOR, QUANTIZER, "learning", {"kind": "ema", "decay": 0.9, "memory": 15.0}, "update"),
    (VECTOR, f"{QUANTIZER}.update", "memory", 15.0, "min_ema_hits"),
    (VECTOR, QUANTIZER, "revival", {"window": 20, "least": 2, "reach": 0.1}, "dead_code_reset"),
    (VECTOR, QUANTIZER, "revival", None, "dead_code_reset"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "window", 20, "window_hits"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "least", 2, "min_hits"),
    (VECTOR, f"{QUANTIZER}.dead_code_reset", "reach", 0.1, "step_size"),
    (VECTOR, QUANTIZER, "gradient", "rotation", "gradient_estimator"),
    (VECTOR, QUANTIZER, "bypass", 0.25, "unquantized_fraction"),
    (VECTOR, QUANTIZER, "balance", {"kind": "sinkhorn"}, "assignment"),
    (VECTOR, QUANTIZER, "balance", None, "assignment"),
    (VECTOR, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "residual", "quantizer": VECTOR}, QUANTIZER, "beam", 4, "beam_size"),
    ({"kind": "residual", "quantizer": VECTOR}, QUANTIZER, "dropout", 0.5, "level_dropout"),
    ({"kind": "residual", "quantizer": VECTOR}, f"{QUANTIZER}.quantizer", "learning", {"kind": "ema"}, "update"),
    ({"kind": "product", "quantizer": VECTOR}, f"{QUANTIZER}.quantizer", "revival", None, "dead_code_reset"),
    ({"kind": "fsq", "levels": [4, 4]}, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "lfq", "bits": 4}, QUANTIZER, "confidence", 0.5, "sample_entropy_weight"),
    ({"kind": "conv1d"}, ENCODER, "halvings", 2, "downsamples"),
    ({"kind": "conv1d"}, ENCODER, "blocks", 2, "res_blocks"),
    ({"kind": "conv2d"}, ENCODER, "halvings", 2, "downsamples"),
    ({"kind": "conv2d"}, ENCODER, "blocks", 2, "res_blocks"),
    ({"kind": "mlp"}, ENCODER, "positions", 4, "num_tokens"),
    ({"kind": "transformer"}, ENCODER, "positions", 4, "num_tokens"),
    ({"kind": "transformer"}, ENCODER, "patch", 4, "patch_size"),
]

# Key, old value and new value.
RENAMED_VALUES = [
    (f"{QUANTIZER}.update.kind", "linear", "simvq"),
    (f"{QUANTIZER}.update.kind", "entropy", "entropy_only"),
    (f"{QUANTIZER}.temperature_unit", "squared", "absolute"),
    (f"{QUANTIZER}.temperature_unit", "error", "quantization_error"),
]

RENAMED_KEY_IDS = [f"{block['kind']}-{old}" for block, _, old, _, _ in RENAMED_KEYS]


def write_config_with(folder: Path, block: dict[str, Any], key: str = "", value: Any = None) -> Path:
    """Write a config with this encoder or quantizer block, and with `value` at the dotted `key`."""
    encoder = block if block["kind"] in ("conv1d", "conv2d", "mlp", "transformer") else {"kind": "mlp"}
    model = {"encoder": encoder, "quantizer": VECTOR if encoder is block else block}
    tree = yaml.safe_load(yaml.safe_dump({"data": {"kind": "tensors", "path": "x.npy"}, "model": model}))
    if key:
        *outer, last = key.split(".")
        inner = tree
        for name in outer:
            inner = inner[name]
        inner[last] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    return folder / "c.yaml"


def error_message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(("block", "at", "old", "value", "new"), RENAMED_KEYS, ids=RENAMED_KEY_IDS)
def test_renamed_key_is_reported_with_its_new_name(
    block: dict[str, Any], at: str, old: str, value: Any, new: str, tmp_path: Path
) -> None:
    message = error_message(write_config_with(tmp_path, block, f"{at}.{old}", value))
    assert f" {at}.{old}: unknown key" in message
    assert message.endswith(f" {new}?")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("block", "at", "old", "value", "new"), RENAMED_KEYS, ids=RENAMED_KEY_IDS)
def test_renamed_key_in_an_override_is_reported_with_its_new_name(
    block: dict[str, Any], at: str, old: str, value: Any, new: str, tmp_path: Path
) -> None:
    pairs = {f"{at}.{old}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {}
    for key, inner in (pairs or {f"{at}.{old}": value}).items():
        override = f"{key}={yaml.safe_dump(inner).splitlines()[0]}"
        message = error_message(write_config_with(tmp_path, block), override)
        subject = f"--set {key}" if key == f"{at}.{old}" else f"--set {key}: {at}.{old}"
        assert message.startswith(f"{subject}: unknown key")
        assert message.endswith(f" {new}?")
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("key", "old", "new"), RENAMED_VALUES, ids=lambda value: value)
def test_renamed_value_is_reported_with_its_new_name(key: str, old: str, new: str, tmp_path: Path) -> None:
    for message in (
        error_message(write_config_with(tmp_path, VECTOR, key, old)),
        error_message(write_config_with(tmp_path, VECTOR), f"{key}={old}"),
    ):
        assert f" {key}: " in message
        assert message.endswith(f" {new}?")


@pytest.mark.parametrize(
    ("block", "key"),
    [({"kind": "conv2d"}, f"{ENCODER}.patch"), ({"kind": "mlp"}, f"{ENCODER}.dropout"), (VECTOR, "training.beam")],
)
def test_renamed_key_in_another_block_is_not_reported_with_a_name_that_is_invalid_there(
    block: dict[str, Any], key: str, tmp_path: Path
) -> None:
    message = error_message(write_config_with(tmp_path, block), f"{key}=1")
    assert f"--set {key}: unknown key" in message
    assert not any(f" {new}?" in message for new in ("patch_size", "level_dropout", "beam_size"))
