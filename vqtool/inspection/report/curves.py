"""The training curves, on one axis of steps."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from vqtool.inspection.report.drawing import ACCENT, QUIET, SECOND, SERIES, drawing
from vqtool.inspection.report.figure import Figure, Picture, Table

Metrics = Sequence[dict[str, Any]]

# Losses that differ by more than this are drawn on a logarithmic scale.
_SPREAD = 5.0


def curves_figure(metrics: Metrics, codebook_size: int) -> Figure | None:
    """Losses, usage, perplexity, soft and hard entropy; None where nothing was logged."""
    tags = sorted(
        {tag for line in metrics for tag in line if tag.startswith(("loss/", "validation/loss/", "codebook/"))}
    )
    if not tags:
        return None
    with drawing("curves", "training curves", 4.6, 8.0, rows=5, columns=1, sharex=True) as made:
        reconstruction, commitment, entropy_loss, usage, entropy = made.axes[:, 0]
        _losses(reconstruction, metrics, "reconstruction")
        _losses(commitment, metrics, "commitment")
        _losses(entropy_loss, metrics, "entropy", "entropy loss")
        _usage(usage, metrics, codebook_size)
        _entropy(entropy, metrics)
        entropy.set_xlabel("step")
    return Figure(
        name="curves",
        title="Training curves",
        pictures=[Picture(made.svg)],
        axes="Horizontal: training steps. Vertical, from top to bottom: reconstruction and commitment loss in "
        "normalised units; entropy loss in nats (losses with a wide range are logarithmic); usage and perplexity as "
        "fractions of K; entropies as fractions of ln K: soft (mean soft assignment), hard (counts of the chosen "
        "codes), per sample (mean entropy of the soft assignment of one latent). Points are validations.",
        meaning="The reconstruction loss should fall; usage and perplexity should rise and then stay. High soft "
        "entropy with low hard entropy means that the entropy loss is near its minimum although few codes are used: "
        "lower the temperature.",
        numbers=Table(["step", *tags], [[line["step"], *(line.get(tag) for tag in tags)] for line in metrics]),
    )


def series(metrics: Metrics, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a tag."""
    found = [(line["step"], float(line[tag])) for line in metrics if isinstance(line.get(tag), int | float)]
    return [step for step, _ in found], [value for _, value in found]


def _losses(ax: Axes, metrics: Metrics, name: str, label: str = "") -> None:
    steps, values = series(metrics, f"loss/{name}")
    ax.plot(steps, values, color=QUIET, lw=1, label="training")
    ax.plot(*series(metrics, f"validation/loss/{name}"), ".-", color=ACCENT, label="validation")
    if values and 0 < _SPREAD * min(values) < max(values):
        ax.set_yscale("log")
        _plain_ticks(ax)
    ax.set_ylabel(label or name)
    _legend(ax)


def _plain_ticks(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _usage(ax: Axes, metrics: Metrics, codebook_size: int) -> None:
    ax.plot(*series(metrics, "codebook/usage"), ".-", color=ACCENT, label="used / K")
    steps, values = series(metrics, "codebook/perplexity")
    ax.plot(steps, [value / codebook_size for value in values], ".-", color=SECOND, label="perplexity / K")
    ax.set(ylim=(0, 1.05), ylabel="usage")
    _legend(ax)


def _entropy(ax: Axes, metrics: Metrics) -> None:
    names = {"soft_entropy": "soft", "entropy": "hard", "sample_entropy": "per sample"}
    for colour, (tag, name) in zip(SERIES, names.items(), strict=False):
        ax.plot(*series(metrics, f"codebook/{tag}"), ".-", color=colour, label=name)
    ax.set(ylim=(0, 1.05), ylabel="entropy / ln K")
    _legend(ax)


def _legend(ax: Axes) -> None:
    if any(len(line.get_xdata()) for line in ax.get_lines()):  # type: ignore[arg-type]
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, borderaxespad=0)
    else:
        ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center")
