"""The training block of the config."""

import math
import re
from typing import Literal

from pydantic import Field, field_validator

from vqtool.settings import Settings

# Metrics that can choose the best model, and whether smaller is better.
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
    """How long, how fast, and what is kept along the way. All intervals are in steps."""

    steps: int = Field(2000, ge=1, description="updates of the weights")
    batch_size: int = Field(128, ge=1, le=1 << 24, description="samples a step")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, after warm-up")
    warmup_steps: int = Field(100, ge=0, description="over which the learning rate rises")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the learning rate after warm-up")
    weight_decay: float = Field(0.01, ge=0, description="of weight matrices; never of codes, norms and biases")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of all gradients together; null: none")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the networks in training; quantizing, validating and encoding are float32 always"
    )
    device: str = Field("auto", description="auto: cuda where there is one, else cpu; also cuda:1")
    loader_threads: int = Field(1, ge=0, le=64, description="each reads batches ahead; 0: read when it is needed")
    init_from: str | None = Field(None, min_length=1, description="a run whose model to begin with; null: the seed's")
    log_every: int = Field(50, ge=1, description="losses of the training batch")
    validate_every: int = Field(500, ge=1, description="a pass over the validation part; the last step has one too")
    checkpoint_every: int = Field(500, ge=1, description="what resuming needs; the last step has one too")
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last checkpoints to keep")
    stop_on_severe: bool = Field(
        False, description="end where two validations in a row find one fault severe, past warm-up"
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
    ] = Field("validation/loss/reconstruction", description="what the best model is best by")

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
            raise ValueError("expected auto, cpu, cuda or cuda:1 (mps has no float64, which exact search needs)")
        return device


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Of a step, counted from 0: a linear rise, then half a cosine down to 0 (Loshchilov & Hutter 2017), or level."""
    warmup = min(settings.warmup_steps, settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def travel(settings: TrainingSettings, steps: int) -> float:
    """About the sum of the learning rates of so many steps, in full ones: as far as weights can have moved."""
    warmup = min(settings.warmup_steps, settings.steps)
    if steps < warmup:
        return steps**2 / (2 * warmup)
    full = steps - warmup
    if settings.schedule == "constant":
        return warmup / 2 + full
    rest = max(1, settings.steps - warmup)
    return warmup / 2 + (full + rest / math.pi * math.sin(math.pi * full / rest)) / 2
