"""Validations under the tags that TensorBoard and metrics.jsonl show.

Shapes: K codes, D dimensions.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from vqtool.metrics.evaluation import Evaluation
from vqtool.metrics.latent_statistics import LatentStatistics, geometry, movement, pooled, varies
from vqtool.metrics.usage import Usage
from vqtool.models.autoencoder import Autoencoder
from vqtool.runtime.progress import duration

# The codes (K, D) of each level, at some time; None of one whose codes are given.
Codes = Sequence[Tensor | None]


def validation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Losses and usage of a validation pass, by tag. `codebook/*` are means over levels, beside each one's own."""
    metrics = {f"validation/loss/{name}": value for name, value in evaluation.losses.items()}
    levels = [
        _level_metrics(usage, soft, own)
        for usage, soft, own in zip(
            evaluation.levels, evaluation.soft_entropies, evaluation.sample_entropies, strict=True
        )
    ]
    metrics |= {f"codebook/{name}": fmean(level[name] for level in levels) for name in levels[0]}
    metrics |= _each(levels)
    if evaluation.distinct:
        metrics["codebook/collision_rate"] = evaluation.distinct.collision_rate
    return metrics


def codebook_metrics(model: Autoencoder, evaluation: Evaluation, before: Codes, sharing: int = 1) -> dict[str, float]:
    """Where each level's codes lie beside its latents, when they were hit, how far they moved since `before`, by tag.

    `codebook/error`: the share of the latents' variance that quantizing loses. `codebook/never_hit`: dead codes that
    training never hit. `codebook/last_hit`: the mean step at which training hit the other dead ones last. Where
    latents do not vary, places and errors are left out.

    Args:
        sharing: how many levels in a row have one codebook. All of its figures but `error`, which is each level's own,
            are then those of all of these levels together.
    """
    levels, counts = [], evaluation.counts
    times, learned = model.hit_times.levels(), model.quantizer.learned_codes
    for first in range(0, len(counts), sharing):
        own = slice(first, first + sharing)
        latents, old = evaluation.latents[own], before[first] if before else None
        hits = torch.stack(counts[own]).sum(dim=0)
        whole = _reached(hits, times[own])
        if varies(pooled(latents), evaluation.latents[0]):  # else all of this is rounding
            whole |= _placed(learned[first], hits, latents, old)
        levels += [whole | _lost(each, evaluation.latents[0]) for each in latents]
    if len(levels) > 1:
        return _each(levels)
    return {f"codebook/{name}": value for name, value in levels[0].items()}


def validation_line(
    step: int, steps: int, metrics: dict[str, float], codebook_sizes: Sequence[int], seconds: float | None
) -> str:
    """A validation in one line for the user, and the time left, unless it is unknown or the run is at its end."""
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
    if seconds is not None and step < steps:
        fields.append(f"ETA {duration(seconds)}")
    return "  ".join(fields)


def _lost(latents: LatentStatistics, whole: LatentStatistics) -> dict[str, float]:
    return {"error": latents.error / latents.variance} if varies(latents, whole) else {}


def _reached(counts: Tensor, times: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of codes hit so often (K,), and first and last (K,) in training, on each level: 0 where they never were."""
    some, last = (torch.stack(each).amax(dim=0).cpu() for each in zip(*times, strict=True))
    dead = counts == 0
    lost = last[dead & (some > 0)]
    never = {"never_hit": float((dead & (some == 0)).sum())}
    return never | ({"last_hit": float(lost.double().mean())} if len(lost) else {})


def _placed(
    codes: Tensor | None, counts: Tensor, clouds: Sequence[LatentStatistics], old: Tensor | None
) -> dict[str, float]:
    if codes is None:
        return {}
    moved = {} if old is None else {"movement": movement(codes, old, pooled(clouds).error)}
    return geometry(codes, counts, *clouds) | moved


def _each(levels: Sequence[dict[str, float]]) -> dict[str, float]:
    """The figures of each of several levels; of a single one there is nothing more to say."""
    if len(levels) == 1:
        return {}
    return {
        f"codebook/level_{number}/{name}": value for number, level in enumerate(levels) for name, value in level.items()
    }


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
