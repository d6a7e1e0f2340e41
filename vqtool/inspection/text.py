"""Inspections as text for a terminal or a pipe: tables, explanations, findings."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise

from rich.bar import Bar
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from vqtool.inspection.comparison import HEADER, MEANING, UNLIKE, compared, differences, grouped, same_data, table
from vqtool.inspection.explain import explain, too_young
from vqtool.inspection.finding import NO_CHANGE, Change, Finding, guide
from vqtool.inspection.inspect_targets import Inspection
from vqtool.inspection.level_table import LEVEL_HEADER, LEVEL_MEANING, level_rows
from vqtool.inspection.words import counted
from vqtool.metrics.usage import Usage
from vqtool.runs.run_directory import RunDirectory
from vqtool.runtime.terminal import escape_control

_STYLES = {"severe": "bold red", "warning": "yellow", "note": "cyan"}
# Codes named at either end of the ranking.
_NAMED = 5
# Columns that hold text; all others hold numbers.
_TEXT = ("", "target")
# Bounds of the histogram's bins, in multiples of the mean hits per code.
_BINS = [0.25, 0.5, 1.0, 2.0, 4.0]


def render(inspection: Inspection) -> RenderableType:
    """Everything about one target; several levels share one table."""
    levels = inspection.levels
    per_level = " per level" if len(levels) > 1 else ""
    parts: list[RenderableType] = [
        Text(escape_control(inspection.target), style="bold"),
        Text(f"counted on {escape_control(inspection.counted)}: {counted(inspection.tokens, 'token')}{per_level}"),
    ]
    if inspection.settings_error:
        parts.append(Text(f"{inspection.settings_error}; findings that need the settings are not reported"))
    if inspection.distinct:
        ids = inspection.distinct
        parts.append(
            Text(
                f"distinct ids: {ids.ids:,} of {counted(ids.rows, 'row')}, collision rate {ids.collision_rate:.4%} "
                "(codes only, without the --unique column)"
            )
        )
    parts += [Text(), *(_one_level(levels[0]) if len(levels) == 1 else _several_levels(levels))]
    sentences = explain(levels, inspection.kind, inspection.batch_tokens)
    parts += [Text(), *(Text(sentence, style="dim") for sentence in sentences)]
    if inspection.young_until is not None:
        parts += [Text(), Text(too_young(inspection.young_until))]
    return Group(*parts, Text(), *_findings(inspection.findings))


def compare(inspections: Sequence[Inspection]) -> RenderableType:
    """All targets in one table, and the settings in which runs differ."""
    runs = [compared(inspection, RunDirectory(inspection.target)) for inspection in inspections]
    rows = _comparison(table(runs))
    meaning = Text(MEANING if same_data(runs) else f"{MEANING} {UNLIKE}", style="dim")
    differing = differences(runs)
    if not differing:
        return Group(Text(), rows, meaning)
    settings = _table("settings that differ (run numbers in parentheses)")
    for key, values in differing.items():
        settings.add_row(Text(key, overflow="fold"), Text(grouped(values)))
    return Group(Text(), rows, meaning, Text(), settings)


def _comparison(rows: Sequence[Sequence[str]]) -> RenderableType:
    """A row per target; where the width is small, the names of targets are in a list of their own."""
    title, header = "comparison: one row per target", [re.sub(r"(?<=[/.]) ?", "\n", name) for name in HEADER]
    wide, narrow = (_table(title, header, rows, gap) for gap in (2, 1))
    names = [Text(escape_control("  ".join(row[:2]))) for row in rows]
    numbers = [[row[0], *row[2:]] for row in rows]
    return _Fitting(wide, narrow, Group(Text(title, style="bold"), *names, _table("", ["", *header[2:]], numbers, 1)))


def _findings(findings: Sequence[Finding]) -> list[RenderableType]:
    """What is wrong, why, and what to set; or that nothing is."""
    if not findings:
        return [Text("findings: none", style="bold")]
    parts: list[RenderableType] = [Text("findings", style="bold")]
    for finding in findings:
        head = Text(f"{finding.severity}", style=_STYLES[finding.severity])
        head.append(f" ({finding.name}): {finding.message}", style="default")
        parts += [_Hanging(head, 0), _Hanging(Text(f"cause: {finding.cause}", style="dim"), 2)]
        parts += [_Setting(change) for change in finding.changes]
        if not finding.changes:
            parts.append(_Hanging(Text(NO_CHANGE), 2))
    return [*parts, Text(f"see {guide(findings)}")]


def _one_level(usage: Usage) -> list[RenderableType]:
    order = sorted(range(usage.codebook_size), key=lambda code: (-usage.counts[code], code))
    used = [code for code in order if usage.counts[code]]
    table = _table()
    for name, value, meaning in (
        ("codes", f"{usage.codebook_size:,}", "K, the codebook size"),
        ("used", f"{usage.used:,} ({usage.usage:.1%})", f"expected for uniform usage: {usage.expected_used:,.1f}"),
        ("dead", f"{usage.dead:,}", "codes without hits"),
        ("perplexity", f"{usage.perplexity:,.1f}", "effective number of codes, exp(entropy)"),
        ("entropy", f"{usage.entropy_bits:.3f} bits", f"per token, {usage.entropy:.1%} of log2 K"),
    ):
        table.add_row(name, value, Text(meaning, style="dim"))
    named = _table()
    named.add_row("most used (code:hits)", _named(used[:_NAMED], usage))
    named.add_row("least used (code:hits)", _named(used[: -_NAMED - 1 : -1], usage))
    return [table, named, Text(), _histogram(usage)]


def _named(codes: list[int], usage: Usage) -> Text:
    return Text("  ".join(f"{code}:{usage.counts[code]:,}" for code in codes) or "none")


def _several_levels(levels: Sequence[Usage]) -> list[RenderableType]:
    bins = [(str(number), *map(str, _binned(usage))) for number, usage in enumerate(levels)]
    bounds = ("level", "no hits", *(f"<{bound:g}x" for bound in _BINS), f">={_BINS[-1]:g}x")
    title = "codes by hits, relative to the mean"
    return [
        _Fitting(*(_table("", LEVEL_HEADER, level_rows(levels), gap) for gap in (2, 1))),
        Text(LEVEL_MEANING, style="dim"),
        Text(),
        _Fitting(*(_table(title, bounds, bins, gap) for gap in (2, 1))),
    ]


def _histogram(usage: Usage) -> Table:
    """How many codes have how many hits, in multiples of the mean."""
    between = (f"{low:g}x to {high:g}x" for low, high in pairwise(_BINS))
    labels = ["no hits", f"under {_BINS[0]:g}x", *between, f"{_BINS[-1]:g}x and over"]
    codes = _binned(usage)
    table = _table(f"codes by hits, relative to the mean ({usage.tokens / usage.codebook_size:,.1f} hits)")
    for label, number in zip(labels, codes, strict=True):
        table.add_row(label, Text(f"{number:,}", justify="right"), Bar(max(codes), 0, number, width=30))
    return table


def _binned(usage: Usage) -> list[int]:
    """The number of codes without hits, and in each bin."""
    mean = usage.tokens / usage.codebook_size
    codes = [0] * (len(_BINS) + 2)
    for hits in usage.counts:
        codes[0 if hits == 0 else 1 + sum(hits >= bound * mean for bound in _BINS)] += 1
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
        table.add_column(name, overflow="fold", justify="left" if name in _TEXT else "right")
    for row in rows:
        table.add_row(*(Text(escape_control(cell)) for cell in row))
    return table


class _Fitting:
    """The first of several layouts that fits the width; the last one if none does."""

    def __init__(self, *layouts: RenderableType) -> None:
        self._layouts = layouts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unlimited = options.update_width(10_000)
        widths = [console.measure(layout, options=unlimited).maximum for layout in self._layouts]
        fitting = (layout for layout, width in zip(self._layouts, widths, strict=True) if width <= options.max_width)
        yield next(fitting, self._layouts[-1])


class _Setting:
    """A change to try; its reason is on a line of its own where both do not fit on one."""

    def __init__(self, change: Change) -> None:
        self._setting = "try --set " + shlex.quote(f"{change.key}={change.value}")
        self._why = change.why

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        whole = Text(f"  {self._setting}").append(f"  # {self._why}", style="dim")
        if whole.cell_len <= options.max_width:
            yield whole
            return
        yield _Hanging(Text(self._setting), 2)
        yield _Hanging(Text(f"# {self._why}", style="dim"), 6)


class _Hanging:
    """A paragraph whose first line is indented, and all others by two columns more."""

    def __init__(self, text: Text, indent: int) -> None:
        self._text, self._indent = text, indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self._text.wrap(console, max(20, options.max_width - self._indent - 2))
        for number, line in enumerate(lines):
            line.rstrip()
            yield Text(" " * (self._indent + 2 * (number > 0))) + line
