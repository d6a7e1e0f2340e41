"""Messages for validation errors: location, key, what is wrong, and the nearest valid name."""

import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from vqtool.config.schema import SettingsClass, settings_by_kind, settings_class_at
from vqtool.config.yaml_reader import CORE_SCHEMA, ConfigTree, KeyPath, dotted, located_key, truncate
from vqtool.runtime.terminal import join_or

# Phrases for pydantic's error types; {names} are filled in from the error's context.
_EXPECTED = {
    "int_type": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "list_type": "a list",
    "finite_number": "a finite number",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "at most {le}",
    "string_too_short": "a non-empty string",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} items",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "dict_type": "a block of keys",
}

# Keys and values of earlier versions, and their present names.
_RENAMED = {
    "start": "init",
    "vectors": "latents_per_code",
    "learning": "update",
    "memory": "min_ema_hits",
    "linear": "simvq",
    "entropy": "entropy_only",
    "revival": "dead_code_reset",
    "window": "window_hits",
    "least": "min_hits",
    "reach": "step_size",
    "gradient": "gradient_estimator",
    "bypass": "unquantized_fraction",
    "balance": "assignment",
    "confidence": "sample_entropy_weight",
    "squared": "absolute",
    "error": "quantization_error",
    "beam": "beam_size",
    "dropout": "level_dropout",
    "halvings": "downsamples",
    "blocks": "res_blocks",
    "positions": "num_tokens",
    "patch": "patch_size",
}

# Marks a key that is missing from the config; null is a valid value.
_MISSING = object()


def describe_errors(error: ValidationError, tree: ConfigTree, root: SettingsClass) -> Iterator[str]:
    """Yield one message for each invalid key, in file order: `c.yaml:3: seed: expected an integer (got 0.5)`.

    Args:
        error: error that pydantic raised for `tree.values`.
        tree: values and locations of the config.
        root: settings class of the whole config.
    """
    details_by_path: dict[KeyPath, list[Any]] = {}
    for detail in error.errors(include_url=False):
        path = _key_path(detail["loc"], tree.values, root)
        if detail["type"] == "union_tag_invalid":
            path = (*path, "kind")
        details_by_path.setdefault(path, []).append(detail)
    # A union reports errors of its own beside those of keys inside its branches. The latter are more specific.
    parents = {path[:-1] for path in details_by_path if path}
    order = {path: number for number, path in enumerate(tree.locations)}
    paths = [path for path in details_by_path if path not in parents]
    for path in sorted(paths, key=lambda path: order[tree.closest(path)]):
        yield _message(path, details_by_path[path], tree, root)


def first_error(error: ValidationError) -> str:
    """Return a message for the first invalid key of a JSON file: `shape: expected a list (got 5)`, `shape: missing`."""
    detail = error.errors(include_url=False)[0]
    statement = _statement(detail)
    return f"{dotted(detail['loc'])}: {statement}{_received(statement, detail['input'])}"


def _message(path: KeyPath, details: list[Any], tree: ConfigTree, root: SettingsClass) -> str:
    """Return the message for a key.

    `details` are pydantic's errors at this key, dicts as of `ValidationError.errors`; a union has one per branch.
    """
    statements = list(dict.fromkeys(_statement_in_config(detail, path, tree, root) for detail in details))
    value, hint = _value_at(tree.values, path), ""
    choices = [choice for detail in details if detail["type"] == "literal_error" for choice in _choices(detail)]
    if all(statement.startswith("expected ") for statement in statements):
        types = [statement.removeprefix("expected ") for statement in statements]
        names = sorted([*choices, *(name for name in types if name)], key=lambda name: name != "auto")
        statements = [f"expected {join_or(names)}"]
        hint = _suggestion(value, choices, only_close=True) if isinstance(value, str) else ""
    statement = " or ".join(statements)
    if statement == "expected a block of keys":
        kinds = [kind for kind in _members_at(path, root, tree) if kind]
        statement += f" with kind: {join_or(kinds)}" if kinds else ""
        statement = f"is empty; {statement}" if value is None else statement
    # A validator of a whole block begins its message with the key inside the block.
    inner = re.match(r"([a-z_.]+): ", statement)
    if inner and isinstance(value, dict):
        path, statement = (*path, *inner[1].split(".")), statement[inner.end() :]
    return f"{located_key(tree.location(path), path)}: {statement}{_received(statement, value)}{hint}"


def _choices(detail: Any) -> list[str]:
    """Return the valid values that an error of type `literal_error` lists, as strings."""
    choices: str = detail["ctx"]["expected"].replace("'", "")
    return choices.replace(" or ", ", ").split(", ")


def _received(statement: str, value: Any) -> str:
    """Return ` (got VALUE)` for a statement that begins with `expected`, with advice if quotes make VALUE a string.

    Return "" for other statements, for a missing value or a block, and if the statement shows the value already.
    """
    if value is _MISSING or isinstance(value, dict) or not statement.startswith("expected") or "(got " in statement:
        return ""
    if isinstance(value, str) and any(word in statement for word in ("integer", "a number", "true or false")):
        is_quoted_scalar = any(pattern.match(value) for tag, pattern, _ in CORE_SCHEMA if tag != "null")
        if is_quoted_scalar and "string" not in statement:
            return f" (got the string {_to_yaml(value)}; remove the quotes)"
    return f" (got {_to_yaml(value)})"


