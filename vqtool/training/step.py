"""One training step: forward, backward, update. A step with a non-finite loss or gradient changes no weights or codes.

Shapes: B batch, L tokens per sample, D code dimension.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.config import RunSettings, learning_rate
from vqtool.data import BatchOrder
from vqtool.errors import TrainingError
from vqtool.metrics.evaluation import all_reduce_statistics, unweighted_losses
from vqtool.models.losses import reconstruction_loss
from vqtool.quantizers import QuantizerOutput
from vqtool.runtime.distributed import local_shard
from vqtool.training.ddp import DistributedForward
from vqtool.training.optimizer import Optimizer
from vqtool.training.setup import TrainingSetup

# Rows of the batch that the message about a non-finite loss lists.
_MAX_LISTED_ROWS = 8


class StepOutput(NamedTuple):
    """Output of the forward pass of a step.

    Losses are those of the whole batch, equal in all processes; the other tensors are of this process's shard.
    """

    total: Tensor
    """() loss to minimise, the weighted sum of the losses below (see `LossSettings`)."""
    reconstruction: Tensor
    """() reconstruction loss."""
    latents: Tensor
    """(B, L, D) encoder output."""
    quantizer: QuantizerOutput
    """Quantized latents (B, L, D), indices, commitment and entropy loss."""


class Stepper:
    """Takes training steps, counted from 0.

    Args:
        setup: model, data and settings.
        order: the samples of each step's batch, for error messages that list rows.

    Attributes:
        optimizer: optimizer of the model.
        checks_each_step: whether `backward_and_update` itself raises after a non-finite step; true on a CPU. On other
            devices reading the losses would make the host wait, so only `check_finite` raises.
    """

    def __init__(self, setup: TrainingSetup, order: BatchOrder) -> None:
        self._settings: RunSettings = setup.settings
        self._model = setup.model
        self._forward = DistributedForward(setup.model)
        self._device = setup.device
        self._row_indices = setup.dataset.training.row_indices
        self._order = order
        self._guard = NonFiniteGuard(setup.device)
        self.optimizer = Optimizer(setup.model, setup.settings.training)
        self.checks_each_step = setup.device.type == "cpu"

    def forward(self, x: Tensor) -> StepOutput:
        """Return losses and latents of a batch; the quantizer accumulates the batch for `backward_and_update`.

        With `training.precision: bfloat16`, encoder and decoder run under autocast.

        Args:
            x: this process's shard of the batch: values (B, C, *size) or classes (B, *size).
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.training.precision == "bfloat16"):
            output = self._forward(x)
        shard = local_shard(len(x), self._device)
        weights, quantizer = self._settings.loss, output.quantizer
        reconstruction = reconstruction_loss(weights.reconstruction, output.prediction, output.target, shard)
        total = reconstruction + weights.commitment * quantizer.commitment_loss
        if weights.entropy:  # without a weight the term is omitted: 0 · inf is NaN
            total = total + weights.entropy * quantizer.entropy_loss
        return StepOutput(total, reconstruction, output.latents, quantizer)

    def metrics(self, step: int, output: StepOutput) -> dict[str, float]:
        """Return losses of the whole batch and the learning rate of the step, by tag.

        `loss/commitment` and `loss/entropy` are those of `unweighted_losses`, and omitted until codes are initialised.
        Call it in all processes, between `forward` and `backward_and_update`. The host waits for the device.
        """
        metrics = {
            "loss/total": float(output.total.detach()),
            "loss/reconstruction": float(output.reconstruction.detach()),
            "optimizer/learning_rate": learning_rate(self._settings.training, step),
        }
        if not self._model.quantizer.needs_init:
            statistics = self._model.quantizer.statistics(output.latents.detach(), output.quantizer.indices)
            commitment, entropy = unweighted_losses(all_reduce_statistics(statistics))
            metrics |= {"loss/commitment": commitment, "loss/entropy": entropy}
        return metrics

    def backward_and_update(self, step: int, output: StepOutput) -> None:
        """Compute gradients; update weights, hit steps and codes. Until codes are initialised, extend their sample.

        From the first non-finite loss or gradient on, nothing changes any more, in that step and all later ones.

        Raises:
            TrainingError: a loss or a gradient is not finite. Raised only if `checks_each_step`, or before codes are
                initialised; otherwise `check_finite` raises it.
        """
        terms = {"reconstruction": output.reconstruction, "commitment": output.quantizer.commitment_loss}
        if self._settings.loss.entropy:
            terms["entropy"] = output.quantizer.entropy_loss
        terms["gradient"] = self.optimizer.backward(output.total)
        step_is_finite, needs_init = None, self._model.quantizer.needs_init
        if needs_init or self.checks_each_step:
            self._raise_if_non_finite(step, [name for name, term in terms.items() if not math.isfinite(term.item())])
        else:
            step_is_finite = self._guard.record(step, terms)
        self.optimizer.step(step, step_is_finite)
        if not needs_init:
            self._model.hit_steps.record(output.quantizer.indices, step + 1, step_is_finite)
        self._model.quantizer.apply_update(step_is_finite)

    def check_finite(self) -> None:
        """Wait for the device, and raise if any step so far was not finite.

        Raises:
            TrainingError: names the first non-finite step, its non-finite terms, and rows of its batch.
        """
        self._raise_if_non_finite(*self._guard.first_non_finite())

    def _raise_if_non_finite(self, step: int, names: list[str]) -> None:
        """Raise an error if a step has non-finite terms; first discard the batches that the quantizer accumulated.

        Empty `names` have no effect.

        Args:
            step: number of the step, counted from 0.
            names: non-finite terms of the step, from `reconstruction`, `commitment`, `entropy` and `gradient`.

        Raises:
            TrainingError: `names` is not empty. The message names the non-finite losses, or the gradient if all losses
                are finite, and lists up to 8 rows of the step's batch.
        """
        if not names:
            return
        self._model.quantizer.discard()
        # If a loss is not finite, its gradient is not finite either, and need not be named.
        terms = [f"{name} loss" for name in names if name != "gradient"] or names
        samples = self._order.batch(step)
        rows = samples if self._row_indices is None else self._row_indices[samples]
        listed = ", ".join(map(str, rows[:_MAX_LISTED_ROWS])) + (", ..." if len(rows) > _MAX_LISTED_ROWS else "")
        raise TrainingError(
            f"step {step + 1}: the {' and the '.join(terms)} {'is' if len(terms) == 1 else 'are'} NaN or infinite; the "
            "step was not applied; lower training.learning_rate, raise training.warmup_steps, or set "
            f"training.gradient_clip or data.normalize; rows of the batch: {listed}"
        )


