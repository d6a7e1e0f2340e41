"""Measure the effect of each setting of the recommended quantizer by changing one setting at a time.

    pip install -e '.[bench]'
    python scripts/ablation.py

Digits and photo patches are trained with convolutions at K = 512, and a mixture of 256 Gaussians with known centres
without a network. Two seeds each, 300 steps; about ten minutes on two cores.
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from multiprocessing import get_context
from statistics import fmean
from typing import Any, NamedTuple

from bench.array_runs import centres_found, mixture_samples, trained
from bench.image_runs import RECOMMENDED, ImageRun
from rich.console import Console
from rich.table import Table

SEEDS = range(2)
STEPS = 300


class Choice(NamedTuple):
    """A change to the recommended quantizer, or none."""

    name: str
    """Label of the table row."""
    changes: dict[str, Any]
    """Changed keys of the quantizer block."""
    entropy: float = 0.0
    """Weight of the entropy loss."""

    def image_run(self, data: str, seed: int) -> ImageRun:
        """Return the run on `data`, `digits` or `patches`, at K = 512."""
        return ImageRun(data, 512, None, seed, STEPS, {**RECOMMENDED, **self.changes}, self.entropy)

    def centres(self, seed: int) -> int:
        """Train at K = 256 on the mixture of 256 Gaussians without a network; return how many centres get a code."""
        samples, centres = mixture_samples(seed)
        # Without a network these settings have no effect.
        changes = {
            key: value for key, value in self.changes.items() if key not in ("codebook_dim", "unquantized_fraction")
        }
        quantizer = {"kind": "vector", "codebook_size": 256, **changes}
        with trained(samples[:-2000], samples[-2000:], seed, quantizer, 50, entropy=self.entropy) as tokenizer:
            return centres_found(centres, tokenizer.codebook.numpy())


REGULARISED = {"temperature": 2.0, "temperature_unit": "quantization_error", "sample_entropy_weight": 0.5}
CHOICES = [
    Choice("recommended", {}),
    Choice("init: random", {"init": {"kind": "random"}}),
    Choice("init: random, dead_code_reset: null", {"init": {"kind": "random"}, "dead_code_reset": None}),
    Choice("dead_code_reset: null", {"dead_code_reset": None}),
    Choice("dead_code_reset: {step_size: 1}", {"dead_code_reset": {"step_size": 1.0}}),
    Choice("update: {kind: ema, decay: 0.99}", {"update": {"kind": "ema", "decay": 0.99}}),
    Choice("update: codebook_loss", {"update": {"kind": "codebook_loss"}}),
    Choice("update: simvq", {"update": {"kind": "simvq"}}),
    Choice("codebook_dim: 32 (encoder width)", {"codebook_dim": 32}),
    Choice("metric: cosine", {"metric": "cosine"}),
    Choice("gradient_estimator: rotation", {"gradient_estimator": "rotation"}),
    Choice("unquantized_fraction: 0", {"unquantized_fraction": 0.0}),
    Choice("assignment: sinkhorn", {"assignment": {"kind": "sinkhorn"}}),
    Choice("loss.entropy: 0.1, temperature_unit: quantization_error", REGULARISED, 0.1),
    Choice(
        "update: entropy_only, init: random, no reset, loss.entropy: 0.1",
        {
            "update": {"kind": "entropy_only"},
            "init": {"kind": "random"},
            "dead_code_reset": None,
            "unquantized_fraction": 0.0,
        },
        0.1,
    ),
]


def main() -> None:
    """Print one row per changed setting."""
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    columns = (
        "changed",
        "digits: mse",
        "digits: usage",
        "patches: mse",
        "patches: usage",
        "centres of 256 (worse seed)",
    )
    table = Table(*columns)
    with get_context("spawn").Pool(2) as pool:
        runs = [choice.image_run(data, seed) for choice in CHOICES for data in ("digits", "patches") for seed in SEEDS]
        results = iter(pool.map(ImageRun.result, runs, chunksize=1))
        centres = iter(pool.starmap(Choice.centres, [(choice, seed) for choice in CHOICES for seed in SEEDS], 1))
        for choice in CHOICES:
            cells = []
            for _ in ("digits", "patches"):
                seed_results = [next(results) for _ in SEEDS]
                cells.append(f"{fmean(result.error for result in seed_results):.4f}")
                cells.append(f"{fmean(result.usage for result in seed_results):.1%}")
            fewest_centres = min(next(centres) for _ in SEEDS)
            table.add_row(choice.name, *cells, str(fewest_centres))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
