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
_MAX_TRAINING_LATENTS = 1 << 18


@dataclass(frozen=True)
class RateDistortion:
    """Quantization errors: the mean of (z - e[indices])² over all N · D elements, for preprocessed latents z (N, D).

    Attributes:
        error: quantization error of the run's codes on the evaluated latents.
        reference: quantization error, on the same latents, of k-means codes of the same number, fitted to the run's
            training latents, level by level and group by group; None if a codebook has more codes than S.
        ratio: error / reference; 1: as good as k-means, below 1: better. None if the reference is None or 0. Codes that
            are restricted to a sphere or a grid (cosine, FSQ, LFQ, BSQ) have a larger ratio for that reason.
        n_init: runs of k-means; the one with the smallest error on the training latents is used.
        fitted_on: S, the number of training latents.
        shannon_bound: for a run on the synthetic Gaussian source, evaluated on its validation split: the smallest mean
            squared error per value that any code with this number of bits per sample can reach, in squared units of the
            data (Shannon 1959; Cover & Thomas 2006, theorem 10.3.2). None for other data.
    """

    error: float
    reference: float | None
    ratio: float | None
    n_init: int
    fitted_on: int
    shannon_bound: float | None


def rate_distortion(
    tokenizer: Tokenizer,
    data: str | None = None,
    key: str | None = None,
    max_training_latents: int = _MAX_TRAINING_LATENTS,
) -> RateDistortion:
    """Compare the quantization error of a run with k-means on its own latents.

    Args:
        data: path as in `data.path`, to evaluate on; None: the validation split of the run.
        key: name of the array, for files with several arrays; ignored without `data`.
        max_training_latents: upper limit of S; the latents of evenly spaced training samples, at least one, are used.

    Raises:
        DataError: the data do not match the training data, contain NaN or infinity, or a class is out of range.
    """
    dataset = open_dataset(tokenizer.settings.data, tokenizer.settings.seed)
    evaluated = dataset.validation if data is None else tokenizer.open_scanned(data, key)
    training = _preprocessed_latents(tokenizer, dataset.training, max_training_latents)
    latents = _preprocessed_latents(tokenizer, evaluated, None)
    quantizer = tokenizer.model.quantizer
    inner = quantizer.inner if isinstance(quantizer, ProjectedQuantizer) else quantizer
    error = float((latents - inner.decode(inner.nearest(latents))).double().square().mean())
    residual = _kmeans_residual(inner, training, latents)
    reference = None if residual is None else float(residual.double().square().mean())
    return RateDistortion(
        error=error,
        reference=reference,
        ratio=error / reference if reference else None,
        n_init=N_INIT,
        fitted_on=len(training),
        shannon_bound=_shannon_bound(tokenizer, evaluated) if data is None else None,
    )


@torch.inference_mode()
def _preprocessed_latents(tokenizer: Tokenizer, samples: Samples, max_latents: int | None) -> Tensor:
    """Return the preprocessed latents (N, D) of all samples, in order, on the model's device.

    With `max_latents`, return those of evenly spaced samples, at most `max_latents` latents but at least one sample.
    """
    model = tokenizer.model
    rows = chunk_rows(model, samples.size)
    count = len(samples)
    if max_latents is not None:
        count = min(count, max(1, max_latents // math.prod(model.grid(samples.size))))
    sample_indices = np.arange(count) * len(samples) // count
    latents: list[Tensor] = []
    with pass_bar("latents", count) as bar:
        for start in range(0, count, rows):
            ((x, n),) = chunks(samples.take(sample_indices[start : start + rows]), rows)
            chunk = model.quantizer.preprocess(model.latents(x.to(tokenizer.device)))[:n]
            latents.append(chunk.reshape(-1, chunk.shape[-1]))
            bar.update(n)
    return torch.cat(latents)


def _kmeans_residual(quantizer: Quantizer, training: Tensor, latents: Tensor) -> Tensor | None:
    """Return latents - e[indices] (N, D) for codes e from k-means on the training latents (S, D).

    `quantizer` defines levels, groups and numbers of codes; its own codes are not used. The levels of a residual
    quantizer are fitted one after the other to the residuals of the previous levels, the groups of a product quantizer
    to their own dimensions. Return None if a codebook has more codes than there are training latents.
    """
    if isinstance(quantizer, ProductQuantizer):
        groups = quantizer.group_quantizers
        widths = [group.dim for group in groups]
        split = zip(groups, training.split(widths, dim=1), latents.split(widths, dim=1), strict=True)
        residuals = [_kmeans_residual(*group) for group in split]
        fitted = [residual for residual in residuals if residual is not None]
        return torch.cat(fitted, dim=1) if len(fitted) == len(residuals) else None
    if max(quantizer.codebook_sizes) > len(training):
        return None
    for size in quantizer.codebook_sizes if isinstance(quantizer, ResidualQuantizer) else quantizer.codebook_sizes[:1]:
        fits = [kmeans(training, size, Generator().manual_seed(seed)) for seed in range(N_INIT)]
        errors = [float((training - codes[nearest_codes(training, codes)]).square().sum()) for codes in fits]
        codes = fits[errors.index(min(errors))]
        training = training - codes[nearest_codes(training, codes)]
        latents = latents - codes[nearest_codes(latents, codes)]
    return latents


def _shannon_bound(tokenizer: Tokenizer, samples: Samples) -> float | None:
    """Return 2^(-2 R / n) for R bits per sample of n independent standard normal values; None for other sources.

    `samples` are the evaluated samples of the run's own data.
    """
    data = tokenizer.settings.data
    if not (isinstance(data, SyntheticSettings) and isinstance(data.source, GaussianSettings)):
        return None
    return float(2 ** (-2 * tokenizer.model.bits_per_sample(samples.size) / data.source.values_per_sample))
