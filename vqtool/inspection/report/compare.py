"""Several runs on one page: their curves overlaid, and what each pays for what it keeps.

User-given names stay out of the drawings: runs have the numbers that the page's table gives them.
"""

from collections.abc import Sequence

from vqtool.inspection.comparison import Compared
from vqtool.inspection.report.curves import Metrics, series
from vqtool.inspection.report.drawing import SERIES, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table

_TAGS = {
    "validation/loss/reconstruction": "reconstruction",
    "codebook/usage": "used / K",
    "codebook/perplexity": "perplexity",
    "codebook/entropy": "entropy / ln K",
}


def curves_overlaid(metrics: Sequence[Metrics]) -> Figure | None:
    """Validation curves of all runs; None where none has any."""
    found = {tag: [series(own, tag) for own in metrics] for tag in _TAGS}
    if not any(steps for runs in found.values() for steps, _ in runs):
        return None
    with drawing("overlaid", "validation curves of all runs", 4.6, 6.6, len(_TAGS), 1, sharex=True) as made:
        for ax, (tag, runs) in zip(made.axes[:, 0], found.items(), strict=True):
            for number, (steps, values) in enumerate(runs):
                ax.plot(steps, values, ".-", color=_colour(number), label=f"{number + 1}")
            ax.set_ylabel(_TAGS[tag])
        made.axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=8, borderaxespad=0)
        made.axes[-1, 0].set_xlabel("step")
    rows = [
        (number, tag, step, value)
        for tag, runs in found.items()
        for number, own in enumerate(runs, 1)
        for step, value in zip(*own, strict=True)
    ]
    return Figure(
        name="overlaid",
        title="Validation curves",
        pictures=[Picture(made.svg)],
        axes="Horizontal: training steps. Vertical, from top to bottom: reconstruction loss in validation, in "
        "normalised units; usage (used codes / K); perplexity; entropy of the counts as a fraction of ln K.",
        meaning="The legend shows the run numbers of the table above. Perplexities are comparable only between "
        "codebooks of the same size.",
        numbers=Table(["run", "tag", "step", "value"], rows),
    )


def rate_distortion_figure(runs: Sequence[Compared], alike: bool) -> Figure | None:
    """Reconstruction against bits; None where nothing is known of it.

    Args:
        alike: whether all runs have the same data.
    """
    points = [
        (number, run.bits, run.used_bits, run.reconstruction)
        for number, run in enumerate(runs, 1)
        if run.bits is not None and run.used_bits is not None and run.reconstruction is not None
    ]
    if not points:
        return None
    with drawing("rate-distortion", "reconstruction loss against bits per sample", height=3.2) as made:
        for number, bits, used_bits, loss in points:
            colour = _colour(number - 1)
            made.ax.plot([used_bits, bits], [loss, loss], color=colour, lw=1)
            made.ax.plot([used_bits], [loss], "o", color=colour)
            made.ax.plot([bits], [loss], "|", color=colour, ms=9)
            made.ax.annotate(str(number), (used_bits, loss), (0, 6), textcoords="offset points", ha="center")
        made.ax.margins(0.12, 0.18)
        made.ax.set(xlabel="bits per sample", ylabel="reconstruction loss")
    warning = "" if alike else " These runs have different data, so their reconstruction losses are not comparable."
    return Figure(
        name="rate-distortion",
        title="Rate and distortion",
        pictures=[Picture(made.svg)],
        axes="Horizontal: bits per sample. The disc is the entropy of the indices (tokens per sample times entropy), "
        "the tick is their size (tokens per sample times log2 K). Vertical: reconstruction loss of the best "
        "validation, in normalised units.",
        meaning="Lower and further left is better. A long line between disc and tick means that much of the codebook "
        f"is unused.{warning}",
        numbers=Table(["run", "size (bits)", "entropy (bits)", "reconstruction"], points),
    )


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]
