from pathlib import Path

import numpy as np
import pytest
from google.protobuf.text_format import Parse
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.conftest import TrainedRun
from tests.training import tiny
from vqtool import load
from vqtool.config import RunSettings
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import projector, train


def config(folder: Path) -> ProjectorConfig:
    return Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_the_projector_shows_the_best_models_codes_and_their_hits(trained: TrainedRun) -> None:
    (embedding,) = config(trained.folder).embeddings
    points = np.loadtxt(trained.folder / embedding.tensor_path, delimiter="\t")
    assert np.allclose(points, load(trained.folder).codebook.numpy(), rtol=1e-5)
    lines = (trained.folder / embedding.metadata_path).read_text().splitlines()
    (hits,) = read_model(RunDirectory(trained.folder).model)[0].counts
    assert lines == ["code\thits", *(f"{code}\t{count}" for code, count in enumerate(hits.tolist()))]


def test_each_level_has_its_own(catalogue: TrainedRun) -> None:
    names = [embedding.tensor_name for embedding in config(catalogue.folder).embeddings]
    assert names == ["codebook, level 0", "codebook, level 1"]


def test_of_very_many_codes_the_most_used_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "_MOST", 3)
    train(tiny(tmp_path), tmp_path / "run")
    (hits,) = read_model(RunDirectory(tmp_path / "run").model)[0].counts
    lines = (tmp_path / "run" / "projector" / "level_0_hits.tsv").read_text().splitlines()[1:]
    shown = [int(line.split("\t")[0]) for line in lines]
    assert shown == sorted(shown)
    assert sorted(hits[shown].tolist()) == sorted(hits.tolist())[-3:]


def test_codes_that_are_given_are_not_shown(tmp_path: Path) -> None:
    settings = tiny(tmp_path)
    model = {**settings.model.model_dump(), "quantizer": {"kind": "fsq", "levels": [3, 3]}}
    train(RunSettings.model_validate({**settings.model_dump(), "model": model}), tmp_path / "run")
    assert not (tmp_path / "run" / "projector").exists()
    assert not (tmp_path / "run" / "projector_config.pbtxt").exists()
