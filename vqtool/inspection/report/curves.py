"""Curves of training metrics, of one run or of several, and the rate-distortion plot of several runs.

Drawings show the numbers of runs, never their names: markup is not escaped.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vqtool.inspection.comparison import TargetSummary
from vqtool.inspection.report.figure import BLUE, GREY, LINE_COLOURS, ORANGE, Figure, Picture, Table, svg_drawing

# One object per logged step: {"step": 10, "loss/total": 0.5, ...}.
Metrics = Sequence[dict[str, Any]]

# A loss curve is drawn on a logarithmic scale if its maximum is more than this multiple of its minimum.
_MAX_LINEAR_RATIO = 5.0

# Metrics drawn in a comparison, with the labels of their axes.
_COMPARED_TAGS = {
    "validation/loss/reconstruction": "reconstruction",
    "codebook/usage": "used / K",
    "codebook/perplexity": "perplexity",
    "codebook/entropy": "entropy / ln K",
}


def curves_figure(metrics: Metrics, codebook_size: int) -> Figure | None:
    """Draw the losses, usage, perplexity and entropies of a run against steps; None if no such metric was logged.

    Args:
        codebook_size: K; the perplexity is drawn as a fraction of it.
    """
    tags = sorted(
        {tag for line in metrics for tag in line if tag.startswith(("loss/", "validation/loss/", "codebook/"))}
    )
    if not tags:
        return None
    with svg_drawing("curves", "training curves", 4.6, 8.0, rows=5, columns=1, sharex=True) as drawing:
        reconstruction, commitment, entropy_loss, usage, entropy = drawing.axes[:, 0]
        _plot_loss(reconstruction, metrics, "reconstruction")
        _plot_loss(commitment, metrics, "commitment")
        _plot_loss(entropy_loss, metrics, "entropy", "entropy loss")
        _plot_usage(usage, metrics, codebook_size)
        _plot_entropy(entropy, metrics)
        entropy.set_xlabel("step")
    return Figure(
        name="curves",
        title="Training curves",
        pictures=[Picture(drawing.svg)],
        axes="Horizontal: training steps. Vertical, from top to bottom: reconstruction and commitment loss in "
        "normalised units; entropy loss in nats (losses with a wide range are logarithmic); usage and perplexity as "
        "fractions of K; entropies as fractions of ln K: soft (mean soft assignment), hard (counts of the chosen "
        "codes), per sample (mean entropy of the soft assignment of one latent). Points are validations.",
        interpretation="The reconstruction loss should fall; usage and perplexity should rise and then stay. High soft "
        "entropy with low hard entropy means that the entropy loss is near its minimum although few codes are used: "
        "lower the temperature.",
        data=Table(["step", *tags], [[line["step"], *(line.get(tag) for tag in tags)] for line in metrics]),
    )


def overlaid_curves_figure(metrics_of_runs: Sequence[Metrics]) -> Figure | None:
    """Draw the validation curves of several runs on common axes; None if no run has any.

    Args:
        metrics_of_runs: logged metrics of each target; empty for an index file.
    """
    curves = {tag: [metric_series(metrics, tag) for metrics in metrics_of_runs] for tag in _COMPARED_TAGS}
    if not any(steps for runs in curves.values() for steps, _ in runs):
        return None
    label = "validation curves of all runs"
    with svg_drawing("overlaid", label, 4.6, 6.6, len(_COMPARED_TAGS), 1, sharex=True) as drawing:
        for ax, (tag, runs) in zip(drawing.axes[:, 0], curves.items(), strict=True):
            for i, (steps, values) in enumerate(runs):
                ax.plot(steps, values, ".-", color=_run_colour(i), label=f"{i + 1}")
            ax.set_ylabel(_COMPARED_TAGS[tag])
        drawing.axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=8, borderaxespad=0)
        drawing.axes[-1, 0].set_xlabel("step")
    rows = [
        (number, tag, step, value)
        for tag, runs in curves.items()
        for number, curve in enumerate(runs, 1)
        for step, value in zip(*curve, strict=True)
    ]
    return Figure(
        name="overlaid",
        title="Validation curves",
        pictures=[Picture(drawing.svg)],
        axes="Horizontal: training steps. Vertical, from top to bottom: reconstruction loss in validation, in "
        "normalised units; usage (used codes / K); perplexity; entropy of the counts as a fraction of ln K.",
        interpretation="The legend shows the run numbers of the table above. Perplexities are comparable only between "
        "codebooks of the same size.",
        data=Table(["run", "tag", "step", "value"], rows),
    )


def rate_distortion_figure(runs: Sequence[TargetSummary], same_data: bool) -> Figure | None:
    """Draw reconstruction loss against bits per sample; None if no run has both.

    Args:
        same_data: all runs have the same data; otherwise the figure warns that losses are not comparable.
    """
    points = [
        (number, run.bits, run.used_bits, run.reconstruction)
        for number, run in enumerate(runs, 1)
        if run.bits is not None and run.used_bits is not None and run.reconstruction is not None
    ]
    if not points:
        return None
    with svg_drawing("rate-distortion", "reconstruction loss against bits per sample", height=3.2) as drawing:
        for number, bits, used_bits, loss in points:
            colour = _run_colour(number - 1)
            drawing.ax.plot([used_bits, bits], [loss, loss], color=colour, lw=1)
            drawing.ax.plot([used_bits], [loss], "o", color=colour)
            drawing.ax.plot([bits], [loss], "|", color=colour, ms=9)
            drawing.ax.annotate(str(number), (used_bits, loss), (0, 6), textcoords="offset points", ha="center")
        drawing.ax.margins(0.12, 0.18)
        drawing.ax.set(xlabel="bits per sample", ylabel="reconstruction loss")
    warning = "" if same_data else " These runs have different data, so their reconstruction losses are not comparable."
    return Figure(
        name="rate-distortion",
        title="Rate and distortion",
        pictures=[Picture(drawing.svg)],
        axes="Horizontal: bits per sample. The disc is the entropy of the indices (tokens per sample times entropy), "
        "the tick is their size (tokens per sample times log2 K). Vertical: reconstruction loss of the best "
        "validation, in normalised units.",
        interpretation="Lower and further left is better. A long line between disc and tick means that much of the "
        f"codebook is unused.{warning}",
        data=Table(["run", "size (bits)", "entropy (bits)", "reconstruction"], points),
    )


def metric_series(metrics: Metrics, tag: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a tag; steps without a number for it are skipped."""
    points = [(line["step"], float(line[tag])) for line in metrics if isinstance(line.get(tag), int | float)]
    return [step for step, _ in points], [value for _, value in points]


