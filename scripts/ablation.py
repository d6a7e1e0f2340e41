"""What each choice of the recommended quantizer is worth: one at a time is changed, all else stays.

    pip install -e '.[bench]'
    python scripts/ablation.py

Digits and photo patches go through convolutions at K = 512, and a mixture of 256 Gaussians with known centres through
no network. Two seeds each, 300 steps; ten minutes on two cores.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from multiprocessing import get_context
from statistics import fmean
from typing import Any, NamedTuple

from array_runs import centres_found, mixture_samples, trained
from image_runs import RECOMMENDED, ImageRun
from rich.console import Console
from rich.table import Table

SEEDS = range(2)
STEPS = 300


class Choice(NamedTuple):
    """A change to the recommended settings."""

    name: str
    changes: dict[str, Any]
    entropy: float = 0.0

    def image_run(self, data: str, seed: int) -> ImageRun:
        """The run on images."""
        return ImageRun(data, 512, None, seed, STEPS, {**RECOMMENDED, **self.changes}, self.entropy)

    def centres(self, seed: int) -> int:
        """Centres of the mixture that get a code."""
        samples, centres = mixture_samples(seed)
        # Without a network there is nothing to project, and nothing that learns from what passes.
        changes = {key: value for key, value in self.changes.items() if key not in ("codebook_dim", "bypass")}
        quantizer = {"kind": "vector", "codebook_size": 256, **changes}
        with trained(samples[:-2000], samples[-2000:], seed, quantizer, 50, entropy=self.entropy) as tokenizer:
            return centres_found(centres, tokenizer.codebook.numpy())


REGULARISED = {"temperature": 2.0, "temperature_unit": "error", "confidence": 0.5}
CHOICES = [
    Choice("recommended", {}),
    Choice("start: random", {"start": {"kind": "random"}}),
    Choice("start: random, revival: null", {"start": {"kind": "random"}, "revival": None}),
    Choice("revival: null", {"revival": None}),
    Choice("revival on the vectors (reach: 1)", {"revival": {"reach": 1.0}}),
    Choice("learning: ema, decay 0.99", {"learning": {"kind": "ema", "decay": 0.99}}),
    Choice("learning: codebook_loss", {"learning": {"kind": "codebook_loss"}}),
    Choice("learning: linear (SimVQ)", {"learning": {"kind": "linear"}}),
    Choice("codebook_dim: 32, the encoder's", {"codebook_dim": 32}),
    Choice("metric: cosine", {"metric": "cosine"}),
    Choice("gradient: rotation", {"gradient": "rotation"}),
    Choice("bypass: 0", {"bypass": 0.0}),
    Choice("balance: sinkhorn", {"balance": {"kind": "sinkhorn"}}),
    Choice("loss.entropy: 0.1, relative temperature", REGULARISED, 0.1),
    Choice(
        "the bare form: entropy alone (0.1)",
        {"learning": {"kind": "entropy"}, "start": {"kind": "random"}, "revival": None, "bypass": 0.0},
        0.1,
    ),
]


def main() -> None:
    """Print the table."""
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    table = Table("changed", "digits: mse", "usage", "patches: mse", "usage", "centres of 256")
    with get_context("spawn").Pool(2) as pool:
        runs = [choice.image_run(data, seed) for choice in CHOICES for data in ("digits", "patches") for seed in SEEDS]
        results = iter(pool.map(ImageRun.result, runs, chunksize=1))
        centres = iter(pool.starmap(Choice.centres, [(choice, seed) for choice in CHOICES for seed in SEEDS], 1))
        for choice in CHOICES:
            cells = []
            for _ in ("digits", "patches"):
                found = [next(results) for _ in SEEDS]
                cells += [f"{fmean(run.error for run in found):.4f}", f"{fmean(run.usage for run in found):.1%}"]
            least = min(next(centres) for _ in SEEDS)
            table.add_row(choice.name, *cells, str(least))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
