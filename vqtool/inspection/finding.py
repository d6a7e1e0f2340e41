"""What an inspection found wrong, and what to change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["severe", "warning", "note"]

# Shown in place of changes where there are none.
NO_CHANGE = "no change of the settings is known to help"


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
        severity: severe: the tokens are of little use; warning: they could be better; note: for information.
        message: the symptom, with its values.
        evidence: these values, by name.
        cause: the most likely cause.
        changes: to try, the most likely fix first.
    """

    name: str
    severity: Severity
    message: str
    evidence: dict[str, float | int | str | None]
    cause: str
    changes: tuple[Change, ...] = field(default=())


def guide(findings: Sequence[Finding]) -> str:
    """Where the guide explains findings: `configs/findings.md#collapse` or `configs/findings.md (#collapse, ...)`."""
    first, *others = [f"#{name}" for name in dict.fromkeys(finding.name for finding in findings)]
    return f"configs/findings.md{first}" if not others else f"configs/findings.md ({', '.join([first, *others])})"
