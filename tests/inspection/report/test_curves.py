"""Curves of logged metrics. The comparison figures are tested through the comparison page in test_report.py."""

from vqtool.inspection.report.curves import curves_figure, metric_series


def test_curves_data_holds_all_logged_metrics() -> None:
    metrics = [{"step": 5, "loss/reconstruction": 2.0}, {"step": 10, "codebook/usage": 0.5, "codebook/entropy": 0.7}]
    figure = curves_figure(metrics, 16)
    assert figure
    assert figure.data.columns == ["step", "codebook/entropy", "codebook/usage", "loss/reconstruction"]
    assert figure.data.rows == [[5, None, None, 2.0], [10, 0.7, 0.5, None]]
    assert metric_series(metrics, "codebook/usage") == ([10], [0.5])
    assert "not logged" in figure.pictures[0].markup
    assert curves_figure([{"step": 3}], 16) is None
