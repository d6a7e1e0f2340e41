"""Settings of the `training` block of the config, and the learning-rate schedule."""

import math
from typing import Literal

from pydantic import Field, field_validator

from vqtool.runtime.device import check_device_name
from vqtool.runtime.settings import Settings

# Metrics that can select the best model; True: lower is better.
BEST_METRICS = {
    "validation/loss/total": True,
    "validation/loss/reconstruction": True,
    "validation/loss/commitment": True,
    "validation/loss/entropy": True,
    "codebook/usage": False,
    "codebook/perplexity": False,
    "codebook/entropy": False,
    "codebook/soft_entropy": False,
}


class TrainingSettings(Settings):
    """Optimizer, validation and checkpoints. All intervals are in steps."""

    steps: int = Field(2000, ge=1, description="number of optimizer steps")
    batch_size: int = Field(
        128, ge=1, le=1 << 24, description="samples per step; torchrun splits them over its processes"
    )
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, reached after warm-up")
    warmup_steps: int = Field(100, ge=0, description="steps over which the learning rate rises linearly")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning rate after warm-up; cosine: decays to 0 at the last step"
    )
    weight_decay: float = Field(
        0.01, ge=0, description="AdamW weight decay of weight matrices; codes, norms and biases have none"
    )
    gradient_clip: float | None = Field(
        1.0, gt=0, description="maximum global norm of the gradients; null: no clipping"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of encoder and decoder in training; validation and encoding are always float32",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto: cuda if available, else cpu")
    loader_threads: int = Field(1, ge=0, le=64, description="threads that prefetch batches; 0: no prefetching")
    init_from: str | None = Field(
        None, min_length=1, description="run directory whose model initialises the weights; null: random initialisation"
    )
    log_every: int = Field(50, ge=1, description="steps between logged training losses")
    validate_every: int = Field(
        500, ge=1, description="steps between validation passes; the last step is always validated"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints; the last step always has one")
    keep_checkpoints: int = Field(2, ge=1, description="number of recent checkpoints to keep")
    stop_on_severe: bool = Field(
        False, description="stop when two consecutive validations after warm-up report the same severe finding"
    )
    best_metric: Literal[
        "validation/loss/total",
        "validation/loss/reconstruction",
        "validation/loss/commitment",
        "validation/loss/entropy",
        "codebook/usage",
        "codebook/perplexity",
        "codebook/entropy",
        "codebook/soft_entropy",
    ] = Field("validation/loss/reconstruction", description="metric that selects the model in model.safetensors")

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        return check_device_name(device)


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Return the learning rate of step `step`, counted from 0 to steps - 1.

    With W = min(warmup_steps, steps) and the peak r:

        r (step + 1) / (W + 1)                             step < W: linear warm-up
        r                                                  step >= W, schedule constant
        r (1 + cos(π (step - W) / (steps - W))) / 2        step >= W, schedule cosine (Loshchilov & Hutter 2017)
    """
    warmup = min(settings.warmup_steps, settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def cumulative_lr(settings: TrainingSettings, steps: int) -> float:
    """Return the approximate sum of `learning_rate` over the first `steps` steps, divided by the peak learning rate.

    It is the integral of the schedule, between 0 and `steps`. AdamW moves a weight by at most about the learning rate
    per step, so the sum times the peak estimates how far a weight can have moved.
    """
    warmup = min(settings.warmup_steps, settings.steps)
    if steps < warmup:
        return steps**2 / (2 * warmup)
    after_warmup = steps - warmup
    if settings.schedule == "constant":
        return warmup / 2 + after_warmup
    decay_steps = max(1, settings.steps - warmup)
    return warmup / 2 + (after_warmup + decay_steps / math.pi * math.sin(math.pi * after_warmup / decay_steps)) / 2
