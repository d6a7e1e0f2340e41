"""The shipped recipes: complete, commented configs to start from."""

from difflib import get_close_matches
from pathlib import Path

from vqtool.errors import ConfigError
from vqtool.runtime.files import atomic_write

# Start of the comment line that names the JSON schema for editors.
_SCHEMA_LINE = "# yaml-language-server"


def recipes() -> dict[str, str]:
    """Return the summaries of all recipes by name, sorted. A summary is the first comment line of a recipe."""
    summaries = {}
    for path in sorted(_folder().glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        summaries[path.stem] = next(line for line in lines if not line.startswith(_SCHEMA_LINE)).lstrip("# ")
    return summaries


def write_recipe(name: str, out: Path | None = None, schema: bool = False) -> Path:
    """Write a recipe to a config file, and return the path of the file.

    Args:
        name: name of the recipe.
        out: file to write; None: NAME.yaml in the current directory.
        schema: also write schema.json to the directory of `out`.

    Raises:
        ConfigError: the recipe is unknown, `out` exists already, its directory is missing, or that directory contains a
            schema.json with other contents. Nothing is written.
        DataError: a file cannot be written.
    """
    names = list(recipes())
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
        raise ConfigError(f"{name}: unknown recipe; {hint}")
    out = out or Path(f"{name}.yaml")
    if out.exists():
        raise ConfigError(f"{out}: already exists; choose another file with --out")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: directory {out.parent} does not exist; create it")
    if schema:
        _write_schema(out.with_name("schema.json"))
    lines = (_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    if not schema:  # an editor would complain about a line that names a missing file
        lines = [line for line in lines if not line.startswith(_SCHEMA_LINE)]
    with atomic_write(out) as temp:
        temp.write_text("".join(lines), encoding="utf-8")
    return out


def _write_schema(path: Path) -> None:
    content = (_folder() / "schema.json").read_bytes()
    if not path.exists():
        with atomic_write(path) as temp:
            temp.write_bytes(content)
    elif path.read_bytes() != content:
        raise ConfigError(
            f"{path}: already exists with other contents; remove it, or choose another directory with --out"
        )


def _folder() -> Path:
    """Return the folder of the recipes: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
