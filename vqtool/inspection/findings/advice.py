"""Changes of the config that several findings advise."""

from collections.abc import Iterator
from math import prod

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change


def reviving(evidence: Evidence) -> Iterator[Change]:
    """What brings codes to the latents and keeps them there, as far as it is not set already."""
    if evidence.setting("start") and getattr(evidence.setting("start"), "kind", None) == "random":
        yield Change(evidence.key("start.kind"), "kmeans", "codes start where the latents are")
    if getattr(evidence.setting("learning"), "kind", None) == "entropy":
        yield Change(evidence.key("learning.kind"), "ema", "codes learn from the latents they win")
    if evidence.settings is not None and evidence.setting("revival") is None and evidence.setting("learning"):
        yield Change(evidence.key("revival"), "{least: 5}", "dead codes are set down beside the latents")


def narrowing(evidence: Evidence) -> Iterator[Change]:
    """Few dimensions, in which every code has neighbours."""
    dim = evidence.setting("codebook_dim")
    if isinstance(dim, int) and dim > 16:
        yield Change(evidence.key("codebook_dim"), "8", "in few dimensions every code has neighbours")


def smaller(evidence: Evidence, size: int) -> Iterator[Change]:
    """A codebook of another size, where it has one and that is smaller."""
    if evidence.setting("codebook_size") and size < int(evidence.setting("codebook_size")):
        yield Change(evidence.key("codebook_size"), str(size), "as many codes as the data can fill")


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
        yield Change("loss.entropy", f"{weight:.2g}", "even use of the values is rewarded")


def fewer_values(evidence: Evidence, used: int) -> Iterator[Change]:
    """Where codes are given: fewer values of a dimension, or fewer bits, but no fewer codes than are used."""
    levels, bits = evidence.setting("levels"), evidence.setting("bits")
    if isinstance(levels, list) and (lower := _lowered(levels, used)) != levels:
        yield Change(evidence.key("levels"), str(lower), "no more codes than the data can fill")
    if isinstance(bits, int) and (fewer := power_above(used).bit_length() - 1) < bits:
        yield Change(evidence.key("bits"), str(fewer), "no more codes than the data can fill")


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
        yield Change("training.learning_rate", f"{rate / 3:.1g}", "the encoder moves no faster than codes can follow")
