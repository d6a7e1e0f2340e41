"""What a page shows: figures, each with its caption and the numbers behind it."""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqtool.runtime.terminal import escape_surrogates


@dataclass(frozen=True)
class Picture:
    """One drawing of a figure.

    Attributes:
        markup: SVG or an image element; trusted, so no name of a user's may be in it.
        title: what it shows, as plain text.
    """

    markup: str
    title: str = ""


@dataclass(frozen=True)
class Table:
    """The numbers behind a figure."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @property
    def csv(self) -> str:
        """As comma-separated values."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *map(_plain, self.rows)])
        return text.getvalue()

    @property
    def formatted(self) -> list[list[str]]:
        """As text for a table on the page."""
        return [[_readable(cell) for cell in row] for row in self.rows]

    @property
    def uri(self) -> str:
        """As a link that holds all of them."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(escape_surrogates(self.csv).encode()).decode()


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: of the file that its numbers are saved as.
        axes: what is drawn against what.
        meaning: what to see in it, in a sentence or two.
        shown: whether the numbers are a table on the page, too.
    """

    name: str
    title: str
    pictures: Sequence[Picture]
    axes: str
    meaning: str
    numbers: Table = field(repr=False)
    shown: bool = False


def _plain(row: Iterable[Any]) -> list[Any]:
    """A row with floats as short as six digits allow: a page should stay small."""
    return [f"{value:.6g}" if isinstance(value, float) else value for value in row]


def _readable(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
