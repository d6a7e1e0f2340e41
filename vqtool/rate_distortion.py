"""How far a run's codes are from what its own latents allow, and from what any code of its rate could reach.

Shapes: S training latents, N latents to judge by, D dimensions, K codes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from vqtool.chunks import chunk_rows, chunks
from vqtool.data import Samples, SyntheticSettings, open_dataset
from vqtool.data.synthetic import GaussianSettings
from vqtool.progress import pass_bar
from vqtool.quantizers import ProductQuantizer, ProjectedQuantizer, Quantizer, ResidualQuantizer, kmeans, nearest_codes
from vqtool.tokenizer import Tokenizer

# Runs of k-means, of which the best on the training latents counts.
N_INIT = 3
# The most training latents that k-means is run on.
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class RateDistortion:
    """Mean squared errors of quantizing latents, of one dimension, in the units that codes are compared in.

    Attributes:
        error: of the run's codes, on the latents to judge by.
        reference: of k-means of as many codes, fitted to the run's training latents: level by level, group by group;
            None where there are fewer latents than codes.
        ratio: error / reference; 1 is as good as k-means, below is better. None where the reference is none or 0. Codes
            that are held to a surface or a grid (cosine, FSQ, LFQ, BSQ) pay for that here.
        n_init: runs of k-means, of which the best on the training latents counts.
        fitted_on: S, the training latents that it was fitted to.
        shannon_bound: for a Gaussian source, the mean squared error, in the data's own units, below which no code of
            as many bits a sample can go (Shannon 1959; Cover & Thomas 2006, theorem 10.3.2); None for others.
    """

    error: float
    reference: float | None
    ratio: float | None
    n_init: int
    fitted_on: int
    shannon_bound: float | None


def rate_distortion(tokenizer: Tokenizer, data: str | None = None, key: str | None = None) -> RateDistortion:
    """Set a run beside k-means on its own latents; judged on data, or the run's validation part.

    Raises:
        DataError: the data are not like the run's.
    """
    dataset = open_dataset(tokenizer.settings.data, tokenizer.settings.seed)
    judged = dataset.validation if data is None else tokenizer.open_checked(data, key)
    training, latents = _latents(tokenizer, dataset.training, _SAMPLE), _latents(tokenizer, judged, None)
    quantizer = tokenizer.model.quantizer
    inner = quantizer.inner if isinstance(quantizer, ProjectedQuantizer) else quantizer
    error = float((latents - inner.decode(inner.nearest(latents))).double().square().mean())
    left = _reference(inner, training, latents)
    reference = None if left is None else float(left.double().square().mean())
    return RateDistortion(
        error=error,
        reference=reference,
        ratio=error / reference if reference else None,
        n_init=N_INIT,
        fitted_on=len(training),
        shannon_bound=_shannon_bound(tokenizer, judged) if data is None else None,
    )


@torch.inference_mode()
def _latents(tokenizer: Tokenizer, samples: Samples, most: int | None) -> Tensor:
    """Conditioned latents (N, D) of samples, evenly spaced where only so many are wanted."""
    model = tokenizer.model
    rows = chunk_rows(model, samples.size)
    wanted = len(samples) if most is None else min(len(samples), max(1, most // math.prod(model.grid(samples.size))))
    numbers = np.arange(wanted) * len(samples) // wanted
    found: list[Tensor] = []
    with pass_bar("latents", wanted) as bar:
        for start in range(0, wanted, rows):
            ((x, n),) = chunks(samples.take(numbers[start : start + rows]), rows)
            conditioned = model.quantizer.condition(model.latents(x.to(tokenizer.device)))[:n]
            found.append(conditioned.reshape(-1, conditioned.shape[-1]))
            bar.update(n)
    return torch.cat(found)


def _reference(quantizer: Quantizer, training: Tensor, latents: Tensor) -> Tensor | None:
    """What k-means in the place of each codebook leaves over of the latents (N, D)."""
    if isinstance(quantizer, ProductQuantizer):
        widths = [group.dim for group in quantizer.all_groups]
        parts = zip(quantizer.all_groups, training.split(widths, dim=1), latents.split(widths, dim=1), strict=True)
        left = [_reference(group, *part) for group, *part in parts]
        known = [part for part in left if part is not None]
        return torch.cat(known, dim=1) if len(known) == len(left) else None
    if max(quantizer.codebook_sizes) > len(training):
        return None
    for size in quantizer.codebook_sizes if isinstance(quantizer, ResidualQuantizer) else quantizer.codebook_sizes[:1]:
        codes = _best_of(training, size)
        training = training - codes[nearest_codes(training, codes)]
        latents = latents - codes[nearest_codes(latents, codes)]
    return latents


def _best_of(training: Tensor, size: int) -> Tensor:
    fits = [kmeans(training, size, Generator().manual_seed(seed)) for seed in range(N_INIT)]
    return min(fits, key=lambda codes: float((training - codes[nearest_codes(training, codes)]).square().sum()))


def _shannon_bound(tokenizer: Tokenizer, samples: Samples) -> float | None:
    """2^(-2 R / n), R bits a sample of n independent standard normal numbers."""
    data = tokenizer.settings.data
    if not (isinstance(data, SyntheticSettings) and isinstance(data.source, GaussianSettings)):
        return None
    return float(2 ** (-2 * tokenizer.model.bits(samples.size) / data.source.numbers))
