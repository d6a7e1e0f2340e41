"""Which rows of a table are equal, bit by bit.

Shapes: n rows, D columns, m rows that differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers that are looked at together: they bound the memory.
_BLOCK = 1 << 18


def distinct_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row is seen first, and for each row which of those equals it.

    Rows are sorted by a number made of their bits, many times as fast as by themselves. Should two that differ ever
    share a number, all rows count as different: that costs time alone.

    Args:
        table: (n, D), float32 or float64.

    Returns:
        Places (m,), rising, and (n,) places among those.
    """
    factors = _factors(table.shape[1]).to(table.device)
    parts = table.split(max(1, _BLOCK // table.shape[1]))
    keys, order = torch.cat([(_bits(part) * factors).sum(dim=1) for part in parts]).sort(stable=True)
    new = F.pad(keys[1:] != keys[:-1], (1, 0), value=True)[: len(table)]
    # The first row, by place, of those with its number.
    earlier = torch.empty_like(order).index_put_((order,), order[new].index_select(0, new.cumsum(0) - 1))
    every = torch.arange(len(table), device=table.device)
    again = (earlier != every).nonzero().squeeze(1)
    for places in again.split(len(parts[0])):
        same = earlier.index_select(0, places)
        if not torch.equal(_bits(table.index_select(0, places)), _bits(table.index_select(0, same))):
            return every, every
    seen = earlier == every
    return every[seen], (seen.cumsum(0) - 1).index_select(0, earlier)


def _bits(rows: Tensor) -> Tensor:
    return rows.view(torch.int64 if rows.dtype == torch.float64 else torch.int32).long()


def _factors(count: int) -> Tensor:
    """Odd numbers (count,) of 63 bits, the same ones each time."""
    return torch.randint(1 << 62, (count,), generator=torch.Generator().manual_seed(0), device="cpu") * 2 + 1
