"""What validation found, in words: place, key, what is wrong, and the nearest name that would do."""

import json
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from vqtool.config.fields import Block, block_at, blocks_under
from vqtool.config.yaml_reader import Path, Tree, dotted


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


_ABSENT = object()


def _line(path: Path, faults: list[Any], tree: Tree, root: Block) -> str:
    messages = [_message(fault, path, tree, root) for fault in faults]
    value = _value_at(tree.values, path)
    got = "" if value is _ABSENT or isinstance(value, dict) else f" (got {_json(value)})"
    told = any(message.startswith(("unknown", "missing")) for message in messages)
    first, *rest = dict.fromkeys(messages)
    expected = " or ".join([first, *(message.removeprefix("expected ") for message in rest)])
    return f"{tree.place(path)}: {dotted(path)}: {expected}" + ("" if told else got)


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
            return "unknown key" + _nearest(key, block.model_fields if block else ())
        case "missing":
            return "missing"
        case "union_tag_not_found":
            return f"missing kind; expected one of {', '.join(_members(path, root, tree))}"
        case "union_tag_invalid":
            names = [name.strip("' ") for name in fault["ctx"]["expected_tags"].split(", ")]
            return f"unknown kind {_json(fault['ctx']['tag'])}" + _nearest(fault["ctx"]["tag"], names)
        case "literal_error":
            expected = fault["ctx"]["expected"].replace("'", "")
            names = expected.replace(" or ", ", ").split(", ")
            return f"expected {expected}" + _nearest(str(fault["input"]), names, only_close=True)
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected keys and values"
    message: str = fault["msg"]
    message = message.removeprefix("Value error, ").replace("Input should be", "expected", 1)
    message = message.replace("expected greater", "expected a value greater").replace(
        "expected less", "expected a value less"
    )
    return message.replace("a valid integer", "an integer").replace("a valid", "a")


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
    close = [_RENAMED[name]] if _RENAMED.get(name) in names else get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return "" if only_close or not names else f"; expected one of {', '.join(names)}"


def _json(value: Any) -> str:
    """A value in the notation of YAML, cut to 60 characters."""
    return f"{json.dumps(value, ensure_ascii=False):.60}"
