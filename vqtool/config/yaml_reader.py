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


def read_yaml(text: str, name: str) -> Tree:
    """Parse one YAML document; `name` is what to call it in places and messages.

    Raises:
        ConfigError: it is no YAML; names the line.
    """
    tree = Tree(places={(): name})
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        tree.values = None if node is None else _value(node, (), tree, name)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{name}{line}: not YAML: {text}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply") from error
    return tree


def _value(node: yaml.Node, path: Path, tree: Tree, name: str) -> Any:
    place = f"{name}:{node.start_mark.line + 1}"
    tree.places.setdefault(path, place)
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, tree, name)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(child, (*path, i), tree, name) for i, child in enumerate(node.value)]
    try:
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            return _SCALARS[kind](node.value)
        tree.problems.append(f"{place}: {dotted(path)}: the tag {node.tag:.60} is not supported")
    except (ValueError, KeyError):
        tree.problems.append(f"{place}: {dotted(path)}: {node.value[:40]} is not a valid {kind}")
    return None


def _mapping(node: yaml.MappingNode, path: Path, tree: Tree, name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, child in node.value:
        key, place = str(key_node.value), f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.rpartition(":")[2] not in _SCALARS:
            tree.problems.append(f"{place}: {dotted(path)}: a key must be a plain word without a tag")
        elif key in values:
            tree.problems.append(
                f"{place}: {dotted((*path, key))}: duplicate key; first defined at {tree.places[*path, key]}"
            )
        else:
            tree.places[*path, key] = place
            values[key] = _value(child, (*path, key), tree, name)
    return values


def dotted(path: Path) -> str:
    """`model.encoder.width` of a path; list items by number."""
    return ".".join(f"{part!s:.60}" for part in path) or "the config"


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
