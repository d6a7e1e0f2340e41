"""Codebook health: code usage, findings with suggested changes, text and HTML reports, comparison of runs."""

from vqtool.inspection.inspect_targets import Inspection, inspect
from vqtool.inspection.report import write_report
from vqtool.inspection.text import compare, render

__all__ = ["Inspection", "compare", "inspect", "render", "write_report"]
