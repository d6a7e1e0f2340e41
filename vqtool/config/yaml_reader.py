"""YAML text to plain values, with the line of every key.

The scalars of YAML 1.2 in their decimal forms, where 1e-3 is a number and `no` a word. A key twice, a tag or an alias
is an error.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from vqtool.errors import ConfigError

Path = tuple[str | int, ...]


@dataclass
class Tree:
    """A config as it was written.

    Attributes:
        values: nested dicts, lists and scalars.
        places: where each key, or item of a list, stands: `file:line`.
        problems: what was wrong on the way.
    """

    values: Any = None
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def placed(self, path: Path) -> Path:
        """A key, or else the closest block around it, whose place is known."""
        while path and path not in self.places:
            path = path[:-1]
        return path

    def place(self, path: Path) -> str:
        """Where a key stands, or else the closest block around it."""
        return self.places.get(self.placed(path), "")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's core schema in place of YAML 1.1's, and without aliases."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not supported; repeat the block", problem_mark=mark)
        return super().compose_node(parent, index)


# The words and numbers of YAML 1.2's core schema: tag, pattern, the characters that one can begin with.
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


# What is wrong, by a part of PyYAML's message; the first part that occurs counts.
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


def read_yaml(text: str, name: str, base: Path = ()) -> Tree:
    """Parse one YAML document.

    Args:
        name: what to call the text in places and messages.
        base: the key whose value the text is; it has no line numbers if it is a single line.

    Raises:
        ConfigError: it is not YAML; names the line.
    """
    tree = Tree(places={base: name})
    numbered = not base or "\n" in text

    def place(line: int) -> str:
        return f"{name}:{line + 1}" if numbered else name

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree.values = None if node is None else _value(node, base, tree, place)
    except yaml.MarkedYAMLError as error:
        where = place(error.problem_mark.line) if error.problem_mark else name
        detail = ", ".join(part for part in (error.context, error.problem) if part)
        cause = next((cause for part, cause in _CAUSES.items() if part in detail), detail)
        raise ConfigError(f"{where}: {'' if 'not supported' in detail else 'not YAML: '}{cause}") from error
    except yaml.reader.ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character)
        where = place(text.count("\n", 0, error.position))
        raise ConfigError(f"{where}: not YAML: character U+{code:04X} is not allowed; remove it") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    return tree


RankInfo = Callable[[int], str]


def _value(node: yaml.Node, path: Path, tree: Tree, place: RankInfo) -> Any:
    here = place(node.start_mark.line)
    tree.places.setdefault(path, here)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, tree, place)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(child, (*path, i), tree, place) for i, child in enumerate(node.value)]
    try:
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return _SCALARS[kind](node.value)
        tag = shortened(node.tag.replace("tag:yaml.org,2002:", "!!"))
        tree.problems.append(f"{name_of(here, path)}: YAML tag {tag} is not supported; remove it")
    except (ValueError, KeyError):
        expected = {"int": "an integer", "float": "a number", "bool": "true or false"}.get(kind, kind)
        tree.problems.append(f"{name_of(here, path)}: expected {expected} (got {shortened(node.value)})")
    return None


def _mapping(node: yaml.MappingNode, path: Path, tree: Tree, place: RankInfo) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, child in node.value:
        key, here = str(key_node.value), place(key_node.start_mark.line)
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.rpartition(":")[2] not in _SCALARS:
            tree.problems.append(f"{name_of(here, path)}: a key must be a plain word without a tag")
        elif key in values:
            first = tree.places[*path, key]
            tree.problems.append(f"{name_of(here, (*path, key))}: duplicate key; first defined at {first}")
        else:
            tree.places[*path, key] = here
            values[key] = _value(child, (*path, key), tree, place)
    return values


def name_of(place: str, path: Path) -> str:
    """`c.yaml:3: training.steps` of a key; of an override of just this key, only `--set training.steps`."""
    key = dotted(path)
    return place if place == f"--set {key}" else f"{place}: {key}"


def dotted(path: Path) -> str:
    """`data.size[1]` of a path; keys that are not plain words are quoted."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_quoted(part)}" for part in path)
    return text.removeprefix(".") or "the config"


def _quoted(key: str) -> str:
    return shortened(key if re.fullmatch(r"[\w-]+", key) else f'"{key}"')


def shortened(text: str) -> str:
    """Text of at most 60 characters; what is cut is shown as `...`, before a closing quote or bracket."""
    end = text[-1] if text[-1:] in ('"', "]", "}") else ""
    return text if len(text) <= 60 else f"{text[:56]}...{end}"


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _null(text: str) -> None:
    return {"~": None, "null": None, "": None}[text.lower()]


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "bool": _bool,
    "null": _null,
    "int": int,
    "float": _float,
    "str": str,
}
