"""What validation found, in words: place, key, what is wrong, and the nearest name that would do."""

import json
import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from vqtool.config.fields import Block, block_at, blocks_under
from vqtool.config.yaml_reader import CORE_SCHEMA, Path, Tree, dotted, name_of, shortened
from vqtool.runtime.terminal import listed


def describe(error: ValidationError, tree: Tree, root: Block) -> Iterator[str]:
    """One line for each key that is wrong, in the order of the file, made as it is asked for."""
    found: dict[Path, list[Any]] = {}
    for fault in error.errors(include_url=False):
        path = _path(fault["loc"], tree.values, root)
        if fault["type"] == "union_tag_invalid":
            path = (*path, "kind")
        found.setdefault(path, []).append(fault)
    # A union reports each branch; an error of an item inside a branch is more specific.
    blocks = {path[:-1] for path in found if path}
    order = {path: number for number, path in enumerate(tree.places)}
    for path in sorted((path for path in found if path not in blocks), key=lambda path: order[tree.placed(path)]):
        yield _line(path, found[path], tree, root)


def first_problem(error: ValidationError) -> str:
    """The first key that is wrong, in a file that is not a config: `shape: expected a list (got 5)`."""
    fault = error.errors(include_url=False)[0]
    message = _statement(fault)
    return f"{dotted(fault['loc'])}: {message}{_got(message, fault['input'])}"


_ABSENT = object()
# What pydantic expected, by the type of its error. Numbers of its context are filled in.
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


def _line(path: Path, faults: list[Any], tree: Tree, root: Block) -> str:
    messages = list(dict.fromkeys(_message(fault, path, tree, root) for fault in faults))
    value, hint = _value_at(tree.values, path), ""
    choices = [choice for fault in faults if fault["type"] == "literal_error" for choice in _choices(fault)]
    if all(message.startswith("expected ") for message in messages):
        others = [message.removeprefix("expected ") for message in messages]
        names = sorted([*choices, *(other for other in others if other)], key=lambda name: name != "auto")
        messages = [f"expected {listed(names)}"]
        hint = _nearest(value, choices, only_close=True) if isinstance(value, str) else ""
    message = " or ".join(messages)
    if message == "expected a block of keys":
        kinds = [kind for kind in _members(path, root, tree) if kind]
        message += f" with kind: {listed(kinds)}" if kinds else ""
        message = f"is empty; {message}" if value is None else message
    inner = re.match(r"([a-z_.]+): ", message)
    if inner and isinstance(value, dict):  # a check of a whole block, which names the key inside
        path, message = (*path, *inner[1].split(".")), message[inner.end() :]
    return f"{name_of(tree.place(path), path)}: {message}{_got(message, value)}{hint}"


def _choices(fault: Any) -> list[str]:
    choices: str = fault["ctx"]["expected"].replace("'", "")
    return choices.replace(" or ", ", ").split(", ")


def _got(message: str, value: Any) -> str:
    """The value behind what was expected instead, if the message does not show it."""
    if value is _ABSENT or isinstance(value, dict) or not message.startswith("expected") or "(got " in message:
        return ""
    if isinstance(value, str) and any(word in message for word in ("integer", "a number", "true or false")):
        looks_plain = any(pattern.match(value) for tag, pattern, _ in CORE_SCHEMA if tag != "null")
        if looks_plain and "string" not in message:
            return f" (got the string {_json(value)}; remove the quotes)"
    return f" (got {_json(value)})"


def _path(location: tuple[int | str, ...], values: Any, block: Block | None) -> Path:
    """The keys of pydantic's location, without the tags that it puts where a union chose a member."""
    path: list[int | str] = []
    rest = list(location)
    while rest:
        key = rest.pop(0)
        path.append(key)
        if block is None:
            continue
        members = blocks_under(block, str(key))
        if "" not in members and members and rest:
            rest.pop(0)
        block = block_at(block, {key: _value_at(values, tuple(path))}, (key,))
        if block is None:
            # Below a leaf there are only the branches of its union, and the items of a list.
            path += [part for part in rest if isinstance(part, int)]
            break
    return tuple(path)


def _value_at(values: Any, path: Path) -> Any:
    for key in path:
        if isinstance(values, list):
            values = dict(enumerate(values))
        if not isinstance(values, dict) or key not in values:
            return _ABSENT
        values = values[key]
    return values


def _message(fault: Any, path: Path, tree: Tree, root: Block) -> str:
    match fault["type"]:
        case "extra_forbidden":
            block, key = block_at(root, tree.values, path[:-1]), str(path[-1])
            members = _members(path[:-1], root, tree)
            others = [kind for kind, member in members.items() if kind and key in member.model_fields]
            if others:
                return f"unknown key for this kind; it needs {dotted((*path[:-1], 'kind'))}: {' or '.join(others)}"
            fields = list(block.model_fields) if block else []
            if near := _nearest(key, fields, only_close=True):
                return f"unknown key{near}"
            for kind, member in members.items():
                for close in get_close_matches(key, member.model_fields, n=1, cutoff=0.7):
                    needs = f"{dotted((*path[:-1], 'kind'))}: {kind}"
                    return f"unknown key; did you mean {close}, which needs {needs}?"
            homes = list(_homes(key, root, tree.values))
            return "unknown key" + (f"; did you mean {homes[0]}?" if len(homes) == 1 else _nearest(key, fields))
        case "union_tag_not_found":
            return f"missing kind; expected one of {', '.join(_members(path, root, tree))}"
        case "union_tag_invalid":
            names = [name.strip("' ") for name in fault["ctx"]["expected_tags"].split(", ")]
            return f"unknown kind {_json(_value_at(tree.values, path))}" + _nearest(fault["ctx"]["tag"], names)
        case "literal_error":
            return "expected "  # the choices of all branches are listed together
    return _statement(fault)


def _statement(fault: Any) -> str:
    """What is wrong, in the words of vqtool: `expected an integer`."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in ("missing", "unexpected_keyword_argument"):
        return "missing" if kind == "missing" else "unknown key"
    if kind not in _EXPECTED:
        message: str = fault["msg"]
        return message.removeprefix("Value error, ").replace("Input should be", "expected", 1)
    shown = {name: f"{x:,}".removesuffix(".0") if isinstance(x, int | float) else x for name, x in context.items()}
    return f"expected {_EXPECTED[kind].format(**shown)}"


def _homes(key: str, block: Block, values: Any, path: Path = ()) -> Iterator[str]:
    """The dotted names that a key has in the blocks where it is valid."""
    for name in block.model_fields if key != "kind" else ():
        inner = block_at(block, values, (name,))
        if inner is not None:
            if key in inner.model_fields:
                yield dotted((*path, name, key))
            yield from _homes(key, inner, values.get(name), (*path, name))


def _members(path: Path, root: Block, tree: Tree) -> dict[str, Block]:
    """The blocks that may stand at a path, by their kind."""
    above = block_at(root, tree.values, path[:-1])
    return blocks_under(above, str(path[-1])) if above and path else {}


# Keys and values of earlier versions, and their names today.
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


def _nearest(name: str, names: Iterable[str], only_close: bool = False) -> str:
    names = list(names)
    close = [_RENAMED[name]] if _RENAMED.get(name) in names else get_close_matches(name, names, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {close[0]}?"
    return "" if only_close or not names else f"; expected one of {', '.join(names)}"


def _json(value: Any) -> str:
    """A value in the notation of YAML, cut to 60 characters."""
    return shortened(json.dumps(value, ensure_ascii=False))
