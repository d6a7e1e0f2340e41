"""Command line and JSON output shared by the benchmark and soak scripts."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def make_parser(doc: str | None, parts: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser with the options `parts`, a list of part names (default: all), and `json`, a path or None.

    Args:
        doc: description, usually the docstring of the script.
        parts: names of all parts.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts)

    def part(text: str) -> str:  # `choices` would also be checked against the default
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown part {text}; expected one or more of {', '.join(names)}")
        return text

    help_text = f"parts to run: {', '.join(names)}; default: all"
    parser.add_argument("parts", nargs="*", type=part, default=names, metavar="PART", help=help_text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="append each row to FILE as one JSON object per line")
    return parser


def append_json(path: Path | None, part: str, row: dict[str, Any]) -> None:
    """Append a row to the file as one line of JSON, with the name of its part; no effect if `path` is None."""
    if path:
        with path.open("a") as file:
            file.write(json.dumps({"part": part, **row}) + "\n")
