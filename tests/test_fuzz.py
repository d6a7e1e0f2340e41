"""Short version of the fuzzers: any config and tensor file runs, or is refused with the key or file named."""

import operator
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqtool.config import RunSettings, load_config, write_config
from vqtool.errors import ConfigError
from vqtool.runtime.settings import Settings

SCRIPTS = Path(__file__).parents[1] / "scripts"
SUMMARY_LINE = re.compile(r"^\d+ (configs|tensor files): \d+ run, \d+ refused by (key|name), 0 broken$")


@pytest.mark.parametrize(("script", "mutants"), [("fuzz_configs", 40), ("fuzz_tensors", 200)])
def test_every_mutant_runs_or_is_refused(script: str, mutants: int) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--mutants", str(mutants), "--seed", "11"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert SUMMARY_LINE.match(result.stdout.splitlines()[-1])


FAULTY_CHECKS = """
import os, sys, time
sys.path.insert(0, {scripts!r})
from checks import forked
forked.SECONDS = 1
def check(number):
    match number:
        case 0: os.abort()
        case 1: time.sleep(60)
        case 2: raise ValueError("odd")
        case 3: return bytearray(forked.MEMORY * 2)
    return forked.Outcome("run")
for number, outcome in forked.outcomes(range(5), check):
    print(number, outcome.kind, outcome.detail.strip().splitlines()[-1:])
"""


def test_crash_hang_error_and_memory_growth_of_a_check_are_reported() -> None:
    program = FAULTY_CHECKS.format(scripts=str(SCRIPTS))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "0 broken ['process exited with status -6']",
        "1 broken ['checks.forked.Hang']",
        "2 broken ['ValueError: odd']",
        "3 broken ['MemoryError']",
        "4 run []",
    ]


def mostly(usual: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy that draws from `usual` in 99 of 100 cases, otherwise from `rare`."""
    return st.integers(0, 99).flatmap(lambda number: rare if number == 42 else usual)


def blocks(block: type[Settings]) -> st.SearchStrategy[dict[str, Any]]:
    """Return blocks of a settings class: some of its keys, mostly with valid values; rarely an unknown key."""
    keys = {name: values(field.annotation, list(field.metadata)) for name, field in block.model_fields.items()}
    needed = {name: keys.pop(name) for name, field in block.model_fields.items() if field.is_required()}
    if "kind" in keys:
        needed["kind"] = keys.pop("kind")
    known = st.fixed_dictionaries(needed, optional=keys)
    return mostly(known, known.map(lambda block: {**block, "unknown_key": 1}))


def values(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Return values of an annotation, within its bounds or just outside; rarely of another type."""
    return mostly(of_type(annotation, bounds), JUNK)


def of_type(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Return values of the type of an annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return of_type(arguments[0], [*bounds, *arguments[1:]])
    if origin in (Union, UnionType):
        return st.one_of(*(of_type(argument, bounds) for argument in arguments))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(of_type(arguments[0], []), max_size=3)
    if issubclass(annotation, Settings):
        return st.deferred(lambda: blocks(annotation))
    return numbers(annotation, bounds) if annotation in (int, float) else PLAIN[annotation]


def numbers(annotation: type, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Return numbers at the ends of the allowed range; rarely just outside."""
    ends = {name: getattr(bound, name) for bound in flat(bounds) for name in COMPARED if hasattr(bound, name)}
    near = {annotation(value) for end in ends.values() for value in (end - 1, end - 0.5, end, end + 0.5, end + 1)} | {4}
    allowed = [value for value in near if all(COMPARED[name](value, end) for name, end in ends.items())]
    return mostly(st.sampled_from(sorted(allowed)), st.sampled_from(sorted(near)))


def flat(bounds: list[Any]) -> Iterator[Any]:
    """Yield single bounds, also those inside pydantic field metadata."""
    for bound in bounds:
        yield from flat(bound.metadata) if hasattr(bound, "metadata") else [bound]


COMPARED = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
PLAIN = {str: mostly(st.just("cpu"), st.text(max_size=5)), bool: st.booleans(), type(None): st.none()}
JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}))


class WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@given(tree=blocks(RunSettings))
@settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_generated_settings_load_or_each_error_line_names_a_key(
    tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.dump(tree, Dumper=WithoutAliases), encoding="utf-8", errors="surrogatepass")
    try:
        loaded = load_config(path)
    except ConfigError as error:
        for line in str(error).splitlines():
            assert re.match(rf"{re.escape(str(path))}(:\d+)?: \w[\w.[\]]*: \S", line), line
        return
    write_config(path, loaded)
    assert load_config(path) == loaded
