"""The Typer app: the list of commands, and the only place that maps errors to messages and exit codes."""

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

# For commands that have no setting to lower, because they compute in chunks of a fixed size.
_OUT_OF_MEMORY_ADVICE = "free memory, pass fewer rows, or choose another --device"


class Commands(TyperGroup):
    """Command group that prints errors that the user can fix, and exits with an exit code.

    The exit code of such an error is 3 if training cannot continue, 128 + signal number after a signal, and 2 in all
    other cases. Any other exception is a bug and is not caught.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VqtoolError as error:
            rank = rank_info().rank
            process = f", process {rank}" if rank else ""
            sys.stderr.write(f"vqtool{process}: {error}\n")  # one write: several processes may write at the same time
            raise typer.Exit(_exit_code(error)) from error
        except (typer.Exit, typer.Abort):  # both are RuntimeErrors
            raise
        except (MemoryError, RuntimeError) as error:
            from vqtool.runtime.memory import is_out_of_memory  # imports torch, which --help must not

            if not is_out_of_memory(error):
                raise
            print(f"vqtool: out of memory; {_OUT_OF_MEMORY_ADVICE}", file=sys.stderr)
            raise typer.Exit(2) from error
        except OSError as error:  # not converted where it was raised, such as a file name that is too long
            name = escape_control(str(error.filename or "")).rstrip()
            print(f"vqtool: {name}{': ' * bool(name)}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            print("vqtool: interrupted", file=sys.stderr)
            raise typer.Exit(128 + signal.SIGINT) from error


def _exit_code(error: VqtoolError) -> int:
    if isinstance(error, Stopped):
        return 128 + error.signal
    return 3 if isinstance(error, TrainingError) else 2


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"vqtool {version('vqtool')}")
        raise typer.Exit


@app.callback()
def _vqtool(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, use and inspect vector-quantized autoencoders."""


app.command()(init)
app.command()(train)
app.command()(encode)
app.command()(decode)
app.command("eval")(evaluate)
app.command()(inspect)
