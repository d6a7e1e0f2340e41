"""Text that is safe to show: what a file calls itself must not steer the terminal that it is named in."""

from collections.abc import Iterable

from vqtool.errors import escape_control


def escape_surrogates(text: str) -> str:
    """Text that every reader of UTF-8 takes, JSON's among them: bytes of a file name that were none become \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def listed(names: Iterable[str]) -> str:
    """`A, B or C`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


__all__ = ["escape_control", "escape_surrogates", "listed"]
