"""What an inspection found wrong, and what to change."""

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["severe", "warning", "note"]


@dataclass(frozen=True)
class Change:
    """A change of the config to try.

    Attributes:
        key: dotted, as for --set.
        value: as YAML.
        why: what it does.
    """

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better.

    Attributes:
        name: stable, for scripts.
        severity: severe: the tokens are of little use; warning: they could be better; note: worth knowing.
        message: what was found, in one sentence with its figures.
        evidence: these figures, by name.
        cause: what most likely led to it.
        changes: to try, the likeliest first.
    """

    name: str
    severity: Severity
    message: str
    evidence: dict[str, float | int | str | None]
    cause: str
    changes: tuple[Change, ...] = field(default=())
