"""Run checks in forked processes, so that a crash, a hang or excessive memory of one check is reported."""

import argparse
import json
import os
import resource
import select
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

# Limits of a check: seconds, and bytes of memory beyond those of the parent process.
SECONDS = 30
MEMORY = 6 << 30


class Outcome(NamedTuple):
    """Outcome of a check: `kind` is "run", "refused" or "broken" (the guarantee does not hold)."""

    kind: str
    detail: str = ""


# Checks the mutant of a number.
Check = Callable[[int], Outcome]


class Hang(BaseException):
    """A check exceeded its time limit; a BaseException, so that no handler of errors catches it."""


def outcomes(numbers: Sequence[int], check: Check) -> Iterator[tuple[int, Outcome]]:
    """Yield each number, in order, with the outcome of `check` for it.

    The checks run in one forked process. If it crashes or hangs, that check is broken, and a new process does the rest.
    """
    done = 0
    while done < len(numbers):
        child, pipe = _fork(numbers[done:], check)
        for line in _lines(pipe):
            yield numbers[done], Outcome(*json.loads(line))
            done += 1
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done < len(numbers):
            reason = "hung" if status == -signal.SIGKILL else f"process exited with status {status}"
            yield numbers[done], Outcome("broken", reason)
            done += 1


def _fork(numbers: Sequence[int], check: Check) -> tuple[int, int]:
    """Start a process that checks all numbers; return its id, and a pipe with one line of JSON per outcome."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child:
        os.close(write_end)
        return child, read_end
    try:
        _set_limits()
        for number in numbers:
            os.write(write_end, json.dumps(_run_check(check, number)).encode() + b"\n")
    finally:
        os._exit(0)


def _lines(pipe: int) -> Iterator[bytes]:
    """Yield lines until the pipe is closed, or until no line arrives within the time limit of a check."""
    with os.fdopen(pipe, "rb", buffering=0) as file:
        partial_line = b""
        while select.select([file], [], [], SECONDS + 10)[0] and (content := file.read(1 << 16)):
            *lines, partial_line = (partial_line + content).split(b"\n")
            yield from lines


def _set_limits() -> None:
    """Limit memory, disable core dumps, raise `Hang` on SIGALRM, and turn warnings into errors, in this process."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _raise_hang)
    warnings.simplefilter("error")


def _raise_hang(number: int, frame: Any) -> None:
    raise Hang


def _run_check(check: Check, number: int) -> Outcome:
    """Return the outcome of a check; any exception, including `Hang` after `SECONDS`, counts as broken."""
    signal.alarm(SECONDS)
    try:
        return check(number)
    except BaseException:
        signal.alarm(0)
        return Outcome("broken", traceback.format_exc()[-2000:])
    finally:
        signal.alarm(0)


def make_parser(doc: str | None, mutants: int) -> argparse.ArgumentParser:
    """Return a parser with the options `mutants` (default: the argument), `seed`, and `only`, one number or None."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=mutants, help=f"number of mutants; default: {mutants}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutants; default: 0")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="check only this mutant, and print it")
    return parser


@contextmanager
def scratch() -> Iterator[Path]:
    """Context with a temporary working directory, which also holds the scan cache; sets PyTorch to one thread."""
    torch.set_num_threads(1)  # threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        old_folder = Path.cwd()
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(old_folder)


def run(arguments: argparse.Namespace, check: Check, show: Callable[[int], str]) -> Counter[str]:
    """Check the mutants that the options of `make_parser` select, print the broken ones, and count outcomes by kind.

    Args:
        show: returns the text to print for a mutant of a number.
    """
    numbers = range(arguments.mutants) if arguments.only is None else [arguments.only]
    counts: Counter[str] = Counter()
    for number, outcome in tqdm(outcomes(numbers, check), total=len(numbers), disable=None):
        counts[outcome.kind] += 1
        if outcome.kind == "broken":
            print(f"broken: seed {arguments.seed}, mutant {number}: {outcome.detail}\n{show(number)}\n", flush=True)
        elif arguments.only is not None:
            print(f"{outcome.kind}: {outcome.detail}\n{show(number)}")
    return counts
