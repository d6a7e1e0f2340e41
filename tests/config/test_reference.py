"""The generated reference in configs/ (schema.json, README.md) agrees with the settings classes."""

import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from write_reference import reference

        return reference()
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ["schema.json", "README.md"])
def test_generated_file_is_up_to_date(name: str, reference: dict[str, str]) -> None:
    written = (ROOT / "configs" / name).read_text(encoding="utf-8")
    assert written == reference[name], "run: python scripts/write_reference.py"


def test_reference_has_every_key_of_every_recipe(reference: dict[str, str]) -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        missing = [
            key for key in _keys(yaml.safe_load(path.read_text())) if f"| `{key}` |" not in reference["README.md"]
        ]
        assert missing == ["kind"] * len(missing), path.name


def test_introduction_links_the_guide_of_every_recipe() -> None:
    introduction = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({path.stem}.md)" in introduction for path in (ROOT / "configs").glob("*.yaml"))


def _keys(values: object) -> list[str]:
    if not isinstance(values, dict):
        return []
    return [name for key, value in values.items() for name in (key, *_keys(value))]