def _key_path(location: tuple[int | str, ...], values: Any, block: SettingsClass | None) -> KeyPath:
    """Convert pydantic's location (`loc`) to a key path, without the union tags and branch names that it contains.

    `values` and `block` are the values and the settings class of the whole config.
    """
    path: list[int | str] = []
    remaining = list(location)
    while remaining:
        key = remaining.pop(0)
        path.append(key)
        if block is None:
            continue
        members = settings_by_kind(block, str(key))
        if "" not in members and members and remaining:
            remaining.pop(0)
        block = settings_class_at(block, {key: _value_at(values, tuple(path))}, (key,))
        if block is None:
            # A single value: what remains are names of branches of its union, and indices of list items.
            path += [part for part in remaining if isinstance(part, int)]
            break
    return tuple(path)


def _value_at(values: Any, path: KeyPath) -> Any:
    """Return the value at a key path of nested dicts and lists; `_MISSING` if there is none."""
    for key in path:
        if isinstance(values, list):
            values = dict(enumerate(values))
        if not isinstance(values, dict) or key not in values:
            return _MISSING
        values = values[key]
    return values


def _statement_in_config(detail: Any, path: KeyPath, tree: ConfigTree, root: SettingsClass) -> str:
    """Return what an error at the key `path` says, as `_statement` does, with hints that depend on the config.

    For an unknown key or kind, the hint is the most similar valid name, or a list of all valid names if none is similar
    (see `_unknown_key_hint`). For a missing kind, it lists the valid kinds. For a `literal_error`, return only
    `expected `: the caller appends the valid values, because a union has one such error for each branch.
    """
    match detail["type"]:
        case "extra_forbidden":
            return "unknown key" + _unknown_key_hint(path, tree, root)
        case "union_tag_not_found":
            return f"missing kind; expected one of {', '.join(_members_at(path, root, tree))}"
        case "union_tag_invalid":
            names = [name.strip("' ") for name in detail["ctx"]["expected_tags"].split(", ")]
            return f"unknown kind {_to_yaml(_value_at(tree.values, path))}" + _suggestion(detail["ctx"]["tag"], names)
        case "literal_error":
            return "expected "
    return _statement(detail)


def _unknown_key_hint(path: KeyPath, tree: ConfigTree, root: SettingsClass) -> str:
    """Return the first hint that applies to an unknown key, as the end of a message.

    In this order: another kind that has this key, a similar key, a similar key of another kind, the only other block
    that has this key, the list of valid keys.
    """
    block, key = settings_class_at(root, tree.values, path[:-1]), str(path[-1])
    members = _members_at(path[:-1], root, tree)
    kinds = [kind for kind, member in members.items() if kind and key in member.model_fields]
    if kinds:
        return f" for this kind; it needs {dotted((*path[:-1], 'kind'))}: {' or '.join(kinds)}"
    fields = list(block.model_fields) if block else []
    if similar := _suggestion(key, fields, only_close=True):
        return similar
    for kind, member in members.items():
        for close in get_close_matches(key, member.model_fields, n=1, cutoff=0.7):
            return f"; did you mean {close}, which needs {dotted((*path[:-1], 'kind'))}: {kind}?"
    candidates = list(_blocks_with_key(key, root, tree.values))
    return f"; did you mean {candidates[0]}?" if len(candidates) == 1 else _suggestion(key, fields)


def _statement(detail: Any) -> str:
    """Return what an error of pydantic says, without location, key and value: `expected an integer`."""
    error_type, context = detail["type"], detail.get("ctx", {})
    if error_type in ("missing", "unexpected_keyword_argument"):
        return "missing" if error_type == "missing" else "unknown key"
    if error_type not in _EXPECTED:
        message: str = detail["msg"]
        return message.removeprefix("Value error, ").replace("Input should be", "expected", 1)
    limits = {name: f"{x:,}".removesuffix(".0") if isinstance(x, int | float) else x for name, x in context.items()}
    return f"expected {_EXPECTED[error_type].format(**limits)}"


def _blocks_with_key(key: str, block: SettingsClass, values: Any, path: KeyPath = ()) -> Iterator[str]:
    """Yield the dotted name of a key, other than `kind`, in each block of the config below `block` that has it."""
    for name in block.model_fields if key != "kind" else ():
        inner = settings_class_at(block, values, (name,))
        if inner is not None:
            if key in inner.model_fields:
                yield dotted((*path, name, key))
            yield from _blocks_with_key(key, inner, values.get(name), (*path, name))


def _members_at(path: KeyPath, root: SettingsClass, tree: ConfigTree) -> dict[str, SettingsClass]:
    """Return the settings classes that the key at a path accepts, by `kind`; {} for the empty path."""
    parent = settings_class_at(root, tree.values, path[:-1])
    return settings_by_kind(parent, str(path[-1])) if parent and path else {}


def _suggestion(name: str, names: Iterable[str], only_close: bool = False) -> str:
    """Return `; did you mean X?` for a renamed or similar name among the valid `names`.

    Otherwise return `; expected one of ...` with all names; "" if there are none, or if `only_close`.
    """
    names = list(names)
    close = [_RENAMED[name]] if _RENAMED.get(name) in names else get_close_matches(name, names, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]}?"
    return "" if only_close or not names else f"; expected one of {', '.join(names)}"


def _to_yaml(value: Any) -> str:
    """Return a value as YAML in one line, truncated to 60 characters."""
    return truncate(json.dumps(value, ensure_ascii=False))
