"""Evaluations under the tags that TensorBoard and metrics.jsonl show."""

from statistics import fmean

from vqtool.evaluation import Evaluation
from vqtool.usage import Usage


def validation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Every scalar of a validation pass, by tag. Over several levels, `codebook/*` are means, beside each one's own."""
    metrics = {f"validation/loss/{name}": value for name, value in evaluation.losses.items()}
    levels = [
        _level_metrics(usage, soft, own)
        for usage, soft, own in zip(
            evaluation.levels, evaluation.soft_entropies, evaluation.sample_entropies, strict=True
        )
    ]
    metrics |= {f"codebook/{name}": fmean(level[name] for level in levels) for name in levels[0]}
    if len(levels) > 1:
        for number, level in enumerate(levels):
            metrics |= {f"codebook/level_{number}/{name}": value for name, value in level.items()}
    if evaluation.distinct:
        metrics["codebook/collision_rate"] = evaluation.distinct.collision_rate
    return metrics


def _level_metrics(usage: Usage, soft_entropy: float, sample_entropy: float) -> dict[str, float]:
    return {
        "usage": usage.usage,
        "perplexity": usage.perplexity,
        "entropy": usage.entropy,
        "soft_entropy": soft_entropy,
        "sample_entropy": sample_entropy,
        "dead": usage.dead,
        "expected_used": usage.expected_used,
    }
