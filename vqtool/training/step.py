"""One step: forward, backward, and the update of weights and codes, or nothing where a number is not finite.

Shapes: B batch, L positions per sample, D code dimension.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vqtool.config import RunSettings, learning_rate
from vqtool.data import BatchOrder
from vqtool.errors import TrainingError
from vqtool.metrics.evaluation import all_reduce_statistics, raw_losses
from vqtool.models.losses import reconstruction_loss
from vqtool.quantizers import QuantizerOutput
from vqtool.runtime.distributed import local_shard
from vqtool.training.ddp import DistributedForward
from vqtool.training.non_finite_guard import NonFiniteGuard
from vqtool.training.optimizer import Optimizer
from vqtool.training.setup import TrainingSetup

# Rows named in a message.
_NAMED = 8


class StepOutput(NamedTuple):
    """What the forward pass of a step gives."""

    total: Tensor
    """() the loss that is minimised."""
    reconstruction: Tensor
    """()"""
    latents: Tensor
    """(B, L, D)"""
    quantizer: QuantizerOutput
    """Losses and indices."""


class Stepper:
    """Takes steps with a prepared model. Steps are counted from 0.

    Args:
        order: which samples make up each step's batch.

    Attributes:
        optimizer: of the model.
    """

    def __init__(self, prepared: TrainingSetup, order: BatchOrder) -> None:
        self._settings: RunSettings = prepared.settings
        self._model = prepared.model
        self._averaging = DistributedForward(prepared.model)
        self._device = prepared.device
        self._numbers = prepared.dataset.training.numbers
        self._order = order
        self._watch = NonFiniteGuard(prepared.device)
        self.optimizer = Optimizer(prepared.model, prepared.settings.training)

    def forward(self, x: Tensor) -> StepOutput:
        """The losses of a batch, of which `x` may be a share."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.training.precision == "bfloat16"):
            output = self._averaging(x)
        shard = local_shard(len(x), self._device)
        name = self._settings.loss.reconstruction
        reconstruction = reconstruction_loss(name, output.prediction, output.target, shard)
        return StepOutput(
            self._total(reconstruction, output.quantizer), reconstruction, output.latents, output.quantizer
        )

    def metrics(self, step: int, output: StepOutput) -> dict[str, float]:
        """The whole batch's losses by tag, raw, as they are before the step is applied."""
        metrics = {
            "loss/total": float(output.total.detach()),
            "loss/reconstruction": float(output.reconstruction.detach()),
            "optimizer/learning_rate": learning_rate(self._settings.training, step),
        }
        if not self._model.quantizer.needs_init:  # else nothing was quantized
            latents = output.latents.detach()
            own = self._model.quantizer.statistics(latents, output.quantizer.indices)
            commitment, entropy = raw_losses(all_reduce_statistics(own))
            metrics |= {"loss/commitment": commitment, "loss/entropy": entropy}
        return metrics

    def apply(self, step: int, output: StepOutput) -> None:
        """Update weights and codes; after a step that was not finite, nothing any more.

        Raises:
            TrainingError: as `check`, at once on a CPU, and while codes wait for their start.
        """
        terms = {"reconstruction": output.reconstruction, "commitment": output.quantizer.commitment_loss}
        if self._settings.loss.entropy:
            terms["entropy"] = output.quantizer.entropy_loss
        terms["gradient"] = self.optimizer.gradients(output.total)
        good, needs_init = None, self._model.quantizer.needs_init
        if needs_init or _known_at_once(self._device):
            self._refuse(step, [name for name, term in terms.items() if not math.isfinite(term.item())])
        else:
            good = self._watch.note(step, terms)
        self.optimizer.step(step, good)
        if not needs_init:
            self._model.hit_times.note(output.quantizer.indices, step + 1, good)
        self._model.quantizer.apply_update(good)

    def check(self) -> None:
        """Wait for the device, and refuse to go on after a step that was not finite, if `apply` has not done so.

        Raises:
            TrainingError: names the step, what was not finite, and the rows.
        """
        self._refuse(*self._watch.first())

    def _refuse(self, step: int, bad: list[str]) -> None:
        """Go no further where terms of a step were `bad`."""
        if not bad:
            return
        self._model.quantizer.discard()
        # A gradient is bad wherever a loss is.
        terms = [f"{name} loss" for name in bad if name != "gradient"] or bad
        raise TrainingError(
            f"step {step + 1}: the {' and the '.join(terms)} {'is' if len(terms) == 1 else 'are'} NaN or infinite; the "
            "step was not applied; lower training.learning_rate, raise training.warmup_steps, or set "
            f"training.gradient_clip or data.normalize; rows of the batch: {self._rows(step)}"
        )

    def _total(self, reconstruction: Tensor, output: QuantizerOutput) -> Tensor:
        loss = self._settings.loss
        total = reconstruction + loss.commitment * output.commitment_loss
        # Left out at weight zero, for 0 · inf is no number.
        return total + loss.entropy * output.entropy_loss if loss.entropy else total

    def _rows(self, step: int) -> str:
        samples = self._order.batch(step)
        rows = samples if self._numbers is None else self._numbers[samples]
        return ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")


def _known_at_once(device: torch.device) -> bool:
    """Whether a number is on the host as soon as it is computed."""
    return device.type == "cpu"
