import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.cli import mentions
from tests.conftest import TrainedRun
from tests.training import logged_metrics, tiny_settings
from vqtool.runs.run_directory import RunDirectory
from vqtool.training import train
from vqtool.training.logs import MetricLogs


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def read_events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"scalars": 0, "images": 0, "histograms": 0}).Reload()


def test_each_line_is_one_object_with_its_step(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        logs.scalars(2, {"loss/total": 0.5, "codebook/dead": 3})
        logs.scalars(4, {"loss/total": 0.25})
    lines = run.metrics.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "loss/total": 0.5, "codebook/dead": 3},
        {"step": 4, "loss/total": 0.25},
    ]


def test_lines_are_flushed_at_once(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        logs.scalars(1, {"loss/total": 0.5})
        assert logged_metrics(run.folder) == [{"step": 1, "loss/total": 0.5}]


def test_nan_is_never_written(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs, pytest.raises(ValueError, match="JSON"):
        logs.scalars(1, {"loss/total": float("nan")})
    assert run.metrics.read_text() == ""


def test_tensorboard_has_the_same_scalars_in_float32(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        logs.scalars(3, {"loss/total": 0.1, "codebook/usage": 1.0})
        logs.scalars(7, {"loss/total": 1e-9})
    events = read_events(run.folder)
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(3, np.float32(0.1)), (7, np.float32(1e-9))]
    assert [(e.step, e.value) for e in events.Scalars("codebook/usage")] == [(3, 1.0)]


@pytest.mark.parametrize(
    ("levels", "tags"),
    [([[3, 0, 1]], ["codebook/counts"]), ([[3, 0], [1, 2]], ["codebook/level_0/counts", "codebook/level_1/counts"])],
)
def test_counts_are_logged_as_histograms(run: RunDirectory, levels: list[list[int]], tags: list[str]) -> None:
    with MetricLogs(run, 0) as logs:
        logs.counts(5, [torch.tensor(level) for level in levels])
    events = read_events(run.folder)
    assert sorted(events.Tags()["histograms"]) == tags
    for tag, level in zip(tags, levels, strict=True):
        (event,) = events.Histograms(tag)
        value = event.histogram_value
        assert (event.step, value.num, value.sum, value.max) == (5, len(level), sum(level), max(level))


def test_images_are_logged(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        logs.image(5, "reconstruction/images", torch.rand(3, 4, 6))
    (event,) = read_events(run.folder).Images("reconstruction/images")
    assert (event.step, event.height, event.width) == (5, 4, 6)


def test_resume_drops_metrics_of_later_steps(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        for step in (1, 2, 3, 4):
            logs.scalars(step, {"loss/total": float(step)})
    with run.metrics.open("a") as file:
        file.write('{"step": 5, "loss/to')
    with MetricLogs(run, 2) as logs:
        logs.scalars(3, {"loss/total": 30.0})
    assert [(line["step"], line["loss/total"]) for line in logged_metrics(run.folder)] == [(1, 1), (2, 2), (3, 30)]


def test_resume_drops_overlong_lines(run: RunDirectory) -> None:
    run.max_line_bytes = 64
    good = '{"step": 1, "loss/total": 1.5}\n'
    run.metrics.write_text(good + '{"step": 1, "x": "' + 100 * "y" + '"}\n' + good.replace("1,", "2,"))
    with MetricLogs(run, 2):
        pass
    assert run.metrics.read_text() == good + good.replace("1,", "2,")


def test_start_at_step_0_drops_all_lines(run: RunDirectory) -> None:
    run.metrics.write_text('{"step": 1, "loss/total": 1.0}\n')
    with MetricLogs(run, 0):
        pass
    assert run.metrics.read_text() == ""


def test_resume_drops_events_of_later_steps(run: RunDirectory) -> None:
    with MetricLogs(run, 0) as logs:
        for step in (1, 2, 3, 4):
            logs.scalars(step, {"loss/total": float(step)})
    first = next(run.folder.glob("events.*"))
    first.rename(first.with_name(re.sub(r"tfevents\.\d+", "tfevents.0000000001", first.name)))
    with MetricLogs(run, 2) as logs:
        logs.scalars(3, {"loss/total": 30.0})
    assert [(e.step, e.value) for e in read_events(run.folder).Scalars("loss/total")] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.parametrize(
    ("damage", "expected_lines"),
    [
        (lambda content: content, 0),
        (lambda content: content[:-3], 0),
        (lambda content: content[:-60], 0),
        (lambda content: content[:-30] + b"?" + content[-29:], 1),
        (lambda content: content.replace(b"loss/tota2", b"loss/to?a2"), 1),
        (lambda content: content + bytes(5), 0),
        (lambda content: content + bytes(50), 1),
    ],
)
def test_damaged_event_file_is_reported_but_not_a_truncated_record(
    run: RunDirectory, damage: Callable[[bytes], bytes], expected_lines: int
) -> None:
    with MetricLogs(run, 0) as logs:
        for step in (1, 2, 3):
            logs.scalars(step, {f"loss/tota{step}": float(step)})
    (path,) = run.event_files()
    path.write_bytes(damage(path.read_bytes()))
    lines: list[str] = []
    with MetricLogs(run, 3, lines.append):
        pass
    assert len(lines) == expected_lines
    assert all(mentions(line, f"{path.name}: ... damaged") for line in lines)
    assert read_events(run.folder).Scalars("loss/tota1")[0].value == 1


SCALARS = {
    *(
        f"{prefix}loss/{name}"
        for prefix in ("", "validation/")
        for name in ("total", "reconstruction", "commitment", "entropy")
    ),
    *(f"codebook/{name}" for name in ("usage", "perplexity", "entropy", "soft_entropy", "sample_entropy", "dead")),
    "codebook/expected_used",
    "optimizer/learning_rate",
    "throughput/samples_per_second",
    "validation/loss/shuffled",
    "validation/loss/unshuffled",
    *(
        f"codebook/{name}"
        for name in ("error", "spread", "outside", "duplicates", "halving", "never_hit", "last_hit", "movement")
    ),
}


def test_run_writes_all_tags(trained: TrainedRun) -> None:
    assert set().union(*logged_metrics(trained.folder)) - {"step", "findings"} == SCALARS
    tags = read_events(trained.folder).Tags()
    assert set(tags["scalars"]) == SCALARS
    assert tags["histograms"] == ["codebook/counts"]
    assert tags["images"] == ["reconstruction/images"]


def test_run_writes_the_same_scalars_to_tensorboard_and_jsonl(trained: TrainedRun) -> None:
    events = read_events(trained.folder)
    for tag in SCALARS:
        expected = [(line["step"], np.float32(line[tag])) for line in logged_metrics(trained.folder) if tag in line]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    (*_, last) = events.Histograms("codebook/counts")
    assert (last.step, last.histogram_value.sum) == (12, 6 * 16)


def test_steps_are_logged_at_log_every_and_validate_every(tmp_path: Path) -> None:
    train(tiny_settings(tmp_path, steps=10, log_every=4, validate_every=3), tmp_path / "run")
    lines = logged_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 10]
    assert [line["step"] for line in lines if "loss/total" in line] == [4, 8, 10]
    assert [line["step"] for line in lines if "validation/loss/total" in line] == [3, 6, 9, 10]
