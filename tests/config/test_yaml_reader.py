"""What a YAML text means, and where each key of it stands."""

import math
from typing import Any

import pytest

from vqtool.config.yaml_reader import dotted, read_yaml
from vqtool.errors import ConfigError


def read(text: str) -> Any:
    tree = read_yaml(text, "c.yaml")
    assert tree.problems == []
    return tree.values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("6.02e+23", 6.02e23),
        ("1.", 1.0),
        (".5", 0.5),
        ("-2.5", -2.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("7", 7),
        ("+7", 7),
        ("-7", -7),
        ("010", 10),
        ("08", 8),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Off", "Off"),
        ("yes", "yes"),
        ("y", "y"),
        ("nul", "nul"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("inf", "inf"),
        ("nan", "nan"),
        ("=", "="),
        ("'1'", "1"),
        ('"null"', "null"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("[1, [no, ~]]", [1, ["no", None]]),
        ("{a: {b: 1e3}}", {"a": {"b": 1000.0}}),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    got = read(f"key: {text}")["key"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan_is_read_as_nan(text: str) -> None:
    assert math.isnan(read(f"key: {text}")["key"])


def test_keys_are_words_whatever_they_look_like() -> None:
    assert read("1: a\nno: b\n~: c\n1e3: d\n") == {"1": "a", "no": "b", "~": "c", "1e3": "d"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff"])
def test_a_text_without_content_is_nothing(text: str) -> None:
    assert read(text) is None


def test_a_byte_order_mark_is_no_part_of_the_first_key() -> None:
    assert read("\ufeffa: 1") == {"a": 1}


def test_every_key_and_item_has_its_line() -> None:
    tree = read_yaml("a: 1\nb:\n  c: 2\n  d:\n  - x\n  - y\ne: {f: 3}\n", "c.yaml")
    assert tree.places == {
        (): "c.yaml",
        ("a",): "c.yaml:1",
        ("b",): "c.yaml:2",
        ("b", "c"): "c.yaml:3",
        ("b", "d"): "c.yaml:4",
        ("b", "d", 0): "c.yaml:5",
        ("b", "d", 1): "c.yaml:6",
        ("e",): "c.yaml:7",
        ("e", "f"): "c.yaml:7",
    }


def test_what_is_missing_stands_in_the_closest_block_around_it() -> None:
    tree = read_yaml("a:\n  b: {c: 1}\n", "c.yaml")
    assert tree.place(("a", "b", "z", "y")) == "c.yaml:2"
    assert tree.place(("z",)) == "c.yaml"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "c.yaml:3: a: duplicate key; first defined at c.yaml:1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "c.yaml:4: a.b: duplicate key; first defined at c.yaml:2"),
        ("a: {b: 1, b: 1}\n", "c.yaml:1: a.b: duplicate key; first defined at c.yaml:1"),
        ("l:\n- a: 1\n  a: 2\n", "c.yaml:3: l[0].a: duplicate key; first defined at c.yaml:2"),
    ],
)
def test_a_key_twice_is_a_problem_that_names_both_lines(text: str, problem: str) -> None:
    assert read_yaml(text, "c.yaml").problems == [problem]


def test_the_first_of_two_equal_keys_is_kept() -> None:
    assert read_yaml("a: 1\na: 2\n", "c.yaml").values == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/name:os.system x",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!python/object:os.stat_result {b: 1}",
        "a: !!set {b, c}",
        "a: !mine 3",
        "a: !!timestamp 2020-01-01",
        "!!python/name:os.system a: 3",
    ],
)
def test_an_unknown_tag_is_a_problem_that_names_its_line(text: str) -> None:
    (problem,) = read_yaml(f"z: 1\n{text}\n", "c.yaml").problems
    assert problem.startswith("c.yaml:2: ")
    assert "tag" in problem


@pytest.mark.parametrize("text", ["!!int five", "!!float wide", "!!bool yes", "!!null full"])
def test_a_tag_that_the_value_does_not_fit_is_a_problem(text: str) -> None:
    (problem,) = read_yaml(f"a: {text}\n", "c.yaml").problems
    assert problem.startswith("c.yaml:1: a: ")


def test_a_number_of_thousands_of_digits_is_a_problem() -> None:
    (problem,) = read_yaml(f"a: {'9' * 5000}\n", "c.yaml").problems
    assert problem.startswith("c.yaml:1: a: ")
    assert len(problem) < 200


def test_a_key_that_is_no_word_is_a_problem() -> None:
    (problem,) = read_yaml("b: 1\n? [a]\n: 1\n", "c.yaml").problems
    assert problem == "c.yaml:2: the config: a key must be a plain word without a tag"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x {b: 1}\nc: *x\n", r"c\.yaml:2: .*alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", r"c\.yaml:3: .*alias"),
        ("a: &x [*x]\n", r"c\.yaml:1: .*alias"),
        ("a: {b: 1\n", r"c\.yaml:2: not YAML"),
        ("a: 1\nb:\n\tc: 1\n", r"c\.yaml:3: not YAML"),
        ("a: 1\n b: 2\n", r"c\.yaml:2: not YAML"),
        ("a: 'open\n", r"c\.yaml:2: not YAML"),
        ("a: 1\n---\nb: 2\n", r"c\.yaml:2: not YAML: several documents"),
        ("%YAML 3.0\n---\na: 1\n", r"c\.yaml:1: not YAML"),
        ("a: \x00", r"c\.yaml:1: not YAML: .*character"),
        ("a: \udcff", r"c\.yaml:1: not YAML: .*character"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "c.yaml")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "a: " + "{b: " * 100_000, "- " * 100_000, "\n".join(" " * i + "a:" for i in range(2000))],
    ids=["brackets", "braces", "dashes", "blocks"],
)
def test_nesting_too_deep_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml.*nested too deeply"):
        read_yaml(text, "c.yaml")


def test_dotted_is_how_a_user_writes_a_key() -> None:
    assert dotted(("data", "size", 0)) == "data.size[0]"
    assert dotted(()) == "the config"
