"""AdamW with clipped gradients and parameter groups; the learning rate depends on the step number alone."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.config import TrainingSettings, learning_rate
from vqtool.models.autoencoder import Autoencoder


class Optimizer:
    """AdamW with the learning-rate schedule and gradient clipping of the settings.

    A model may have no parameter that is trained by gradient (identity encoder and EMA codes). All methods then have no
    effect.
    """

    def __init__(self, model: Autoencoder, settings: TrainingSettings) -> None:
        self._settings = settings
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = _parameter_groups(model, self._parameters, settings.weight_decay)
        self._adamw = torch.optim.AdamW(groups, lr=0.0, fused=True) if groups else None

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradients of `loss` (), and clip their global norm to `gradient_clip`.

        Returns:
            () norm before clipping; 0 if no parameter has a gradient.
        """
        if self._adamw is None:
            return loss.new_zeros(())
        self._adamw.zero_grad(set_to_none=True)
        if not loss.requires_grad:  # codes, the only parameters, are not initialised yet
            return loss.new_zeros(())
        loss.backward()
        max_norm = self._settings.gradient_clip
        return nn.utils.clip_grad_norm_(self._parameters, math.inf if max_norm is None else max_norm)

    def step(self, step: int, step_is_finite: Tensor | None = None) -> None:
        """Apply the gradients with the learning rate of a step, counted from 0.

        Args:
            step_is_finite: () bool on the device; if false, nothing changes. None means true.
        """
        if self._adamw is None:
            return
        # Fused AdamW skips the update where `found_inf`, meant for a gradient scaler, is 1. The host need not wait.
        self._adamw.found_inf = None if step_is_finite is None else (~step_is_finite).float()  # type: ignore[attr-defined]
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate(self._settings, step)
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Return AdamW's state dict, which holds tensors and numbers only; {} if no parameter is trained."""
        return self._adamw.state_dict() if self._adamw else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of an optimizer of the same model."""
        if self._adamw:
            self._adamw.load_state_dict(state)


def _parameter_groups(model: Autoencoder, trained: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: with weight decay and without; an empty group is omitted.

    Weights of linear and convolutional layers in encoder and decoder decay. Codes, embeddings, norms and biases do not.

    Args:
        trained: parameters that are trained by gradient.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weights = {
        module.weight
        for net in (model.encoder, model.decoder)
        for module in net.modules()
        if isinstance(module, layers)
    }
    groups = [
        {"params": [parameter for parameter in trained if parameter in weights], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter not in weights], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
