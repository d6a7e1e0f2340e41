"""What the tests of the data layer share."""

from vqtool.data.layout import LayoutName

# A row of each layout with 3 channels, sizes all different, and the axis of its channels.
ROWS: list[tuple[LayoutName, tuple[int, ...], int | None]] = [
    ("C", (3,), 0),
    ("CT", (3, 5), 0),
    ("TC", (5, 3), 1),
    ("CHW", (3, 5, 7), 0),
    ("HWC", (5, 7, 3), 2),
    ("T", (5,), None),
    ("HW", (5, 7), None),
]
