"""Text for a terminal: names from files must not send control sequences to it; lists and plurals."""

from collections.abc import Iterable

# Defined in errors.py, the lowest layer, whose messages need it; imported from here by all other code.
from vqtool.errors import escape_control


def escape_surrogates(text: str) -> str:
    """Return text for UTF-8: surrogates, which come from file names that are not UTF-8, become escapes like \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def join_or(names: Iterable[str]) -> str:
    """Join one or more names to `A, B or C`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: `1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


__all__ = ["escape_control", "escape_surrogates", "join_or", "pluralize"]
