"""What a run logs of a validation pass: each level under its own tags, and the collisions of ids."""

from pathlib import Path
from statistics import fmean

import pytest

from tests.conftest import TrainedRun
from tests.training import logged, tiny
from vqtool import load
from vqtool.config import RunSettings
from vqtool.data import open_dataset
from vqtool.runs.model_file import read_model
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train

NAMES = {"usage", "perplexity", "entropy", "soft_entropy", "sample_entropy", "dead", "expected_used"}
PLACES = {"error", "spread", "outside", "duplicates", "halving", "never_hit"}
# Where training lost a code: no such code, no such step.
OPTIONAL = {"codebook/last_hit", "codebook/level_0/last_hit", "codebook/level_1/last_hit"}


def test_each_level_has_tags_of_its_own(catalogue: TrainedRun) -> None:
    last = logged(catalogue.folder)[-1]
    tags = {f"codebook/{prefix}{name}" for prefix in ("", "level_0/", "level_1/") for name in NAMES}
    tags |= {f"codebook/level_{level}/{name}" for level in (0, 1) for name in PLACES}
    seen = {tag for tag in last if tag.startswith("codebook/")}
    assert seen - OPTIONAL == tags | {"codebook/collision_rate"}
    for name in NAMES:
        levels = [last[f"codebook/level_{level}/{name}"] for level in range(2)]
        assert last[f"codebook/{name}"] == pytest.approx(fmean(levels), rel=1e-12)
    found = load(catalogue.folder).evaluate().evaluation
    for number, usage in enumerate(found.levels):
        told = {name: last[f"codebook/level_{number}/{name}"] for name in ("usage", "perplexity", "entropy", "dead")}
        expected = (usage.usage, usage.perplexity, usage.entropy, usage.dead)
        assert tuple(told.values()) == expected
    assert found.levels[0] != found.levels[1]


def test_one_codebook_has_the_plain_tags_alone(tmp_path) -> None:
    train(tiny(tmp_path), tmp_path / "run")
    last = logged(tmp_path / "run")[-1]
    tags = {f"codebook/{name}" for name in (*NAMES, *PLACES, "movement")} | {"codebook/collision_rate"}
    assert {tag for tag in last if tag.startswith("codebook/")} - OPTIONAL == tags


def test_the_collision_rate_is_that_of_the_validation_part(catalogue: TrainedRun) -> None:
    tokenizer = load(catalogue.folder)
    validation = open_dataset(tokenizer.settings.data, tokenizer.settings.seed).validation
    ids = tokenizer.encode(validation.read(0, len(validation))).reshape(15, 2).tolist()
    rate = 1 - len(set(map(tuple, ids))) / 15
    assert 0 < logged(catalogue.folder)[-1]["codebook/collision_rate"] == rate


def test_images_have_no_collision_rate(trained: TrainedRun) -> None:
    assert not any("collision" in tag for line in logged(trained.folder) for tag in line)


@pytest.mark.parametrize("shared", [True, False])
def test_levels_that_share_a_codebook_have_its_figures(shared: bool, tmp_path: Path) -> None:
    """Where codes lie, move and were hit is one codebook's; what a level loses, and its usage, are its own."""
    run = tiny(tmp_path).model_dump(mode="json")
    level = {"kind": "vector", "codebook_size": 8}
    quantizer = {"kind": "residual", "levels": 2, "shared": shared, "quantizer": level}
    run["model"] = {"encoder": {"kind": "identity"}, "quantizer": quantizer}
    train(RunSettings.model_validate(run), tmp_path / "run")
    first, second = (
        {tag.split("/")[2]: value for tag, value in logged(tmp_path / "run")[-1].items() if f"/level_{level}/" in tag}
        for level in (0, 1)
    )
    own = {name for name in first.keys() & second.keys() if first[name] != second[name]}
    assert {"error", "perplexity"} <= own
    assert ({"spread", "halving", "movement"} <= own) == (not shared)
    if shared:
        saved, _ = read_model(RunDirectory(tmp_path / "run").model)
        assert not own & {"spread", "outside", "duplicates", "halving", "movement", "never_hit", "last_hit"}
        assert first["never_hit"] <= int(((saved.counts[0] + saved.counts[1]) == 0).sum())
