"""Which levels belong together: have one codebook between them, or each what the one before left over."""

from typing import Any


def levels_sharing_codebook(quantizer: Any) -> int:
    """How many levels in a row have one codebook, by the settings of the quantizer: 1 where each has its own."""
    shared = getattr(quantizer, "shared", False)
    inner = getattr(quantizer, "quantizer", None)  # a product may have quantizers of levels in it
    return int(quantizer.levels) if shared else 1 if inner is None else levels_sharing_codebook(inner)


def residual_depth(quantizer: Any) -> int:
    """How many levels in a row have each what those before it left over; 1 where each has latents of its own."""
    if quantizer.kind == "residual":
        return int(quantizer.levels)
    inner = getattr(quantizer, "quantizer", None)  # a product may have residual quantizers in it
    return 1 if inner is None else residual_depth(inner)
