"""AdamW, its groups, and the learning rate as a function of the step alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.config import TrainingSettings, learning_rate
from vqtool.models.autoencoder import Autoencoder


class Optimizer:
    """AdamW with clipped gradients, for a model that may have nothing to train by gradient (identity encoder, EMA)."""

    def __init__(self, model: Autoencoder, settings: TrainingSettings) -> None:
        self._settings = settings
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._adamw = torch.optim.AdamW(_groups(model, settings), lr=0.0, fused=True) if self._parameters else None

    def gradients(self, loss: Tensor) -> Tensor:
        """Compute and clip the gradients of `loss`; returns their norm () before clipping."""
        if self._adamw is None:
            return loss.new_zeros(())
        self._adamw.zero_grad(set_to_none=True)
        if not loss.requires_grad:  # as when codes wait for their start, and nothing else is trained
            return loss.new_zeros(())
        loss.backward()
        largest = self._settings.gradient_clip
        return nn.utils.clip_grad_norm_(self._parameters, math.inf if largest is None else largest)

    def step(self, step: int, good: Tensor | None = None) -> None:
        """Apply the gradients at the learning rate of a step, counted from 0; nothing where `good` () bool is false."""
        if self._adamw is None:
            return
        # What a scaler of gradients would say, and fused AdamW heeds without a word to the host.
        self._adamw.found_inf = None if good is None else (~good).float()  # type: ignore[attr-defined]
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate(self._settings, step)
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers alone."""
        return self._adamw.state_dict() if self._adamw else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an optimizer of the same model."""
        if self._adamw:
            self._adamw.load_state_dict(state)


def _groups(model: Autoencoder, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Weight decay for the weights of linear and convolutional layers; none for codes, embeddings, norms and biases."""
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weights = {
        module.weight
        for net in (model.encoder, model.decoder)
        for module in net.modules()
        if isinstance(module, layers)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter in weights]
    others = [parameter for parameter in trained if parameter not in weights]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
