"""Each finding is reported on a trained run that was built to have its fault, and none on healthy runs."""

import json
import re
from pathlib import Path

import pytest

from tests.inspection.findings.runs import FAULTS, HEALTHY, train_run
from vqtool.inspection import Inspection, inspect
from vqtool.inspection.finding import Finding
from vqtool.inspection.findings import FINDINGS
from vqtool.runs.run_directory import RunDirectory

GUIDE = Path(__file__).parents[3] / "configs" / "findings.md"

# Findings reported on each faulty run: first the one it was built for, then its side effects.
REPORTED = {
    "entropy_only update, random init, no reset, 256 codes": (
        ("collapse", "decoder_ignores_codes", "dominant_code", "duplicate_codes", "temperature_too_high")
    ),
    "random init, no reset": ("dead_codes",),
    "60% of the rows are zero": ("dominant_code",),
    "256-dimensional noise, 4 codes": ("decoder_ignores_codes",),
    # The codes stay near the origin: they are nearly identical, and few are nearest to any latent.
    "codebook_loss update, random init, no reset, learning rate 1e-6": (
        "scale_mismatch",
        "dead_codes",
        "decoder_ignores_codes",
        "duplicate_codes",
    ),
    # The same code is nearest to all latents.
    "random init far outside data near zero, no reset": (
        *("outlier_codes", "collapse", "dead_codes", "decoder_ignores_codes", "dominant_code", "scale_mismatch"),
    ),
    "40 distinct rows, 64 codes, no reset": ("duplicate_codes",),
    # The encoder keeps learning and moves its latents away from the codes.
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
def inspections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    """Return the inspection of each run, by its name."""
    by_name = {}
    for name, config in {**FAULTS, **HEALTHY}.items():
        (by_name[name],) = inspect([train_run(tmp_path_factory.mktemp("run"), *config())])
    return by_name


@pytest.mark.parametrize("name", FAULTS)
def test_fault_and_its_side_effects_are_reported(name: str, inspections: dict[str, Inspection]) -> None:
    assert {finding.name for finding in inspections[name].findings} == set(REPORTED[name])


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_run_has_no_findings(name: str, inspections: dict[str, Inspection]) -> None:
    assert [finding.message for finding in inspections[name].findings] == []


def test_every_finding_has_a_faulty_run() -> None:
    assert sorted(names[0] for names in REPORTED.values()) == sorted(find.__name__ for find in FINDINGS)
    assert list(REPORTED) == list(FAULTS)
    assert len(HEALTHY) >= 6


def test_findings_distinguish_faults() -> None:
    """No finding is reported on more than a third of the faulty runs."""
    for find in FINDINGS:
        assert sum(find.__name__ in names for names in REPORTED.values()) <= len(REPORTED) / 3


def test_suggested_changes_differ_from_the_settings(inspections: dict[str, Inspection]) -> None:
    for inspection in inspections.values():
        flat = _flat(RunDirectory(Path(inspection.target)).settings().model_dump(mode="json"))
        for finding in inspection.findings:
            for change in finding.changes:
                assert str(flat.get(change.key)) != change.value, (finding.name, change)


def test_evidence_of_findings_is_valid_json(inspections: dict[str, Inspection]) -> None:
    for inspection in inspections.values():
        for finding in inspection.findings:
            json.dumps(finding.evidence, allow_nan=False)
            assert finding.message
            assert finding.cause


def test_dead_codes_report_whether_they_were_hit_in_training(inspections: dict[str, Inspection]) -> None:
    dead = _only(inspections["random init, no reset"], "dead_codes")
    assert dead.evidence["never_hit"] == dead.evidence["dead"] > 0
    assert dead.evidence["last_hit"] is None
    mixed = _only(inspections["codebook_loss update, random init, no reset, learning rate 1e-6"], "dead_codes")
    assert 0 < mixed.evidence["never_hit"] < mixed.evidence["dead"]
    assert 0 < mixed.evidence["last_hit"] < 45


def test_guide_lists_the_findings_of_each_run() -> None:
    text = GUIDE.read_text()
    for name, (first, *side_effects) in REPORTED.items():
        listed = ", ".join(f"`{side_effect}`" for side_effect in sorted(side_effects)) or "-"
        assert f"| {name} | `{first}` | {listed} |" in text
    assert f"| healthy: {'; '.join(HEALTHY)} | nothing | - |" in text


def test_guide_has_a_section_for_each_finding() -> None:
    """In the order of FINDINGS, followed by sections about other topics."""
    headings = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    names = [find.__name__ for find in FINDINGS]
    assert headings[: len(names)] == names
    assert not any(re.fullmatch(r"[a-z_]+", heading) for heading in headings[len(names) :])


def test_each_section_of_the_guide_has_symptom_cause_and_fix() -> None:
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
