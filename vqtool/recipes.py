"""The shipped configs: complete, commented, and to be changed."""

from difflib import get_close_matches
from pathlib import Path

from vqtool.errors import ConfigError
from vqtool.files import replacing


def recipes() -> dict[str, str]:
    """The name of each recipe, and the sentence that its first line says."""
    return {path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in _paths()}


def write_recipe(name: str, out: Path | None = None) -> Path:
    """Write a recipe to `out`, or to <name>.yaml; returns where it is.

    Raises:
        ConfigError: there is no such recipe, or the file is there already.
    """
    found = {path.stem: path for path in _paths()}
    if name not in found:
        close = get_close_matches(name, found, n=1)
        raise ConfigError(
            f"no recipe {name!r}; " + (f"did you mean {close[0]}?" if close else f"there are {', '.join(found)}")
        )
    out = out or Path(f"{name}.yaml")
    if out.exists():
        raise ConfigError(f"{out}: is there already; name another file with --out")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    with replacing(out) as part:
        part.write_bytes(found[name].read_bytes())
    return out


def _paths() -> list[Path]:
    package = Path(__file__).parent
    inside = package / "configs"  # in an installed package; in a checkout they lie beside it
    return sorted((inside if inside.is_dir() else package.parent / "configs").glob("*.yaml"))
