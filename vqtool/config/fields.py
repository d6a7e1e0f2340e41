"""Finding one's way through settings classes: which block stands under a key, and which keys it knows."""

from typing import Any, get_args

from vqtool.runtime.settings import Settings

Block = type[Settings]


def blocks_under(block: Block, key: str) -> dict[str, Block]:
    """The settings classes that may stand under a key of a block, by their `kind`; by "" where there is but one."""
    field = block.model_fields.get(key)
    found = _settings_in(field.annotation) if field else []
    if len(found) == 1:
        return {"": found[0]}
    return {str(member.model_fields["kind"].default): member for member in found}


def block_at(root: Block, values: Any, path: tuple[str | int, ...]) -> Block | None:
    """The settings class that `path` leads to, given the `kind`s in `values`; None where it leads nowhere."""
    block: Block | None = root
    for key in path:
        if block is None or not isinstance(values, dict):
            return None
        values = values.get(str(key))
        members = blocks_under(block, str(key))
        kind = values.get("kind") if isinstance(values, dict) else None
        block = members.get("") or members.get(str(kind))
    return block


def _settings_in(annotation: Any) -> list[Block]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _settings_in(argument)]
