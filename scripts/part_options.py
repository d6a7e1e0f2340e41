"""Command line and JSON output shared by the benchmark and soak scripts."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def make_parser(doc: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser for part names (default: all parts) and --json FILE."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts)

    def part(text: str) -> str:  # `choices` would also be checked against the default
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown part {text}; expected one or more of {', '.join(names)}")
        return text

    described = f"parts to run: {', '.join(names)}; default: all"
    parser.add_argument("parts", nargs="*", type=part, default=names, metavar="PART", help=described)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each row to FILE as one JSON object per line")
    return parser


def append_json(path: Path | None, part: str, line: dict[str, Any]) -> None:
    """Append a row of a part to the file, if a path is given."""
    if path:
        with path.open("a") as file:
            file.write(json.dumps({"part": part, **line}) + "\n")
