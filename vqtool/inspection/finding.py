"""Findings and the config changes that they suggest."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["severe", "warning", "note"]

# Shown for a finding without changes.
NO_CHANGE = "no change of the settings is known to help"


@dataclass(frozen=True)
class Change:
    """A suggested change of the config.

    Attributes:
        key: dotted config key, as for --set.
        value: new value, as YAML.
        why: effect of the change.
    """

    key: str
    value: str
    why: str


@dataclass(frozen=True)
class Finding:
    """A problem of a codebook, or a possible improvement.

    Attributes:
        name: identifier for scripts; it does not change between versions.
        severity: severe: the tokens are of little use; warning: they could be better; note: for information.
        message: symptom, with its values.
        evidence: the values in the message and others that led to it, by name; None where unknown.
        cause: most likely cause.
        changes: suggested changes, the most likely fix first.
    """

    name: str
    severity: Severity
    message: str
    evidence: dict[str, float | int | str | None]
    cause: str
    changes: tuple[Change, ...] = field(default=())


def guide_reference(findings: Sequence[Finding]) -> str:
    """Return where configs/findings.md explains these findings (at least one), each name once.

    For one name `configs/findings.md#collapse`, for several `configs/findings.md (#collapse, #dead_codes)`.
    """
    first, *others = [f"#{name}" for name in dict.fromkeys(finding.name for finding in findings)]
    return f"configs/findings.md{first}" if not others else f"configs/findings.md ({', '.join([first, *others])})"
