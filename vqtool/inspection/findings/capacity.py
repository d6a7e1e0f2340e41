"""More codes than the data fill, or fewer than they could."""

from collections.abc import Iterator
from math import prod
from statistics import fmean

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import one_more_level, power_below, smaller
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage

# Training tokens a code, fewer than which cannot place it.
_ENOUGH = 20
# Perplexity over K, from which on a codebook is full.
_FULL = 0.9
# What merging codes by twos would multiply the quantizing error by, from which on the curve falls steeply. (In 8
# dimensions it is about 1.3, where the best code of half the size has 1.19; in 4, 1.6 and 1.41; in 2, 2.1 and 2.)
_STEEP = 1.75
# The part of the latents' variance that is lost: worth a steep step; and too much, however flat the curve.
_SOME, _MOST = 0.1, 0.5
# What merging must do at least: where it does next to nothing, the data are noise to so few codes.
_FLAT = 1.05


def codebook_too_large(evidence: Evidence) -> Iterator[Finding]:
    """More codes than there are data to place them."""
    if evidence.tokens is None:
        return
    for number, usage in evidence.codebooks:
        if evidence.metric(number, "spread") is None:  # its codes are given, and need no data
            continue
        tokens = evidence.sharing * evidence.tokens
        each = tokens / usage.codebook_size
        if each < _ENOUGH:
            yield Finding(
                "codebook_too_large",
                "warning",
                f"{counted(usage.codebook_size, 'code')}{evidence.which(number)} and "
                f"{counted(tokens, 'training token')}: {each:,.1f} tokens per code",
                {"level": number, "tokens_per_code": each, "codebook_size": usage.codebook_size},
                f"codes with fewer than {_ENOUGH} training tokens each overfit them",
                tuple(smaller(evidence, power_below(tokens // _ENOUGH))),
            )


def codebook_saturated(evidence: Evidence) -> Iterator[Finding]:
    """All codes are in even use, and more of them would bring reconstruction forward."""
    lost = _lost(evidence)
    if lost is None or not all(_is_full(usage) for _, usage in evidence.codebooks):
        return
    for number, usage in evidence.codebooks:
        halving = evidence.metric(number, "halving")
        if halving is not None and _pays(halving, lost):
            yield Finding(
                "codebook_saturated",
                "note",
                f"the codebook{evidence.which(number)} is used almost uniformly (perplexity {usage.perplexity:,.1f} of "
                f"{usage.codebook_size:,}), and the quantization error is {lost:.0%} of the variance of the latents",
                {"level": number, "perplexity": usage.perplexity, "error": lost, "halving": halving},
                f"more codes would reduce the error; with half as many it would be up to {halving:.2g} times as large",
                tuple(_more(evidence)),
            )
            return  # what else there is of levels is full as well


def _is_full(usage: Usage) -> bool:
    return usage.perplexity > _FULL * usage.codebook_size


def _pays(halving: float, lost: float) -> bool:
    return (lost > _MOST and halving > _FLAT) or (lost > _SOME and halving > _STEEP)


def _lost(evidence: Evidence) -> float | None:
    """The part of the latents' variance that is lost; behind the levels of a residual quantizer, by all of them."""
    errors = [evidence.metric(number, "error") for number, _ in enumerate(evidence.levels)]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    depth = evidence.depth
    return fmean(prod(known[first : first + depth]) for first in range(0, len(known), depth))


def _more(evidence: Evidence) -> Iterator[Change]:
    size = evidence.setting("codebook_size")
    if deeper := one_more_level(evidence, "one more code for the residual"):
        yield from deeper
    elif isinstance(size, int):
        yield Change(evidence.key("codebook_size"), str(2 * size), "one more bit per token")
