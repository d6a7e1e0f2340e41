"""What findings are drawn from: the figures of a validation, those before it, and the settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, ConfigError
from vqtool.inspection.sharing import levels_sharing_codebook, residual_depth
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage, usage_from_counts
from vqtool.runs.model_file import SavedModel
from vqtool.runs.run_directory import RunDirectory

# Steps, or those of warm-up where they are more, in which codes and latents are still on their way to each other.
_BEGUN = 100


@dataclass(frozen=True)
class Evidence:
    """All that is known of a codebook. What is not known is left out, and nothing is found of it.

    Attributes:
        levels: usage of each level.
        distinct: ids, where samples are vectors.
        metrics: of the validation that the usage is of, by tag.
        history: of the validations up to that one, the oldest first; each with its `step`.
        later: of those after it: of a run that got worse, what became of it.
        settings: of the run.
        tokens: positions of all training samples: what a level has to learn from.
    """

    levels: Sequence[Usage]
    distinct: IdCounts | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, Any]] = ()
    later: Sequence[dict[str, Any]] = ()
    settings: RunSettings | None = None
    tokens: int | None = None

    def metric(self, level: int, name: str, metrics: dict[str, float] | None = None) -> float | None:
        """A figure of a level; None where it is not known."""
        prefix = "codebook" if len(self.levels) == 1 else f"codebook/level_{level}"
        return (self.metrics if metrics is None else metrics).get(f"{prefix}/{name}")

    def key(self, name: str) -> str:
        """The dotted key of a setting of the levels' own quantizer."""
        return ".".join(["model", *["quantizer"] * max(1, len(self._nested)), name])

    def setting(self, name: str) -> Any:
        """A setting of the levels' own quantizer; None where it has none such, or nothing is known of settings."""
        return getattr(self._nested[-1], name, None) if self._nested else None

    @property
    def _nested(self) -> list[Any]:
        """The quantizers in each other, the levels' own the last; none where nothing is known of settings."""
        found: list[Any] = [] if self.settings is None else [self.settings.model.quantizer]
        while found and hasattr(found[-1], "quantizer"):
            found.append(found[-1].quantizer)
        return found

    @property
    def given(self) -> bool:
        """Whether codes are known to be given: these do not learn, and have no place to move to."""
        return bool(self._nested) and not hasattr(self._nested[-1], "update")

    @property
    def sharing(self) -> int:
        """How many levels in a row have one codebook; 1 where each has its own, or nothing is known of settings."""
        return 1 if self.settings is None else levels_sharing_codebook(self.settings.model.quantizer)

    @property
    def young_until(self) -> int | None:
        """The step up to which a run has but begun, if its last validation was before; None where nobody knows that."""
        validations = [*self.history, *self.later]
        return self.begun if validations and validations[-1]["step"] < self.begun else None

    @property
    def begun(self) -> int:
        """The steps with which a run but begins; 0 where nothing is known of settings."""
        if self.settings is None:
            return 0
        training = self.settings.training
        return min(max(training.warmup_steps, _BEGUN), training.steps)  # one that ended will grow no older

    @property
    def depth(self) -> int:
        """How many levels in a row have each what those before it left over; 1 where nothing is known of settings."""
        return 1 if self.settings is None else residual_depth(self.settings.model.quantizer)

    @property
    def more_levels(self) -> tuple[str, int] | None:
        """The dotted key that says how deep a residual quantizer is, and its value; None where there is none such."""
        for number, quantizer in enumerate(self._nested, 1):
            if quantizer.kind == "residual":
                return ".".join(["model", *["quantizer"] * number, "levels"]), int(quantizer.levels)
        return None

    @property
    def codebooks(self) -> Sequence[tuple[int, Usage]]:
        """The first level of each codebook, and its usage over all levels that share it."""
        firsts = range(0, len(self.levels), self.sharing)
        return [(first, _together(self.levels[first : first + self.sharing])) for first in firsts]

    @property
    def perhaps_shared(self) -> Usage | None:
        """The usage over all levels, where these may have one codebook and nobody knows: in an index file."""
        alike = len(self.levels) > 1 and len({level.codebook_size for level in self.levels}) == 1
        return _together(self.levels) if alike and self.settings is None else None

    def where(self, level: int) -> str:
        """How to name a level: nothing, or ` of level 1`."""
        return "" if len(self.levels) == 1 else f" of level {level}"

    def which(self, first: int) -> str:
        """How to name the codebook of a level: nothing, ` of level 1`, or ` of levels 2 to 3`."""
        if self.sharing == 1:
            return self.where(first)
        return "" if self.sharing == len(self.levels) else f" of levels {first} to {first + self.sharing - 1}"


def _together(levels: Sequence[Usage]) -> Usage:
    """The usage of a codebook that all of these levels have."""
    return (
        levels[0]
        if len(levels) == 1
        else usage_from_counts(torch.tensor([level.counts for level in levels]).sum(dim=0))
    )


def of_run(run: RunDirectory, saved: SavedModel) -> Evidence:
    """The evidence of a run's best validation pass."""
    step, validations = saved.step, run.validations()
    return Evidence(
        levels=[usage_from_counts(hits) for hits in saved.counts],
        distinct=saved.distinct,
        metrics=saved.metrics,
        history=[metrics for metrics in validations if step is not None and metrics["step"] <= step],
        later=[metrics for metrics in validations if step is not None and metrics["step"] > step],
        settings=readable_settings(run),
        tokens=saved.tokens,
    )


def readable_settings(run: RunDirectory) -> RunSettings | None:
    """Return a run's settings; None if they cannot be read: its codes can be inspected without them."""
    try:
        return run.settings()
    except (CheckpointError, ConfigError):
        return None


def settings_error(run: RunDirectory) -> str | None:
    """Return the first line of why a run's settings cannot be read; None if they can."""
    try:
        run.settings()
    except (CheckpointError, ConfigError) as error:
        return str(error).splitlines()[0]
    return None
