"""HTML pages: the data for the template `template.html.j2`, and its rendering.

The template escapes all text for HTML; only the markup of pictures is inserted as it is. Control characters in names of
targets, and surrogates (undecodable bytes of file names) anywhere, are shown as backslash escapes: pages are UTF-8.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from vqtool.inspection.comparison import (
    COMPARISON_HEADER,
    COMPARISON_LEGEND,
    DIFFERENT_DATA_NOTE,
    LEVEL_HEADER,
    LEVEL_LEGEND,
    TargetSummary,
    comparison_rows,
    differing_settings,
    level_rows,
    same_data,
)
from vqtool.inspection.explain import early_training_note, explain
from vqtool.inspection.finding import Finding, guide_reference
from vqtool.inspection.report.code_examples import code_examples_figures
from vqtool.inspection.report.codebook_figures import codebook_map_figure, usage_figure
from vqtool.inspection.report.cooccurrence import cooccurrence_figure
from vqtool.inspection.report.curves import Metrics, curves_figure, overlaid_curves_figure, rate_distortion_figure
from vqtool.inspection.report.figure import Figure
from vqtool.inspection.report.index_maps import index_maps_figure
from vqtool.inspection.report.inputs import ReportInputs
from vqtool.metrics.collisions import IdCounts
from vqtool.metrics.usage import Usage
from vqtool.runtime.terminal import escape_control, escape_surrogates, pluralize


@dataclass(frozen=True)
class TextTable:
    """A table of text on the page."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    legend: str = ""


@dataclass(frozen=True)
class SummaryTile:
    """A number at the top of the page, with its name and a short explanation."""

    name: str
    value: str
    explanation: str


@dataclass(frozen=True)
class Page:
    """Variables of the template. The page has no section for an empty variable.

    Attributes:
        findings: findings of one target, shown with evidence and suggested changes; None on a comparison page. If it is
            an empty list, the page says that there are no findings.
        findings_by_target: on a comparison page, pairs (number and name of a target, its findings), shown without
            evidence and changes.
        explanations: sentences of the section "What is a good perplexity?".
        notes: sentences at the top of the page.
        config: text of config.yaml.
        differing_settings: on a comparison page, the settings in which the runs differ.
    """

    title: str
    subtitle: str
    figures: Sequence[Figure]
    tables: Sequence[TextTable] = ()
    findings: Sequence[Finding] | None = None
    findings_by_target: Sequence[tuple[str, Sequence[Finding]]] = ()
    explanations: Sequence[str] = ()
    notes: Sequence[str] = ()
    config: str = ""
    differing_settings: TextTable | None = None
    summary_tiles: Sequence[SummaryTile] = ()


def render_report_page(inputs: ReportInputs) -> str:
    """Return the HTML page of one run or index file."""
    inspection, model_samples = inputs.inspection, inputs.model_samples
    levels = inspection.levels
    figures: list[Figure | None] = [usage_figure(levels), curves_figure(inputs.metrics, levels[0].codebook_size)]
    notes = [inputs.data_error] if inputs.data_error else []
    if inspection.early_until is not None:
        notes.append(early_training_note(inspection.early_until))
    if model_samples:
        pass_levels = model_samples.data_pass.counter.levels
        figures.append(codebook_map_figure(model_samples.data_pass, pass_levels))
        figures += code_examples_figures(model_samples, pass_levels)
        figures.append(index_maps_figure(model_samples))
        if not model_samples.data_pass.codebooks:
            notes.append("The codebook is too large for the codebook map and the example samples; both are missing.")
    figures.append(cooccurrence_figure(inputs.cooccurrences, levels))
    several_levels = len(levels) > 1
    return _render(
        Page(
            title=escape_control(inspection.target),
            subtitle=f"Counted on {escape_control(inspection.counted_on)}: {pluralize(inspection.tokens, 'token')}"
            + (f" at each of {len(levels)} levels." if several_levels else "."),
            figures=[figure for figure in figures if figure],
            tables=[TextTable(LEVEL_HEADER, level_rows(levels), "Levels", LEVEL_LEGEND)] if several_levels else [],
            findings=inspection.findings,
            explanations=explain(levels, inspection.sample_kind, inspection.batch_tokens),
            notes=notes,
            config=inputs.config,
            summary_tiles=_summary_tiles(levels[0], inspection.distinct, several_levels),
        )
    )


def render_comparison_page(
    runs: Sequence[TargetSummary], metrics_of_runs: Sequence[Metrics], skipped_notes: Sequence[str] = ()
) -> str:
    """Return the HTML page that compares several runs or index files.

    Args:
        metrics_of_runs: the logged metrics of each target; empty for an index file.
        skipped_notes: one sentence for each run that was skipped; may contain control characters.
    """
    have_same_data = same_data(runs)
    figures = [overlaid_curves_figure(metrics_of_runs), rate_distortion_figure(runs, have_same_data)]
    settings = [
        (key, *("\N{EN DASH}" if value is None else str(value) for value in values))
        for key, values in differing_settings(runs).items()
    ]
    settings_header = ["setting", *(str(number) for number in range(1, len(runs) + 1))]
    rows = [[escape_control(cell) for cell in row] for row in comparison_rows(runs)]
    return _render(
        Page(
            title=f"{len(runs)} targets compared" if len(runs) > 1 else "1 target",
            subtitle=COMPARISON_LEGEND,
            figures=[figure for figure in figures if figure],
            tables=[TextTable(COMPARISON_HEADER, rows)],
            differing_settings=TextTable(settings_header, settings) if settings else None,
            findings_by_target=[
                (f"{number}  {escape_control(run.inspection.target)}", run.inspection.findings)
                for number, run in enumerate(runs, 1)
            ],
            notes=[*map(escape_control, skipped_notes), *([] if have_same_data else [DIFFERENT_DATA_NOTE])],
        )
    )


def _summary_tiles(usage: Usage, distinct: IdCounts | None, several_levels: bool) -> list[SummaryTile]:
    expected = f"{usage.usage:.1%}; expected for uniform usage: {usage.expected_used:,.0f}"
    tiles = [
        SummaryTile(
            "codes, level 0" if several_levels else "codes", f"{usage.codebook_size:,}", "K, the codebook size"
        ),
        SummaryTile("used", f"{usage.used:,}", expected),
        SummaryTile("dead", f"{usage.dead:,}", "codes without hits"),
        SummaryTile("perplexity", f"{usage.perplexity:,.1f}", "effective number of codes, exp(entropy)"),
        SummaryTile("bits per token", f"{usage.entropy_bits:.2f}", f"entropy; {usage.entropy:.1%} of log2 K"),
    ]
    if distinct:
        tiles.append(SummaryTile("collisions", f"{distinct.collision_rate:.2%}", "1 - distinct ids / rows"))
    return tiles


def _render(page: Page) -> str:
    text = files("vqtool.inspection.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment: Any = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shell_quote"] = shlex.quote
    environment.filters["format_evidence"] = _format_evidence
    environment.filters["guide_reference"] = guide_reference
    variables = {name: getattr(page, name) for name in page.__dataclass_fields__}
    return escape_surrogates(environment.from_string(text).render(**variables))


def _format_evidence(evidence: Mapping[str, float | int | str | None]) -> str:
    """Return "name = value, ...", floats with four significant digits; values that are None are omitted."""
    values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in evidence.items()}
    return ", ".join(f"{name} = {value}" for name, value in values.items() if value is not None)
