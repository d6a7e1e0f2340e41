"""Overrides `--set KEY=VALUE` of single config values."""

from collections.abc import Sequence

from vqtool.config.schema import SettingsClass, settings_by_kind
from vqtool.config.yaml_reader import ConfigTree, dotted, located_key, read_yaml
from vqtool.errors import ConfigError


def apply_overrides(tree: ConfigTree, overrides: Sequence[str], root: SettingsClass) -> None:
    """Write overrides into the config values, before validation.

    Overrides of a `kind` are applied first; if the value differs, they remove the keys of the block that the new kind
    does not have. All others follow. In both groups outer keys precede inner keys, and the last override of a key
    wins. `data.path` implies `data.kind=tensors`, unless `data.kind` is overridden too. Missing blocks are created.

    Args:
        tree: values (a dict) and locations of the config file; changed in place.
        overrides: texts `KEY=VALUE`, with dotted keys and YAML values.
        root: settings class of the whole config.

    Raises:
        ConfigError: an override is not KEY=VALUE, or its value is not YAML. Other errors are added to `tree.errors`.
    """
    pairs = [_parse_override(override) for override in overrides]
    paths = {path for path, _ in pairs}
    if ("data", "path") in paths and ("data", "kind") not in paths:
        pairs.append((("data", "kind"), read_yaml("tensors", "--set data.path", ("data", "kind"))))
    for path, value in sorted(pairs, key=lambda pair: (pair[0][-1] != "kind", len(pair[0]))):
        _set_value(tree, path, value, root)


def _parse_override(override: str) -> tuple[tuple[str, ...], ConfigTree]:
    """Return the key path and the parsed value of `KEY=VALUE`; a ConfigError if the text is invalid."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        hint = "the key has an empty part; " if equals and any(path) else ""
        shown = override or '""'
        raise ConfigError(f"--set {shown}: {hint}expected KEY=VALUE, with a dotted key such as training.steps=100")
    try:
        return path, read_yaml(text, f"--set {key.strip()}", path)
    except ConfigError as error:
        raise ConfigError(f"{error}; quote text that has YAML syntax, e.g. --set 'name=\"a: b\"'") from error


def _set_value(tree: ConfigTree, path: tuple[str, ...], value: ConfigTree, block: SettingsClass | None) -> None:
    """Write a parsed value, its locations and its errors into `tree`; `block` is the settings class of the config."""
    values = tree.values
    for depth, key in enumerate(path[:-1]):
        members = settings_by_kind(block, key) if block else {}
        if block and key in block.model_fields and not members:
            leaf = dotted(path[: depth + 1])
            tree.errors.append(f"{located_key(value.locations[path], path)}: unknown key; {leaf} is a single value")
            return
        if not isinstance(values.get(key), dict):
            values[key] = {}
            tree.locations[path[: depth + 1]] = value.locations[path]
        values = values[key]
        if depth == len(path) - 2 and path[-1] == "kind" and values.get("kind") != value.values:
            new_class = members.get(str(value.values))
            for name in [name for name in values if new_class and name not in new_class.model_fields]:
                del values[name]
        block = members.get("") or members.get(str(values.get("kind")))
    values[path[-1]] = value.values
    tree.locations |= dict.fromkeys(value.locations, value.locations[path])
    tree.errors += value.errors
