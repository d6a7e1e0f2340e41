"""A validation in training: its metrics, and what they find wrong."""

import math
from collections.abc import Callable
from typing import Any

from vqtool.errors import TrainingError
from vqtool.inspection.evidence import Evidence
from vqtool.inspection.findings import diagnose
from vqtool.inspection.sharing import levels_sharing_codebook
from vqtool.metrics.evaluation import Evaluation, evaluate_distributed, shuffled_loss
from vqtool.runs.model_file import SavedModel
from vqtool.training.metrics import Codes, codebook_metrics, validation_metrics
from vqtool.training.setup import TrainingSetup


class Validator:
    """Validates a model in training, and keeps what the next validation is held against.

    Args:
        say: called with a line for each finding that the validation before did not have.

    Attributes:
        history: of the validations so far, as they are logged, the oldest first.
        codes: (K, D) of each level at the last one.
    """

    def __init__(self, prepared: TrainingSetup, say: Callable[[str], None]) -> None:
        self._prepared = prepared
        self._say = say
        self.history: list[dict[str, Any]] = []
        self.codes: Codes = []

    def validate(self, step: int) -> tuple[Evaluation, dict[str, float]]:
        """A pass over the validation part, and its metrics by tag.

        Raises:
            TrainingError: one is not finite.
            Stopped: a signal came; nothing has changed.
        """
        model, samples, loss = self._prepared.model, self._prepared.dataset.validation, self._prepared.settings.loss
        evaluation = evaluate_distributed(model, samples, loss)
        sharing = levels_sharing_codebook(self._prepared.settings.model.quantizer)
        metrics = validation_metrics(evaluation) | codebook_metrics(model, evaluation, self.codes, sharing)
        if len(samples) > 1:
            own, others = shuffled_loss(model, samples, loss)
            metrics |= {"validation/loss/unshuffled": own, "validation/loss/shuffled": others}
        bad = [tag for tag, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"step {step}: validation metrics are NaN or infinite: {', '.join(bad)}; lower training.learning_rate"
            )
        self.codes = [None if codes is None else codes.detach().clone() for codes in model.quantizer.learned_codes]
        return evaluation, metrics

    def diagnose(self, step: int, evaluation: Evaluation, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Name, severity and message of each finding, as they are logged; those that are new are said."""
        self.history.append({"step": step, **metrics})
        found = diagnose(
            Evidence(
                levels=evaluation.levels,
                distinct=evaluation.distinct,
                metrics=metrics,
                history=self.history,
                settings=self._prepared.settings,
                tokens=self.tokens,
            )
        )
        known = {finding["name"] for finding in self._findings(-2)}
        for finding in found:
            if finding.name not in known:
                self._say(f"step {step}: {finding.severity}: {finding.message}")
        said = [{"name": each.name, "severity": each.severity, "message": each.message} for each in found]
        self.history[-1]["findings"] = said
        return said

    def saved(self, step: int, evaluation: Evaluation, metrics: dict[str, float]) -> SavedModel:
        """The model as it stands, and the validation that speaks for it."""
        state, data = self._prepared.model.state_dict(), self._prepared.dataset.sha256
        return SavedModel(state, evaluation.counts, evaluation.distinct, step, metrics, self.tokens, data)

    @property
    def tokens(self) -> int:
        """Positions of all training samples."""
        dataset = self._prepared.dataset
        return math.prod(self._prepared.model.grid(dataset.spec.size)) * len(dataset.training)

    @property
    def severe(self) -> list[str]:
        """The messages of findings that the last two validations had as severe, both after warm-up.

        Until then codes and latents are still on their way to each other. And two different findings, one after the
        other, may well be a run that mends itself.
        """
        if len(self.history) < 2 or self.history[-2]["step"] <= self._prepared.settings.training.warmup_steps:
            return []
        last, before = (
            {each["name"]: each["message"] for each in self._findings(place) if each["severity"] == "severe"}
            for place in (-1, -2)
        )
        return [message for name, message in last.items() if name in before]

    def _findings(self, place: int) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.history[place].get("findings", []) if len(self.history) >= -place else []
        return found
