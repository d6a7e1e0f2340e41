"""Samples a second of training against a bare loop over the same modules, optimizer and batch size.

    python scripts/bench_train.py configs/quickstart.yaml

The two take turns, and the medians are printed, with the median of the ratios: one timing on a shared machine says
little.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from vqtool.config import RunSettings, load_config
from vqtool.losses import reconstruction_loss
from vqtool.training import train
from vqtool.training.prepare import deterministic, prepare


def bare_loop(settings: RunSettings) -> float:
    """Samples a second of nothing but forward, backward and update, on batches already in memory."""
    prepared = prepare(settings)
    model, training, loss = prepared.model, prepared.settings.training, prepared.settings.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate)
    batches = prepared.dataset.training.read(0, 8 * training.batch_size).split(training.batch_size)
    with deterministic():
        start = time.perf_counter()
        for step in range(training.steps):
            output = model(batches[step % len(batches)])
            total = reconstruction_loss(loss.reconstruction, output.prediction, output.target)
            total = total + loss.commitment * output.quantizer.commitment_loss
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
            model.quantizer.update()
        return training.steps * training.batch_size / (time.perf_counter() - start)


def whole_loop(settings: RunSettings) -> float:
    """Samples a second of train, logs and checkpoint included, but for its one validation at the end."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        prepare(settings)
        opening = time.perf_counter() - start
        start = time.perf_counter()
        train(settings, Path(folder) / "run")
        seconds = time.perf_counter() - start - opening
    return settings.training.steps * settings.training.batch_size / seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    every = f"training.validate_every={options.steps}"
    settings = load_config(options.config, [f"training.steps={options.steps}", every, "data.validation=0.01"])
    turns = [(bare_loop(settings), whole_loop(settings)) for _ in range(options.turns)]
    print(f"bare loop  {median(bare for bare, _ in turns):10,.0f} samples/s")
    print(f"train      {median(whole for _, whole in turns):10,.0f} samples/s")
    print(f"ratio      {median(whole / bare for bare, whole in turns):10.3f}")


if __name__ == "__main__":
    main()
