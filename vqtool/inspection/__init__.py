"""Seeing into a codebook."""

from vqtool.inspection.figures import Inspection, inspect
from vqtool.inspection.text import render

__all__ = ["Inspection", "inspect", "render"]
