"""Any config and any tensor file runs, or is refused by a message that names the key or the file: a short version."""

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
FIGURES = re.compile(r"^\d+ (configs|tensor files): \d+ run, \d+ refused by (key|name), 0 broken$")


@pytest.mark.parametrize(("script", "mutants"), [("fuzz_configs", 40), ("fuzz_tensors", 200)])
def test_every_mutant_runs_or_is_refused(script: str, mutants: int) -> None:
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), "--mutants", str(mutants), "--seed", "11"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert FIGURES.match(result.stdout.splitlines()[-1])


WATCHED = """
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


def test_what_watches_over_the_mutants_sees_a_crash_a_hang_an_error_and_growth() -> None:
    program = WATCHED.format(scripts=str(SCRIPTS))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "0 broken ['process exited with status -6']",
        "1 broken ['checks.forked.Hang']",
        "2 broken ['ValueError: odd']",
        "3 broken ['MemoryError']",
        "4 run []",
    ]


def seldom(rare: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 99).flatmap(lambda number: rare if number == 42 else usual)


def blocks(block: type[Settings]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for a settings class: some of its keys, mostly of their types; seldom one that it does not know."""
    keys = {name: values(field.annotation, list(field.metadata)) for name, field in block.model_fields.items()}
    needed = {name: keys.pop(name) for name, field in block.model_fields.items() if field.is_required()}
    if "kind" in keys:
        needed["kind"] = keys.pop("kind")
    known = st.fixed_dictionaries(needed, optional=keys)
    return seldom(known.map(lambda found: {**found, "unheard": 1}), known)


def values(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
    """Values of an annotation, within its bounds and just outside; seldom ones of another type."""
    return seldom(JUNK, of_type(annotation, bounds))


def of_type(annotation: Any, bounds: list[Any]) -> st.SearchStrategy[Any]:
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
    """Numbers at the ends of what is allowed; seldom just beyond."""
    ends = {name: getattr(bound, name) for bound in flat(bounds) for name in COMPARED if hasattr(bound, name)}
    near = {annotation(value) for end in ends.values() for value in (end - 1, end - 0.5, end, end + 0.5, end + 1)} | {4}
    allowed = [value for value in near if all(COMPARED[name](value, end) for name, end in ends.items())]
    return seldom(st.sampled_from(sorted(near)), st.sampled_from(sorted(allowed)))


def flat(bounds: list[Any]) -> Iterator[Any]:
    for bound in bounds:
        yield from flat(bound.metadata) if hasattr(bound, "metadata") else [bound]


COMPARED = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
PLAIN = {str: seldom(st.text(max_size=5), st.just("cpu")), bool: st.booleans(), type(None): st.none()}
JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}))


class WithoutAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@given(tree=blocks(RunSettings))
@settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_settings_made_of_the_schemas_own_fields_load_or_say_what_is_wrong(
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
