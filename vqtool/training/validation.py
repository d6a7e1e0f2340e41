"""Validation during training: metrics by tag, as logged and shown, and the findings drawn from them.

Shapes: K codes, D code dimension.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vqtool.errors import TrainingError
from vqtool.inspection.evidence import Evidence, levels_per_codebook
from vqtool.inspection.findings import diagnose
from vqtool.metrics.evaluation import Evaluation, evaluate_distributed, shuffled_loss
from vqtool.metrics.latent_statistics import codebook_movement, codebook_statistics, pool_latents, varies
from vqtool.models.autoencoder import Autoencoder
from vqtool.runs.model_file import SavedModel
from vqtool.runtime.progress import format_duration
from vqtool.training.setup import TrainingSetup

# Codes (K, D) of each level; None for fixed codes.
LevelCodes = Sequence[Tensor | None]


class Validator:
    """Validates the model during training and diagnoses its codebooks.

    Args:
        setup: model, data and settings.
        log: called with one line for each finding that the previous validation did not have.

    Attributes:
        history: metrics by tag of the validations so far, oldest first, each with `step` and, if any, `findings`.
        last_codes: codes (K, D) of each level at the last validation; None for fixed codes; empty before the first.
    """

    def __init__(self, setup: TrainingSetup, log: Callable[[str], None]) -> None:
        self._setup = setup
        self._log = log
        self.history: list[dict[str, Any]] = []
        self.last_codes: LevelCodes = []

    def validate(self, step: int) -> tuple[Evaluation, dict[str, float]]:
        """Evaluate the validation split in all processes; return the evaluation and its metrics by tag.

        The metrics are those of `validation_metrics` and `codebook_metrics`, and those of `shuffled_loss` if there are
        at least two samples. `last_codes` is set to the current codes.

        Args:
            step: number of completed steps, for error messages.

        Raises:
            TrainingError: a metric is not finite.
            Stopped: a stop signal was received; nothing has changed.
        """
        model, samples, loss = self._setup.model, self._setup.dataset.validation, self._setup.settings.loss
        evaluation = evaluate_distributed(model, samples, loss)
        shared_levels = levels_per_codebook(self._setup.settings.model.quantizer)
        metrics = validation_metrics(evaluation)
        metrics |= codebook_metrics(model, evaluation, self.last_codes, shared_levels)
        if len(samples) > 1:
            unshuffled, shuffled = shuffled_loss(model, samples, loss)
            metrics |= {"validation/loss/unshuffled": unshuffled, "validation/loss/shuffled": shuffled}
        non_finite = [tag for tag, value in metrics.items() if not math.isfinite(value)]
        if non_finite:
            raise TrainingError(
                f"step {step}: validation metrics are NaN or infinite: {', '.join(non_finite)}; lower "
                "training.learning_rate"
            )
        self.last_codes = [None if codes is None else codes.detach().clone() for codes in model.quantizer.learned_codes]
        return evaluation, metrics

    def diagnose(self, step: int, evaluation: Evaluation, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Add a validation to `history`, and log its new findings.

        Returns:
            `name`, `severity` and `message` of each finding.
        """
        self.history.append({"step": step, **metrics})
        findings = diagnose(
            Evidence(
                levels=evaluation.levels,
                distinct=evaluation.distinct,
                metrics=metrics,
                history=self.history,
                settings=self._setup.settings,
                training_tokens=self.training_tokens,
            )
        )
        previous_names = {finding["name"] for finding in self._findings(-2)}
        for finding in findings:
            if finding.name not in previous_names:
                self._log(f"step {step}: {finding.severity}: {finding.message}")
        logged = [
            {"name": finding.name, "severity": finding.severity, "message": finding.message} for finding in findings
        ]
        self.history[-1]["findings"] = logged
        return logged

    def saved_model(self, step: int, evaluation: Evaluation, metrics: dict[str, float]) -> SavedModel:
        """Return the current model with its validation, as written to model.safetensors."""
        state, sha256 = self._setup.model.state_dict(), self._setup.dataset.sha256
        return SavedModel(state, evaluation.counts, evaluation.distinct, step, metrics, self.training_tokens, sha256)

    @property
    def training_tokens(self) -> int:
        """Number of tokens of the training split: samples times L."""
        dataset = self._setup.dataset
        return math.prod(self._setup.model.grid(dataset.spec.size)) * len(dataset.training)

    @property
    def repeated_severe(self) -> list[str]:
        """Messages of the severe findings of the last validation that the one before it had too.

        Empty unless both were after warm-up, because codes and latents move fast until then. A finding must repeat: a
        run with different severe findings in succession may recover.
        """
        if len(self.history) < 2 or self.history[-2]["step"] <= self._setup.settings.training.warmup_steps:
            return []
        last, previous = (
            {
                finding["name"]: finding["message"]
                for finding in self._findings(index)
                if finding["severity"] == "severe"
            }
            for index in (-1, -2)
        )
        return [message for name, message in last.items() if name in previous]

    def _findings(self, index: int) -> list[dict[str, str]]:
        """Return the findings of a validation; an empty list if `history` does not have this validation.

        Args:
            index: index in `history`, negative; -1 is the last validation.
        """
        findings: list[dict[str, str]] = []
        return self.history[index].get("findings", findings) if len(self.history) >= -index else findings


