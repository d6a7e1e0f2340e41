"""How good vqtool's codebooks are, beside the field's: scikit-learn, FAISS, vector-quantize-pytorch.

    pip install -e '.[bench]'
    python scripts/bench_quality.py                  all parts
    python scripts/bench_quality.py gaussian ids     some of them

Each part prints a table: the mean over seeds, and in brackets the spread from the least to the greatest. Data are made
up or ship with scikit-learn; everything is seeded. The images take most of an hour on two cores.
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
from array_runs import Array, centres_found, mixture_samples, trained
from image_runs import ImageRun, Result, finalists
from parts import keep, parser_of
from peers import settings as peer_settings
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from vqtool.tally import Tally
from vqtool.tokenizer import Tokenizer

SEEDS = range(5)


class Row(NamedTuple):
    """One line of a table."""

    what: str
    ours: Sequence[float]
    theirs: Sequence[float]
    wanted: str
    reached: bool


def gaussian() -> Iterator[Row]:
    """Mean squared error on 100,000 test samples against scikit-learn's KMeans on the same 100,000 training samples."""
    for dim, size in ((1, 2), (2, 16), (4, 256), (8, 256)):
        ours, theirs = [], []
        for seed in SEEDS:
            training, test = (_normal(100_000, dim, 2 * seed + part) for part in range(2))
            with trained(training, test, seed, {"kind": "vector", "codebook_size": size}, steps=300) as tokenizer:
                ours.append(mse(test, decoded(tokenizer, test)))
            found = KMeans(size, n_init=3, random_state=seed).fit(training)
            theirs.append(mse(test, found.cluster_centers_[found.predict(test)]))
        reached = fmean(ours) <= 1.01 * fmean(theirs)
        yield Row(f"D = {dim}, K = {size}", ours, theirs, "mse at most 1.01 of KMeans (n_init 3)", reached)


def mixture() -> Iterator[Row]:
    """Centres found, of a mixture of 256 Gaussians: those with a code nearer than half the way to the next centre."""
    found, theirs = [], []
    for seed in range(10):
        samples, centres = mixture_samples(seed)
        with trained(samples[:-2000], samples[-2000:], seed, {"kind": "vector", "codebook_size": 256}) as tokenizer:
            found.append(centres_found(centres, tokenizer.codebook.numpy()))
        theirs.append(
            centres_found(centres, KMeans(256, n_init=1, random_state=seed).fit(samples[:-2000]).cluster_centers_)
        )
    yield Row("256 centres, 10 seeds; KMeans (n_init 1)", found, theirs, "all at every seed", min(found) == 256)


ENTROPY_RECIPE = {
    "kind": "vector",
    "codebook_size": 256,
    "learning": {"kind": "codebook_loss"},
    "temperature": 2.0,
    "temperature_unit": "error",
    "confidence": 0.5,
}
BARE = {
    "kind": "vector",
    "codebook_size": 256,
    "learning": {"kind": "entropy"},
    "start": {"kind": "random"},
    "revival": None,
}


def entropy() -> Iterator[Row]:
    """Perplexity over K, and hard usage, of the recommended entropy recipe and of the bare form, on the mixture."""
    figures: dict[str, list[tuple[float, float]]] = {"recipe": [], "bare": []}
    for seed in SEEDS:
        samples, _ = mixture_samples(seed)
        for name, quantizer in (("recipe", ENTROPY_RECIPE), ("bare", BARE)):
            with trained(samples[:-8000], samples[-8000:], seed, quantizer, steps=500, entropy=0.1) as tokenizer:
                level = tokenizer.evaluate().evaluation.levels[0]
                figures[name].append((level.perplexity / 256, level.usage))
    for index, what in enumerate(("perplexity / K; bare form", "usage; bare form")):
        ours, theirs = ([pair[index] for pair in figures[name]] for name in ("recipe", "bare"))
        least = (0.9, 1.0)[index]
        yield Row(what, ours, theirs, f"at least {least:g}", min(ours) >= least)


RECIPE = yaml.safe_load((Path(__file__).parent.parent / "configs" / "semantic-ids.yaml").read_text())["model"][
    "quantizer"
]


