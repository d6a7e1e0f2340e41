"""Every finding fires on a run that was built to have that fault, and none on a healthy one."""

import json
from pathlib import Path

import pytest

from tests.inspection.findings.runs import FAULTS, HEALTHY, make
from vqtool.inspection import Inspection, inspect
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import FINDINGS
from vqtool.run import Run

README = Path(__file__).parents[3] / "README.md"

# All that fires on a run with a fault: first what it was built for, then what that brings with it.
FIRED = {
    "bare form, many codes": (
        ("collapse", "decoder_ignores_codes", "dominant_code", "duplicate_codes", "temperature_too_high")
    ),
    "codes started at random": ("dead_codes",),
    "six in ten rows are zero": ("dominant_code",),
    "256 numbers of noise, 4 codes": ("decoder_ignores_codes",),
    # Codes that stay about the origin: all alike, few of them nearest to anything, and none says much.
    "codes learn at a rate of 1e-6": ("scale_mismatch", "dead_codes", "decoder_ignores_codes", "duplicate_codes"),
    # One code is nearest to all latents, whatever these are.
    "codes far outside small data": (
        *("outlier_codes", "collapse", "dead_codes", "decoder_ignores_codes", "dominant_code", "scale_mismatch"),
    ),
    "40 different rows, 64 codes": ("duplicate_codes",),
    # The encoder learns on, and leaves them behind.
    "codes learn from a loss of no weight": ("codebook_frozen", "latents_diverging"),
    "temperature 1000": ("temperature_too_high", "dead_codes"),
    "temperature 1e-5": ("temperature_too_low",),
    "no commitment": ("latents_diverging",),
    "no commitment, no revival": ("usage_dropping", "dead_codes", "latents_diverging"),
    "a second level on noise": ("weak_level",),
    "300 different items of 4,000": ("collisions",),
    "512 codes of 1,400 vectors": ("codebook_too_large",),
    "8 codes on a plane": ("codebook_saturated",),
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
        flat = _flat(Run(Path(inspection.target)).settings().model_dump(mode="json"))
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
    dead = _only(found["codes started at random"], "dead_codes")
    assert dead.evidence["never_hit"] == dead.evidence["dead"]
    assert "training never hit any of them" in dead.message
    assert dead.cause.startswith("most were never reached")
    lost = _only(found["codes learn at a rate of 1e-6"], "dead_codes")
    assert 0 < lost.evidence["never_hit"] < lost.evidence["dead"]
    assert "for the last time" in lost.message


def test_the_readme_has_this_table() -> None:
    text = README.read_text()
    for name, (first, *others) in FIRED.items():
        beside = ", ".join(f"`{other}`" for other in sorted(others)) or "-"
        assert f"| {name} | `{first}` | {beside} |" in text
    assert f"| healthy: {'; '.join(HEALTHY)} | nothing | - |" in text
    for find in FINDINGS:
        assert f"| `{find.__name__}` | " in text


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
