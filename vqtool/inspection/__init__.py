"""Seeing into a codebook."""

from vqtool.inspection.inspect_targets import Inspection, inspect
from vqtool.inspection.report import write_report
from vqtool.inspection.text import compare, render

__all__ = ["Inspection", "compare", "inspect", "render", "write_report"]
