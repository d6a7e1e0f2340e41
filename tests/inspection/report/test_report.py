"""The page as a whole: what is in it, what is not, and when it is refused."""

import dataclasses
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import TrainedRun
from tests.inspection.report.conftest import draw_few
from vqtool.errors import CheckpointError, DataError, Stopped
from vqtool.inference.tokenizer import load
from vqtool.inference.transcode import encode_unique_file
from vqtool.inspection import Inspection, inspect, write_report
from vqtool.inspection.comparison import Compared
from vqtool.inspection.finding import Change, Finding
from vqtool.inspection.report import inputs as material
from vqtool.inspection.report.codebook_map import map_figure
from vqtool.inspection.report.collector import Collected
from vqtool.inspection.report.inputs import ReportInputs
from vqtool.inspection.report.page import page_of_one, page_of_several
from vqtool.metrics.code_counter import CodeCounter
from vqtool.metrics.usage import usage_from_counts
from vqtool.runs.index_file import Manifest, index_dtype, writing_indices

NASTY = "<script>alert(1)</script></style>&\"' {{ 7 * 7 }} $x$"


class Reader(HTMLParser):
    """Gathers what a browser would act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.figures: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.tags.append(tag)
        if tag == "figure":
            self.figures.append(known["id"] or "")
        self.addresses += [known[name] or "" for name in ("src", "href", "xlink:href", "action") if name in known]

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
    with writing_indices(path, manifest.shape, manifest.dtype, lambda: manifest) as array:
        array[:] = indices
    return path


@pytest.mark.parametrize(
    ("kind", "figures"),
    [
        ("images", ["usage", "curves", "map", "examples", "index-maps", "cooccurrence"]),
        ("ids", ["usage", "curves", "map", "examples", "examples-1", "cooccurrence"]),
    ],
)
def test_a_page_holds_its_figures_and_nothing_from_elsewhere(
    kind: str, figures: list[str], runs: dict[str, Path], pages: dict[str, Path]
) -> None:
    page = pages[kind].read_text()
    reader = Reader(page)
    assert reader.figures == figures
    assert all(address.startswith(("data:", "#")) for address in reader.addresses)
    assert not re.search(r"url\((?!#)|@import", page)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert (runs[kind] / "config.yaml").read_text() in reader.text
    assert "What is a good perplexity?" in reader.text


def test_the_same_run_is_the_same_page(
    runs: dict[str, Path], pages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_few(monkeypatch)
    assert write_report(tmp_path / "again.html", [runs["ids"]]) == inspect([runs["ids"]])
    assert (tmp_path / "again.html").read_bytes() == pages["ids"].read_bytes()


def test_other_data_are_counted_in_the_same_pass(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_few(monkeypatch)
    data = str(runs["vectors"].parent / "data.npy")
    assert write_report(tmp_path / "r.html", [runs["vectors"]], data) == inspect([runs["vectors"]], data)
    assert "160 tokens" in Reader((tmp_path / "r.html").read_text()).text


def test_a_run_whose_data_are_gone_has_what_is_left(trained: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained.data), str(tmp_path / "gone.npy")))
    write_report(tmp_path / "r.html", [tmp_path / "run"])
    reader = Reader((tmp_path / "r.html").read_text())
    assert reader.figures == ["usage", "curves"]
    assert "gone.npy: does not exist" in reader.text


def test_a_signal_is_no_fault_of_the_data(trained: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(2, "stopped")

    monkeypatch.setattr(material, "open_dataset", stopped)
    with pytest.raises(Stopped):
        write_report(tmp_path / "r.html", [trained.folder])
    assert not list(tmp_path.iterdir())


def test_what_makes_ids_unique_is_no_level(catalogue: TrainedRun, tmp_path: Path) -> None:
    encode_unique_file(load(catalogue.folder), tmp_path / "ids.npy")
    assert write_report(tmp_path / "r.html", [tmp_path / "ids.npy"]) == inspect([tmp_path / "ids.npy"])
    text = Reader((tmp_path / "r.html").read_text()).text
    assert "the code at level 0" in text
    assert "the code at level 1" not in text


def test_an_index_file_has_usage_and_neighbours(tmp_path: Path) -> None:
    path = index_file(tmp_path / "t.npy", 300)
    assert write_report(tmp_path / "r.html", [path]) == inspect([path])
    reader = Reader((tmp_path / "r.html").read_text())
    assert reader.figures == ["usage", "cooccurrence"]
    assert "the code above" in reader.text


def test_several_are_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    file = index_file(tmp_path / "t.npy", 300)
    targets = [runs["images"], runs["ids"], file]
    assert write_report(tmp_path / "r.html", targets) == inspect(targets)
    reader = Reader((tmp_path / "r.html").read_text())
    assert reader.figures == ["overlaid", "rate-distortion"]
    assert "model.encoder.kind" in reader.text
    assert "These runs have different data" in reader.text
    assert reader.text.index("No findings.") < reader.text.index("model.encoder.kind")
    write_report(tmp_path / "files.html", [file, file])
    assert Reader((tmp_path / "files.html").read_text()).figures == []


def test_names_are_escaped_wherever_they_stand() -> None:
    usage = usage_from_counts(torch.tensor([1, 2]))
    finding = Finding(NASTY, "severe", NASTY, {NASTY: 1.5}, NASTY, (Change(NASTY, NASTY, NASTY),))
    inspection = Inspection(NASTY, NASTY, [usage], None, findings=[finding])
    reader = Reader(page_of_one(ReportInputs(inspection, config=NASTY, missing=NASTY)))
    assert "script" not in reader.tags
    assert reader.tags.count("style") == 1
    # Title, heading, what was counted, what is missing, four of the finding, one of its change, the guide, the config.
    assert reader.text.count(NASTY) == 11
    assert shlex.quote(f"{NASTY}={NASTY}") in reader.text
    assert "49" not in reader.text


def test_findings_stand_on_top_the_severe_first() -> None:
    found = [
        Finding(
            "collapse",
            "severe",
            "few codes",
            {"used": 2, "x": 1 / 3, "y": None},
            "no revival",
            (Change("a.b", "{x: 1}", "revives"),),
        ),
        Finding("minor", "note", "m", {}, "c"),
    ]
    known = Inspection("run", "data", [usage_from_counts(torch.tensor([1, 2]))], None)
    page = page_of_one(ReportInputs(dataclasses.replace(known, findings=found)))
    text = Reader(page).text
    assert text.index("collapse") < text.index("minor") < text.index("What is a good perplexity?")
    assert "severe" in text
    assert "--set 'a.b={x: 1}'" in text
    assert "Evidence: used = 2, x = 0.3333." in text
    assert "configs/findings.md (#collapse, #minor)" in text
    assert "No findings." in Reader(page_of_one(ReportInputs(known))).text
    young = Reader(page_of_one(ReportInputs(dataclasses.replace(known, young_until=100)))).text
    assert "Before step 100, only codebook_too_large" in young


def test_a_page_of_several_has_the_findings_of_each_in_brief() -> None:
    usage = usage_from_counts(torch.tensor([1, 2]))
    change = Change("a.b", "{x: 1}", "revives")
    found = [Finding(NASTY, "severe", f"few {NASTY}", {"used": 2}, "no revival", (change,))]
    runs = [Compared(Inspection("bad", "data", [usage], None, findings=found))]
    runs.append(Compared(Inspection("good", "data", [usage], None)))
    reader = Reader(page_of_several(runs, [[], []], ["skipped c: gone."]))
    text = " ".join(reader.text.split())
    assert f"Findings 1 bad severe{NASTY}: few {NASTY} 2 good No findings." in text
    assert "skipped c: gone." in text
    assert "script" not in reader.tags
    assert "revives" not in text


def test_a_name_that_is_no_text_stands_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "r\udcff\u202e\n"
    shutil.copytree(runs["ids"], odd)
    for name, targets in (("one.html", [odd]), ("two.html", [odd, runs["ids"]])):
        write_report(tmp_path / name, targets)
        page = (tmp_path / name).read_bytes().decode()
        assert "r\\udcff\\u202e\\n" in page
        assert "\u202e" not in page
    logged = dataclasses.replace(material.gather(odd), config="name: \udcff", metrics=[{"step": 1, "loss/\udcff": 1.0}])
    page_of_one(logged).encode()


def test_a_page_of_8192_codes_is_small(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    path = index_file(tmp_path / "t.npy", 8_192, (400, 16, 16))
    write_report(tmp_path / "r.html", [path])
    assert (tmp_path / "r.html").stat().st_size < 1.5e6
    codes, latents = (random.standard_normal((n, 8)).astype(np.float32) for n in (8_192, 10_000))
    collected = Collected(CodeCounter([8_192], ids=False), [], [codes], [latents], [])
    figure = map_figure(collected, inspect([path])[0].levels)
    assert figure
    assert len(figure.pictures[0].markup) + len(figure.numbers.uri) < 1.5e6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r.txt", r"must end in \.html"),
        ("gone/r.html", "directory .* does not exist"),
        ("folder.html", "is a directory"),
        ("there.html", "already exists; use --overwrite to replace it"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(DataError, match=message):
        write_report(tmp_path / name, [tmp_path / "no target"])
    assert (tmp_path / "there.html").read_text() == "mine"


def test_what_is_no_target_leaves_no_page(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        write_report(tmp_path / "r.html", [tmp_path / "gone"])
    with pytest.raises(DataError, match="--data cannot be used with an index file"):
        write_report(tmp_path / "r.html", [index_file(tmp_path / "t.npy", 9)], str(runs["images"]))
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "r.html").write_text("old")
    write_report(tmp_path / "r.html", [tmp_path / "t.npy"], overwrite=True)
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
