"""The shipped configs: complete, commented, and to be changed."""

from difflib import get_close_matches
from pathlib import Path

from vqtool.errors import ConfigError
from vqtool.runtime.files import atomic_write

# Begins the line that names the schema for editors.
_MODELINE = "# yaml-language-server"


def recipes() -> dict[str, str]:
    """The name of each recipe, and the summary in its first comment."""
    return {path.stem: _summary(path) for path in sorted(_folder().glob("*.yaml"))}


def write_recipe(name: str, out: Path | None = None, schema: bool = False) -> Path:
    """Write a recipe to `out`, by default <name>.yaml, and return that path.

    Args:
        schema: also write schema.json beside it.

    Raises:
        ConfigError: no such recipe, or the file exists, or another schema.json does.
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
    with atomic_write(out) as part:  # without schema.json beside it, an editor would complain of the line that names it
        part.write_text("".join(line for line in lines if schema or not line.startswith(_MODELINE)), encoding="utf-8")
    return out


def _write_schema(out: Path) -> None:
    content = (_folder() / "schema.json").read_bytes()
    if not out.exists():
        with atomic_write(out) as part:
            part.write_bytes(content)
    elif out.read_bytes() != content:
        raise ConfigError(
            f"{out}: already exists with other contents; remove it, or choose another directory with --out"
        )


def _summary(path: Path) -> str:
    """The first comment that is not for an editor."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith(_MODELINE)).lstrip("# ")


def _folder() -> Path:
    package = Path(__file__).parents[1]
    inside = package / "configs"  # in an installed package; a checkout has the folder beside the package
    return inside if inside.is_dir() else package.parent / "configs"
