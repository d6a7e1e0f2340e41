"""Many checks in forked processes: one that crashes, hangs or grows is noticed, named, and does not end the rest."""

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

# What a check may take: seconds, and bytes of memory beyond those that the parent has.
SECONDS = 30
MEMORY = 6 << 30


class Outcome(NamedTuple):
    """What became of a mutant: "run", "refused" or "broken", the promise that is; and what there is to say of it."""

    kind: str
    detail: str = ""


Check = Callable[[int], Outcome]


class Hang(BaseException):
    """A check took too long. No Exception, so that nothing takes it for a damaged file's."""


def outcomes(numbers: Sequence[int], check: Check) -> Iterator[tuple[int, Outcome]]:
    """The outcome of `check` for each number, in order; after a crash or a hang the next process goes on."""
    done = 0
    while done < len(numbers):
        child, pipe = _fork(numbers[done:], check)
        for line in _lines(pipe):
            yield numbers[done], Outcome(*json.loads(line))
            done += 1
        os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done < len(numbers):
            how = "hung" if status == -signal.SIGKILL else f"the process ended with {status}"
            yield numbers[done], Outcome("broken", how)
            done += 1


def _fork(numbers: Sequence[int], check: Check) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        _limit()
        for number in numbers:
            os.write(writing, json.dumps(_guarded(check, number)).encode() + b"\n")
    finally:
        os._exit(0)


def _lines(pipe: int) -> Iterator[bytes]:
    """Lines until the other end is closed, or nothing comes for longer than a check may take."""
    with os.fdopen(pipe, "rb", buffering=0) as file:
        rest = b""
        while select.select([file], [], [], SECONDS + 10)[0] and (found := file.read(1 << 16)):
            *lines, rest = (rest + found).split(b"\n")
            yield from lines


def _limit() -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _hang)
    warnings.simplefilter("error")


def _hang(number: int, frame: Any) -> None:
    raise Hang


def _guarded(check: Check, number: int) -> Outcome:
    """The outcome of a check; what escapes it breaks the promise."""
    signal.alarm(SECONDS)
    try:
        return check(number)
    except BaseException:
        signal.alarm(0)
        return Outcome("broken", traceback.format_exc()[-2000:])
    finally:
        signal.alarm(0)


def parser_of(doc: str | None, mutants: int) -> argparse.ArgumentParser:
    """Takes how many mutants, which seed, and one number alone."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=mutants)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one mutant, to look at it again")
    return parser


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder to work in, with the cache of scans in it."""
    torch.set_num_threads(1)  # other threads would not be there after a fork
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def run(arguments: argparse.Namespace, check: Check, show: Callable[[int], str]) -> Counter[str]:
    """Check all mutants, print those that break the promise, and count the outcomes."""
    numbers = range(arguments.mutants) if arguments.only is None else [arguments.only]
    counts: Counter[str] = Counter()
    for number, outcome in tqdm(outcomes(numbers, check), total=len(numbers), disable=None):
        counts[outcome.kind] += 1
        if outcome.kind == "broken":
            print(f"broken: seed {arguments.seed}, mutant {number}: {outcome.detail}\n{show(number)}\n", flush=True)
        elif arguments.only is not None:
            print(f"{outcome.kind}: {outcome.detail}\n{show(number)}")
    return counts
