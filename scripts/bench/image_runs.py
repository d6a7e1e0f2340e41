"""Training runs on digits or photo patches that differ only in the quantizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from make_tensors import digits, patches
from torch import Generator, Tensor

from bench.vq_pytorch import PeerSettings
from vqtool.config import RunSettings
from vqtool.data import BatchOrder, SampleSpec, train_validation_split
from vqtool.models.autoencoder import Autoencoder
from vqtool.quantizers import ProjectedQuantizer, VectorQuantizerSettings, kmeans, nearest_codes
from vqtool.training.optimizer import Optimizer

# Width of the latents.
_DIM = 32
# The recommended quantizer and loss weights are those of the images recipe.
_RECIPE = yaml.safe_load((Path(__file__).parents[2] / "configs" / "images.yaml").read_text())
RECOMMENDED: dict[str, Any] = _RECIPE["model"]["quantizer"]


class Result(NamedTuple):
    """Result of a run."""

    error: float
    """mean squared error of validation images, in normalised units"""
    usage: float
    tokens: int
    """of the validation images"""
    ratio: float | None
    """vqtool only: quantization error of validation latents, over that of k-means codes of the training latents"""


class ImageRun(NamedTuple):
    """One run."""

    data: str
    codebook_size: int
    peer: PeerSettings | None
    """None: vqtool's recommended quantizer."""
    seed: int
    steps: int
    quantizer: dict[str, Any] = RECOMMENDED
    """of vqtool"""
    entropy: float = 0.0
    """weight of vqtool's entropy loss"""

    def result(self) -> Result:
        """Train, and evaluate on the validation images."""
        torch.set_num_threads(1)
        training, validation = images(self.data)
        torch.manual_seed(self.seed)
        model, settings = self._model(training)
        optimizer = Optimizer(model, settings.training)
        order = BatchOrder(len(training), settings.training.batch_size, self.seed)
        for step in range(settings.training.steps):
            x = training[torch.from_numpy(order.batch(step))]
            output = model(x)
            loss = F.mse_loss(output.prediction, output.target)
            # The commitment weight is part of the peer's loss.
            loss = loss + (1.0 if self.peer else _RECIPE["loss"]["commitment"]) * output.quantizer.commitment_loss
            loss = loss + self.entropy * output.quantizer.entropy_loss
            optimizer.backward(loss)
            optimizer.step(step)
            model.quantizer.update()
        return self._judge(model.eval(), training, validation)

    def error(self) -> float:
        """Return the error of `result`."""
        return self.result().error

    def _model(self, training: Tensor) -> tuple[Autoencoder, RunSettings]:
        encoder = {"kind": "conv2d", "width": _DIM, "downsamples": 1, "res_blocks": 1}
        settings = RunSettings.model_validate(
            {
                "data": {"kind": "tensors", "path": self.data},
                "model": {
                    "encoder": encoder,
                    "quantizer": {"kind": "vector", "codebook_dim": _DIM},
                    "decoder": encoder,
                },
                "training": {"steps": self.steps, "batch_size": 64, "learning_rate": 1e-3},
            }
        )
        channels, *size = training.shape[1:]
        spec = SampleSpec("CHW", channels, tuple(size), None, "float32")
        model = Autoencoder(settings.model, spec, (0.0,) * channels, (1.0,) * channels)
        if self.peer:
            model.quantizer = self.peer.build(self.codebook_size, _DIM)  # type: ignore[assignment]
        else:
            ours = VectorQuantizerSettings.model_validate({**self.quantizer, "codebook_size": self.codebook_size})
            inner = ours.resolve(_DIM).build()
            model.quantizer = inner if inner.dim == _DIM else ProjectedQuantizer(inner, _DIM)
            if not self.entropy:
                model.quantizer.skip_entropy_loss()
        return model, settings

    @torch.no_grad()
    def _judge(self, model: Autoencoder, training: Tensor, validation: Tensor) -> Result:
        errors, used, tokens = 0.0, set(), 0
        for x in validation.split(128):
            output = model(x)
            errors += float((output.prediction - output.target).square().sum())
            used |= set(output.quantizer.indices.flatten().tolist())
            tokens += output.quantizer.indices.numel()
        ratio = None if self.peer else _ratio(model, training, validation)
        return Result(errors / validation.numel(), len(used) / self.codebook_size, tokens, ratio)


def _ratio(model: Autoencoder, training: Tensor, validation: Tensor) -> float:
    quantizer = model.quantizer
    inner = quantizer.inner if isinstance(quantizer, ProjectedQuantizer) else quantizer
    fitted, judged = (
        torch.cat([quantizer.preprocess(model.latents(x)).reshape(-1, inner.dim) for x in part.split(128)])
        for part in (training, validation)
    )
    reference = kmeans(fitted, len(inner.codes), Generator().manual_seed(0))
    ours, best = ((judged - codes[nearest_codes(judged, codes)]).square().mean() for codes in (inner.codes, reference))
    return float(ours / best)


def images(name: str) -> tuple[Tensor, Tensor]:
    """Return training and validation images (N, C, 8, 8) with mean 0 and variance 1."""
    found = digits() if name == "digits" else patches(8, 8).transpose(0, 3, 1, 2).astype(np.float32)
    training, validation = train_validation_split(len(found), 0.2, 0)
    scaled = torch.from_numpy((found - found[training].mean()) / found[training].std())
    return scaled[training], scaled[validation]


def finalists(runs: Sequence[ImageRun], errors: Sequence[float], number: int) -> list[PeerSettings]:
    """Return the peer settings of the `number` runs with the smallest errors."""
    order = sorted(range(len(runs)), key=errors.__getitem__)
    return [peer for run in order[:number] if (peer := runs[run].peer)]
