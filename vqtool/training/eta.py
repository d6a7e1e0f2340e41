"""The time that a run still takes: steps, validations and the initialisation of the codebooks, each by itself."""

import time
from collections.abc import Callable

from vqtool.config import TrainingSettings


class Eta:
    """Estimates the time to the end of training from the durations so far.

    Each method accounts for the time since the last call of any of them. So an initialisation or a validation does not
    count as step time.

    Args:
        initialisation: seconds that the initialisation of codebooks will take; 0 if there is none to come.
        clock: returns seconds, counted from any moment.
    """

    def __init__(
        self,
        training: TrainingSettings,
        initialisation: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._training = training
        self._initialisation = initialisation
        self._clock = clock
        self._mark = clock()
        self._steps, self._step_seconds = 0, 0.0
        self._validations, self._validation_seconds = 0, 0.0
        self._alike = 0  # steps since the start, or since the initialisation

    def after_step(self) -> None:
        """Account for a step."""
        if self._alike < 2:  # the first of them loads kernels, and only counts until there is another
            self._steps, self._step_seconds = 0, 0.0
        self._alike += 1
        self._steps += 1
        self._step_seconds += self._elapsed()

    def after_initialisation(self) -> None:
        """Account for the initialisation. Later steps quantize, so the earlier ones no longer count."""
        self._elapsed()
        self._initialisation = 0.0
        self._alike = 0

    def after_validation(self) -> None:
        """Account for a validation."""
        self._validations += 1
        self._validation_seconds += self._elapsed()

    def after_report(self) -> None:
        """Account for what belongs to the last validation but comes later, such as writing the model."""
        self._validation_seconds += self._elapsed()

    def seconds(self, step: int) -> float | None:
        """The time left after `step` steps; None before the first step."""
        if not self._steps:
            return None
        each_step = self._step_seconds / self._steps
        each_validation = self._validation_seconds / max(1, self._validations)
        steps, validations = self._training.steps - step, validations_after(self._training, step)
        return self._initialisation + steps * each_step + validations * each_validation

    def _elapsed(self) -> float:
        before, self._mark = self._mark, self._clock()
        return self._mark - before


def validations_after(training: TrainingSettings, step: int) -> int:
    """How many validations come after `step` steps; the last step always has one."""
    if step >= training.steps:
        return 0
    regular = training.steps // training.validate_every - step // training.validate_every
    return regular + (training.steps % training.validate_every != 0)
