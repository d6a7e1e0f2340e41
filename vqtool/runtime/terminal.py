"""Text that is safe to print: names from files must not send control sequences to the terminal."""

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


__all__ = ["escape_control", "escape_surrogates", "join_or"]
