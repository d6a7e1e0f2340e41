"""Mutants of the shipped recipes, with random mistakes in their keys, values and text.

A mutant is a function of a seed and a number, so each one can be reproduced.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args, get_origin

import yaml

from checks.mutant_values import GRAFTS, NUMBERS, SMALL, VALUES
from checks.text_mutants import TEXT_MUTATIONS
from vqtool.config import RunSettings, TrainingSettings
from vqtool.config.schema import settings_by_kind
from vqtool.models.losses import LossSettings
from vqtool.runtime.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"

Tree = dict[str, Any]
# A dict or list inside a tree, and one of its keys or indices.
TreePath = tuple[dict[Any, Any] | list[Any], Any]
# Changes a tree in place, given the trees of all recipes.
TreeMutation = Callable[[Tree, list[Tree], Random], None]


def mutant(seed: int, number: int) -> bytes:
    """Return the content of a mutant config: a recipe with up to three changes to its tree, and up to two to its text.

    It need not be UTF-8.
    """
    random = Random(f"{seed}/{number}")
    trees = shipped()
    tree = copy.deepcopy(random.choice(list(trees.values())))
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        random.choice(TREE_MUTATIONS)(tree, list(trees.values()), random)
    text = yaml.dump(tree, sort_keys=False, allow_unicode=random.random() < 0.5)
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(random.choice([0, 0, 0, 1, 2])):
        content = random.choice(TEXT_MUTATIONS)(content, random)
    return content


def shipped() -> dict[str, Tree]:
    """Return the recipes in configs/ by name, with the sizes of `SMALL`."""
    return {path.stem: _small(yaml.safe_load(path.read_text())) for path in sorted(CONFIGS.glob("*.yaml"))}


def _small(value: Any) -> Any:
    """Return the value with the integers of `SMALL` in all its dicts."""
    if not isinstance(value, dict):
        return value
    return {key: SMALL.get(key, inner) if isinstance(inner, int) else _small(inner) for key, inner in value.items()}


def _paths(value: Any) -> list[TreePath]:
    """Return the path of every value inside a dict or list, at any depth."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [path for key, inner in pairs for path in [(value, key), *_paths(inner)]]


def _random_path(tree: Tree, random: Random) -> TreePath:
    return random.choice(_paths(tree) or [(tree, "seed")])


def _replace(tree: Tree, recipes: list[Tree], random: Random) -> None:
    container, key = _random_path(tree, random)
    container[key] = copy.deepcopy(random.choice(VALUES))


def _nudge(tree: Tree, recipes: list[Tree], random: Random) -> None:
    numbers = [(container, key) for container, key in _paths(tree) if type(container[key]) in (int, float)]
    if numbers:
        container, key = random.choice(numbers)
        container[key] = random.choice([-container[key], container[key] + 1, container[key] / 2, container[key] * 3])


def _drop(tree: Tree, recipes: list[Tree], random: Random) -> None:
    container, key = _random_path(tree, random)
    if key in container or isinstance(container, list):
        del container[key]


def _misspell(tree: Tree, recipes: list[Tree], random: Random) -> None:
    container, key = _random_path(tree, random)
    if isinstance(container, dict) and key in container:
        word = str(key)
        at = random.randrange(len(word) + 1)
        value = container.pop(key)
        container[
            random.choice([word[:at] + word[at + 1 :], word[:at] + "e" + word[at:], word.upper(), word[::-1]])
        ] = value


def _copy(tree: Tree, recipes: list[Tree], random: Random) -> None:
    container, key = _random_path(tree, random)
    target, other = _random_path(tree, random)
    if key in container or isinstance(container, list):
        target[other] = copy.deepcopy(container[key])


def _graft(tree: Tree, recipes: list[Tree], random: Random) -> None:
    """Replace a block by one of another recipe, or by one of `GRAFTS`."""
    name, block = random.choice(
        GRAFTS
        + [
            (str(key), container[key])
            for recipe in recipes
            for container, key in _paths(recipe)
            if isinstance(container[key], dict)
        ]
    )
    containers = [container for container, key in _paths(tree) if key == name]
    container = random.choice(containers) if containers else tree.setdefault("model", {})
    if isinstance(container, dict):
        container[name] = copy.deepcopy(block)


def _change_kind(tree: Tree, recipes: list[Tree], random: Random) -> None:
    """Change a `kind` to that of another block, and keep the keys of the old kind."""
    kinds = [(container, key) for container, key in _paths(tree) if key == "kind"]
    if kinds:
        container, key = random.choice(kinds)
        container[key] = random.choice([block["kind"] for _, block in GRAFTS if "kind" in block])


def _set_field(tree: Tree, recipes: list[Tree], random: Random) -> None:
    """Set a known key of a block to a likely or an extreme value of its type."""
    block = random.choice([container for container, _ in _paths(tree) if isinstance(container, dict)] or [tree])
    fields = _FIELDS.get(str(block.get("kind")), _FIELDS["training"] if "steps" in block else _FIELDS["loss"])
    name, values = random.choice(fields)
    block[name] = copy.deepcopy(random.choice(values))


def _likely(annotation: Any) -> list[Any]:
    """Return values of the types in an annotation: the choices of a Literal, and the numbers of `NUMBERS`."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if isinstance(annotation, type):
        return NUMBERS.get(annotation, [])
    return [value for inner in get_args(annotation) for value in _likely(inner)]


def _blocks(block: type[Settings]) -> Iterator[type[Settings]]:
    """Yield a settings class and all settings classes below it."""
    yield block
    for name in block.model_fields:
        for inner in settings_by_kind(block, name).values():
            yield from _blocks(inner)


def _name(block: type[Settings]) -> str:
    """Return the kind of a settings class, or `training` or `loss`; empty for others."""
    kind = block.model_fields.get("kind")
    return str(kind.default) if kind else {TrainingSettings: "training", LossSettings: "loss"}.get(block, "")


# Keys with likely values, by the `_name` of a block.
_FIELDS = {
    _name(block): [
        (name, _likely(field.annotation)) for name, field in block.model_fields.items() if _likely(field.annotation)
    ]
    for block in _blocks(RunSettings)
}

# One is drawn uniformly, so a mutation listed several times is more likely.
TREE_MUTATIONS: list[TreeMutation] = [
    *(_replace, _replace, _nudge, _set_field, _set_field, _set_field, _set_field, _set_field, _nudge, _drop),
    *(_misspell, _copy, _graft, _graft, _change_kind),
]
