"""Figures for a terminal: tables and a small histogram."""

import shlex
from collections.abc import Sequence
from itertools import pairwise

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vqtool.inspection.comparison import HEADER, MEANING, UNLIKE, compared, differences, grouped, same_data, table
from vqtool.inspection.explain import explain, too_young
from vqtool.inspection.figures import Inspection
from vqtool.inspection.finding import Finding
from vqtool.inspection.words import counted
from vqtool.printable import printable
from vqtool.run import Run
from vqtool.usage import Usage

_STYLES = {"severe": "bold red", "warning": "yellow", "note": "cyan"}
# Codes named at either end of the ranking.
_NAMED = 5
# Bounds of the histogram's bins, in hits over the mean.
_BINS = [0.25, 0.5, 1.0, 2.0, 4.0]


def render(inspection: Inspection) -> RenderableType:
    """All that is known of one target."""
    parts: list[RenderableType] = [
        Text(printable(inspection.target), style="bold"),
        Text(f"counted on {printable(inspection.counted)}: {counted(inspection.tokens, 'token')}"),
    ]
    if inspection.distinct:
        found = inspection.distinct
        parts.append(
            Text(
                f"{counted(found.ids, 'distinct id')} of {counted(found.rows, 'row')}, by codes alone: "
                f"a collision rate of {found.collision_rate:.4%}"
            )
        )
    for number, usage in enumerate(inspection.levels):
        title = "codebook" if len(inspection.levels) == 1 else f"level {number}"
        parts += [Text(), _figures(title, usage), Text(), _histogram(usage)]
    sentences = explain(inspection.levels, inspection.kind, inspection.batch_tokens)
    parts += [Text(), *(Text(sentence, style="dim") for sentence in sentences)]
    if inspection.young_until is not None:
        parts += [Text(), Text(too_young(inspection.young_until))]
    return Group(*parts, Text(), _findings(inspection.findings))


def _findings(findings: Sequence[Finding]) -> Text:
    """What is wrong, why, and what to set; or that nothing is."""
    if not findings:
        return Text("findings: none", style="bold")
    text = Text()
    text.append("findings\n", style="bold")
    for finding in findings:
        text.append(f"{finding.severity}", style=_STYLES[finding.severity])
        text.append(f" ({finding.name}): {finding.message}\n", style="default")
        text.append(f"  {finding.cause}\n", style="dim")
        for change in finding.changes:
            text.append("  try --set " + shlex.quote(f"{change.key}={change.value}"), style="default")
            text.append(f"   {change.why}\n", style="dim")
    text.rstrip()
    return text


def compare(inspections: Sequence[Inspection]) -> RenderableType:
    """All targets in one table, and the settings in which runs differ."""
    runs = [compared(inspection, Run(inspection.target)) for inspection in inspections]
    rows = _table("compared: a row a target", header=HEADER)
    for row in table(runs):
        rows.add_row(*(Text(printable(cell)) for cell in row))
    differing, meaning = differences(runs), Text(MEANING if same_data(runs) else f"{MEANING} {UNLIKE}", style="dim")
    if not differing:
        return Group(Text(), rows, meaning)
    settings = _table("settings that differ, and the runs that have them")
    for key, values in differing.items():
        settings.add_row(Text(key, no_wrap=True), Text(grouped(values)))
    return Group(Text(), rows, meaning, Text(), settings)


def _figures(title: str, usage: Usage) -> Table:
    table = _table(title)
    order = sorted(range(usage.codebook_size), key=lambda code: (-usage.counts[code], code))
    used = [code for code in order if usage.counts[code]]
    rows = [
        ("codes", f"{usage.codebook_size:,}", ""),
        (
            "used",
            f"{usage.used:,} ({usage.usage:.1%})",
            f"even use would reach {usage.expected_used:,.1f} with these tokens",
        ),
        ("dead", f"{usage.dead:,}", "codes without a hit"),
        ("perplexity", f"{usage.perplexity:,.1f}", "codes that, used evenly, would say as much"),
        ("entropy", f"{usage.entropy_bits:.3f} bits", f"{usage.entropy:.1%} of log2 K"),
        ("most used", _named(used[:_NAMED], usage), "code: hits"),
        ("least used", _named(used[: -_NAMED - 1 : -1], usage), "code: hits, of those that have any"),
    ]
    for name, value, meaning in rows:
        table.add_row(name, value, Text(meaning, style="dim"))
    return table


def _named(codes: list[int], usage: Usage) -> str:
    return "  ".join(f"{code}: {usage.counts[code]:,}" for code in codes) or "none"


def _histogram(usage: Usage) -> Table:
    """How many codes have how many hits, against even use."""
    mean = usage.tokens / usage.codebook_size
    between = (f"{low:g}x to {high:g}x" for low, high in pairwise(_BINS))
    labels = ["no hits", f"under {_BINS[0]:g}x", *between, f"{_BINS[-1]:g}x and over"]
    codes = [0] * len(labels)
    for hits in usage.counts:
        codes[0 if hits == 0 else 1 + sum(hits >= bound * mean for bound in _BINS)] += 1
    table = _table("codes by hits, in multiples of even use")
    for label, number in zip(labels, codes, strict=True):
        table.add_row(label, Text(f"{number:,}", justify="right"), Bar(max(codes), 0, number, width=40))
    return table


def _table(title: str, header: Sequence[str] = ()) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", show_header=bool(header), box=None, padding=(0, 2, 0, 0)
    )
    for name in header:
        table.add_column(name, overflow="fold")
    return table