def _plot_loss(ax: Axes, metrics: Metrics, name: str, label: str = "") -> None:
    steps, values = metric_series(metrics, f"loss/{name}")
    ax.plot(steps, values, color=GREY, lw=1, label="training")
    ax.plot(*metric_series(metrics, f"validation/loss/{name}"), ".-", color=BLUE, label="validation")
    if values and 0 < _MAX_LINEAR_RATIO * min(values) < max(values):
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel(label or name)
    _add_legend(ax)


def _plot_usage(ax: Axes, metrics: Metrics, codebook_size: int) -> None:
    ax.plot(*metric_series(metrics, "codebook/usage"), ".-", color=BLUE, label="used / K")
    steps, perplexity = metric_series(metrics, "codebook/perplexity")
    ax.plot(steps, [value / codebook_size for value in perplexity], ".-", color=ORANGE, label="perplexity / K")
    ax.set(ylim=(0, 1.05), ylabel="usage")
    _add_legend(ax)


def _plot_entropy(ax: Axes, metrics: Metrics) -> None:
    labels = {"soft_entropy": "soft", "entropy": "hard", "sample_entropy": "per sample"}
    for colour, (tag, label) in zip(LINE_COLOURS, labels.items(), strict=False):
        ax.plot(*metric_series(metrics, f"codebook/{tag}"), ".-", color=colour, label=label)
    ax.set(ylim=(0, 1.05), ylabel="entropy / ln K")
    _add_legend(ax)


def _add_legend(ax: Axes) -> None:
    if any(len(line.get_xdata()) for line in ax.get_lines()):  # type: ignore[arg-type]
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, borderaxespad=0)
    else:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center")


def _run_colour(index: int) -> str:
    return LINE_COLOURS[index % len(LINE_COLOURS)]
