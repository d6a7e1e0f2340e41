"""Numbers and what is counted, in words that go together."""


def counted(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def short(value: float) -> str:
    """A number of codes: `187`, and `1.4` where a whole number would hide the difference."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
