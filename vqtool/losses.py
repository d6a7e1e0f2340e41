"""Reconstruction losses, each a mean, so that a batch's size does not matter; and the weights of a run's losses.

Shapes: B batch, C channels; size is (), (T,) or (H, W).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vqtool.distributed import Share
from vqtool.errors import ConfigError
from vqtool.settings import Settings

ReconstructionName = Literal["mse", "l1", "cosine", "cross_entropy"]


class LossSettings(Settings):
    """total = reconstruction + commitment · commitment_loss + entropy · entropy_loss."""

    reconstruction: ReconstructionName | Literal["auto"] = Field(
        "auto", description="auto: mse for values, cross_entropy for classes"
    )
    commitment: float = Field(1.0, ge=0, description="weight of the quantizer's commitment loss")
    entropy: float = Field(0.0, ge=0, description="weight of the quantizer's entropy loss")


def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """(B, *size) 1 - the cosine between the channels (B, C, *size) of prediction and target."""
    return 1 - F.cosine_similarity(prediction, target, dim=1)


# What each is the mean of, (B, ...).
RECONSTRUCTION_LOSSES: dict[ReconstructionName, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": partial(F.mse_loss, reduction="none"),
    "l1": partial(F.l1_loss, reduction="none"),
    "cosine": cosine,
    "cross_entropy": partial(F.cross_entropy, reduction="none"),
}


def resolve_reconstruction(settings: LossSettings, classes: int | None) -> LossSettings:
    """Settings whose reconstruction loss is named.

    Raises:
        ConfigError: the loss does not go with the data.
    """
    name = settings.reconstruction
    if name == "auto":
        return settings.model_copy(update={"reconstruction": "cross_entropy" if classes else "mse"})
    if (name == "cross_entropy") != bool(classes):
        holds, fits = ("classes", "cross_entropy") if classes else ("values", "mse, l1 or cosine")
        raise ConfigError(f"loss.reconstruction: {name}, but the data hold {holds}; set it to {fits}, or auto")
    return settings


def reconstruction_loss(name: str, prediction: Tensor, target: Tensor, share: Share | None = None) -> Tensor:
    """() the loss called `name`, in float32 at least.

    Args:
        prediction: (B, C, *size) values, or (B, classes, *size) logits.
        target: (B, C, *size) values, or (B, *size) classes.
        share: which samples of a batch these are; left out, all of them.
    """
    prediction = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
    return (share or Share.alone(len(target))).mean(RECONSTRUCTION_LOSSES[name](prediction, target))  # type: ignore[index]
