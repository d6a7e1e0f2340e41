"""Small runs of each kind of data, and what is known of them."""

from pathlib import Path

import numpy as np
import pytest

from tests import CONV1D, CONV2D, IDENTITY, MLP, TRANSFORMER, make_run, normal
from vqtool.inspection import write_report
from vqtool.inspection.report import meanings
from vqtool.inspection.report.inputs import ReportInputs, Seen, gather

RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vector", "codebook_size": 4}}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories by kind; read them, do not change them."""

    def run(name: str, array: np.ndarray, encoder: dict, **others: object) -> Path:  # type: ignore[type-arg]
        return make_run(tmp_path_factory.mktemp(name), array, encoder, **others)  # type: ignore[arg-type]

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
def materials(runs: dict[str, Path]) -> dict[str, ReportInputs]:
    """What is known of each run."""
    return {name: gather(run) for name, run in runs.items()}


@pytest.fixture(scope="session")
def seen(materials: dict[str, ReportInputs]) -> dict[str, Seen]:
    """What the model and its data show of each run."""
    found = {name: material.seen for name, material in materials.items()}
    return {name: own for name, own in found.items() if own}


@pytest.fixture(scope="session")
def pages(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each run, and one of several, under names that a browser could trip over."""
    folder = tmp_path_factory.mktemp("pages")
    targets = {name: [run] for name, run in runs.items()} | {"several": [runs["vectors"], runs["ids"]]}
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        for name, own in targets.items():
            write_report(folder / f"{name} <b> #%.html", own)
    return {name: folder / f"{name} <b> #%.html" for name in targets}


def draw_few(patch: pytest.MonkeyPatch) -> None:
    """Show three codes a page: drawing is what takes time."""
    patch.setattr(meanings, "_MOST", 2)
    patch.setattr(meanings, "_LEAST", 1)
