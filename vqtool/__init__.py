"""vqtool: train, use and inspect vector-quantized autoencoders."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqtool.inference.tokenizer import load as load
    from vqtool.quantizers import VectorQuantizer as VectorQuantizer

__all__ = ["VectorQuantizer", "load"]


def __getattr__(name: str) -> Any:
    # Imported on demand, so that `vqtool --help` does not import torch.
    if name == "VectorQuantizer":
        from vqtool.quantizers import VectorQuantizer

        return VectorQuantizer
    if name == "load":
        from vqtool.inference.tokenizer import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
