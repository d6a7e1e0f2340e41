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
    """Result of a run on the validation images."""

    error: float
    """Mean squared error in normalised units."""
    usage: float
    """Fraction of the K codes with at least one hit."""
    tokens: int
    """Number of tokens of all validation images."""
    ratio: float | None
    """Quantization error of the validation latents, divided by that of k-means codes of the training latents; None for
    a peer."""


class ImageRun(NamedTuple):
    """A training run with vqtool's quantizer or with a peer's. Network, optimizer and batches do not depend on it."""

    data: str
    """`digits` or `patches`."""
    codebook_size: int
    peer: PeerSettings | None
    """Quantizer of vector-quantize-pytorch; None: vqtool's."""
    seed: int
    steps: int
    quantizer: dict[str, Any] = RECOMMENDED
    """vqtool's quantizer block, except for `codebook_size`; ignored with a peer."""
    entropy: float = 0.0
    """Weight of the entropy loss, which a peer does not have."""

    def result(self) -> Result:
        """Train in one thread, and evaluate on the validation images."""
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
        return self._evaluate(model.eval(), training, validation)

    def error(self) -> float:
        """Return the error of `result`."""
        return self.result().error

    def _model(self, training: Tensor) -> tuple[Autoencoder, RunSettings]:
        """Return the model for images (N, C, H, W), and settings of which only `training` is used further."""
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
    def _evaluate(self, model: Autoencoder, training: Tensor, validation: Tensor) -> Result:
        squared_error, used, tokens = 0.0, set(), 0
        for x in validation.split(128):
            output = model(x)
            squared_error += float((output.prediction - output.target).square().sum())
            used |= set(output.quantizer.indices.flatten().tolist())
            tokens += output.quantizer.indices.numel()
        ratio = None if self.peer else _ratio_to_kmeans(model, training, validation)
        return Result(squared_error / validation.numel(), len(used) / self.codebook_size, tokens, ratio)


def _ratio_to_kmeans(model: Autoencoder, training: Tensor, validation: Tensor) -> float:
    """Return `Result.ratio` for images (N, C, H, W)."""
    quantizer = model.quantizer
    inner = quantizer.inner if isinstance(quantizer, ProjectedQuantizer) else quantizer
    training_latents, validation_latents = (
        torch.cat([quantizer.preprocess(model.latents(x)).reshape(-1, inner.dim) for x in images.split(128)])
        for images in (training, validation)
    )
    kmeans_codes = kmeans(training_latents, len(inner.codes), Generator().manual_seed(0))
    ours, best = (
        (validation_latents - codes[nearest_codes(validation_latents, codes)]).square().mean()
        for codes in (inner.codes, kmeans_codes)
    )
    return float(ours / best)


def images(name: str) -> tuple[Tensor, Tensor]:
    """Return training and validation images (N, C, 8, 8), 80% and 20% of `digits` (C = 1) or `patches` (C = 3).

    Mean and variance over all values of the training images are 0 and 1.
    """
    array = digits() if name == "digits" else patches(8, 8).transpose(0, 3, 1, 2).astype(np.float32)
    training, validation = train_validation_split(len(array), 0.2, 0)
    scaled = torch.from_numpy((array - array[training].mean()) / array[training].std())
    return scaled[training], scaled[validation]


def finalists(runs: Sequence[ImageRun], errors: Sequence[float], number: int) -> list[PeerSettings]:
    """Return the peer settings of the `number` runs with the smallest errors, best first."""
    order = sorted(range(len(runs)), key=errors.__getitem__)
    return [peer for run in order[:number] if (peer := runs[run].peer)]
