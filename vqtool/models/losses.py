"""Reconstruction losses, and the weights of all losses of a run.

Shapes: B batch, C channels; size is (), (T,) or (H, W).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vqtool.errors import ConfigError
from vqtool.runtime.distributed import BatchShard
from vqtool.runtime.settings import Settings

ReconstructionName = Literal["mse", "l1", "cosine", "cross_entropy"]


class LossSettings(Settings):
    """Reconstruction loss, and the weights of the quantizer's losses.

    total = reconstruction + commitment · commitment_loss + entropy · entropy_loss.
    """

    reconstruction: ReconstructionName | Literal["auto"] = Field(
        "auto", description="reconstruction loss; auto: mse for continuous values, cross_entropy for classes"
    )
    commitment: float = Field(
        1.0, ge=0, description="weight of the commitment loss, which pulls latents towards their codes"
    )
    entropy: float = Field(0.0, ge=0, description="weight of the entropy loss, which rewards even code usage; 0: off")


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine similarity over the channels, 0 to 2: (B, *size) for prediction and target (B, C, *size)."""
    return 1 - F.cosine_similarity(prediction, target, dim=1)


# Unreduced losses of prediction and target, by name: (B, C, *size) for mse and l1, (B, *size) for the others.
RECONSTRUCTION_LOSSES: dict[ReconstructionName, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": partial(F.mse_loss, reduction="none"),
    "l1": partial(F.l1_loss, reduction="none"),
    "cosine": cosine_loss,
    "cross_entropy": partial(F.cross_entropy, reduction="none"),
}


def resolve_reconstruction(settings: LossSettings, classes: int | None) -> LossSettings:
    """Return the settings with `reconstruction: auto` resolved: `cross_entropy` for classes, otherwise `mse`.

    Args:
        classes: number of classes of the data; None for continuous values.

    Raises:
        ConfigError: the loss does not fit the data.
    """
    name = settings.reconstruction
    if name == "auto":
        return settings.model_copy(update={"reconstruction": "cross_entropy" if classes else "mse"})
    if (name == "cross_entropy") != bool(classes):
        data, fitting = ("classes", "cross_entropy") if classes else ("continuous values", "mse, l1, cosine")
        raise ConfigError(f"loss.reconstruction: {name} does not fit data of {data}; set it to {fitting} or auto")
    return settings


def reconstruction_loss(name: str, prediction: Tensor, target: Tensor, shard: BatchShard | None = None) -> Tensor:
    """Return the reconstruction loss (): the mean over all values of the global batch.

    `cosine` and `cross_entropy` are means over positions. The loss is float64 for a float64 prediction, otherwise
    float32; 0 for an empty batch.

    Args:
        name: `mse`, `l1`, `cosine` or `cross_entropy`; not `auto`.
        prediction: (B, C, *size) values, or (B, classes, *size) logits.
        target: (B, C, *size) values, or (B, *size) classes.
        shard: position of these samples in the global batch; None: they are the whole batch.
    """
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    return (shard or BatchShard.unsharded(len(target))).mean(RECONSTRUCTION_LOSSES[name](prediction, target))  # type: ignore[index]
