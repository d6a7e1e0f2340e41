"""What the benchmarks share: parts to choose from, and lines to keep."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def parser_of(doc: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Takes the names of some of the parts, all where none is named, and --json FILE."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts)

    def part(text: str) -> str:  # choices would be held against the default, too
        if text not in names:
            raise argparse.ArgumentTypeError(f"no part is called {text!r}; expected some of {', '.join(names)}")
        return text

    parser.add_argument("parts", nargs="*", type=part, default=names, metavar="PART")
    parser.add_argument("--json", type=Path, help="also write the lines here")
    return parser


def keep(path: Path | None, part: str, line: dict[str, Any]) -> None:
    """Add a line of a part to the file, if there is one."""
    if path:
        with path.open("a") as file:
            file.write(json.dumps({"part": part, **line}) + "\n")
