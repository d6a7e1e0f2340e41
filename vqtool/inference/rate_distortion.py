"""Compare the quantization error of a run with k-means on its own latents, and with Shannon's rate-distortion bound.

Shapes: S training latents, N evaluated latents, D code dimension, K codes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from vqtool.data import Samples, SyntheticSettings, open_dataset
from vqtool.data.synthetic import GaussianSettings
from vqtool.inference.tokenizer import Tokenizer
from vqtool.models.chunks import chunk_rows, chunks
from vqtool.quantizers import ProductQuantizer, ProjectedQuantizer, Quantizer, ResidualQuantizer, kmeans, nearest_codes
from vqtool.runtime.progress import pass_bar

# Runs of k-means; the one with the smallest error on the training latents is used.
N_INIT = 3
# Maximum number of training latents for k-means.
_SAMPLE = 1 << 18


@dataclass(frozen=True)
class RateDistortion:
    """Quantization error per dimension (mean squared), in the space in which codes are compared.

    Attributes:
        error: quantization error of the run's codes on the evaluated latents.
        reference: quantization error of k-means with the same number of codes, fitted to the run's training latents,
            level by level and group by group; None if there are fewer training latents than codes.
        ratio: error / reference; 1: as good as k-means, below 1: better. None if the reference is None or 0. Codes that
            are restricted to a sphere or a grid (cosine, FSQ, LFQ, BSQ) have a larger ratio for that reason.
        n_init: runs of k-means; the one with the smallest error on the training latents is used.
        fitted_on: S, the number of training latents.
        shannon_bound: for the synthetic Gaussian source, the smallest mean squared error that any code with this number
            of bits per sample can reach, in the units of the data (Shannon 1959; Cover & Thomas 2006, theorem 10.3.2);
            None for other data.
    """

    error: float
    reference: float | None
    ratio: float | None
    n_init: int
    fitted_on: int
    shannon_bound: float | None


def rate_distortion(tokenizer: Tokenizer, data: str | None = None, key: str | None = None) -> RateDistortion:
    """Compare the quantization error of a run with k-means on its own latents.

    Args:
        data: path as in `data.path`, to evaluate on; None: the validation split of the run.
        key: name of the array in a file with several.

    Raises:
        DataError: the data do not match the training data.
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
    """Preprocessed latents (N, D) of samples; of evenly spaced samples if limited to `most` latents."""
    model = tokenizer.model
    rows = chunk_rows(model, samples.size)
    wanted = len(samples) if most is None else min(len(samples), max(1, most // math.prod(model.grid(samples.size))))
    numbers = np.arange(wanted) * len(samples) // wanted
    found: list[Tensor] = []
    with pass_bar("latents", wanted) as bar:
        for start in range(0, wanted, rows):
            ((x, n),) = chunks(samples.take(numbers[start : start + rows]), rows)
            preprocessed = model.quantizer.preprocess(model.latents(x.to(tokenizer.device)))[:n]
            found.append(preprocessed.reshape(-1, preprocessed.shape[-1]))
            bar.update(n)
    return torch.cat(found)


def _reference(quantizer: Quantizer, training: Tensor, latents: Tensor) -> Tensor | None:
    """Residual (N, D) of the latents after k-means replaces each codebook; None if training has too few latents."""
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
    """2^(-2 R / n) for R bits per sample of n independent standard normal numbers."""
    data = tokenizer.settings.data
    if not (isinstance(data, SyntheticSettings) and isinstance(data.source, GaussianSettings)):
        return None
    return float(2 ** (-2 * tokenizer.model.bits(samples.size) / data.source.numbers))
