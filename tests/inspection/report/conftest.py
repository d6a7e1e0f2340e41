"""Small runs of each kind of data, their report inputs and their report pages."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests import CONV1D, CONV2D, IDENTITY, MLP, TRANSFORMER, make_run, normal
from vqtool.inspection import write_report
from vqtool.inspection.report import page
from vqtool.inspection.report.code_examples import code_examples_figures
from vqtool.inspection.report.inputs import ModelSamples, ReportInputs, collect_inputs

RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories by kind of data. They are shared: tests must not change them."""

    def run(name: str, array: np.ndarray, encoder: dict, **options: object) -> Path:  # type: ignore[type-arg]
        return make_run(tmp_path_factory.mktemp(name), array, encoder, **options)  # type: ignore[arg-type]

    grids = np.random.default_rng(0).integers(0, 5, (40, 8, 8))
    return {
        "images": run("images", normal(40, 3, 8, 8), CONV2D, layout="CHW"),
        "tiles": run("tiles", grids, {**TRANSFORMER, "patch_size": 2}),
        "sequences": run("sequences", normal(40, 2, 32), CONV1D, layout="CT"),
        "vectors": run("vectors", normal(40, 6), {**MLP, "num_tokens": 4}),
        "ids": run("ids", normal(40, 6), IDENTITY, quantizer=RESIDUAL),
        "levels of images": run("image-levels", normal(40, 3, 8, 8), CONV2D, layout="CHW", quantizer=RESIDUAL),
        "levels of sequences": run(
            "sequence-levels", normal(40, 2, 32), CONV1D, layout="CT", quantizer={**RESIDUAL, "levels": 5}
        ),
    }


@pytest.fixture(scope="session")
def report_inputs(runs: dict[str, Path]) -> dict[str, ReportInputs]:
    return {name: collect_inputs(run) for name, run in runs.items()}


@pytest.fixture(scope="session")
def model_samples(report_inputs: dict[str, ReportInputs]) -> dict[str, ModelSamples]:
    return {name: inputs.model_samples for name, inputs in report_inputs.items() if inputs.model_samples}


@pytest.fixture(scope="session")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report page of each run and a comparison page, with file names that need escaping in URLs and HTML."""
    folder = tmp_path_factory.mktemp("pages")
    targets = {name: [run] for name, run in runs.items()} | {"several": [runs["vectors"], runs["ids"]]}
    paths = {name: folder / f"{name} <b> #%.html" for name in targets}
    with pytest.MonkeyPatch.context() as patch:
        draw_few_examples(patch)
        for name, path in paths.items():
            write_report(path, targets[name])
    return paths


def draw_few_examples(patch: pytest.MonkeyPatch) -> None:
    """Limit reports to examples of three codes, because drawing is slow."""
    patch.setattr(page, "code_examples_figures", partial(code_examples_figures, most_used=2, least_used=1))
