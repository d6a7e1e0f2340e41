"""The samples that stand for a code.

Shapes: M samples, each with the position at which it has the code.
"""

from dataclasses import dataclass

from torch import Tensor

from vqtool.inspection.report.inputs import Seen
from vqtool.inspection.words import counted


@dataclass(frozen=True)
class Instances:
    """A code and the samples nearest to it.

    Attributes:
        share: of all tokens.
        numbers: of these rows in the user's array.
        positions: of the code in each.
        rows: (M, *row)
        decoded: (M, *row) what their indices decode to.
        without: (M, *row) the same with the most used other code in that place.
    """

    seen: Seen
    level: int
    code: int
    hits: int
    share: float
    numbers: list[int]
    positions: list[int]
    rows: Tensor
    decoded: Tensor
    without: Tensor

    @property
    def name(self) -> str:
        """What the drawing is called, unlike that of any other code."""
        return f"meaning-{self.level}-{self.code}"

    @property
    def title(self) -> str:
        """The title of the picture."""
        return f"code {self.code}: {counted(self.hits, 'hit')} ({self.share:.1%})"
