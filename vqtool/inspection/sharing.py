"""Which levels have one codebook between them."""

from typing import Any


def levels_sharing(quantizer: Any) -> int:
    """How many levels in a row have one codebook, by the settings of the quantizer: 1 where each has its own."""
    shared = getattr(quantizer, "shared", False)
    inner = getattr(quantizer, "quantizer", None)  # a product may have quantizers of levels in it
    return int(quantizer.levels) if shared else 1 if inner is None else levels_sharing(inner)
