"""Report pages: contents, escaping, and the errors of `write_report`."""

import dataclasses
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli import mentions
from tests.conftest import TrainedRun
from tests.inspection.report.conftest import draw_few_examples
from vqtool.errors import CheckpointError, DataError, Stopped
from vqtool.inference.semantic_ids import encode_unique_file
from vqtool.inference.tokenizer import load
from vqtool.inspection import Inspection, inspect, write_report
from vqtool.inspection.comparison import DIFFERENT_DATA_NOTE, TargetSummary
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.report import inputs as inputs_module
from vqtool.inspection.report.inputs import ReportInputs, collect_inputs
from vqtool.inspection.report.page import render_comparison_page, render_report_page
from vqtool.metrics.usage import usage_from_counts
from vqtool.runs.index_file import Manifest, atomic_write_indices, index_dtype

HOSTILE = "<script>alert(1)</script></style>&\"' {{ 7 * 7 }} $x$"


class PageReader(HTMLParser):
    """Collects the tags, figures, addresses and text of a page.

    Attributes:
        tags: names of all start tags.
        figures: ids of the `<figure>` elements.
        addresses: values of attributes that a browser may fetch.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.figures: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        if tag == "figure":
            self.figures.append(values["id"] or "")
        self.addresses += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]

    def handle_data(self, data: str) -> None:
        self.text += data


def index_file(path: Path, size: int, shape: tuple[int, ...] = (50, 4, 4)) -> Path:
    dtype = index_dtype((size,))
    indices = np.random.default_rng(0).integers(0, size, (shape[0], shape[1] * shape[2])).astype(dtype)
    manifest = Manifest(
        shape=list(indices.shape),
        dtype=dtype.name,
        grid=list(shape[1:]),
        codebook_sizes=[size],
        row_shape=[1, 8, 8],
        model_sha256="a" * 64,
        data_sha256="b" * 64,
        shards=[],
        layout="CHW",
    )
    with atomic_write_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = indices
    return path


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("images", ["usage", "curves", "map", "examples", "index-maps", "cooccurrence"]),
        ("ids", ["usage", "curves", "map", "examples", "examples-1", "cooccurrence"]),
    ],
)
def test_a_page_has_its_figures_and_no_external_resources(
    kind: str, figures: list[str], runs: dict[str, Path], pages: dict[str, Path]
) -> None:
    page = pages[kind].read_text()
    reader = PageReader(page)
    assert reader.figures == figures
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"url\((?!#)|@import", page)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert (runs[kind] / "config.yaml").read_text() in reader.text
    assert "What is a good perplexity?" in reader.text


def test_report_of_the_same_run_is_byte_identical(
    runs: dict[str, Path], pages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_few_examples(monkeypatch)
    assert write_report(tmp_path / "again.html", [runs["ids"]]) == inspect([runs["ids"]])
    assert (tmp_path / "again.html").read_bytes() == pages["ids"].read_bytes()


def test_data_replaces_the_validation_split(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_few_examples(monkeypatch)
    data = str(runs["vectors"].parent / "data.npy")
    assert write_report(tmp_path / "r.html", [runs["vectors"]], data) == inspect([runs["vectors"]], data)
    assert "160 tokens" in PageReader((tmp_path / "r.html").read_text()).text


def test_a_run_without_its_data_has_usage_and_curves(trained: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.data), str(tmp_path / "gone.npy")))
    write_report(tmp_path / "r.html", [tmp_path / "run"])
    reader = PageReader((tmp_path / "r.html").read_text())
    assert reader.figures == ["usage", "curves"]
    assert "gone.npy" in reader.text


def test_a_signal_while_opening_the_data_is_raised(
    trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_stopped(*_: object) -> None:
        raise Stopped(2, "stopped")

    monkeypatch.setattr(inputs_module, "open_dataset", raise_stopped)
    with pytest.raises(Stopped):
        write_report(tmp_path / "r.html", [trained.folder])
    assert not list(tmp_path.iterdir())


def test_the_suffix_column_of_unique_ids_is_not_a_level(catalogue: TrainedRun, tmp_path: Path) -> None:
    encode_unique_file(load(catalogue.folder), tmp_path / "ids.npy")
    assert write_report(tmp_path / "r.html", [tmp_path / "ids.npy"]) == inspect([tmp_path / "ids.npy"])
    text = PageReader((tmp_path / "r.html").read_text()).text
    assert "the code at level 0" in text
    assert "the code at level 1" not in text


def test_an_index_file_has_usage_and_cooccurrence(tmp_path: Path) -> None:
    path = index_file(tmp_path / "t.npy", 300)
    assert write_report(tmp_path / "r.html", [path]) == inspect([path])
    reader = PageReader((tmp_path / "r.html").read_text())
    assert reader.figures == ["usage", "cooccurrence"]
    assert "the code above" in reader.text


def test_several_targets_give_a_comparison_page(runs: dict[str, Path], tmp_path: Path) -> None:
    file = index_file(tmp_path / "t.npy", 300)
    targets = [runs["images"], runs["ids"], file]
    assert write_report(tmp_path / "r.html", targets) == inspect(targets)
    reader = PageReader((tmp_path / "r.html").read_text())
    assert reader.figures == ["overlaid", "rate-distortion"]
    assert "model.encoder.kind" in reader.text
    assert DIFFERENT_DATA_NOTE in reader.text
    assert reader.text.index("No findings.") < reader.text.index("model.encoder.kind")
    write_report(tmp_path / "files.html", [file, file])
    assert PageReader((tmp_path / "files.html").read_text()).figures == []


def test_all_text_is_escaped() -> None:
    usage = usage_from_counts(torch.tensor([1, 2]))
    finding = Finding(HOSTILE, "severe", HOSTILE, {HOSTILE: 1.5}, HOSTILE, (Change(HOSTILE, HOSTILE, HOSTILE),))
    inspection = Inspection(HOSTILE, HOSTILE, [usage], None, findings=[finding])
    reader = PageReader(render_report_page(ReportInputs(inspection, config=HOSTILE, data_error=HOSTILE)))
    assert "script" not in reader.tags
    assert reader.tags.count("style") == 1
    # Title, heading, subtitle, data error; name, message, cause and evidence of the finding; reason of the change;
    # guide reference; config.
    assert reader.text.count(HOSTILE) == 11
    assert shlex.quote(f"{HOSTILE}={HOSTILE}") in reader.text
    assert "49" not in reader.text


def test_findings_come_first_with_evidence_and_changes() -> None:
    findings = [
        Finding(
            "collapse",
            "severe",
            "few codes",
            {"used": 2, "x": 1 / 3, "y": None},
            "no reset",
            (Change("a.b", "{x: 1}", "resets codes"),),
        ),
        Finding("minor", "note", "m", {}, "c"),
    ]
    inspection = Inspection("run", "data", [usage_from_counts(torch.tensor([1, 2]))], None)
    page = render_report_page(ReportInputs(dataclasses.replace(inspection, findings=findings)))
    text = PageReader(page).text
    assert text.index("collapse") < text.index("minor") < text.index("What is a good perplexity?")
    assert "severe" in text
    assert "--set 'a.b={x: 1}'" in text
    assert "used = 2, x = 0.3333." in text
    assert "configs/findings.md (#collapse, #minor)" in text
    assert "No findings." in PageReader(render_report_page(ReportInputs(inspection))).text
    early = PageReader(render_report_page(ReportInputs(dataclasses.replace(inspection, early_until=100)))).text
    assert re.search("step 100.*codebook_too_large", early)


def test_a_comparison_page_has_the_messages_of_the_findings_only() -> None:
    usage = usage_from_counts(torch.tensor([1, 2]))
    change = Change("a.b", "{x: 1}", "resets codes")
    findings = [Finding(HOSTILE, "severe", f"few {HOSTILE}", {"used": 2}, "no reset", (change,))]
    runs = [TargetSummary(Inspection("bad", "data", [usage], None, findings=findings))]
    runs.append(TargetSummary(Inspection("good", "data", [usage], None)))
    reader = PageReader(render_comparison_page(runs, [[], []], ["skipped c: gone."]))
    text = " ".join(reader.text.split())
    assert mentions(text, f"1 bad severe{HOSTILE}: few {HOSTILE} ... 2 good ... No findings")
    assert "skipped c: gone" in text
    assert "script" not in reader.tags
    assert "resets codes" not in text


def test_undecodable_and_control_characters_of_names_are_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "r\udcff\u202e\n"
    shutil.copytree(runs["ids"], run)
    for name, targets in (("one.html", [run]), ("two.html", [run, runs["ids"]])):
        write_report(tmp_path / name, targets)
        page = (tmp_path / name).read_bytes().decode()
        assert "r\\udcff\\u202e\\n" in page
        assert "\u202e" not in page
    inputs = dataclasses.replace(collect_inputs(run), config="name: \udcff", metrics=[{"step": 1, "loss/\udcff": 1.0}])
    render_report_page(inputs).encode()  # raises if a surrogate is left


def test_the_page_of_an_index_file_with_8192_codes_is_small(tmp_path: Path) -> None:
    path = index_file(tmp_path / "t.npy", 8_192, (400, 16, 16))
    write_report(tmp_path / "r.html", [path])
    assert (tmp_path / "r.html").stat().st_size < 1.5e6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r.txt", r"r\.txt.*\.html"),
        ("gone/r.html", "directory .*gone"),
        ("folder.html", r"folder\.html.*directory"),
        ("there.html", "--overwrite"),
    ],
)
def test_a_path_that_cannot_be_written_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "there.html").write_text("notes")
    with pytest.raises(DataError, match=message):
        write_report(tmp_path / name, [tmp_path / "no target"])
    assert (tmp_path / "there.html").read_text() == "notes"


def test_an_invalid_target_writes_no_page(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="gone"):
        write_report(tmp_path / "r.html", [tmp_path / "gone"])
    with pytest.raises(DataError, match=r"--data.*t\.npy"):
        write_report(tmp_path / "r.html", [index_file(tmp_path / "t.npy", 9)], str(runs["images"]))
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "r.html").write_text("old")
    write_report(tmp_path / "r.html", [tmp_path / "t.npy"], overwrite=True)
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
