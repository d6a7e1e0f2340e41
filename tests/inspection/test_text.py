"""Inspections as text: tables, findings, narrow terminals."""

from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.cli import mentions
from vqtool.inspection import Inspection, render
from vqtool.inspection.finding import NO_CHANGE, Change, Finding
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import usage_from_counts

BINS = ["no hits", "under 0.25x", "0.25x to 0.5x", "0.5x to 1x", "1x to 2x", "2x to 4x", "4x and over"]


def text(*counts: list[int], target: str = "run", width: int = 160, distinct: IdCounts | None = None) -> str:
    levels = [usage_from_counts(torch.tensor(hits)) for hits in counts]
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(render(Inspection(target, "some data", levels, distinct)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def rows(shown: str) -> dict[str, str]:
    return {line.split("  ")[0]: " ".join(line.split()) for line in shown.splitlines()}


def test_one_level_shows_used_dead_perplexity_and_entropy() -> None:
    shown = rows(text([4, 0, 2, 2]))
    assert shown["run"] == "run"
    assert any(mentions(line, "some data ... 8 tokens") for line in shown)
    assert shown["codes"].startswith("codes 4 ")
    assert mentions(shown["used"], "used 3 (75.0%) ... 3.6")
    assert shown["dead"].startswith("dead 1 ")
    assert shown["perplexity"].startswith("perplexity 2.8 ")
    assert mentions(shown["entropy"], "entropy 1.500 bits ... 75.0%")


def test_collision_rate_is_shown_if_ids_were_counted() -> None:
    shown = text([4, 0, 2, 2], distinct=IdCounts(8_000, 7_998))
    assert mentions(shown, "distinct ids: 7,998 ... 8,000 rows ... 0.0250%")
    assert "collision" not in text([4, 0, 2, 2])


def test_single_token_and_row_are_singular() -> None:
    shown = text([1, 0], distinct=IdCounts(1, 1))
    assert "some data: 1 token\n" in shown
    assert mentions(shown, "distinct ids: 1 ... 1 row,")


def test_most_and_least_used_codes_are_listed_with_their_hits() -> None:
    shown = rows(text([5, 0, 7, 1, 1000, 3, 2, 7, 4]))
    assert shown["most used (code:hits)"].endswith(") 4:1,000 2:7 7:7 0:5 8:4")
    assert shown["least used (code:hits)"].endswith(") 3:1 6:2 5:3 8:4 0:5")


def test_codebook_without_hits_lists_no_codes() -> None:
    shown = rows(text([0, 0, 0]))
    assert shown["most used (code:hits)"].endswith(") none")
    assert shown["least used (code:hits)"].endswith(") none")
    assert shown["used"].startswith("used 0 (0.0%)")
    assert shown["no hits"].startswith("no hits 3")


def test_histogram_bins_are_multiples_of_the_mean_hits() -> None:
    """The mean is 16 hits per code; a code on a bin edge belongs to the bin above it."""
    shown = rows(text([0, 0, 1, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 12, 6, 2, 8]))
    codes = {label: int(line.removeprefix(label).split()[0]) for label, line in shown.items() if label in BINS}
    assert codes == dict(zip(BINS, [2, 3, 3, 4, 2, 2, 1], strict=True))


@pytest.mark.parametrize("width", [160, 60])
def test_several_levels_share_one_table(width: int) -> None:
    shown = text([400, 0, 200, 200], [3, 0], target="deep", width=width).splitlines()
    assert any(mentions(line, "some data ... 800 tokens per level") for line in shown)
    levels = shown.index(next(line for line in shown if line.startswith("level"))) + 1
    assert [line.split() for line in shown[levels - 1 : levels + 2]] == [
        ["level", "K", "used", "usage", "expected", "dead", "perplexity", "bits"],
        ["0", "4", "3", "75.0%", "4.0", "1", "2.8", "1.500"],
        ["1", "2", "1", "50.0%", "1.8", "1", "1.0", "0.000"],
    ]
    hits = next(number for number, line in enumerate(shown) if "no hits" in line)
    assert [line.split() for line in shown[hits + 1 : hits + 3]] == [
        ["0", "1", "0", "0", "0", "2", "1", "0"],
        ["1", "1", "0", "0", "0", "0", "1", "0"],
    ]
    assert max(map(len, shown)) <= width
    assert "level" not in text([1, 1])


@pytest.mark.parametrize("target", ["runs/[bold]x", "runs/[/nothing]", "[link=x]", "a\\[b]"])
def test_brackets_in_a_target_are_not_markup(target: str) -> None:
    assert text([1, 1], target=target).splitlines()[0] == target


FINDINGS = [
    Finding(
        "dead_codes",
        "severe",
        "9 of 10 codes have no hits",
        {"dead": 9},
        "they were initialised far from the latents",
        (
            Change("model.quantizer.init.kind", "kmeans", "initialises the codes"),
            Change("model.quantizer.dead_code_reset", "{min_hits: 5}", "resets dead codes"),
        ),
    ),
    Finding("codebook_saturated", "note", "[bold]full[/bold]", {}, "more codes would pay"),
]


def findings(*reported: Finding, **options: Any) -> list[str]:
    levels = [usage_from_counts(torch.tensor([4, 4]))]
    console = Console(file=StringIO(), highlight=False, **{"width": 120, **options})
    console.print(render(Inspection("run", "some data", levels, None, findings=reported)))
    lines: list[str] = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return lines[lines.index(next(line for line in lines if "findings" in line)) :]


def test_finding_shows_symptom_cause_and_changes() -> None:
    assert findings(*FINDINGS) == [
        "findings",
        "severe (dead_codes): 9 of 10 codes have no hits",
        "  cause: they were initialised far from the latents",
        "  try --set model.quantizer.init.kind=kmeans  # initialises the codes",
        "  try --set 'model.quantizer.dead_code_reset={min_hits: 5}'  # resets dead codes",
        "note (codebook_saturated): [bold]full[/bold]",
        "  cause: more codes would pay",
        f"  {NO_CHANGE}",
        "see configs/findings.md (#dead_codes, #codebook_saturated)",
    ]
    assert findings(FINDINGS[1])[-1] == "see configs/findings.md#codebook_saturated"


def test_findings_wrap_on_a_narrow_terminal() -> None:
    assert findings(FINDINGS[0], width=50) == [
        "findings",
        "severe (dead_codes): 9 of 10 codes have no hits",
        "  cause: they were initialised far from the",
        "    latents",
        "  try --set model.quantizer.init.kind=kmeans",
        "      # initialises the codes",
        "  try --set",
        "    'model.quantizer.dead_code_reset={min_hits:",
        "    5}'",
        "      # resets dead codes",
        "see configs/findings.md#dead_codes",
    ]


def test_no_findings() -> None:
    assert findings() == ["findings: none"]


def test_early_run_shows_the_step_from_which_all_findings_are_reported() -> None:
    console = Console(file=StringIO(), width=120, highlight=False)
    console.print(
        render(Inspection("run", "some data", [usage_from_counts(torch.tensor([1, 2]))], None, early_until=1500))
    )
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert mentions(shown, "1,500 ... codebook_too_large")
    assert shown.endswith("\n\nfindings: none\n")


def test_severities_have_different_colours() -> None:
    coloured = findings(*FINDINGS, force_terminal=True, color_system="standard")
    assert any("\x1b[1;31msevere" in line for line in coloured)
    assert any("\x1b[36mnote" in line for line in coloured)
    assert any("\x1b[1mfindings" in line for line in coloured)
