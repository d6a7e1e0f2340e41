"""Values of YAML text, locations of its keys, and errors with their line."""

import math
from typing import Any

import pytest

from vqtool.config.yaml_reader import dotted, read_yaml
from vqtool.errors import ConfigError


def read(text: str) -> Any:
    tree = read_yaml(text, "c.yaml")
    assert tree.errors == []
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
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    value_read = read(f"key: {text}")["key"]
    assert value_read == value
    assert type(value_read) is type(value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_nan_is_read_as_nan(text: str) -> None:
    assert math.isnan(read(f"key: {text}")["key"])


def test_keys_are_always_strings() -> None:
    assert read("1: a\nno: b\n~: c\n1e3: d\n") == {"1": "a", "no": "b", "~": "c", "1e3": "d"}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeff"])
def test_empty_document_has_no_values(text: str) -> None:
    assert read(text) is None


def test_byte_order_mark_is_not_part_of_the_first_key() -> None:
    assert read("\ufeffa: 1") == {"a": 1}


def test_every_key_and_item_has_the_location_of_its_line() -> None:
    tree = read_yaml("a: 1\nb:\n  c: 2\n  d:\n  - x\n  - y\ne: {f: 3}\n", "c.yaml")
    assert tree.locations == {
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


def test_missing_key_has_the_location_of_the_closest_enclosing_block() -> None:
    tree = read_yaml("a:\n  b: {c: 1}\n", "c.yaml")
    assert tree.location(("a", "b", "z", "y")) == "c.yaml:2"
    assert tree.location(("z",)) == "c.yaml"


@pytest.mark.parametrize(
    ("text", "key", "line", "first_line"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 3, 1),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "a.b", 4, 2),
        ("a: {b: 1, b: 1}\n", "a.b", 1, 1),
        ("l:\n- a: 1\n  a: 2\n", "l[0].a", 3, 2),
    ],
)
def test_duplicate_key_is_reported_with_both_lines(text: str, key: str, line: int, first_line: int) -> None:
    (message,) = read_yaml(text, "c.yaml").errors
    assert message.startswith(f"c.yaml:{line}: {key}: ")
    assert "duplicate" in message
    assert message.endswith(f" c.yaml:{first_line}")


def test_first_of_two_duplicate_keys_wins() -> None:
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
def test_tag_is_reported_with_its_line(text: str) -> None:
    (message,) = read_yaml(f"z: 1\n{text}\n", "c.yaml").errors
    assert message.startswith("c.yaml:2: ")
    assert "tag" in message


@pytest.mark.parametrize("text", ["!!int five", "!!float wide", "!!bool yes", "!!null full"])
def test_value_that_does_not_match_its_tag_is_reported(text: str) -> None:
    (message,) = read_yaml(f"a: {text}\n", "c.yaml").errors
    assert message.startswith("c.yaml:1: a: ")


def test_number_of_thousands_of_digits_is_reported() -> None:
    (message,) = read_yaml(f"a: {'9' * 5000}\n", "c.yaml").errors
    assert message.startswith("c.yaml:1: a: ")
    assert len(message) < 200


def test_key_that_is_not_a_scalar_is_reported() -> None:
    (message,) = read_yaml("b: 1\n? [a]\n: 1\n", "c.yaml").errors
    assert message.startswith("c.yaml:2: ")
    assert "key" in message


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
def test_invalid_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(text, "c.yaml")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "a: " + "{b: " * 100_000, "- " * 100_000, "\n".join(" " * i + "a:" for i in range(2000))],
    ids=["brackets", "braces", "dashes", "blocks"],
)
def test_too_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml.*nested too deeply"):
        read_yaml(text, "c.yaml")


def test_dotted_joins_keys_and_indices() -> None:
    assert dotted(("data", "size", 0)) == "data.size[0]"
    assert dotted(()) == "the config"
