"""The page: figures put into the template. All text that comes from a user is escaped there.

A page is UTF-8, and names are not always: what of them is no visible character stands as an escape, as in a terminal.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from vqtool.inspection.comparison import HEADER, MEANING, UNLIKE, Compared, differences, same_data, table
from vqtool.inspection.explain import explain, too_young
from vqtool.inspection.finding import Finding, guide
from vqtool.inspection.level_table import LEVEL_HEADER, LEVEL_MEANING, level_rows
from vqtool.inspection.report.codebook_map import map_figure
from vqtool.inspection.report.compare import curves_overlaid, rate_distortion_figure
from vqtool.inspection.report.cooccurrence import cooccurrence_figure
from vqtool.inspection.report.curves import Metrics, curves_figure
from vqtool.inspection.report.figure import Figure
from vqtool.inspection.report.index_maps import index_maps_figure
from vqtool.inspection.report.inputs import ReportInputs
from vqtool.inspection.report.meanings import meanings_figures
from vqtool.inspection.report.usage import usage_figure
from vqtool.inspection.words import counted
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import escape_control, escape_surrogates


@dataclass(frozen=True)
class Grid:
    """A table of text on the page."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Page:
    """What the template takes."""

    title: str
    subtitle: str
    figures: Sequence[Figure]
    tables: Sequence[Grid] = ()
    findings: Sequence[Finding] | None = None
    """Of one target, in full."""
    found: Sequence[tuple[str, Sequence[Finding]]] = ()
    """Of several targets by number and name, in brief."""
    explanations: Sequence[str] = ()
    notes: Sequence[str] = ()
    config: str = ""
    settings: Grid | None = None
    tiles: Sequence[tuple[str, str, str]] = field(default_factory=list)
    """Name, value and what it means."""


def page_of_one(material: ReportInputs) -> str:
    """The page of a run or an index file."""
    inspection = material.inspection
    levels, seen = inspection.levels, material.seen
    figures = [
        usage_figure(levels),
        curves_figure(material.metrics, levels[0].codebook_size),
        seen and map_figure(seen.collected, seen.collected.tally.levels),
        *(meanings_figures(seen, seen.collected.tally.levels) if seen else []),
        seen and index_maps_figure(seen),
        cooccurrence_figure(material.relations, levels),
    ]
    return _render(
        Page(
            title=escape_control(inspection.target),
            subtitle=f"Counted on {escape_control(inspection.counted)}: {counted(inspection.tokens, 'token')}"
            + (f" at each of {len(levels)} levels." if len(levels) > 1 else "."),
            figures=[figure for figure in figures if figure],
            tables=[_levels(levels)] if len(levels) > 1 else [],
            findings=inspection.findings,
            explanations=explain(levels, inspection.kind, inspection.batch_tokens),
            notes=_notes(material),
            config=material.config,
            tiles=_tiles(levels[0], inspection.distinct, len(levels) > 1),
        )
    )


def page_of_several(runs: Sequence[Compared], metrics: Sequence[Metrics], missing: Sequence[str] = ()) -> str:
    """The page that compares.

    Args:
        missing: why runs are left out, a sentence each.
    """
    alike = same_data(runs)
    figures = [curves_overlaid(metrics), rate_distortion_figure(runs, alike)]
    differing = differences(runs)
    numbers = ["setting", *(str(number) for number in range(1, len(runs) + 1))]
    settings = [
        (key, *("\N{EN DASH}" if value is None else str(value) for value in values))
        for key, values in differing.items()
    ]
    return _render(
        Page(
            title=f"{len(runs)} targets compared" if len(runs) > 1 else "1 target",
            subtitle=MEANING,
            figures=[figure for figure in figures if figure],
            tables=[Grid(HEADER, [[escape_control(cell) for cell in row] for row in table(runs)])],
            settings=Grid(numbers, settings) if settings else None,
            found=[
                (f"{number}  {escape_control(run.inspection.target)}", run.inspection.findings)
                for number, run in enumerate(runs, 1)
            ],
            notes=[
                *map(escape_control, missing),
                *([] if alike else [UNLIKE]),
            ],
        )
    )


def _notes(material: ReportInputs) -> list[str]:
    notes = [material.missing] if material.missing else []
    if material.inspection.young_until is not None:
        notes.append(too_young(material.inspection.young_until))
    if material.seen and not material.seen.collected.codes:
        notes.append("The codebook is too large for the codebook map and the example samples; both are missing.")
    return notes


def _tiles(usage: Usage, distinct: IdCounts | None, several: bool) -> list[tuple[str, str, str]]:
    tiles = [
        ("codes, level 0" if several else "codes", f"{usage.codebook_size:,}", "K, the codebook size"),
        ("used", f"{usage.used:,}", f"{usage.usage:.1%}; expected for uniform usage: {usage.expected_used:,.0f}"),
        ("dead", f"{usage.dead:,}", "codes without hits"),
        ("perplexity", f"{usage.perplexity:,.1f}", "effective number of codes, exp(entropy)"),
        ("bits per token", f"{usage.entropy_bits:.2f}", f"entropy; {usage.entropy:.1%} of log2 K"),
    ]
    if distinct:
        tiles.append(("collisions", f"{distinct.collision_rate:.2%}", "1 - distinct ids / rows"))
    return tiles


def _levels(levels: Sequence[Usage]) -> Grid:
    return Grid(LEVEL_HEADER, level_rows(levels), "Levels", LEVEL_MEANING)


def _render(page: Page) -> str:
    text = _template().render(**{name: getattr(page, name) for name in page.__dataclass_fields__})
    return escape_surrogates(text)


def _listed(figures: Mapping[str, float | int | str | None]) -> str:
    """Figures that are known, by name, as short as four digits allow."""
    known = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    return ", ".join(f"{name} = {value}" for name, value in known.items() if value is not None)


def _template() -> Template:
    text = files("vqtool.inspection.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment: Any = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["quoted"] = shlex.quote  # to be pasted into a shell
    environment.filters["listed"] = _listed
    environment.filters["guide"] = guide
    template: Template = environment.from_string(text)
    return template