def ids() -> Iterator[Row]:
    """Three levels of 256 on 20,000 clustered unit vectors of 384 dimensions, against FAISS's residual quantizer."""
    errors, theirs = [], []
    rates, their_rates, usages = [], [], []
    for seed in SEEDS:
        rows = _clustered(seed)
        training, test = rows[:18_000], rows[18_000:]
        with trained(training, test, seed, RECIPE, batch_size=2048, steps=80) as tokenizer:
            errors.append(mse(test, decoded(tokenizer, test)))
            tally = Tally(tokenizer.model.quantizer.codebook_sizes, ids=True)
            tally.add(tokenizer.encode(rows).numpy())
            assert tally.distinct
            rates.append(tally.distinct.collision_rate)
            usages += [level.usage for level in tally.levels]
        other = faiss.ResidualQuantizer(rows.shape[1], 3, 8)  # its beam is 5 unless told
        other.train(training)
        theirs.append(mse(test, other.decode(other.compute_codes(test))))
        their_rates.append(1 - len(np.unique(other.compute_codes(rows), axis=0)) / len(rows))
    yield Row("mse on 2,000 held-out rows; FAISS", errors, theirs, "at most FAISS's", fmean(errors) <= fmean(theirs))
    reached = fmean(rates) <= fmean(their_rates)
    yield Row("collision rate over 20,000 rows; FAISS", rates, their_rates, "at most FAISS's", reached)
    yield Row("usage of each level over 20,000 rows", usages, [], "1", min(usages) == 1)


def images(size: int, jobs: int = 2) -> Iterator[Row]:
    """Reconstruction error of validation images, in normalised units, against the best of vector-quantize-pytorch.

    Its 24 settings are screened in short runs at one seed; the best two of those (at K = 8192 the best) run in full at
    every seed, and the one with the least mean error counts.
    """
    short, full = (50, 600) if size > 1024 else (300, 1500)
    with get_context("spawn").Pool(jobs) as pool:
        for data in ("digits", "patches"):
            tried = [ImageRun(data, size, peer, seed=0, steps=short) for peer in peer_settings()]
            best = finalists(tried, pool.map(ImageRun.error, tried, chunksize=1), 1 if size > 1024 else 2)
            runs = [ImageRun(data, size, peer, seed, full) for peer in [None, *best] for seed in SEEDS]
            found = pool.map(ImageRun.result, runs, chunksize=1)
            groups = [found[start : start + len(SEEDS)] for start in range(0, len(found), len(SEEDS))]
            ours = [result.error for result in groups[0]]
            means = [fmean(result.error for result in group) for group in groups[1:]]
            winner = means.index(min(means))
            theirs = [result.error for result in groups[1 + winner]]
            what = f"{data}, K = {size}; best peer: {best[winner]}"
            yield Row(what, ours, theirs, "mse at most 0.9 of the peer's", fmean(ours) <= 0.9 * fmean(theirs))
            yield _usage(f"{data}, K = {size}: usage", groups[0], size)
            ratios = [result.ratio for result in groups[0] if result.ratio is not None]
            yield Row(f"{data}, K = {size}: error of latents, over k-means on them", ratios, [], "nothing", True)


def _usage(what: str, results: Sequence[Result], size: int) -> Row:
    tokens, usage = results[0].tokens, [result.usage for result in results]
    enough = tokens >= 20 * size
    wanted = f"1 ({tokens:,} tokens)" if enough else f"nothing: {tokens:,} tokens are fewer than 20 K"
    return Row(what, usage, [], wanted, min(usage) == 1 or not enough)


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
    """Rows through encode and decode."""
    restored: Array = tokenizer.decode(tokenizer.encode(rows)).numpy()
    return restored


def mse(rows: Array, restored: Array) -> float:
    """Mean squared error, in float64."""
    return float(np.square(rows.astype(np.float64) - restored).mean())


def _normal(rows: int, dim: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)


def _clustered(seed: int) -> Array:
    """(20000, 384) unit vectors: items about 2,000 subtopics of 200 topics, on a falling spectrum."""
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, 385) ** -0.75
    topics = random.standard_normal((200, 384))
    subtopics = topics[np.repeat(np.arange(200), 10)] + 0.7 * random.standard_normal((2000, 384))
    rows = subtopics[random.integers(2000, size=20_000)] + 0.5 * random.standard_normal((20_000, 384))
    rows *= spectrum
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _title(part: Callable[[], Iterator[Row]]) -> str:
    documented = part.func if isinstance(part, partial) else part
    return (documented.__doc__ or "").splitlines()[0]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.4g} [{min(values):.4g}, {max(values):.4g}]" if values else ""


def main() -> None:
    """Print the tables."""
    options = parser_of(__doc__, PARTS).parse_args()
    for name in options.parts:
        table = Table(
            "what", "vqtool", "other", "wanted", "reached", title=f"{name}: {_title(PARTS[name])}", title_justify="left"
        )
        for row in PARTS[name]():
            table.add_row(row.what, _spread(row.ours), _spread(row.theirs), row.wanted, "yes" if row.reached else "no")
            keep(options.json, name, row._asdict())
        Console(width=180).print(table)


if __name__ == "__main__":
    main()
