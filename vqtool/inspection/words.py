"""Numbers and what is counted, in words that go together."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: float) -> str:
    """A number of codes: `187`, and `1.4` where a whole number would hide the difference."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def listed(noun: str, numbers: Sequence[int]) -> str:
    """`level 2`, `levels 1, 3 and 4`."""
    *first, last = map(str, numbers)
    return f"{noun}s {', '.join(first)} and {last}" if first else f"{noun} {last}"