def validation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return losses, usage and collision rate by tag.

    - `validation/loss/...`: the losses of the evaluation.
    - `codebook/...`: `usage`, `entropy`, `soft_entropy` and `sample_entropy` in [0, 1]; `perplexity`, `dead` and
      `expected_used` in codes. With several levels they are means over levels, and each level also has its own tags,
      such as `codebook/level_0/usage`.
    - `codebook/collision_rate`: in [0, 1], if samples are vectors.
    """
    metrics = {f"validation/loss/{name}": value for name, value in evaluation.losses.items()}
    levels = [
        {
            "usage": usage.usage,
            "perplexity": usage.perplexity,
            "entropy": usage.entropy,
            "soft_entropy": soft_entropy,
            "sample_entropy": sample_entropy,
            "dead": usage.dead,
            "expected_used": usage.expected_used,
        }
        for usage, soft_entropy, sample_entropy in zip(
            evaluation.levels, evaluation.soft_entropies, evaluation.sample_entropies, strict=True
        )
    ]
    metrics |= {f"codebook/{name}": fmean(level[name] for level in levels) for name in levels[0]}
    if len(levels) > 1:
        metrics |= _level_tags(levels)
    if evaluation.distinct:
        metrics["codebook/collision_rate"] = evaluation.distinct.collision_rate
    return metrics


def codebook_metrics(
    model: Autoencoder, evaluation: Evaluation, previous_codes: LevelCodes, shared_levels: int = 1
) -> dict[str, float]:
    """Return metrics of the positions and the hits of the codes, by tag.

    Tags are `codebook/error` for one level, and `codebook/level_0/error` for several. The other tags follow
    this pattern:

    - `error`: mean squared quantization error over the variance of the level's latents.
    - `spread`, `outside`, `duplicates`, `halving`: positions of learned codes, see `codebook_statistics`.
    - `movement`: how far learned codes moved since the previous validation, see `codebook_movement`.
    - `never_hit`: number of codes without a hit in this validation that training never hit either.
    - `last_hit`: mean, over the other codes without a hit, of the last step in which training hit them; omitted if
      there are none.

    If latents do not vary, all but `never_hit` and `last_hit` would be rounding errors, and are omitted.

    Args:
        model: the evaluated model.
        evaluation: its evaluation.
        previous_codes: codes (K, D) of each level at the previous validation; empty if there was none.
        shared_levels: number of consecutive levels that share one codebook. All metrics but `error` are then computed
            over these levels together.
    """
    levels: list[dict[str, float]] = []
    counts, hit_steps, learned_codes = evaluation.counts, model.hit_steps.per_level(), model.quantizer.learned_codes
    for first in range(0, len(counts), shared_levels):
        sharing = slice(first, first + shared_levels)
        hits = torch.stack(counts[sharing]).sum(dim=0)
        metrics = _hit_metrics(hits, hit_steps[sharing])
        codes, latents = learned_codes[first], evaluation.latent_statistics[sharing]
        if codes is not None and varies(pool_latents(latents), evaluation.latent_statistics[0]):
            metrics |= codebook_statistics(codes, hits, *latents)
            old_codes = previous_codes[first] if previous_codes else None
            if old_codes is not None:
                metrics["movement"] = codebook_movement(codes, old_codes, pool_latents(latents).quantization_error)
        for level in latents:
            if varies(level, evaluation.latent_statistics[0]):
                levels.append(metrics | {"error": level.quantization_error / level.variance})
            else:
                levels.append(metrics)
    return _level_tags(levels) if len(levels) > 1 else {f"codebook/{name}": value for name, value in levels[0].items()}


def _hit_metrics(hits: Tensor, hit_steps: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return `never_hit` and `last_hit` of a codebook.

    Args:
        hits: (K,) hits in the validation, summed over the levels of the codebook.
        hit_steps: first and last step (K,) in which training hit each code, for each level of the codebook; 0: never.
    """
    # Maximum over levels, which is 0 only if no level ever hit the code.
    first_step, last_step = (torch.stack(steps).amax(dim=0).cpu() for steps in zip(*hit_steps, strict=True))
    dead = hits == 0
    metrics = {"never_hit": float((dead & (first_step == 0)).sum())}
    last_steps = last_step[dead & (first_step > 0)]
    if len(last_steps):
        metrics["last_hit"] = float(last_steps.double().mean())
    return metrics


def _level_tags(levels: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the metrics of each level, given by name, with tags such as `codebook/level_0/usage`."""
    return {
        f"codebook/level_{level}/{name}": value
        for level, metrics in enumerate(levels)
        for name, value in metrics.items()
    }


def format_validation(
    step: int, steps: int, metrics: dict[str, float], codebook_sizes: Sequence[int], seconds_left: float | None
) -> str:
    """Return a validation as one line for the user: `step 500/1000  val_reconstruction 0.0745  usage 90.2%  ...`.

    Args:
        step: number of completed steps.
        steps: number of steps of the run.
        metrics: those of `validation_metrics`.
        codebook_sizes: K of each level.
        seconds_left: time left, shown as ETA before the last step; None: unknown.
    """
    usage, perplexity = metrics["codebook/usage"], metrics["codebook/perplexity"]
    size = f" of {codebook_sizes[0]:,}" if len(set(codebook_sizes)) == 1 else ""
    fields = [
        f"step {step}/{steps}",
        f"val_reconstruction {metrics['validation/loss/reconstruction']:.4g}",
        f"usage {usage:.1%}",
        f"perplexity {perplexity:,.1f}{size}",
    ]
    if len(codebook_sizes) > 1:
        fields[-1] += f" (mean of {len(codebook_sizes)} levels)"
    if "codebook/collision_rate" in metrics:
        fields.append(f"collision_rate {metrics['codebook/collision_rate']:.2%}")
    if seconds_left is not None and step < steps:
        fields.append(f"ETA {format_duration(seconds_left)}")
    return "  ".join(fields)
