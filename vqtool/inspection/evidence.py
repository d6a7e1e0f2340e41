"""The evidence that findings are computed from: code counts, validation metrics and settings.

Shapes: K codes, Q levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vqtool.config import RunSettings
from vqtool.errors import CheckpointError, ConfigError
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage, usage_from_counts
from vqtool.runs.model_file import SavedModel
from vqtool.runs.run_directory import RunDirectory

# Before this step, or before the end of warm-up if that is later, codes and latents still move towards each other.
_MIN_EARLY_STEPS = 100


@dataclass(frozen=True)
class Evidence:
    """What is known about the codebooks of a run or an index file.

    Unknown fields keep their defaults, and findings that need them are not reported.

    Attributes:
        levels: usage of each of the Q levels.
        distinct: number of rows and of distinct ids, if samples are vectors.
        metrics: metrics of the validation in which `levels` were counted, by tag, such as `validation/loss/commitment`.
        history: metrics by tag, and `step`, of each validation up to and including that one, oldest first.
        later: the same for the validations after it.
        settings: settings of the run.
        training_tokens: tokens per level in one pass over the training samples: samples times tokens per sample.
    """

    levels: Sequence[Usage]
    distinct: IdCounts | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    history: Sequence[dict[str, Any]] = ()
    later: Sequence[dict[str, Any]] = ()
    settings: RunSettings | None = None
    training_tokens: int | None = None

    def metric(self, level: int, name: str, metrics: dict[str, float] | None = None) -> float | None:
        """Return the metric `codebook/NAME`; `codebook/level_LEVEL/NAME` if Q > 1. None if it is unknown.

        Args:
            metrics: metrics of another validation by tag; None: `self.metrics`.
        """
        prefix = "codebook" if len(self.levels) == 1 else f"codebook/level_{level}"
        return (self.metrics if metrics is None else metrics).get(f"{prefix}/{name}")

    def quantizer_key(self, name: str) -> str:
        """Return the dotted config key of a setting of the innermost quantizer, the one that has the codebook.

        `model.quantizer.NAME` if the settings are unknown.
        """
        return ".".join(["model", *["quantizer"] * max(1, len(self._quantizers)), name])

    def quantizer_setting(self, name: str) -> Any:
        """Return a setting of the innermost quantizer; None if it is null, missing, or the settings are unknown."""
        return getattr(self._quantizers[-1], name, None) if self._quantizers else None

    @property
    def _quantizers(self) -> list[Any]:
        """Settings of the nested quantizers, outermost first; empty if the settings are unknown."""
        return [] if self.settings is None else nested_quantizers(self.settings.model.quantizer)

    @property
    def has_fixed_codes(self) -> bool:
        """Whether the codes are known to be fixed (FSQ, LFQ, BSQ), that is, not learned."""
        return bool(self._quantizers) and not hasattr(self._quantizers[-1], "update")

    @property
    def levels_per_codebook(self) -> int:
        """Number of consecutive levels that share a codebook; 1 if none do or the settings are unknown."""
        return 1 if self.settings is None else levels_per_codebook(self.settings.model.quantizer)

    @property
    def early_steps(self) -> int:
        """Number of steps of the early phase: the warm-up, but at least 100 steps and at most the whole run.

        Until the end of this phase most findings are not reported, because codes and latents still move fast. 0 if the
        settings are unknown.
        """
        if self.settings is None:
            return 0
        training = self.settings.training
        # A run that is shorter than that has no later validation, so all findings are reported at its end.
        return min(max(training.warmup_steps, _MIN_EARLY_STEPS), training.steps)

    @property
    def early_until(self) -> int | None:
        """End of the early phase, `early_steps`, if the last known validation was before this step; otherwise None.

        The value is also None if no validation is known.
        """
        validations = [*self.history, *self.later]
        return self.early_steps if validations and validations[-1]["step"] < self.early_steps else None

    @property
    def residual_depth(self) -> int:
        """`levels` of the outermost residual quantizer; 1 if there is none or the settings are unknown."""
        return 1 if self.settings is None else residual_depth(self.settings.model.quantizer)

    @property
    def residual_levels(self) -> tuple[str, int] | None:
        """Dotted config key and value of `levels` of the outermost residual quantizer; None if there is none."""
        for depth, quantizer in enumerate(self._quantizers, 1):
            if quantizer.kind == "residual":
                return ".".join(["model", *["quantizer"] * depth, "levels"]), int(quantizer.levels)
        return None

    @property
    def codebooks(self) -> Sequence[tuple[int, Usage]]:
        """Pairs (first level, usage) of each codebook; the counts of levels that share the codebook are summed."""
        first_levels = range(0, len(self.levels), self.levels_per_codebook)
        return [(first, _sum_usage(self.levels[first : first + self.levels_per_codebook])) for first in first_levels]

    @property
    def possibly_shared_usage(self) -> Usage | None:
        """Usage of the summed counts of all levels, if the levels may share a codebook; otherwise None.

        They may if the settings are unknown, as for an index file, and there are several levels, all of the same K.
        """
        same_size = len(self.levels) > 1 and len({level.codebook_size for level in self.levels}) == 1
        return _sum_usage(self.levels) if same_size and self.settings is None else None

    def level_suffix(self, level: int) -> str:
        """Return ` of level 1` for messages; empty if there is one level."""
        return "" if len(self.levels) == 1 else f" of level {level}"

    def codebook_suffix(self, first_level: int) -> str:
        """Return ` of level 1` or ` of levels 2 to 3` for messages; empty if there is one codebook."""
        shared = self.levels_per_codebook
        if shared == 1:
            return self.level_suffix(first_level)
        return "" if shared == len(self.levels) else f" of levels {first_level} to {first_level + shared - 1}"


def nested_quantizers(quantizer: Any) -> list[Any]:
    """Return the settings of a quantizer and of the quantizers nested in it, outermost first."""
    chain = [quantizer]
    while hasattr(chain[-1], "quantizer"):
        chain.append(chain[-1].quantizer)
    return chain


def levels_per_codebook(quantizer: Any) -> int:
    """Return the number of consecutive levels that share a codebook, by the quantizer settings; 1 if none do."""
    shared = (int(nested.levels) for nested in nested_quantizers(quantizer) if getattr(nested, "shared", False))
    return next(shared, 1)


def residual_depth(quantizer: Any) -> int:
    """Return `levels` of the outermost residual quantizer in these quantizer settings; 1 if there is none.

    Level q quantizes the residual of level q - 1 unless q is a multiple of this depth.
    """
    depths = (int(nested.levels) for nested in nested_quantizers(quantizer) if nested.kind == "residual")
    return next(depths, 1)


def evidence_from_run(run: RunDirectory, saved: SavedModel) -> Evidence:
    """Return the evidence of a run at the validation of its best model.

    Args:
        saved: content of the run's model.safetensors. If its `step` is unknown, `history` and `later` are empty.
    """
    step, validations = saved.step, run.read_validations()
    return Evidence(
        levels=[usage_from_counts(counts) for counts in saved.counts],
        distinct=saved.distinct,
        metrics=saved.metrics,
        history=[metrics for metrics in validations if step is not None and metrics["step"] <= step],
        later=[metrics for metrics in validations if step is not None and metrics["step"] > step],
        settings=settings_or_none(run),
        training_tokens=saved.tokens,
    )


def settings_or_none(run: RunDirectory) -> RunSettings | None:
    """Return the settings of a run; None if they cannot be read, because code counts are useful without them."""
    try:
        return run.settings()
    except (CheckpointError, ConfigError):
        return None


def settings_error(run: RunDirectory) -> str | None:
    """Return the first line of the error that reading the settings of a run raises; None if they can be read."""
    try:
        run.settings()
    except (CheckpointError, ConfigError) as error:
        return str(error).splitlines()[0]
    return None


def _sum_usage(levels: Sequence[Usage]) -> Usage:
    """Return the usage of the summed counts of levels that all have the same K."""
    if len(levels) == 1:
        return levels[0]
    return usage_from_counts(torch.tensor([level.counts for level in levels]).sum(dim=0))
