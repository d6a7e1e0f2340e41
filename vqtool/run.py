"""The run directory: what is where, written and read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from vqtool.config import RunSettings, load_config, write_config
from vqtool.errors import CheckpointError
from vqtool.files import replacing, write_json
from vqtool.semantic_ids import Distinct

# Hits of each code in the best validation pass, a tensor a level, beside the weights.
_COUNTS = "validation.counts."
# Samples of that pass, and the distinct ids among them.
_DISTINCT = "validation.distinct"


class SavedModel(NamedTuple):
    """What model.safetensors holds."""

    state: dict[str, Tensor]
    """weights and buffers."""
    counts: list[Tensor]
    """(K,) of each level, hits in the best validation pass."""
    distinct: Distinct | None
    """ids in that pass, where samples are vectors."""
    sha256: str
    """of the file."""


class Run:
    """A run directory, which need not exist yet.

    Attributes:
        config: the resolved settings.
        model: the best model and its validation counts.
        checkpoints: a folder, what resuming needs.
        metrics: one JSON object a logged step.
        summary: how it ended.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.model = self.folder / "model.safetensors"
        self.checkpoints = self.folder / "checkpoints"
        self.metrics = self.folder / "metrics.jsonl"
        self.summary = self.folder / "summary.json"

    @property
    def exists(self) -> bool:
        """Whether the folder already holds a run."""
        return self.config.exists() and any(file.exists() for file in self._files())

    def create(self, settings: RunSettings) -> None:
        """Make the folder and write the settings.

        Raises:
            CheckpointError: the folder cannot be made.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_config(self.config, settings)
        except OSError as error:
            raise CheckpointError(f"{self.folder}: cannot be made: {error.strerror}") from error

    def check_free(self) -> None:
        """Refuse a folder in which a new run would write over somebody's files.

        Raises:
            CheckpointError: names one of them.
        """
        for file in [self.config, *self._files()]:
            if file.exists() and not (file.is_dir() and not any(file.iterdir())):
                raise CheckpointError(f"{self.folder}: holds {file.name}, but no run; train into another --run-dir")

    def clear(self) -> None:
        """Remove the run, and nothing else that may lie in its folder."""
        for file in [*self.checkpoints.glob("step-*.pt"), *self._files()]:
            if file != self.checkpoints:
                file.unlink(missing_ok=True)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()
        self.config.unlink(missing_ok=True)  # last: without it, what is left would be a stranger's

    def _files(self) -> list[Path]:
        return [self.model, self.checkpoints, self.metrics, self.summary, *self.folder.glob("events.out.tfevents.*")]

    def settings(self) -> RunSettings:
        """The resolved settings.

        Raises:
            CheckpointError: there is no run here.
        """
        if not self.config.exists():
            raise CheckpointError(f"{self.folder}: not a run: it has no {self.config.name}")
        return load_config(self.config)

    def save_model(self, state: dict[str, Tensor], counts: Sequence[Tensor], distinct: Distinct | None = None) -> None:
        """Write weights, and the hits of each level's codes and the distinct ids in the pass that chose them."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        tensors |= {f"{_COUNTS}{level}": hits.contiguous() for level, hits in enumerate(counts)}
        if distinct:
            tensors[_DISTINCT] = torch.tensor([distinct.rows, distinct.ids])
        with replacing(self.model) as part:
            save_file(tensors, part)

    def load_model(self) -> SavedModel:
        """What `save_model` wrote.

        Raises:
            CheckpointError: there is no model yet, or the file is damaged.
        """
        if not self.model.exists():
            raise CheckpointError(
                f"{self.folder}: has no {self.model.name} yet; the first validation (training.validate_every) writes it"
            )
        try:
            content = self.model.read_bytes()
            tensors = load(content)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.model}: damaged: {error}") from error
        levels = sorted(
            (name for name in tensors if name.startswith(_COUNTS)), key=lambda name: int(name[len(_COUNTS) :])
        )
        counts = [tensors.pop(name) for name in levels]
        distinct = Distinct(*tensors.pop(_DISTINCT).tolist()) if _DISTINCT in tensors else None
        return SavedModel(tensors, counts, distinct, hashlib.sha256(content).hexdigest())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write how the run ended."""
        write_json(self.summary, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """How the run ended; None where it has not."""
        if not self.summary.exists():
            return None
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
            if {"steps", "best_step", "best", "final", "seconds"} <= summary.keys():
                return summary
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.summary}: damaged: {error}; remove it to go on") from error
        raise CheckpointError(f"{self.summary}: damaged: it lacks what a summary has; remove it to go on")
