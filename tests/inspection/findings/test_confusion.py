"""Every finding fires on a run that was built to have that fault, and none on a healthy one."""

import json
import re
from pathlib import Path

import pytest

from tests.inspection.findings.runs import FAULTS, HEALTHY, make
from vqtool.inspection import Inspection, inspect
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import FINDINGS
from vqtool.runs.run_directory import RunDirectory

GUIDE = Path(__file__).parents[3] / "configs" / "findings.md"

# All that fires on a run with a fault: first what it was built for, then what that brings with it.
FIRED = {
    "entropy_only update, random init, no reset, 256 codes": (
        ("collapse", "decoder_ignores_codes", "dominant_code", "duplicate_codes", "temperature_too_high")
    ),
    "random init, no reset": ("dead_codes",),
    "60% of the rows are zero": ("dominant_code",),
    "256-dimensional noise, 4 codes": ("decoder_ignores_codes",),
    # Codes that stay about the origin: all alike, few of them nearest to anything, and none says much.
    "codebook_loss update, random init, no reset, learning rate 1e-6": (
        "scale_mismatch",
        "dead_codes",
        "decoder_ignores_codes",
        "duplicate_codes",
    ),
    # One code is nearest to all latents, whatever these are.
    "random init far outside data near zero, no reset": (
        *("outlier_codes", "collapse", "dead_codes", "decoder_ignores_codes", "dominant_code", "scale_mismatch"),
    ),
    "40 distinct rows, 64 codes, no reset": ("duplicate_codes",),
    # The encoder learns on, and leaves them behind.
    "entropy_only update, entropy weight 1e-9, no reset": ("codebook_frozen", "latents_diverging"),
    "temperature 1000, random init, no reset": ("temperature_too_high", "dead_codes"),
    "temperature 1e-5": ("temperature_too_low",),
    "commitment weight 0, learning rate 0.03": ("latents_diverging",),
    "commitment weight 0, learning rate 0.03, no reset": ("usage_dropping", "dead_codes", "latents_diverging"),
    "second residual level on noise": ("weak_level",),
    "4,000 rows, 300 of them distinct": ("collisions",),
    "512 codes, 1,400 training vectors": ("codebook_too_large",),
    "8 codes, 2-dimensional data": ("codebook_saturated",),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    """What inspect says of each run, by the run's name."""
    inspections = {}
    for name, blocks in {**FAULTS, **HEALTHY}.items():
        (inspections[name],) = inspect([make(tmp_path_factory.mktemp("run"), *blocks())])
    return inspections


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_what_it_brings_with_it(name: str, found: dict[str, Inspection]) -> None:
    assert {finding.name for finding in found[name].findings} == set(FIRED[name])


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_on_a_healthy_run(name: str, found: dict[str, Inspection]) -> None:
    assert [finding.message for finding in found[name].findings] == []


def test_every_finding_has_a_run_of_its_own() -> None:
    assert sorted(names[0] for names in FIRED.values()) == sorted(find.__name__ for find in FINDINGS)
    assert list(FIRED) == list(FAULTS)
    assert len(HEALTHY) >= 6


def test_most_findings_can_be_had_alone() -> None:
    """The table tells faults apart: no finding fires on most runs, whatever their fault."""
    for find in FINDINGS:
        assert sum(find.__name__ in names for names in FIRED.values()) <= len(FIRED) / 3


def test_each_change_that_is_advised_is_not_made_already(found: dict[str, Inspection]) -> None:
    for inspection in found.values():
        flat = _flat(RunDirectory(Path(inspection.target)).settings().model_dump(mode="json"))
        for finding in inspection.findings:
            for change in finding.changes:
                assert str(flat.get(change.key)) != change.value, (finding.name, change)


def test_figures_are_numbers_that_json_knows(found: dict[str, Inspection]) -> None:
    for inspection in found.values():
        for finding in inspection.findings:
            json.dumps(finding.evidence, allow_nan=False)
            assert finding.message
            assert finding.cause


def test_dead_codes_are_told_apart_by_when_they_were_hit(found: dict[str, Inspection]) -> None:
    dead = _only(found["random init, no reset"], "dead_codes")
    assert dead.evidence["never_hit"] == dead.evidence["dead"]
    assert "never hit in training: all" in dead.message
    assert dead.cause.startswith("most were initialised far")
    lost = _only(found["codebook_loss update, random init, no reset, learning rate 1e-6"], "dead_codes")
    assert 0 < lost.evidence["never_hit"] < lost.evidence["dead"]
    assert "last hit at step" in lost.message


def test_the_guide_has_this_table() -> None:
    text = GUIDE.read_text()
    for name, (first, *others) in FIRED.items():
        beside = ", ".join(f"`{other}`" for other in sorted(others)) or "-"
        assert f"| {name} | `{first}` | {beside} |" in text
    assert f"| healthy: {'; '.join(HEALTHY)} | nothing | - |" in text


def test_the_guide_has_a_section_for_each_finding() -> None:
    """In the order of the code; the sections behind them are no findings."""
    headings = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    names = [find.__name__ for find in FINDINGS]
    assert headings[: len(names)] == names
    assert not any(re.fullmatch(r"[a-z_]+", heading) for heading in headings[len(names) :])


def test_each_section_tells_symptom_cause_and_fix() -> None:
    for section in GUIDE.read_text().split("\n## ")[1 : len(FINDINGS) + 1]:
        assert re.findall(r"^- \*\*(\w+)", section, re.MULTILINE) == ["Symptom", "Cause", "Fix"], section[:40]


def _only(inspection: Inspection, name: str) -> Finding:
    (finding,) = [finding for finding in inspection.findings if finding.name == name]
    return finding


def _flat(tree: object, key: str = "") -> dict[str, object]:
    if not isinstance(tree, dict):
        return {key: tree}
    flat: dict[str, object] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{key}.{name}".lstrip("."))
    return flat
