"""All commands: help without slow imports, exit codes, standard output and standard error."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli import mentions
from tests.conftest import Result
from vqtool.cli import main
from vqtool.errors import CheckpointError, ConfigError, DataError, Stopped, TrainingError

Command = Callable[..., Result]

COMMANDS = ["init", "train", "encode", "decode", "eval", "inspect"]

PRINT_HELP = """
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


def test_help_does_not_import_torch_or_other_large_packages() -> None:
    result = subprocess.run([sys.executable, "-c", PRINT_HELP], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("imported: []\n")
    assert result.stdout.count("Usage: vqtool") == 7


PRINT_SPIN_COUNT = """
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
def test_openmp_spin_count_is_lowered_unless_the_user_set_a_wait_variable(user: dict[str, str], spins: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | user
    result = subprocess.run(
        [sys.executable, "-c", PRINT_SPIN_COUNT], capture_output=True, text=True, check=True, env=environment
    )
    assert result.stderr.endswith(f"spins: {spins}\n")


def test_python_m_vqtool_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "vqtool", "bogus"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert "bogus" in result.stderr


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("inspect nowhere", 2)])
def test_exit_code_is_that_of_the_command_even_if_streams_are_closed(words: str, code: int, closed: str) -> None:
    line = f"{sys.executable} -m vqtool {words} {closed}"
    assert subprocess.run(line, shell=True, capture_output=True, check=False).returncode == code


def test_output_to_a_pipe_is_complete(vqtool: Command) -> None:
    command = [sys.executable, "-m", "vqtool", "init"]
    # os.environ explicitly: readline sets COLUMNS in the environment of the process, which os.environ does not contain.
    result = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert result.stdout == vqtool("init").out


def test_installed_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="vqtool")
    assert script.load() is main


def test_help_lists_every_command(vqtool: Command) -> None:
    result = vqtool("--help")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.partition("Commands:\n")[2].splitlines() if line] == COMMANDS


def test_version_option_prints_the_version(vqtool: Command) -> None:
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
def test_help_of_every_command_lists_its_options(command: str, options: list[str], vqtool: Command) -> None:
    result = vqtool(command, "--help")
    assert result.code == 0
    assert [option for option in options if option not in result.out] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "bogus"),
        (["train"], "--config"),
        (["train", "--config", "c.yaml", "--bogus"], "--bogus"),
        (["encode"], "RUN"),
        (["encode", "run"], "--out"),
        (["encode", "run", "--out", "t.npy", "--batch-size", "0"], "--batch-size"),
        (["encode", "run", "--out", "t.npy", "--batch-size", "many"], "--batch-size"),
        (["decode", "run", "--out", "d.npy"], "FILE.npy"),
        (["inspect"], "TARGET"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_argument(arguments: list[str], message: str, vqtool: Command) -> None:
    result = vqtool(*arguments)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, message)


def test_without_a_command_help_is_printed(vqtool: Command) -> None:
    result = vqtool()
    assert result.code == 2
    assert "Commands:" in result.out + result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("the message"), 2),
        (DataError("the message"), 2),
        (CheckpointError("the message"), 2),
        (TrainingError("the message"), 3),
        (Stopped(2, "the message"), 130),
        (Stopped(15, "the message"), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_errors_print_their_message_and_exit_with_their_code(
    error: Exception, code: int, vqtool: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(error))
    assert vqtool("init") == Result(code, "", "vqtool: the message\n")


def test_keyboard_interrupt_exits_with_130(vqtool: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(KeyboardInterrupt()))
    result = vqtool("init")
    assert (result.code, result.out) == (130, "")


def test_other_exceptions_are_raised_as_bugs(vqtool: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtool.cli.recipes.recipes", _raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        vqtool("init")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("vqtool.inference.decode.decode_file", ["decode", "run", "t.npy", "--out", "d.npy"]),
        ("vqtool.inference.tokenizer.Tokenizer.evaluate", ["eval", "run"]),
        ("vqtool.inspection.inspect", ["inspect", "run"]),
    ],
)
def test_out_of_memory_prints_one_line_and_exits_with_2(
    function: str, arguments: list[str], vqtool: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtool.inference.tokenizer.load", lambda run, device: SimpleNamespace(evaluate=fail))
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(function, fail)
    result = vqtool(*arguments)
    assert (result.code, result.out) == (2, "")
    assert mentions(result.err, "vqtool: out of memory ... --device")
    assert result.err.count("\n") == 1
    error = RuntimeError("shapes differ")
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
def test_directory_that_is_not_a_run_exits_with_2(
    arguments: list[str], vqtool: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for fragments in ("vqtool: nowhere: not a run ... does not exist", "vqtool: nowhere: not a run ... config.yaml"):
        result = vqtool(*arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert mentions(result.err, fragments)
        (tmp_path / "nowhere").mkdir(exist_ok=True)


def _raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
