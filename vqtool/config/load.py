"""Load a YAML config and overrides as validated settings, and write settings to a file."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import yaml
from pydantic import ValidationError

from vqtool.config.overrides import apply_overrides
from vqtool.config.schema import RunSettings
from vqtool.config.validation_errors import describe_errors
from vqtool.config.yaml_reader import CORE_SCHEMA, read_yaml
from vqtool.errors import ConfigError
from vqtool.runtime.files import atomic_write, read_error_reason
from vqtool.runtime.terminal import escape_surrogates

_MAX_FILE_BYTES = 1 << 20
_MAX_SHOWN_ERRORS = 100


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which also quotes strings that only YAML 1.2 reads as another type, such as "1e3"."""


for _tag, _pattern, _first in CORE_SCHEMA:
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a config, apply overrides, and validate it.

    Args:
        path: YAML file or pipe. The stem of the file is the default of `name`; a pipe has no default.
        overrides: values of `--set`, each `KEY=VALUE`, as in `apply_overrides`.

    Raises:
        ConfigError: the file cannot be read, or the config is invalid. The message has one line, with location and key,
            for each of the first 100 invalid keys; a last line says if there are more. If the file or an override is
            not YAML, the message has only one line.
    """
    tree = read_yaml(_read_text(path), str(path))
    if not isinstance(tree.values, dict):
        raise ConfigError(f"{path}: expected keys and values, such as `data:` and `model:`")
    apply_overrides(tree, overrides, RunSettings)
    if tree.values.get("name") is None and path.is_file():
        if path.stem == escape_surrogates(path.stem):
            tree.values["name"] = path.stem
        else:
            tree.errors.append(f"{path}: name: missing, and the file name is not valid UTF-8; set name")
    messages: Iterable[str] = tree.errors
    try:
        settings = RunSettings.model_validate(tree.values)
    except ValidationError as error:
        messages = chain(messages, describe_errors(error, tree, RunSettings))
    shown = list(islice(messages, _MAX_SHOWN_ERRORS + 1))
    if len(shown) > _MAX_SHOWN_ERRORS:
        shown[-1] = f"more errors follow; only the first {_MAX_SHOWN_ERRORS} are shown"
    if shown:
        raise ConfigError(*shown)
    return settings


def write_config(path: Path, settings: RunSettings) -> None:
    """Write all settings as YAML, including defaults; replace an existing file atomically.

    Raises:
        DataError: the file cannot be written.
    """
    text = yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
    with atomic_write(path) as temp:
        temp.write_text(text, encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)  # the size of a pipe or device is unknown, and may be infinite
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES:,} bytes; not a config file")
        return content.decode()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: does not exist; `vqtool init` lists recipes to start from") from error
    except OSError as error:
        raise ConfigError(f"{path}: {read_error_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
