"""Read YAML text into plain values with the line of every key.

The reader follows the core schema of YAML 1.2 without octal and hexadecimal integers: 1e-3 is a number and `no` is a
string. Duplicate keys, aliases, and tags that are not in the core schema are errors.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from vqtool.errors import ConfigError

KeyPath = tuple[str | int, ...]
# Maps a line, counted from 0, to its location in messages.
Locate = Callable[[int], str]


@dataclass
class ConfigTree:
    """Values of a config file before validation, with their locations.

    Attributes:
        values: nested dicts, lists and scalars (str, int, float, bool, None).
        locations: `file:line` of each key and list item, in file order; `--set KEY` for overrides.
        errors: messages about invalid parts of the text, whose values are None or missing, and about invalid overrides.
    """

    values: Any = None
    locations: dict[KeyPath, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def closest(self, path: KeyPath) -> KeyPath:
        """Return `path` if its location is known, else the closest enclosing path with a known location; () if none."""
        while path and path not in self.locations:
            path = path[:-1]
        return path

    def location(self, path: KeyPath) -> str:
        """Return the location of a key, or of the closest enclosing block; "" if neither is known."""
        return self.locations.get(self.closest(path), "")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2 instead of YAML 1.1, and without aliases."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not supported; repeat the block", problem_mark=mark)
        return super().compose_node(parent, index)


# The core schema of YAML 1.2: tag, pattern of its scalars, and their possible first characters.
CORE_SCHEMA = [
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
]
for _tag, _pattern, _first in CORE_SCHEMA:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


# Parts of PyYAML's messages, and the message to show instead. The first part that occurs applies.
_CAUSES = {
    "found character '\\t'": "a tab; indent with spaces",
    "cannot start any token": "a value starts with a reserved character; quote it",
    "mapping values are not allowed": "wrong indentation, or a second colon; quote text that contains ': '",
    "unknown escape character": "a backslash in double quotes; use single quotes",
    "quoted scalar": "a closing quote is missing",
    "parsing a flow": "a list or block in brackets is not closed, or a comma is missing",
    "expected ':'": "a colon is missing after a key",
    "another document": "several documents; remove the line with ---",
    "incompatible YAML": "unknown YAML version; remove the %YAML line",
    "<block": "the indentation differs from that of the lines above",
}


def read_yaml(text: str, name: str, base: KeyPath = ()) -> ConfigTree:
    """Parse one YAML document; an empty one has the value None.

    Duplicate keys and invalid scalars do not raise: they are listed in `errors` of the result.

    Args:
        text: the document.
        name: name of the file, or of the option, in locations and messages.
        base: for an override, the path of the key whose value `text` is; key paths of the result begin with it. If such
            a text has one line, locations have no line number.

    Raises:
        ConfigError: the text is not YAML, or contains an alias; names the line. Or it is nested too deeply.
    """
    tree = ConfigTree(locations={base: name})
    numbered = not base or "\n" in text

    def locate(line: int) -> str:
        return f"{name}:{line + 1}" if numbered else name

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree.values = None if node is None else _read_node(node, base, tree, locate)
    except yaml.MarkedYAMLError as error:
        location = locate(error.problem_mark.line) if error.problem_mark else name
        detail = ", ".join(part for part in (error.context, error.problem) if part)
        cause = next((cause for part, cause in _CAUSES.items() if part in detail), detail)
        raise ConfigError(f"{location}: {'' if 'not supported' in detail else 'not YAML: '}{cause}") from error
    except yaml.reader.ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character)
        location = locate(text.count("\n", 0, error.position))
        raise ConfigError(f"{location}: not YAML: character U+{code:04X} is not allowed; remove it") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    return tree


def _read_node(node: yaml.Node, path: KeyPath, tree: ConfigTree, locate: Locate) -> Any:
    """Return the value of a node, None if it is invalid; add the locations of its keys and its errors to `tree`."""
    location = locate(node.start_mark.line)
    tree.locations.setdefault(path, location)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _read_mapping(node, path, tree, locate)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_read_node(child, (*path, i), tree, locate) for i, child in enumerate(node.value)]
    try:
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return _SCALARS[kind](node.value)
        tag = truncate(node.tag.replace("tag:yaml.org,2002:", "!!"))
        tree.errors.append(f"{located_key(location, path)}: YAML tag {tag} is not supported; remove it")
    except (ValueError, KeyError):
        expected = {"int": "an integer", "float": "a number", "bool": "true or false"}.get(kind, kind)
        tree.errors.append(f"{located_key(location, path)}: expected {expected} (got {truncate(node.value)})")
    return None


def _read_mapping(node: yaml.MappingNode, path: KeyPath, tree: ConfigTree, locate: Locate) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, child in node.value:
        key, location = str(key_node.value), locate(key_node.start_mark.line)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.rpartition(":")[2] not in _SCALARS:
            tree.errors.append(f"{located_key(location, path)}: a key must be a plain word without a tag")
        elif key in values:
            first = tree.locations[*path, key]
            tree.errors.append(f"{located_key(location, (*path, key))}: duplicate key; first defined at {first}")
        else:
            tree.locations[*path, key] = location
            values[key] = _read_node(child, (*path, key), tree, locate)
    return values


def located_key(location: str, path: KeyPath) -> str:
    """Return the start of a message: `c.yaml:3: training.steps`; a `--set training.steps` of that key stays alone."""
    key = dotted(path)
    return location if location == f"--set {key}" else f"{location}: {key}"


def dotted(path: KeyPath) -> str:
    """Return a key path as a user writes it, `data.size[1]`; the empty path is `the config`.

    Keys with characters other than letters, digits, `_` and `-` are quoted, and long keys are truncated.
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_quote_key(part)}" for part in path)
    return text.removeprefix(".") or "the config"


def _quote_key(key: str) -> str:
    return truncate(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"')


def truncate(text: str) -> str:
    """Truncate text to at most 60 characters, with `...` at the cut; a quote or bracket at the end stays."""
    end = text[-1] if text[-1:] in ('"', "]", "}") else ""
    return text if len(text) <= 60 else f"{text[:56]}...{end}"


def _read_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _read_null(text: str) -> None:
    return {"~": None, "null": None, "": None}[text.lower()]


def _read_float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "bool": _read_bool,
    "null": _read_null,
    "int": int,
    "float": _read_float,
    "str": str,
}
