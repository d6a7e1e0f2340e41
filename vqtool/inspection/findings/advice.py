"""Config changes that several findings suggest.

A function that yields changes leaves out those that do not apply to the quantizer of the run, or that the run already
has. Without known settings it yields none.
"""

from collections.abc import Iterator
from math import prod

from vqtool.inspection.evidence import Evidence
from vqtool.inspection.finding import Change

# Codebooks with more dimensions than this are advised to use fewer.
_MAX_CODEBOOK_DIM = 16


def move_codes_to_latents(evidence: Evidence) -> Iterator[Change]:
    """Yield changes that move codes to the latents.

    These are k-means instead of random initialisation, EMA instead of entropy-only updates, and a dead-code reset if a
    learned codebook has none.
    """
    init, update = evidence.quantizer_setting("init"), evidence.quantizer_setting("update")
    if getattr(init, "kind", None) == "random":
        yield Change(evidence.quantizer_key("init.kind"), "kmeans", "initialises the codes by k-means on the latents")
    if getattr(update, "kind", None) == "entropy_only":
        yield Change(
            evidence.quantizer_key("update.kind"), "ema", "moves each code to the mean of the latents assigned to it"
        )
    if update and evidence.quantizer_setting("dead_code_reset") is None:
        yield Change(
            evidence.quantizer_key("dead_code_reset"), "{min_hits: 5}", "resets dead codes to positions near latents"
        )


def reduce_codebook_dim(evidence: Evidence) -> Iterator[Change]:
    """Yield `codebook_dim: 8` for a codebook with more than 16 dimensions."""
    dim = evidence.quantizer_setting("codebook_dim")
    if isinstance(dim, int) and dim > _MAX_CODEBOOK_DIM:
        yield Change(evidence.quantizer_key("codebook_dim"), "8", "more codes stay in use in few dimensions")


def reduce_codebook_size(evidence: Evidence, size: int) -> Iterator[Change]:
    """Yield `codebook_size: SIZE` if that is smaller than the present size."""
    if size < (evidence.quantizer_setting("codebook_size") or 0):
        yield Change(evidence.quantizer_key("codebook_size"), str(size), "as many codes as the data can use")


def reduce_fixed_codes(evidence: Evidence, used: int) -> Iterator[Change]:
    """Yield lower `levels` of FSQ, or fewer `bits` of LFQ and BSQ, that still give at least `used` codes."""
    levels, bits = evidence.quantizer_setting("levels"), evidence.quantizer_setting("bits")
    if isinstance(levels, list) and (lower := _lower_levels(levels, used)) != levels:
        yield Change(evidence.quantizer_key("levels"), str(lower), "as many codes as the data can use")
    if isinstance(bits, int) and (fewer := next_power_of_two(used).bit_length() - 1) < bits:
        yield Change(evidence.quantizer_key("bits"), str(fewer), "as many codes as the data can use")


def _lower_levels(levels: list[int], used: int) -> list[int]:
    """Return FSQ levels, the largest decremented while their product is at least `used` and each is at least 2."""
    lowest, candidate = levels, list(levels)
    while min(candidate) > 1 and prod(candidate) >= used:
        lowest = list(candidate)
        candidate[candidate.index(max(candidate))] -= 1
    return lowest


def add_residual_level(evidence: Evidence, why: str) -> Iterator[Change]:
    """Yield one more level for the outermost residual quantizer; `why` becomes `Change.why`."""
    if evidence.residual_levels:
        key, levels = evidence.residual_levels
        yield Change(key, str(levels + 1), why)


def raise_entropy_weight(evidence: Evidence) -> Iterator[Change]:
    """Yield three times the weight of the entropy loss, at least 0.1, for fixed codes."""
    if evidence.settings and evidence.has_fixed_codes:
        weight = max(0.1, 3 * evidence.settings.loss.entropy)
        yield Change("loss.entropy", f"{weight:.2g}", "rewards uniform usage of the codes")


def reduce_learning_rate(evidence: Evidence) -> Iterator[Change]:
    """Yield a third of the learning rate."""
    if evidence.settings:
        rate = evidence.settings.training.learning_rate
        yield Change("training.learning_rate", f"{rate / 3:.1g}", "slows the encoder, so that the codes can follow")


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number` and at least 2."""
    return 1 << max(1, (number - 1).bit_length())


def previous_power_of_two(number: int) -> int:
    """Return the largest power of two that is at most `number`, or 2 if `number` is smaller."""
    return 1 << max(1, number.bit_length() - 1)
