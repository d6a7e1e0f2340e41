"""Markdown files: commands, Python and YAML run in order, and links lead to files and headings.

Blocks of ```sh, ```python and ```yaml run; training is shortened to a few steps. Other blocks are not run: ```text and
```json are output, ```py needs packages or processes that a test does not have.
"""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqtool.config import RunSettings, load_config

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "configs/*.md", "scripts/*.md", "tests/*.md", "vqtool/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHORT_RUN_OVERRIDES = {"training.steps": 3, "training.batch_size": 8, "training.device": "cpu"}


def blocks(path: str) -> list[tuple[str, str]]:
    """Return language and text of each block, in order."""
    return BLOCK.findall((ROOT / path).read_text())


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command, without comments and environment variables."""
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        if words:
            yield words


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    subprocess.run([sys.executable, ROOT / "scripts" / "make_tensors.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path, arrays: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configs/ and the arrays of scripts/make_tensors.py."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "arrays").symlink_to(arrays)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", FILES)
def test_blocks_run_in_order(path, folder, vqtool):
    names: dict[str, Any] = {}
    for language, text in blocks(path):
        if language == "sh":
            for words in commands(text):
                run(words, vqtool)
        elif language == "python":
            exec(compile(text, path, "exec"), names)
        elif language == "yaml":
            load_yaml(text, path)
        elif language == "py":
            ast.parse(text)


def run(words: list[str], vqtool: Any) -> None:
    """Run a command. Of one that takes long or changes the environment, only check options and names."""
    match words:
        case ["vqtool", *arguments]:
            result = vqtool(*shortened(arguments))
            assert result.code == 0, f"{shlex.join(words)}: {result.err}"
        case ["torchrun", *arguments]:
            command = [sys.executable, "-m", "torch.distributed.run", *shortened(arguments)]
            process = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert process.returncode == 0, process.stderr
        case ["bash" | "python", script, *arguments]:
            source = (ROOT / script).read_text()
            assert all(argument.partition("=")[0] in source for argument in arguments if argument.startswith("--"))
        case ["pip", "install", *arguments]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            extras = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
            assert {extra for group in extras for extra in group.split(",")} <= known.keys()
        case [("tensorboard" | "pytest" | "ruff" | "mypy") as tool, *_]:
            assert shutil.which(tool, path=Path(sys.executable).parent), tool
        case _:
            pytest.fail(f"no way to test {shlex.join(words)}; use ```text for commands that cannot run")


def shortened(arguments: list[str]) -> list[str]:
    """Return the arguments of a command; for training, with overrides that make it short."""
    if "--config" not in arguments:
        return arguments
    config = yaml.safe_load(Path(arguments[arguments.index("--config") + 1]).read_text())
    keys = dict(SHORT_RUN_OVERRIDES)
    if "width" in config["model"]["encoder"]:
        keys["model.encoder.width"] = 8
    if "samples" in config["data"] and not any(argument.startswith("data.path=") for argument in arguments):
        keys["data.samples"] = 60
    return [*arguments, *(word for key, value in keys.items() for word in ("--set", f"{key}={value}"))]


def load_yaml(text: str, path: str) -> None:
    """Validate a complete config, or a part of one merged into the recipe that the file explains."""
    config = yaml.safe_load(text)
    if {"data", "model"} <= config.keys():
        Path("config.yaml").write_text(text)
        load_config(Path("config.yaml"))
        return
    recipe = ROOT / Path(path).with_suffix(".yaml")
    defaults = load_config(recipe if recipe.exists() else ROOT / "configs" / "images.yaml").model_dump()
    RunSettings.model_validate(merged(defaults, config))


def merged(old: Any, new: Any) -> Any:
    """Return `old` updated by `new`; a block of another kind replaces the old block."""
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("kind", old.get("kind")) != old.get("kind"):
        return new
    return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}


def test_readme_is_short_and_names_the_setup_scripts():
    assert (ROOT / "README.md").read_text().count("\n") <= 150
    shell = [text for language, text in blocks("README.md") if language == "sh"]
    scripts = [text for text in shell if text.startswith("bash ")]
    assert scripts == ["bash scripts/quickstart.sh\n", "bash scripts/test.sh\n"]


def prose(path: str) -> str:
    """Return the text of a file without its blocks."""
    return BLOCK.sub("", (ROOT / path).read_text())


def anchors(path: str) -> set[str]:
    """Return the anchors that GitHub generates for the headings of a file."""
    generated: list[str] = []
    for heading in re.findall(r"^#+ (.*?)\s*$", prose(path), re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in generated)
        generated.append(f"{anchor}-{repeated}" if repeated else anchor)
    return set(generated)


@pytest.mark.parametrize("path", FILES)
def test_links_lead_to_files_and_headings(path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / path).parent / name if name else ROOT / path
        if not target.exists() or (anchor and anchor not in anchors(target.resolve().relative_to(ROOT).as_posix())):
            broken.append(link)
    assert not broken
