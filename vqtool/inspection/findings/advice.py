"""Changes of the config that several findings advise."""

from collections.abc import Iterator
from math import prod

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change


def reviving(evidence: Evidence) -> Iterator[Change]:
    """Settings that move codes to the latents and keep them there, except those that are already set."""
    if evidence.setting("init") and getattr(evidence.setting("init"), "kind", None) == "random":
        yield Change(evidence.key("init.kind"), "kmeans", "initialises the codes by k-means on the latents")
    if getattr(evidence.setting("update"), "kind", None) == "entropy_only":
        yield Change(evidence.key("update.kind"), "ema", "moves each code to the mean of the latents assigned to it")
    if evidence.settings is not None and evidence.setting("dead_code_reset") is None and evidence.setting("update"):
        yield Change(evidence.key("dead_code_reset"), "{min_hits: 5}", "resets dead codes to positions near latents")


def narrowing(evidence: Evidence) -> Iterator[Change]:
    """Few dimensions, in which every code has neighbours."""
    dim = evidence.setting("codebook_dim")
    if isinstance(dim, int) and dim > 16:
        yield Change(evidence.key("codebook_dim"), "8", "more codes stay in use in few dimensions")


def smaller(evidence: Evidence, size: int) -> Iterator[Change]:
    """A codebook of another size, where it has one and that is smaller."""
    if evidence.setting("codebook_size") and size < int(evidence.setting("codebook_size")):
        yield Change(evidence.key("codebook_size"), str(size), "as many codes as the data can use")


def one_more_level(evidence: Evidence, why: str) -> tuple[Change, ...]:
    """Of a residual quantizer, wherever it stands."""
    known = evidence.more_levels
    return (Change(known[0], str(known[1] + 1), why),) if known else ()


def power_above(number: int) -> int:
    """The least power of two, from 2 on, that is no less."""
    return 1 << max(1, (number - 1).bit_length())


def power_below(number: int) -> int:
    """The largest power of two, from 2 on, that is no more."""
    return 1 << max(1, number.bit_length() - 1)


def spreading(evidence: Evidence) -> Iterator[Change]:
    """Where codes are given: what makes the encoder use them."""
    if evidence.settings and evidence.given:
        weight = max(0.1, 3 * evidence.settings.loss.entropy)
        yield Change("loss.entropy", f"{weight:.2g}", "rewards uniform usage of the codes")


def fewer_values(evidence: Evidence, used: int) -> Iterator[Change]:
    """Where codes are given: fewer values of a dimension, or fewer bits, but no fewer codes than are used."""
    levels, bits = evidence.setting("levels"), evidence.setting("bits")
    if isinstance(levels, list) and (lower := _lowered(levels, used)) != levels:
        yield Change(evidence.key("levels"), str(lower), "as many codes as the data can use")
    if isinstance(bits, int) and (fewer := power_above(used).bit_length() - 1) < bits:
        yield Change(evidence.key("bits"), str(fewer), "as many codes as the data can use")


def _lowered(levels: list[int], used: int) -> list[int]:
    """Levels of which the largest is lowered, again and again, while their product is no less than `used`."""
    found, lower = levels, list(levels)
    while min(lower) > 1 and prod(lower) >= used:
        found = list(lower)
        lower[lower.index(max(lower))] -= 1
    return found


def slower(evidence: Evidence) -> Iterator[Change]:
    """A lower learning rate."""
    if evidence.settings:
        rate = evidence.settings.training.learning_rate
        yield Change("training.learning_rate", f"{rate / 3:.1g}", "slows the encoder, so that the codes can follow")
