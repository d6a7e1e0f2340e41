from pathlib import Path

import numpy as np
from google.protobuf.text_format import Parse
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.conftest import TrainedRun
from tests.training import tiny_settings
from vqtool import load
from vqtool.config import RunSettings
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train
from vqtool.training.tensorboard import write_projector


def config(folder: Path) -> ProjectorConfig:
    return Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_projector_has_codes_and_hits_of_the_best_model(trained: TrainedRun) -> None:
    (embedding,) = config(trained.folder).embeddings
    points = np.loadtxt(trained.folder / embedding.tensor_path, delimiter="\t")
    assert np.allclose(points, load(trained.folder).codebook.numpy(), rtol=1e-5)
    lines = (trained.folder / embedding.metadata_path).read_text().splitlines()
    (hits,) = read_model(RunDirectory(trained.folder).model)[0].counts
    assert lines == ["code\thits", *(f"{code}\t{count}" for code, count in enumerate(hits.tolist()))]


def test_projector_has_one_embedding_per_level(catalogue: TrainedRun) -> None:
    names = [embedding.tensor_name for embedding in config(catalogue.folder).embeddings]
    assert names == ["codebook, level 0", "codebook, level 1"]


def test_projector_has_the_codes_with_the_most_hits_if_there_are_too_many(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path), tmp_path / "run")
    write_projector(RunDirectory(tmp_path / "run"), load(tmp_path / "run").model, max_codes=3)
    (hits,) = read_model(RunDirectory(tmp_path / "run").model)[0].counts
    lines = (tmp_path / "run" / "projector" / "level_0_hits.tsv").read_text().splitlines()[1:]
    codes = [int(line.split("\t")[0]) for line in lines]
    assert codes == sorted(codes)
    assert sorted(hits[codes].tolist()) == sorted(hits.tolist())[-3:]


def test_fixed_codes_have_no_projector(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    model = {**settings.model.model_dump(), "quantizer": {"kind": "fsq", "levels": [3, 3]}}
    train(RunSettings.model_validate({**settings.model_dump(), "model": model}), tmp_path / "run")
    assert not (tmp_path / "run" / "projector").exists()
    assert not (tmp_path / "run" / "projector_config.pbtxt").exists()
