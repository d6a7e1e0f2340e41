"""What all commands share: help without heavy imports, exit codes, where messages go."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import Result
from vqtool.cli import main
from vqtool.errors import CheckpointError, ConfigError, DataError, Stopped, TrainingError

Command = Callable[..., Result]

COMMANDS = ["init", "train", "encode", "decode", "eval", "inspect"]

HELP = """
import sys
from vqtool.cli.app import app
for command in ([], ["init"], ["train"], ["encode"], ["decode"], ["eval"], ["inspect"]):
    try:
        app([*command, "--help"], prog_name="vqtool")
    except SystemExit as exit:
        assert exit.code == 0, exit.code
heavy = {"torch", "numba", "numpy", "yaml", "rich", "safetensors", "matplotlib", "tensorboard", "vqtool.config"}
print("imported:", sorted(heavy & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: []\n")
    assert done.stdout.count("Usage: vqtool") == 7


WAITING = """
import atexit, os, sys
before = dict(os.environ)
atexit.register(lambda: print("spins:", os.environ.get("GOMP_SPINCOUNT"), file=sys.stderr))
import vqtool.cli
if "torch" in sys.modules or os.environ != before:
    sys.exit("set by the import")
sys.argv = ["vqtool", "--help"]
vqtool.cli.main()
"""


@pytest.mark.parametrize(
    ("user", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "100"}, "100"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["default", "spin count", "wait policy"],
)
def test_the_command_line_shortens_spinning_unless_the_user_chose(user: dict[str, str], spins: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | user
    done = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.endswith(f"spins: {spins}\n")


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run([sys.executable, "-m", "vqtool", "bogus"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'bogus'" in done.stderr


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("inspect nowhere", 2)])
def test_a_process_ends_with_the_code_of_its_command(words: str, code: int, closed: str) -> None:
    line = f"{sys.executable} -m vqtool {words} {closed}"
    assert subprocess.run(line, shell=True, capture_output=True, check=False).returncode == code


def test_all_that_is_said_comes_through_a_pipe(vqtool: Command) -> None:
    command = [sys.executable, "-m", "vqtool", "init"]
    # The environment that Python sees: readline sets COLUMNS behind its back.
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert done.stdout == vqtool("init").out


def test_the_installed_command_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="vqtool")
    assert script.load() is main


def test_help_names_every_command(vqtool: Command) -> None:
    done = vqtool("--help")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.partition("Commands:\n")[2].splitlines() if line] == COMMANDS


def test_it_says_which_version_it_is(vqtool: Command) -> None:
    assert vqtool("--version") == Result(0, f"vqtool {version('vqtool')}\n", "")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("init", ["--out"]),
        ("train", ["--config", "--set", "--run-dir", "--resume", "--overwrite", "--dry-run", "--json", "--device"]),
        ("encode", ["--out", "--batch-size", "--key", "--device", "--overwrite", "--unique", "--extend", "--json"]),
        ("decode", ["--out", "--levels", "--device", "--overwrite", "--json"]),
        ("eval", ["--key", "--device", "--rate-distortion", "--json"]),
        ("inspect", ["--data", "--key", "--device", "--json"]),
    ],
)
def test_every_command_explains_its_options(command: str, options: list[str], vqtool: Command) -> None:
    done = vqtool(command, "--help")
    assert done.code == 0
    assert [option for option in options if option not in done.out] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["train"], "Missing option '--config'"),
        (["train", "--config", "c.yaml", "--bogus"], "No such option: --bogus"),
        (["encode"], "Missing argument 'RUN'"),
        (["encode", "run"], "Missing option '--out'"),
        (["encode", "run", "--out", "t.npy", "--batch-size", "0"], "--batch-size"),
        (["encode", "run", "--out", "t.npy", "--batch-size", "many"], "--batch-size"),
        (["decode", "run", "--out", "d.npy"], "Missing argument 'FILE.npy'"),
        (["inspect"], "Missing argument 'TARGET'"),
    ],
)
def test_wrong_usage_is_2_and_says_so(arguments: list[str], message: str, vqtool: Command) -> None:
    done = vqtool(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_no_command_shows_the_help(vqtool: Command) -> None:
    done = vqtool()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("told so"), 2),
        (DataError("told so"), 2),
        (CheckpointError("told so"), 2),
        (TrainingError("told so"), 3),
        (Stopped(2, "told so"), 130),
        (Stopped(15, "told so"), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_error_has_its_exit_code_and_its_message(
    error: Exception, code: int, vqtool: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(error))
    assert vqtool("init") == Result(code, "", "vqtool: told so\n")


def test_an_interrupt_is_130(vqtool: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(KeyboardInterrupt()))
    done = vqtool("init")
    assert (done.code, done.out) == (130, "")


def test_a_bug_of_ours_is_not_hidden(vqtool: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        vqtool("init")


@pytest.mark.parametrize(
    ("work", "arguments"),
    [
        ("vqtool.inference.transcode.decode_file", ["decode", "run", "t.npy", "--out", "d.npy"]),
        ("vqtool.inference.tokenizer.Tokenizer.evaluate", ["eval", "run"]),
        ("vqtool.inspection.inspect", ["inspect", "run"]),
    ],
)
def test_too_little_memory_is_one_line(
    work: str, arguments: list[str], vqtool: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.inference.tokenizer.load", lambda run, device: SimpleNamespace(evaluate=fail))
    fault = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    def fail(*arguments: object, **options: object) -> None:
        raise fault

    monkeypatch.setattr(work, fail)
    done = vqtool(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err == "vqtool: out of memory; free memory, pass fewer rows, or choose another --device\n"
    fault = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        vqtool(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode", "nowhere", "--out", "t.npy"],
        ["decode", "nowhere", "t.npy", "--out", "d.npy"],
        ["eval", "nowhere"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_is_no_run_is_refused(
    arguments: list[str], vqtool: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vqtool(*arguments) == Result(2, "", "vqtool: nowhere: not a run: the directory does not exist\n")
    (tmp_path / "nowhere").mkdir()
    assert vqtool(*arguments) == Result(2, "", "vqtool: nowhere: not a run: config.yaml is missing\n")


def _raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
