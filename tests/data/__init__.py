"""Shapes shared by the tests of the data package."""

from vqtool.data.layout import LayoutName

# Layout, row shape with 3 channels and pairwise different sizes, and channel axis.
ROWS: list[tuple[LayoutName, tuple[int, ...], int | None]] = [
    ("C", (3,), 0),
    ("CT", (3, 5), 0),
    ("TC", (5, 3), 1),
    ("CHW", (3, 5, 7), 0),
    ("HWC", (5, 7, 3), 2),
    ("T", (5,), None),
    ("HW", (5, 7), None),
]
