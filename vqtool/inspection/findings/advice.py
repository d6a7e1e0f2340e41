"""Changes of the config that several findings advise."""

from collections.abc import Iterator

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
    """A smaller codebook, where its size is one number."""
    if evidence.setting("codebook_size"):
        power = 1 << max(1, int(size).bit_length() - 1)
        if power >= int(evidence.setting("codebook_size")):
            return
        yield Change(evidence.key("codebook_size"), str(power), "as many codes as the data can fill")


def slower(evidence: Evidence) -> Iterator[Change]:
    """A lower learning rate."""
    if evidence.settings:
        rate = evidence.settings.training.learning_rate
        yield Change("training.learning_rate", f"{rate / 3:.1g}", "the encoder moves no faster than codes can follow")
