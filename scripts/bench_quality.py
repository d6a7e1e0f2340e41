"""Measure the quality of vqtool's codebooks beside scikit-learn, FAISS and vector-quantize-pytorch.

    pip install -e '.[bench]'
    python scripts/bench_quality.py                  all parts
    python scripts/bench_quality.py gaussian ids     selected parts

Each part prints a table with the mean over seeds [minimum, maximum] and the ratio of the means, vqtool / peer. Data are
synthetic or ship with scikit-learn, and everything is seeded. The image parts take most of an hour on two cores.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import faiss
import numpy as np
import yaml
from bench.array_runs import Array, centres_found, mixture_samples, trained
from bench.image_runs import ImageRun, finalists
from bench.vq_pytorch import settings as peer_settings
from part_options import append_json, make_parser
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from vqtool.inference.tokenizer import Tokenizer
from vqtool.metrics.usage import CodeCounter

SEEDS = range(5)


class Row(NamedTuple):
    """One row of a table: one value per seed of vqtool, and of a peer if there is one."""

    measure: str
    vqtool: Sequence[float]
    peer: str = ""
    """Name of the peer; empty: there is none."""
    peer_values: Sequence[float] = ()

    @property
    def ratio(self) -> float | None:
        """Mean of vqtool divided by the mean of the peer; None without a peer."""
        return fmean(self.vqtool) / fmean(self.peer_values) if self.peer_values else None


def gaussian() -> Iterator[Row]:
    """Mean squared error on 100,000 test samples of a normal distribution, fitted on 100,000 training samples."""
    for dim, size in ((1, 2), (2, 16), (4, 256), (8, 256)):
        ours, theirs = [], []
        for seed in SEEDS:
            training, test = (_normal(100_000, dim, 2 * seed + part) for part in range(2))
            with trained(training, test, seed, {"kind": "vector", "codebook_size": size}, steps=300) as tokenizer:
                ours.append(mse(test, decoded(tokenizer, test)))
            fitted = KMeans(size, n_init=3, random_state=seed).fit(training)
            theirs.append(mse(test, fitted.cluster_centers_[fitted.predict(test)]))
        yield Row(f"mse, D = {dim}, K = {size}", ours, "scikit-learn KMeans, n_init=3", theirs)


def mixture() -> Iterator[Row]:
    """Centres of a mixture of 256 Gaussians that have a code within half the distance to the next centre; 10 seeds."""
    ours, theirs = [], []
    for seed in range(10):
        samples, centres = mixture_samples(seed)
        with trained(samples[:-2000], samples[-2000:], seed, {"kind": "vector", "codebook_size": 256}) as tokenizer:
            ours.append(centres_found(centres, tokenizer.codebook.numpy()))
        theirs.append(
            centres_found(centres, KMeans(256, n_init=1, random_state=seed).fit(samples[:-2000]).cluster_centers_)
        )
    yield Row("centres found, of 256", ours, "scikit-learn KMeans, n_init=1", theirs)


ENTROPY_RECIPE = {
    "kind": "vector",
    "codebook_size": 256,
    "update": {"kind": "codebook_loss"},
    "temperature": 2.0,
    "temperature_unit": "quantization_error",
    "sample_entropy_weight": 0.5,
}
BARE = {
    "kind": "vector",
    "codebook_size": 256,
    "update": {"kind": "entropy_only"},
    "init": {"kind": "random"},
    "dead_code_reset": None,
}


def entropy() -> Iterator[Row]:
    """Perplexity and usage on the mixture with an entropy loss: recommended settings and `update: entropy_only`."""
    # Perplexity / K and usage for each seed.
    results: dict[str, list[tuple[float, float]]] = {"recipe": [], "bare": []}
    for seed in SEEDS:
        samples, _ = mixture_samples(seed)
        for name, quantizer in (("recipe", ENTROPY_RECIPE), ("bare", BARE)):
            with trained(samples[:-8000], samples[-8000:], seed, quantizer, steps=500, entropy=0.1) as tokenizer:
                level = tokenizer.evaluate().evaluation.levels[0]
                results[name].append((level.perplexity / 256, level.usage))
    for index, measure in enumerate(("perplexity / K", "usage")):
        ours, theirs = ([pair[index] for pair in results[name]] for name in ("recipe", "bare"))
        yield Row(measure, ours, "vqtool, update: entropy_only", theirs)


RECIPE = yaml.safe_load((Path(__file__).parent.parent / "configs" / "semantic-ids.yaml").read_text())["model"][
    "quantizer"
]


def ids() -> Iterator[Row]:
    """Semantic ids: three levels of 256 codes on 20,000 clustered unit vectors of 384 dimensions."""
    errors, theirs = [], []
    rates, their_rates, usages = [], [], []
    for seed in SEEDS:
        rows = _clustered(seed)
        training, test = rows[:18_000], rows[18_000:]
        with trained(training, test, seed, RECIPE, batch_size=2048, steps=80) as tokenizer:
            errors.append(mse(test, decoded(tokenizer, test)))
            counter = CodeCounter(tokenizer.model.quantizer.codebook_sizes, ids=True)
            counter.add(tokenizer.encode(rows).numpy())
            assert counter.distinct
            rates.append(counter.distinct.collision_rate)
            usages += [level.usage for level in counter.levels]
        other = faiss.ResidualQuantizer(rows.shape[1], 3, 8)  # default beam size: 5
        other.train(training)
        theirs.append(mse(test, other.decode(other.compute_codes(test))))
        their_rates.append(1 - len(np.unique(other.compute_codes(rows), axis=0)) / len(rows))
    peer = "FAISS ResidualQuantizer"
    yield Row("mse on 2,000 held-out rows", errors, peer, theirs)
    yield Row("collision rate over 20,000 rows", rates, peer, their_rates)
    yield Row("usage per level over 20,000 rows", usages)


def images(size: int, jobs: int = 2) -> Iterator[Row]:
    """Reconstruction error (mse) of validation images in normalised units; peer: vector-quantize-pytorch.

    24 settings of the peer are screened in short runs at one seed. The best two (at K = 8192 the best one) run in full
    at every seed, and the one with the smallest mean error is reported.
    """
    short, full = (50, 600) if size > 1024 else (300, 1500)
    with get_context("spawn").Pool(jobs) as pool:
        for data in ("digits", "patches"):
            screened = [ImageRun(data, size, peer, seed=0, steps=short) for peer in peer_settings()]
            best = finalists(screened, pool.map(ImageRun.error, screened, chunksize=1), 1 if size > 1024 else 2)
            runs = [ImageRun(data, size, peer, seed, full) for peer in [None, *best] for seed in SEEDS]
            results = pool.map(ImageRun.result, runs, chunksize=1)
            # The results of each quantizer at all seeds; vqtool first.
            groups = [results[start : start + len(SEEDS)] for start in range(0, len(results), len(SEEDS))]
            ours = [result.error for result in groups[0]]
            means = [fmean(result.error for result in group) for group in groups[1:]]
            winner = means.index(min(means))
            theirs = [result.error for result in groups[1 + winner]]
            name = f"{data}, K = {size}"
            yield Row(f"{name}: mse", ours, str(best[winner]), theirs)
            tokens = groups[0][0].tokens
            yield Row(f"{name}: usage ({tokens:,} tokens)", [result.usage for result in groups[0]])
            ratios = [result.ratio for result in groups[0] if result.ratio is not None]
            yield Row(f"{name}: quantization error over that of k-means on the same latents", ratios)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "entropy": entropy,
    "ids": ids,
    "images-512": partial(images, 512),
    "images-1024": partial(images, 1024),
    "images-8192": partial(images, 8192),
}


def decoded(tokenizer: Tokenizer, rows: Array) -> Array:
    """Return the rows (N, D) after encode and decode."""
    reconstructions: Array = tokenizer.decode(tokenizer.encode(rows)).numpy()
    return reconstructions


def mse(rows: Array, reconstructions: Array) -> float:
    """Return the mean squared error over all elements, computed in float64."""
    return float(np.square(rows.astype(np.float64) - reconstructions).mean())


def _normal(rows: int, dim: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def _clustered(seed: int) -> Array:
    """Return (20000, 384) unit vectors: items around 2,000 subtopics of 200 topics, with a decaying spectrum."""
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, 385) ** -0.75
    topics = random.standard_normal((200, 384))
    subtopics = topics[np.repeat(np.arange(200), 10)] + 0.7 * random.standard_normal((2000, 384))
    rows = subtopics[random.integers(2000, size=20_000)] + 0.5 * random.standard_normal((20_000, 384))
    rows *= spectrum
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _title(part: Callable[[], Iterator[Row]]) -> str:
    """Return the first line of the docstring of a part."""
    function = part.func if isinstance(part, partial) else part
    return (function.__doc__ or "").splitlines()[0]


def _spread(values: Sequence[float]) -> str:
    """Return mean [minimum, maximum] with four digits; empty without values."""
    return f"{fmean(values):.4g} [{min(values):.4g}, {max(values):.4g}]" if values else ""


def main() -> None:
    """Print one table per part."""
    options = make_parser(__doc__, PARTS).parse_args()
    for name in options.parts:
        columns = ("measure", "vqtool", "peer", "peer's result", "vqtool / peer")
        table = Table(*columns, title=f"{name}: {_title(PARTS[name])}", title_justify="left")
        for row in PARTS[name]():
            ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
            table.add_row(row.measure, _spread(row.vqtool), row.peer, _spread(row.peer_values), ratio)
            append_json(options.json, name, {**row._asdict(), "ratio": row.ratio})
        Console(width=180).print(table)


if __name__ == "__main__":
    main()
