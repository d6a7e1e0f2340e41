"""Fixtures: a temporary cache, the command line, limits of memory and threads, and two short runs."""

import math
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests import IDENTITY, make_run, normal
from vqtool.cli.app import app
from vqtool.config import load_config
from vqtool.runtime.progress import LINE_WRITER
from vqtool.training import train

# One thread is the fastest on models as small as these.
torch.set_num_threads(1)

TINY = """
data: {{kind: tensors, path: {path}}}
model:
  encoder: {{kind: conv2d, width: 8, downsamples: 1, res_blocks: 1}}
  quantizer: {{kind: vector, codebook_size: 16, codebook_dim: 4}}
training:
  {{steps: 12, batch_size: 16, warmup_steps: 2, log_every: 4, validate_every: 6, checkpoint_every: 6, device: cpu}}
"""


@dataclass
class Result:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str


@dataclass
class TrainedRun:
    """A finished run: its directory, config, data file and the array in that file."""

    folder: Path
    config: Path
    data: Path
    array: np.ndarray


@pytest.fixture(autouse=True)
def _temporary_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _no_progress_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable progress lines: on a slow machine they would mix with the output that tests compare."""
    monkeypatch.setattr(LINE_WRITER, "interval", math.inf)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit memory during the test to half a gigabyte more than the process has."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Set PyTorch's number of threads to two during the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def matmul_precision() -> Iterator[Callable[[str], None]]:
    """Function that sets the float32 matmul precision; it is restored after the test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def vqtool() -> Callable[..., Result]:
    """Function that runs a command in this process: vqtool("inspect", folder, "--json")."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="vqtool")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of 12 steps on 60 images of 8 x 8 pixels. Tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    array = np.random.default_rng(0).random((60, 1, 8, 8), dtype=np.float32)
    np.save(folder / "images.npy", array)
    config = folder / "tiny.yaml"
    config.write_text(TINY.format(path=folder / "images.npy"))
    train(load_config(config), folder / "run")
    return TrainedRun(folder / "run", config, folder / "images.npy", array)


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A run of two steps: two levels of four codes, on 60 vectors with repetitions. Tests must not change it."""
    folder = tmp_path_factory.mktemp("catalogue")
    array = normal(40, 6)[np.random.default_rng(1).integers(0, 40, 60)]
    quantizer = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}
    run = make_run(folder, array, IDENTITY, quantizer=quantizer)
    return TrainedRun(run, run / "config.yaml", folder / "data.npy", array)
