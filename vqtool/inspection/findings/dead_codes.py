"""Codes that nothing goes to."""

from collections.abc import Iterator

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.findings.advice import fewer_values, narrowing, power_above, reviving, slower, smaller, spreading
from vqtool.inspection.findings.usage import IF_SHARED, has_collapsed
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage

# Below so many tokens a code, one without a hit says little.
_ENOUGH = 20
# Dead codes below which there is nothing to mend, and parts of a codebook: that may be dead, and from which on that is
# severe.
_SOME, _FEW, _MANY = 2, 0.02, 0.5
# Figures of dead codes, by level.
_WHEN = ("never_hit", "last_hit")


def dead_codes(evidence: Evidence) -> Iterator[Finding]:
    """Codes without a hit, where there were tokens enough to hit them."""
    for number, usage in evidence.codebooks:
        size, dead = usage.codebook_size, usage.dead
        if usage.tokens >= _ENOUGH * size and dead >= _SOME and dead > _FEW * size:
            never, last = (None if evidence.given else evidence.metric(number, name) for name in _WHEN)
            whole = evidence.perhaps_shared
            yield Finding(
                "dead_codes",
                "severe" if min(dead, whole.dead if whole else dead) > _MANY * size else "warning",
                f"{dead:,} of {size:,} codes{evidence.which(number)} have no hits ({usage.tokens / size:,.0f} tokens "
                f"per code){_history(dead, never, last)}",
                {"level": number, "dead": dead, "never_hit": never, "last_hit": last, "tokens": usage.tokens},
                _cause(evidence, dead, never) + _if_shared(whole, dead),
                tuple(_filling(evidence, usage, never)),
            )


def _filling(evidence: Evidence, usage: Usage, never: float | None) -> Iterator[Change]:
    """What puts codes to use; and last, fewer of them: as many as the fullest level needs, for all have one size.

    Where codes are lost although dead ones are revived, they are lost faster than that.

    Those that a collapsed codebook uses say nothing of how many there should be.
    """
    if evidence.given:
        yield from spreading(evidence)
    yield from reviving(evidence)
    if evidence.setting("dead_code_reset") is not None and never is not None and never <= usage.dead / 2:
        yield from slower(evidence)
    yield from narrowing(evidence)
    if not has_collapsed(usage):
        used = max(each.used for _, each in evidence.codebooks)
        yield from smaller(evidence, power_above(used))
        yield from fewer_values(evidence, used)


def _history(dead: int, never: float | None, last: float | None) -> str:
    if never is None:
        return ""
    if not dead - never:
        return "; never hit in training: all of them"
    when = f" (last hit at step {last:,.0f} on average)" if last is not None else ""
    return f"; never hit in training: {never:,.0f}, no longer hit: {dead - never:,.0f}{when}"


def _cause(evidence: Evidence, dead: int, never: float | None) -> str:
    if evidence.given:
        return "the codes are fixed, and the encoder outputs cover a smaller range than the codes, or are correlated"
    if never is None:
        return "codes far from all latents get no hits, and codes without hits are not updated"
    if never > dead / 2:
        return "most were initialised far from all latents and never hit; codes without hits are not updated"
    return "most were hit earlier in training: the encoder then moved its latents away from these codes"


def _if_shared(whole: Usage | None, dead: int) -> str:
    if whole is None or whole.dead == dead:
        return ""
    return f"; {IF_SHARED} has {counted(whole.dead, 'dead code')}"
