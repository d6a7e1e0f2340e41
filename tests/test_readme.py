"""What the README shows can be typed: its commands run, its Python runs, its config loads, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from vqtool.config import RunSettings, load_config

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()

SHORT = ["training.steps=3", "training.batch_size=8", "training.device=cpu", "model.encoder.width=8"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the recipes and arrays that the README speaks of."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "arrays").mkdir()
    digits = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    np.save(folder / "arrays" / "digits.npy", digits)
    np.save(folder / "arrays" / "digits-vectors.npy", digits.reshape(40, 64))
    return folder


def test_commands_and_python_run_in_the_order_of_the_readme(vqtool, place, monkeypatch):
    monkeypatch.chdir(place)
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("vqtool ")]
    assert len(commands) >= 4
    for command in commands:
        _, *arguments = shlex.split(command)
        known = SHORT[:-1] if "semantic-ids" in command else SHORT
        short = [argument for key in known for argument in ("--set", key)] if arguments[0] == "train" else []
        result = vqtool(*arguments, *short)
        assert result.code == 0, f"{command}: {result.err}"
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def test_the_scripts_it_names_are_there():
    scripts = [line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("bash ")]
    assert scripts == ["scripts/quickstart.sh", "scripts/test.sh"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_its_config_loads(tmp_path):
    whole, part = blocks("yaml")
    (tmp_path / "config.yaml").write_text(whole)
    settings = load_config(tmp_path / "config.yaml")
    assert settings.model.quantizer.codebook_size == 256
    merged = settings.model_dump()
    for block, changes in yaml.safe_load(part).items():
        merged[block] = {**merged[block], **changes}
    assert RunSettings.model_validate(merged).model.quantizer.sample_entropy_weight == 0.5


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", TEXT))))
def test_links_lead_somewhere(link):
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = ["#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert link in anchors or (ROOT / link).exists()
