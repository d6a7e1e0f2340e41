"""Render inspections as text for a terminal or a pipe: tables, explanations, findings."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from vqtool.inspection.comparison import (
    COMPARISON_HEADER,
    COMPARISON_LEGEND,
    DIFFERENT_DATA_NOTE,
    LEVEL_HEADER,
    LEVEL_LEGEND,
    comparison_rows,
    differing_settings,
    group_by_value,
    level_rows,
    same_data,
    summarize_target,
)
from vqtool.inspection.explain import early_training_note, explain
from vqtool.inspection.finding import NO_CHANGE, Change, Finding, guide_reference
from vqtool.inspection.inspect_targets import Inspection
from vqtool.metrics.usage import Usage
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.terminal import escape_control, pluralize

_SEVERITY_STYLES = {"severe": "bold red", "warning": "yellow", "note": "cyan"}
# Number of most used, and of least used, codes that are listed.
_LISTED_CODES = 5
# Columns aligned to the left; all others hold numbers and are aligned to the right.
_LEFT_COLUMNS = ("", "target")
# Bin edges of the histogram of hits per code, in multiples of the mean.
_BIN_EDGES = [0.25, 0.5, 1.0, 2.0, 4.0]
# Spaces between columns, tried in this order until the table fits.
_COLUMN_GAPS = (2, 1)


def render(inspection: Inspection) -> RenderableType:
    """Return the text about one target: usage, explanation, findings; several levels share one table."""
    levels = inspection.levels
    per_level = " per level" if len(levels) > 1 else ""
    parts: list[RenderableType] = [
        Text(escape_control(inspection.target), style="bold"),
        Text(f"counted on {escape_control(inspection.counted_on)}: {pluralize(inspection.tokens, 'token')}{per_level}"),
    ]
    if inspection.settings_error:
        parts.append(Text(f"{inspection.settings_error}; findings that need the settings are not reported"))
    if inspection.distinct:
        ids = inspection.distinct
        parts.append(
            Text(
                f"distinct ids: {ids.ids:,} of {pluralize(ids.rows, 'row')}, collision rate {ids.collision_rate:.4%} "
                "(codes only, without the --unique column)"
            )
        )
    parts += [Text(), *(_one_level(levels[0]) if len(levels) == 1 else _several_levels(levels))]
    sentences = explain(levels, inspection.sample_kind, inspection.batch_tokens)
    parts += [Text(), *(Text(sentence, style="dim") for sentence in sentences)]
    if inspection.early_until is not None:
        parts += [Text(), Text(early_training_note(inspection.early_until))]
    return Group(*parts, Text(), *_findings(inspection.findings))


def compare(inspections: Sequence[Inspection]) -> RenderableType:
    """Return a table with one row per target, and a table of the settings in which runs differ.

    Settings and reconstruction losses are read from the run directories.
    """
    targets = [summarize_target(inspection, RunDirectory(inspection.target)) for inspection in inspections]
    table = _comparison_table(comparison_rows(targets))
    note = "" if same_data(targets) else f" {DIFFERENT_DATA_NOTE}"
    legend = Text(COMPARISON_LEGEND + note, style="dim")
    differing = differing_settings(targets)
    if not differing:
        return Group(Text(), table, legend)
    settings = _table("settings that differ (run numbers in parentheses)")
    for key, values in differing.items():
        settings.add_row(Text(key, overflow="fold"), Text(group_by_value(values)))
    return Group(Text(), table, legend, Text(), settings)


def _comparison_table(rows: Sequence[Sequence[str]]) -> RenderableType:
    """Return the table of `rows`; on a narrow terminal the names of the targets become a list above it."""
    title = "comparison: one row per target"
    header = [re.sub(r"(?<=[/.]) ?", "\n", name) for name in COMPARISON_HEADER]
    names = [Text(escape_control("  ".join(row[:2]))) for row in rows]
    numbers = [[row[0], *row[2:]] for row in rows]
    return _FirstFitting(
        *(_table(title, header, rows, gap) for gap in _COLUMN_GAPS),
        Group(Text(title, style="bold"), *names, _table("", ["", *header[2:]], numbers, 1)),
    )


def _findings(findings: Sequence[Finding]) -> list[RenderableType]:
    if not findings:
        return [Text("findings: none", style="bold")]
    parts: list[RenderableType] = [Text("findings", style="bold")]
    for finding in findings:
        symptom = Text(f"{finding.severity}", style=_SEVERITY_STYLES[finding.severity])
        symptom.append(f" ({finding.name}): {finding.message}", style="default")
        parts += [_HangingIndent(symptom, 0), _HangingIndent(Text(f"cause: {finding.cause}", style="dim"), 2)]
        parts += [_SuggestedChange(change) for change in finding.changes]
        if not finding.changes:
            parts.append(_HangingIndent(Text(NO_CHANGE), 2))
    return [*parts, Text(f"see {guide_reference(findings)}")]


def _one_level(usage: Usage) -> list[RenderableType]:
    ranked = sorted(range(usage.codebook_size), key=lambda code: (-usage.counts[code], code))
    used = [code for code in ranked if usage.counts[code]]
    values = _table()
    for name, value, meaning in (
        ("codes", f"{usage.codebook_size:,}", "K, the codebook size"),
        ("used", f"{usage.used:,} ({usage.usage:.1%})", f"expected for uniform usage: {usage.expected_used:,.1f}"),
        ("dead", f"{usage.dead:,}", "codes without hits"),
        ("perplexity", f"{usage.perplexity:,.1f}", "effective number of codes, exp(entropy)"),
        ("entropy", f"{usage.entropy_bits:.3f} bits", f"per token, {usage.entropy:.1%} of log2 K"),
    ):
        values.add_row(name, value, Text(meaning, style="dim"))
    extremes = _table()
    for name, codes in (("most", used[:_LISTED_CODES]), ("least", used[: -_LISTED_CODES - 1 : -1])):
        hits = "  ".join(f"{code}:{usage.counts[code]:,}" for code in codes)
        extremes.add_row(f"{name} used (code:hits)", Text(hits or "none"))
    return [values, extremes, Text(), _histogram(usage)]


def _several_levels(levels: Sequence[Usage]) -> list[RenderableType]:
    bins = [(str(number), *map(str, _codes_per_bin(usage))) for number, usage in enumerate(levels)]
    header = ("level", "no hits", *(f"<{edge:g}x" for edge in _BIN_EDGES), f">={_BIN_EDGES[-1]:g}x")
    title = "codes by hits, relative to the mean"
    return [
        _FirstFitting(*(_table("", LEVEL_HEADER, level_rows(levels), gap) for gap in _COLUMN_GAPS)),
        Text(LEVEL_LEGEND, style="dim"),
        Text(),
        _FirstFitting(*(_table(title, header, bins, gap) for gap in _COLUMN_GAPS)),
    ]


def _histogram(usage: Usage) -> Table:
    """Return a histogram of the hits per code, in multiples of the mean."""
    inner = (f"{low:g}x to {high:g}x" for low, high in pairwise(_BIN_EDGES))
    labels = ["no hits", f"under {_BIN_EDGES[0]:g}x", *inner, f"{_BIN_EDGES[-1]:g}x and over"]
    codes = _codes_per_bin(usage)
    table = _table(f"codes by hits, relative to the mean ({usage.tokens / usage.codebook_size:,.1f} hits)")
    for label, number in zip(labels, codes, strict=True):
        table.add_row(label, Text(f"{number:,}", justify="right"), Bar(max(codes), 0, number, width=30))
    return table


def _codes_per_bin(usage: Usage) -> list[int]:
    """Return the number of codes without hits, then the number in each bin; a bin includes its lower edge."""
    mean = usage.tokens / usage.codebook_size
    codes = [0] * (len(_BIN_EDGES) + 2)
    for hits in usage.counts:
        codes[0 if hits == 0 else 1 + sum(hits >= edge * mean for edge in _BIN_EDGES)] += 1
    return codes


def _table(title: str = "", header: Sequence[str] = (), rows: Sequence[Sequence[str]] = (), gap: int = 2) -> Table:
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        show_header=bool(header),
        header_style="default",
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
    )
    for name in header:
        table.add_column(name, overflow="fold", justify="left" if name in _LEFT_COLUMNS else "right")
    for row in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    return table


class _FirstFitting:
    """The first of several layouts that fits the width of the terminal; the last one if none fits."""

    def __init__(self, *layouts: RenderableType) -> None:
        self._layouts = layouts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update_width(10_000)
        widths = [console.measure(layout, options=unlimited).maximum for layout in self._layouts]
        fitting = (layout for layout, width in zip(self._layouts, widths, strict=True) if width <= options.max_width)
        yield next(fitting, self._layouts[-1])


class _SuggestedChange:
    """A suggested --set option and its effect, on one line if both fit the terminal.

    Otherwise the effect starts on a new line, and both are wrapped at the width of the terminal.
    """

    def __init__(self, change: Change) -> None:
        self._option = "try --set " + shlex.quote(f"{change.key}={change.value}")
        self._effect = change.why

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text(f"  {self._option}").append(f"  # {self._effect}", style="dim")
        if line.cell_len <= options.max_width:
            yield line
            return
        yield _HangingIndent(Text(self._option), 2)
        yield _HangingIndent(Text(f"# {self._effect}", style="dim"), 6)


class _HangingIndent:
    """A paragraph whose lines after the first are indented by two more columns."""

    def __init__(self, text: Text, indent: int) -> None:
        self._text, self._indent = text, indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._text.wrap(console, max(20, options.max_width - self._indent - 2))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text(" " * (self._indent + 2 * (number > 0))) + line
