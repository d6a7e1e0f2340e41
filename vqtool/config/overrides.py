"""`--set KEY=VALUE`: dotted keys over a config file's values."""

from collections.abc import Sequence
from typing import Any

from vqtool.config.fields import Block, blocks_under
from vqtool.config.yaml_reader import Tree, dotted, name_of, read_yaml
from vqtool.errors import ConfigError


def apply_overrides(tree: Tree, overrides: Sequence[str], root: Block) -> None:
    """Write overrides into a tree: first those that set a `kind`, outer blocks before inner ones.

    Raises:
        ConfigError: one is not KEY=VALUE.
    """
    pairs = [_parse(override) for override in overrides]
    paths = {path for path, _ in pairs}
    if ("data", "path") in paths and ("data", "kind") not in paths:
        pairs.append((("data", "kind"), read_yaml("tensors", "--set data.path", ("data", "kind"))))
    for path, value in sorted(pairs, key=lambda pair: (pair[0][-1] != "kind", len(pair[0]))):
        _set(tree, path, value, root)


def _parse(override: str) -> tuple[tuple[str, ...], Tree]:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        empty = "the key has an empty part; " if equals and any(path) else ""
        shown = override or '""'
        raise ConfigError(f"--set {shown}: {empty}expected KEY=VALUE, with a dotted key such as training.steps=100")
    try:
        return path, read_yaml(text, f"--set {key.strip()}", path)
    except ConfigError as error:
        raise ConfigError(f"{error}; quote text that has YAML syntax, e.g. --set 'name=\"a: b\"'") from error


def _set(tree: Tree, path: tuple[str, ...], value: Tree, block: Block | None) -> None:
    values = tree.values
    for depth, key in enumerate(path[:-1]):
        members = blocks_under(block, key) if block else {}
        if block and key in block.model_fields and not members:
            single = dotted(path[: depth + 1])
            tree.problems.append(f"{name_of(value.places[path], path)}: unknown key; {single} is a single value")
            return
        if not isinstance(values.get(key), dict):
            values[key] = {}
            tree.places[path[: depth + 1]] = value.places[path]
        if depth == len(path) - 2 and path[-1] == "kind":
            _drop_unknown(values[key], members, value.values)
        values = values[key]
        block = members.get("") or members.get(str(values.get("kind")))
    values[path[-1]] = value.values
    tree.places |= dict.fromkeys(value.places, value.places[path])
    tree.problems += value.problems


def _drop_unknown(values: dict[str, Any], members: dict[str, Block], kind: Any) -> None:
    """Before a block takes another kind: drop the keys that the new kind does not know."""
    new = members.get(str(kind))
    if new and values.get("kind") != kind:
        for key in [key for key in values if key not in new.model_fields]:
            del values[key]
