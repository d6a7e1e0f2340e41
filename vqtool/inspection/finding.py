"""What an inspection found wrong, and what to change."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Change:
    """A setting to change, as for `--set`."""

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: short, the same for every run that has it.
        severity: how bad it is.
        message: what is so, in a sentence.
        evidence: the figures that it was read from, by name.
        cause: the likely one.
        changes: what would mend it, the best first.
    """

    name: str
    severity: Literal["severe", "warning", "note"]
    message: str
    evidence: dict[str, float | int | str | None]
    cause: str
    changes: tuple[Change, ...] = ()
