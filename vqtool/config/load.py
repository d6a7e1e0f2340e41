"""From a config file and overrides to settings, and back to a file."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import yaml
from pydantic import ValidationError

from vqtool.config.overrides import apply_overrides
from vqtool.config.problems import describe
from vqtool.config.schema import RunSettings
from vqtool.config.yaml_reader import CORE_SCHEMA, read_yaml
from vqtool.errors import ConfigError
from vqtool.runtime.files import atomic_write, read_error_reason
from vqtool.runtime.terminal import escape_surrogates

# Larger files are not configs.
_LARGEST = 1 << 20
# Errors shown at most.
_MOST_PROBLEMS = 100


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes also those strings that only YAML 1.2 would take for something else."""


for _tag, _pattern, _first in CORE_SCHEMA:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read, override and validate a config; the name defaults to the file's, if it is a file.

    A pipe will do, such as a shell's `<(...)`.

    Raises:
        ConfigError: everything that is wrong, a line each.
    """
    tree = read_yaml(_read(path), str(path))
    if not isinstance(tree.values, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `data:` and `model:`")
    apply_overrides(tree, overrides, RunSettings)
    if tree.values.get("name") is None and path.is_file():
        if path.stem == escape_surrogates(path.stem):
            tree.values["name"] = path.stem
        else:
            tree.problems.append(f"{path}: name: missing, and the file name is not valid UTF-8; set name")
    problems: Iterable[str] = tree.problems
    try:
        settings = RunSettings.model_validate(tree.values)
    except ValidationError as error:
        problems = chain(problems, describe(error, tree, RunSettings))
    found = list(islice(problems, _MOST_PROBLEMS + 1))
    if len(found) > _MOST_PROBLEMS:
        found[-1] = f"more errors follow; only the first {_MOST_PROBLEMS} are shown"
    if found:
        raise ConfigError(*found)
    return settings


def write_config(path: Path, settings: RunSettings) -> None:
    """Write all settings, defaults included."""
    text = yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)  # no more, for a device has neither size nor end
        if len(content) > _LARGEST:
            raise ConfigError(f"{path}: larger than {_LARGEST:,} bytes; not a config file")
        return content.decode()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: does not exist; `vqtool init` lists recipes to start from") from error
    except OSError as error:
        raise ConfigError(f"{path}: {read_error_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