class NonFiniteGuard:
    """Records on the device whether losses and gradients are finite, so that the host need not wait at each step.

    Args:
        device: device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        # Whether all steps so far were finite.
        self._all_finite = torch.ones((), dtype=torch.bool, device=device)
        # Step and terms of the first non-finite step; of the last step while all are finite.
        self._step = torch.full((), -1, device=device)
        self._terms = torch.zeros((), device=device)
        self._names: list[str] = []

    @torch.no_grad()
    def record(self, step: int, terms: Mapping[str, Tensor]) -> Tensor:
        """Record the terms of a step, each a tensor (); every step must have the same names.

        Returns:
            () bool: whether this step and all earlier ones were finite. If false, the step must not be applied.
        """
        self._names = list(terms)
        values = torch.stack(list(terms.values()))
        self._step = torch.where(self._all_finite, step, self._step)
        self._terms = torch.where(self._all_finite, values, self._terms)
        self._all_finite = self._all_finite & values.isfinite().all()
        return self._all_finite

    def first_non_finite(self) -> tuple[int, list[str]]:
        """Wait for the device; return the first non-finite step and the names of its non-finite terms.

        If all steps are finite, return the last one, -1 if there was none, and [].
        """
        finite = self._terms.isfinite().tolist() if self._names else []
        return int(self._step), [name for name, ok in zip(self._names, finite, strict=True) if not ok]
