"""The command line: its commands, and the one place that prints errors and knows exit codes."""

import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vqtool.cli.decode import decode
from vqtool.cli.encode import encode
from vqtool.cli.eval import evaluate
from vqtool.cli.init import init
from vqtool.cli.inspect import inspect
from vqtool.cli.train import train
from vqtool.errors import Stopped, TrainingError, VqtoolError
from vqtool.runtime.terminal import escape_control
from vqtool.runtime.torchrun import rank_info

# For commands without a setting to lower: they work in chunks of a fixed size.
_ADVICE = "free memory, pass fewer rows, or choose another --device"


class Commands(TyperGroup):
    """Runs a command and turns what can be told to a user into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VqtoolError as error:
            rank = rank_info().rank
            whose = f", process {rank}" if rank else ""
            sys.stderr.write(f"vqtool{whose}: {error}\n")  # in one piece, for other processes may speak, too
            raise typer.Exit(_exit_code(error)) from error
        except (typer.Exit, typer.Abort):  # RuntimeErrors, too
            raise
        except (MemoryError, RuntimeError) as error:
            _tell_out_of_memory(error)
            raise typer.Exit(2) from error
        except OSError as error:  # What the system refuses, and nobody expected: a name too long, say.
            name = escape_control(str(error.filename or "")).rstrip()
            print(f"vqtool: {name}{': ' * bool(name)}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            print("vqtool: interrupted", file=sys.stderr)
            raise typer.Exit(128 + signal.SIGINT) from error


def _tell_out_of_memory(error: Exception) -> None:
    """Say so; raise any other error again."""
    from vqtool.runtime.memory import is_out_of_memory  # heavy: it imports torch

    if not is_out_of_memory(error):
        raise error
    print(f"vqtool: out of memory; {_ADVICE}", file=sys.stderr)


def _exit_code(error: VqtoolError) -> int:
    if isinstance(error, Stopped):
        return 128 + error.signal
    return 3 if isinstance(error, TrainingError) else 2


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"vqtool {version('vqtool')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _vqtool(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, use and inspect vector-quantized autoencoders."""


app.command()(init)
app.command()(train)
app.command()(encode)
app.command()(decode)
app.command("eval")(evaluate)
app.command()(inspect)
