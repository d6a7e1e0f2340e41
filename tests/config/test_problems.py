"""What a user is told of a config that is wrong: place, key, what is wrong, the nearest name that would do."""

from pathlib import Path

import pytest

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


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    return str(error.value).replace(f"{folder}/", "").splitlines()


def test_the_config_of_these_tests_is_good(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert load_config(tmp_path / "c.yaml").training.steps == 10


OTHER = "unknown key for this kind; it needs"
UNKNOWN = [
    ("seed: 0", "sed: 0", "1: sed: unknown key; did you mean seed?"),
    ("  steps: 10", "  step: 10", "16: training.step: unknown key; did you mean steps?"),
    ("{kind: textures}", "{kind: textures, hieght: 8}", "4: data.source.hieght: unknown key; did you mean height?"),
    ("{kind: conv2d}", "{kind: conv2d, zzz: 2}", "8: model.encoder.zzz: unknown key; expected one of "),
    ("{kind: conv2d}", "{kind: conv2d, heads: 2}", f"8: model.encoder.heads: {OTHER} model.encoder.kind: transformer"),
    ("  kind: synthetic", "  kind: synthetic\n  path: x.npy", f"4: data.path: {OTHER} data.kind: tensors"),
    ("{kind: ema}", "{kind: ema, decai: 1}", "12: model.quantizer.update.decai: unknown key; did you mean decay?"),
    ("{kind: textures}", "{kind: texture}", "4: data.source.kind: unknown kind \"texture\"; did you mean textures?"),
    ("{kind: conv2d}", "{kind: cnov2d}", "8: model.encoder.kind: unknown kind \"cnov2d\"; did you mean conv2d?"),
    ("kind: synthetic", "kind: xyz", "3: data.kind: unknown kind \"xyz\"; expected one of tensors, synthetic"),
    (": cosine", ": cosin", "18: training.schedule: expected cosine or constant (got \"cosin\"); did you mean cosine?"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), UNKNOWN)
def test_an_unknown_name_comes_with_the_nearest(old: str, new: str, line: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace(old, new))
    assert found.startswith(f"c.yaml:{line}")


MISSING = [
    ("data:\n  kind: synthetic", "data:", "2: data: missing kind; expected one of tensors, synthetic"),
    ("{kind: conv2d}", "{width: 8}", "8: model.encoder: missing kind; expected one of identity, mlp, conv1d"),
    ("{kind: conv2d}", "{}", "8: model.encoder: missing kind; expected one of identity, mlp, conv1d"),
    ("  encoder: {kind: conv2d}\n", "", "7: model.encoder: missing"),
    ("  source: {kind: textures}\n", "", "2: data.source: missing"),
    ("kind: synthetic\n  source: {kind: textures}", "kind: tensors", "2: data.path: missing"),
]


@pytest.mark.parametrize(("old", "new", "line"), MISSING)
def test_what_is_missing_stands_at_its_block(old: str, new: str, line: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace(old, new))
    assert found.startswith(f"c.yaml:{line}")


STRICT = [
    ("steps: 10", "steps: '10'", "16: training.steps: expected an integer (got the string \"10\"; remove the quotes)"),
    ("steps: 10", "steps: true", "16: training.steps: expected an integer (got true)"),
    ("steps: 10", "steps: 10.0", "16: training.steps: expected an integer (got 10.0)"),
    ("steps: 10", "steps: 1e1", "16: training.steps: expected an integer (got 10.0)"),
    ("steps: 10", "steps:", "16: training.steps: expected an integer (got null)"),
    ("steps: 10", "steps: [10]", "16: training.steps: expected an integer (got [10])"),
    ("steps: 10", "steps: {a: 1}", "16: training.steps: expected an integer"),
    ("rate: 0.001", "rate: fast", "17: training.learning_rate: expected a number (got \"fast\")"),
    ("rate: 0.001", "rate: '1e-3'", "17: training.learning_rate: expected a number (got the string \"1e-3\"; remove"),
    ("rate: 0.001", "rate: false", "17: training.learning_rate: expected a number (got false)"),
    ("rate: 0.001", "rate: .nan", "17: training.learning_rate: expected a finite number (got NaN)"),
    ("rate: 0.001", "rate: .inf", "17: training.learning_rate: expected a finite number (got Infinity)"),
    ("rate: 0.001", "rate: 1e999", "17: training.learning_rate: expected a finite number (got Infinity)"),
    ("rate: 0.001", "rate: 0", "17: training.learning_rate: expected a number greater than 0 (got 0)"),
    ("steps: 10", "steps: 0", "16: training.steps: expected at least 1 (got 0)"),
    ("entropy: 0.0", "entropy: -0.1", "14: loss.entropy: expected at least 0 (got -0.1)"),
    ("size: 16", "size: 0", "11: model.quantizer.codebook_size: expected at least 1 (got 0)"),
    ("seed: 0", "seed: 4294967296", "1: seed: expected a number less than 4,294,967,296 (got 4294967296)"),
    ("seed: 0", "name: 5", "1: name: expected a string (got 5)"),
    ("validation: 0.1", "validation: 1.0", "5: data.validation: expected a number less than 1 or a string (got 1.0)"),
    ("size: auto", "size: [8, 8.0]", "6: data.size[1]: expected an integer (got 8.0)"),
    ("size: auto", "layout: chw", "6: data.layout: expected auto, C, CT, TC, CHW, HWC, T or HW"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line"), STRICT)
def test_a_wrong_value_is_shown_beside_what_is_expected(old: str, new: str, line: str, tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace(old, new))
    assert found[0].startswith(f"c.yaml:{line}")


@pytest.mark.parametrize("name", ["a/b", "..", "/", "''", '"a\\tb"', '"a\\nb"', "a\\b", "x" * 256, "ä" * 128])
def test_a_name_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("seed: 0", f"name: {name}"))
    assert found.startswith("c.yaml:1: name: ")


@pytest.mark.parametrize("dim", [0, -1])
def test_a_codebook_dim_that_is_no_width_is_refused(dim: int, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("codebook_size: 16", f"codebook_dim: {dim}"))
    assert found.startswith("c.yaml:11: model.quantizer.codebook_dim: ")


@pytest.mark.parametrize("dtype", ["float33", "nn", "complex64"])
def test_a_type_that_no_array_has_is_refused(dtype: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("size: auto", f"dtype: {dtype}"))
    assert found.startswith("c.yaml:6: data.dtype: ")


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("{kind: conv2d}", "{kind: transformer, width: 10, heads: 3}"))
    assert found.startswith("c.yaml:8: model.encoder.heads: width 10 is not a multiple of 3 heads")


@pytest.mark.parametrize(
    ("key", "start"), [("data", 2), ("model", 7), ("training", 15), ("loss", 13)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("value", ["", "c.yaml:5", "[a]", "word"])
def test_a_block_that_is_no_block_is_refused(key: str, start: int, value: str, tmp_path: Path) -> None:
    lines = [line for line in GOOD.splitlines() if line != f"{key}:"]
    top = [line for line in lines if not line.startswith(" ")]
    text = f"{key}: {value}\n" + "\n".join(top).replace("seed: 0", "")
    (found,) = [line for line in problems(tmp_path, text) if f" {key}: " in line]
    assert found.startswith(f"c.yaml:1: {key}: {'expected' if value else 'is empty; expected'} a block of keys")


def test_all_errors_come_at_once_each_with_its_line_and_key(tmp_path: Path) -> None:
    text = (
        GOOD.replace("seed: 0", "seed: a")
        .replace("kind: textures", "kind: textures, chanels: 1")
        .replace("kind: conv2d", "kind: conv2d, width: 1.5")
        .replace("  steps: 10", "  steps: 10\n  steps: 11")
        .replace("schedule: cosine", "sched: cosine")
    )
    places = {tuple(line.split(": ")[:2]) for line in problems(tmp_path, text)}
    assert places == {
        ("c.yaml:1", "seed"),
        ("c.yaml:4", "data.source.chanels"),
        ("c.yaml:8", "model.encoder.width"),
        ("c.yaml:17", "training.steps"),
        ("c.yaml:19", "training.sched"),
    }


def test_errors_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("  steps: 10", "  stepz: 10").replace("kind: conv2d", "kind: conv2d, width: x")
    text = text.replace("seed: 0", "sed: 0")
    lines = [int(line.split(":")[1]) for line in problems(tmp_path, text)]
    assert lines == [1, 8, 16]


def test_a_key_that_fits_no_branch_of_its_union_is_one_error(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("validation: 0.1", "validation: []"))
    assert found == "c.yaml:5: data.validation: expected a number or a string (got [])"


LONG = "y" * 100_000


@pytest.mark.parametrize(
    ("old", "new"),
    [("seed: 0", f"? {LONG}\n: 1"), ("{kind: conv2d}", f"{{kind: {LONG}}}"), ("seed: 0", f"seed: !{LONG} 1")],
    ids=["key", "kind", "tag"],
)
def test_a_long_word_is_cut_short(old: str, new: str, tmp_path: Path) -> None:
    assert max(map(len, problems(tmp_path, GOOD.replace(old, new)))) < 300


@pytest.mark.parametrize("key", ["path", "key", "validation"])
def test_a_path_longer_than_any_is_refused(key: str, tmp_path: Path) -> None:
    tensors = GOOD.replace("kind: synthetic\n  source: {kind: textures}", f"kind: tensors\n  path: x\n  {key}: {LONG}")
    found = problems(
        tmp_path,
        tensors.replace("  path: x\n", "" if key == "path" else "  path: x\n").replace(
            "  validation: 0.1\n", "" if key == "validation" else "  validation: 0.1\n"
        ),
    )
    assert [line for line in found if f"data.{key}: " in line and "at most 4,096 characters" in line]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("{kind: residual, beam_size: 2, quantizer: {kind: fsq, levels: [3]}}", "beam_size: needs quantizer.kind"),
        ("{kind: residual, quantizer: {kind: vector, metric: cosine}}", "quantizer.metric: "),
    ],
)
def test_an_error_of_a_block_names_the_key_inside(value: str, line: str, tmp_path: Path) -> None:
    start = GOOD.index("  quantizer:")
    text = GOOD[:start] + f"  quantizer: {value}\n" + GOOD[GOOD.index("loss:") :]
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"c.yaml:9: model.quantizer.{line}")


def test_a_key_of_another_block_names_that_block(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("  entropy: 0.0", "  steps: 3"))
    assert found == "c.yaml:14: loss.steps: unknown key; did you mean training.steps?"


@pytest.mark.parametrize(("value", "shown"), [("", "null"), ("{}", "{}"), ("false", "false"), ("5", "5")])
def test_a_kind_that_is_no_word_is_shown_as_written(value: str, shown: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace("{kind: conv2d}", f"{{kind: {value}}}"))
    assert f"model.encoder.kind: unknown kind {shown}; expected" in found


def test_a_misspelt_key_of_another_kind_names_key_and_kind(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: {kind: synthetic, paht: x}\nmodel: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    line = next(line for line in str(caught.value).splitlines() if "data.paht" in line)
    assert "path" in line
    assert "data.kind: tensors" in line


def test_a_block_of_several_kinds_lists_them(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: {quantizer: {kind: vector, assignment: null, init: kmeans}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    lines = str(caught.value).splitlines()
    assert any("assignment" in line and "nearest or sinkhorn" in line for line in lines)
    assert any("init" in line and "random or kmeans" in line for line in lines)
